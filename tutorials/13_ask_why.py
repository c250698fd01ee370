# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 30
#     seconds: 60
#     after: [8, 12]
# ---

# %% [markdown]
# # 13 Ask why
#
# **Which words made the model say that, and how would you know?**
#
# In notebook 08 a model remembered a fox. Here you hold one of its predictions and ask for the
# reasons, in the two ways that there are: take something away and see what changes, or share the
# prediction out among the words, so that the shares add up to it. Both can mislead, so each is
# checked: by a sum that has to be right, and against the other.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lesson import check, show
from lesson.exercises.e13 import PROMPT
from mamba_np import AutoTokenizer, MambaForCausalLM, analysis, bundled_model_path, plot
from mamba_np import equations as eq
from mamba_np import interventions as change

plt.style.use(plot.STYLE)
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "0.5"
model = MambaForCausalLM.from_pretrained(bundled_model_path())
tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())

# %% [markdown]
# ## A prediction


# %%
def encoded(text):
    return tokenizer(text, return_tensors="np")["input_ids"][0]


def likeliest(ids, k=3):
    """Return the k likeliest next tokens and their probabilities."""
    p = eq.softmax(model(ids[None]).logits[0, -1])
    return [(tokenizer.decode([i]), round(float(p[i]), 3)) for i in np.argsort(-p)[:k]]


ids = encoded(PROMPT)
FOX, WOLF = (int(encoded(word)[0]) for word in (" fox", " wolf"))
trace = model.trace(ids, capture=("residual", "logits"))
labels = trace.labels
print(PROMPT, likeliest(ids))
assert likeliest(ids)[0][0] == " fox"

# %% [markdown]
# Who has not spoken yet answers. The model is right, but why: because of the fox, or because
# wolves and foxes come in pairs in tales, or for no reason at all?
#
# ## Take something away
#
# `CutPath(source=s)` hides what token $s$ wrote into the states from all later tokens, in all
# layers. Its other ways stay open: the convolution, a few tokens far, and the residual.

# %%
show(change.CutPath)

# %% [markdown]
# ### Exercise 13a: knock out each token in turn
#
# Write a function that returns, for each token $s$ of the text, by how much $\log p$ of the answer
# falls or rises when the states cannot carry $s$: negative where the answer becomes less likely.
# `with model.intervene(...):` changes the model inside the block.


# %%
def knock_out(model, ids, token):
    """Return log p(token) with each source cut, minus log p(token): (L)."""
    return ...  # model(ids[None]).logits[0, -1] are the scores of the next token


check("13a", knock_out)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 13a: open it when you have tried.
def without_each(model, ids, token):
    before = eq.log_softmax(model(ids[None]).logits[0, -1])[token]
    changes = []
    for source in range(len(ids)):
        with model.intervene(change.CutPath(source=source)):
            changes.append(eq.log_softmax(model(ids[None]).logits[0, -1])[token] - before)
    return np.array(changes)


check("13a", without_each)

# %%
cut = without_each(model, ids, FOX)
most = int(cut.argmin())
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.bar(range(len(ids)), cut, color=np.where(cut < 0, ORANGE, BLUE))
plot.token_axis(ax.xaxis, labels, tokens=trace.tokens)
ax.text(most + 0.7, cut[most], f"without {labels[most]!r}: {np.exp(cut[most]):.0%} as likely")
ax.set(ylabel="change of log p(fox)")
plt.show()
assert labels[most] == "·fox"

# %% [markdown]
# One token stands out: the fox, sixteen tokens ago. A knockout is an experiment, and its answer is
# about what *would be*. But a knockout asks about one token at a time. Had two tokens
# carried the same news, cutting either would have shown nothing.
#
# ## Share it out
#
# The other way: write the logit of " fox" as a sum with one term for each token. The obvious try
# is the gradient: if the logit were linear in the embeddings $e_s$, then
#
# $$\text{logit} = \sum_s \frac{\partial\,\text{logit}}{\partial e_s} \cdot e_s .$$

# %%
plain = analysis.relevance(model, ids, FOX, rules=False)
print(f"logit {plain.logit:.2f}; gradient x input: {plain.tokens.sum() + plain.bias:.2f}")
assert abs(plain.tokens.sum() + plain.bias - plain.logit) > 0.1 * plain.logit

# %% [markdown]
# It is not, and the shares do not add up: a picture of them would look just as good and mean
# little. Where does the sum get lost? Wherever two things that depend on the text are multiplied.
# If $y = u\,v$ then each factor's gradient times the factor gives all of $y$, together *twice*
# $y$; and a norm divides by its own input, so that its gradient times its input is *nothing*.
#
# MambaLRP (Jafari and others 2024) repairs just these places. Step sizes, $B$ and $C$ count as
# constants: the state is then a linear sum of what was written. An activation $\mathrm{silu}(v) =
# v\,\sigma(v)$ counts as $v$ times a constant. The two sides of the gate get half each. The norm's
# divisor is a constant. What is left is linear, step by step, and shares are passed down whole:

# %%
show(analysis.relevance)
why = analysis.relevance(model, ids, FOX)
assert np.isclose(why.tokens.sum() + why.bias, why.logit, rtol=1e-5)
assert analysis.identities.relevance(model, ids, FOX) < 1e-5

# %% tags=["heart"]
L = len(ids)
steps = np.concatenate([why.tokens, [why.bias]])
tops = np.cumsum(steps)
fig, ax = plt.subplots(figsize=(9, 3.9), layout="constrained")
colours = [BLUE if step > 0 else ORANGE for step in steps[:-1]] + ["0.7"]
ax.bar(range(L + 1), steps, bottom=tops - steps, color=colours, width=0.8)
ax.step(np.arange(L + 2) - 0.5, [0, *tops], where="post", color=GRAY, lw=0.5)
ax.axhline(why.logit, color="black", lw=0.8, ls=":")
ax.text(-0.4, why.logit + 0.2, f"the logit of “fox”: {why.logit:.2f}, reached exactly")
for t in np.argsort(-np.abs(why.tokens))[:5]:
    ax.text(t, max(tops[t], tops[t] - steps[t]) + 0.15, f"{why.tokens[t]:+.1f}", ha="center")
ax.text(L, why.logit - why.bias / 2, "biases", ha="center", va="center", fontsize=7)
ax.set_xticks(range(L + 1), [*labels, ""], rotation=90, family="monospace")
for tick, step in zip(ax.get_xticklabels(), steps, strict=True):
    tick.set_color("black" if abs(step) < 0.25 else BLUE if step > 0 else ORANGE)
ax.set(ylabel="sum of the shares so far", ylim=(min(0, tops.min()) - 0.3, why.logit + 1))
plt.show()

# %% [markdown]
# A staircase from nothing to the logit, one step for each token, and the last for the biases,
# which no token owns. The fox has one of the largest shares, as the knockout said. But the latest
# `the` has one, too: a noun must follow, and *that* makes all nouns likely, wolves as well. The
# knockout did not show it, since the last token needs no state to be heard. Two methods, two
# questions: neither is the answer alone.
#
# ## Why fox rather than wolf?
#
# A sharper question takes the common part away: ask for the *difference* of two logits. Since
# shares are linear in the logit, subtract them.

# %%
rival = analysis.relevance(model, ids, WOLF)
contrast = why.tokens - rival.tokens
margin = why.logit - rival.logit
assert np.isclose(contrast.sum() + why.bias - rival.bias, margin, atol=1e-4)
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.bar(range(L), contrast, color=np.where(contrast > 0, BLUE, ORANGE))
plot.token_axis(ax.xaxis, labels, tokens=trace.tokens)
ax.text(4.6, 0.8 * contrast.max(), "for fox", color=BLUE)
ax.text(4.6, 0.9 * contrast.min(), "for wolf", color=ORANGE)
ax.set(ylabel="share of the difference")
plt.show()
assert labels[int(contrast.argmax())] == "·fox"
print(f"difference of the logits {margin:.2f}, of which the last token {contrast[-1]:+.2f}")

# %% [markdown]
# ## Where is it decided?
#
# The residual is a sum: the embedding, and what each layer adds. The *logit lens* asks it after
# each layer what the model would say if it stopped there.

# %%
lens = analysis.logit_lens(model, trace, k=1)
fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
plot.logit_lens(model, trace, ax=ax)
plt.show()
said = [tokenizer.decode([i]) for i in lens.ids[:, -1, 0]]
print("after each layer:", said)
assert said[-1] == " fox" != said[-2]

# %% [markdown]
# Before the last layer the model does not know. So look into its mixer. Its output is a sum over
# the tokens, *exactly*: what each wrote, as far as it is still there, is read and let through by
# the present token. `contributions` takes it apart, and the two rows of the head say how much
# each part speaks for the fox and against the wolf.

# %%
parts = analysis.contributions(model, ids, layer=5)
np.testing.assert_allclose(parts.tokens.sum(0) + parts.bias, parts.output, atol=1e-4)
head = model.params.lm_head.astype(np.float32)
scale = model.params.norm_f / eq.root_mean_square(np.mean(trace.residual[5, -1] ** 2), 1e-5)
votes = parts.tokens @ ((head[FOX] - head[WOLF]) * scale)  # (L): in logits
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.bar(range(L), votes, color=np.where(votes > 0, BLUE, ORANGE))
plot.token_axis(ax.xaxis, labels, tokens=trace.tokens)
ax.set(ylabel="votes in layer 5")
plt.show()
assert labels[int(votes.argmax())] == "·fox"
print(f"the fox's vote: {votes.max():+.2f} of a difference of {margin:.2f}")

# %% [markdown]
# ## Put other memories in
#
# If the answer lies in the state, another state must give another answer. Let the model read "The
# fox met the wolf in the forest.", and put what it then remembers into the place of its memory of
# the first sentence, in layer 5 alone.

# %%
other = encoded("The fox met the wolf in the forest.")
memory = model(other[None]).cache_params
assert len(other) == 9, "where the second sentence begins"
for layers in ([5], [0, 1, 2, 3, 4]):
    with model.intervene(change.SetState(memory, at=9, layers=layers)):
        print(f"layers {layers}: {likeliest(ids)}")
        answer = likeliest(ids)[0][0]
    assert answer == (" wolf" if layers == [5] else " fox")

# %% [markdown]
# The prompt is the same, word for word, and the model answers with the other one's name. What
# decides here is 384 channels of one layer.
#
# ### Exercise 13b: make it say somebody else
#
# Give a change, or a list of changes, with which the model says *neither* fox nor wolf after the
# prompt. (The easiest is a memory of something that it has not read. `model(ids).cache_params` is a
# memory, and a sentence of nine tokens fits.)

# %%
my_change = ...

check("13b", my_change)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 13b: open it when you have tried.
queen = model(encoded("The wolf met the queen in the forest.")[None]).cache_params
of_a_queen = change.SetState(queen, at=9)
check("13b", of_a_queen)
with model.intervene(of_a_queen):
    print(likeliest(ids))

# %% [markdown]
# What you can say now of one prediction, each line with a check that could have failed:
#
# | claim | by | check |
# |---|---|---|
# | without the fox it would not say so | knockout | an experiment, one token at a time |
# | the fox and the last `the` carry it | relevance | shares add up to the logit |
# | the fox tips it against the wolf | contrast, votes | both add up, and agree |
# | it is decided in the last layer | logit lens | swapping that layer's state turns the answer |

# %% [markdown]
# ## Read next
#
# - You have reached the last notebook. Take a sentence of your own: `mamba-np explain "..."` does
#   the sharing out from [the command line](../docs/cli.md).
# - `mamba_np/analysis/predictions.py` and `mamba_np/analysis/mixer.py`: what was used here, and
#   `mamba_np/analysis/identities.py`: the sums that have to be right.
# - Jafari and others 2024, [MambaLRP](https://arxiv.org/abs/2406.07592); Sharma, Atkinson and Bau
#   2024, [Locating and editing factual associations in Mamba](https://arxiv.org/abs/2404.03646),
#   whose knockouts these are.
