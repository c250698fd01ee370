# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 35
#     seconds: 90
#     after: [6, 8]
# ---

# %% [markdown]
# # 09 Push the memory
#
# **How far back can a state of a fixed size remember, and what decides it?**
#
# A state is small, and every token may write over it. Yet the small model of this notebook, trained
# on 256 tokens, answers questions about something that it read a million tokens ago. You look for
# the reason in its step sizes, predict from them where memory ends, measure it, and break it on
# purpose. Then you ask whether a state can grow without bound, and how far a language model looks.

# %%
import tracemalloc
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np

import mamba_np
from lesson import check, show
from mamba_np import MambaCache, MambaForCausalLM, analysis, bundled_model_path, plot
from mamba_np import equations as eq
from mamba_np.interventions import ClampDelta
from mamba_np.training.tasks import induction_heads

plt.style.use(plot.STYLE)
BLUE, ORANGE, RED, GREY = "#0072B2", "#D55E00", "#CC79A7", "0.45"
mamba_np.set_num_threads(1)  # a single sequence is too little work to share
model = MambaForCausalLM.from_pretrained(bundled_model_path("induction_heads"))
SPECIAL, TRAINED = model.config.vocab_size - 1, 256  # the token 15; tokens of a text in training

# %% [markdown]
# ## A question about the past
#
# The task is the paper's *induction heads* (section 4.1.2). A special token stands once somewhere
# in noise, and once at the end. The next token has to be the one that followed it the first time.

# %%
ids, _ = induction_heads(np.random.default_rng(3), batch=1, length=24)
print(*ids[0, :-1], " then?", ids[0, -1])
first = list(ids[0]).index(SPECIAL)
assert ids[0, first + 1] == ids[0, -1]

# %% [markdown]
# To answer, a model must notice the special token, keep what follows, and keep it *through* all the
# noise. How long can the noise be? We read it as notebook 06 did: a cache goes from piece to piece,
# and nothing else does. `logits_to_keep=1` says that only the last scores are wanted, so that
# the model can forget those in between.


# %%
def stream(ids, stops):
    """Read ids (B, L) up to each stop, and yield the cache and the latest scores (B, V)."""
    cache, at = MambaCache(model.config, len(ids)), 0
    for stop in stops:
        output = model(ids[:, at:stop], cache_params=cache, logits_to_keep=1)
        yield cache, output.logits[:, -1]
        at = stop


model(ids)  # once, for what the first call has to load
sequences = {2**6: 64, 2**8: 64, 2**10: 32, 2**12: 16, 2**14: 8, 2**16: 4, 2**18: 1}
recall = {}
for length, count in sequences.items():
    ids, _ = induction_heads(np.random.default_rng(length), count, length)
    tracemalloc.start()
    ((_, scores),) = stream(ids, [length])
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    recall[length] = (scores.argmax(axis=1) == ids[:, -1]).mean()
    print(
        f"{length:7,} tokens: {recall[length]:4.0%} of {count:2} right, {megabytes:.1f} MB at most"
    )
assert set(recall.values()) == {1}

# %% [markdown]
# All right, at a thousand times the length of training, and the memory does not grow. (What it
# takes are the outputs of one piece; the state itself has 20 kB.) What about a million tokens? Do
# not measure yet: *predict*.
#
# ## What a memory needs
#
# What a token wrote is multiplied by $\bar A = e^{\Delta A}$ at each later token. After tokens with
# step sizes $\Delta_1 \dots \Delta_L$ a share of $e^{-|A|\,(\Delta_1 + \dots + \Delta_L)}$ is left:
# **only the sum of the step sizes counts**. If the step stays at $\Delta$, half is left after
# $\ln 2 / (\Delta |A|)$ tokens, the half-life of notebook 08.

# %%
show(eq.half_life)

# %% [markdown]
# ### Exercise 09a: the half-life that is needed
#
# Write `needed(tokens, share)`: which half-life must a state have so that `share` (above 0, below
# 1) of it is left after `tokens` tokens?


# %%
def needed(tokens, share): ...


check("09a", needed)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 09a: open it when you have tried.
def half_life_for(tokens, share):
    halvings = np.log2(1 / share)  # how often it may halve on the way
    return tokens / halvings


check("09a", half_life_for)

# %% [markdown]
# A million tokens is a hard demand, but a forgiving one: since decay is exponential, to keep 1 %
# takes only a seventh of the half-life that it takes to keep half.

# %%
million = 2**20
print([f"keep {share:.0%}: {half_life_for(million, share):,.0f}" for share in (0.9, 0.5, 0.01)])
assert half_life_for(million, 0.5) == million
print(f"delta |A| for half: {np.log(2) / million:.1e}")

# %% [markdown]
# So for a million tokens $\Delta |A|$ must be below one millionth at ordinary tokens. But to write
# something, $\Delta$ must be large, once. Is that what the model does? Trace it, and look at the
# step sizes where the special token comes by.

# %%
ids, _ = induction_heads(np.random.default_rng(0), batch=1, length=2**14)
noise = ids[0, :-1]
trace = model.trace(noise, capture=("delta", "B", "x"))
place = int(noise.argmax())  # of the first special token, the largest id
assert noise[place] == SPECIAL

around = np.arange(place - 4, place + 9)
fig, ax = plt.subplots(figsize=(7.4, 3.2), layout="constrained")
forgetful = int(trace.delta[0].mean(axis=0).argmax())
for channel, colour in ((5, BLUE), (33, ORANGE), (forgetful, GREY)):
    ax.semilogy(trace.delta[0, around, channel], "o-", color=colour, markersize=3)
    ax.text(12.2, trace.delta[0, around[-1], channel], f"channel {channel}", color=colour)
ax.set_xticks(range(13), noise[around])
arrow = {"arrowprops": {"arrowstyle": "->"}, "va": "center"}
ax.annotate("the special token", (4, 2e-9), (4, 1e-14), ha="center", **arrow)
ax.annotate("written here", (6.05, 25), (6.8, 1e3), **arrow)
ax.set(xlabel="token read", ylabel="step size Δ (log)", ylim=(1e-16, 1e4), xlim=(-0.5, 14.4))
plt.show()
assert trace.delta[0, place + 2, 5] > 1e10 * np.median(trace.delta[0, :, 5])

# %% [markdown]
# Two of these channels are shut: at noise, and even at the special token, their $\Delta$ is below a
# millionth. One token after the answer they open for a single step, channel 5 by more than ten
# orders of magnitude: the convolution sees four tokens at once, and there the special token and
# what followed it are both in view. Then they shut again. The third one lives from token to token.
#
# ### Exercise 09b: does the model have it?
#
# Write `ordinary_half_lives(delta, A, ids)`: from the step sizes `(L, E)`, `A` `(E, N)` and the ids
# `(L,)` of a text make the half-life `(E, N)` of each state at *ordinary* tokens. Ordinary are all
# tokens but the special one (15) and the three after it, where the convolution still sees it.
# Remember what counts: the sum of the step sizes, so their mean.


# %%
def ordinary_half_lives(delta, A, ids): ...


check("09b", ordinary_half_lives)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 09b: open it when you have tried.
def half_lives_of(delta, A, ids):
    near = np.convolve(ids == SPECIAL, np.ones(4))[: len(ids)]  # the token, and three more
    ordinary = near == 0
    mean = delta[ordinary].mean(axis=0, dtype=np.float64)  # (E)
    return eq.half_life(mean[:, None], A)


check("09b", half_lives_of)

# %%
half_lives = [half_lives_of(trace.delta[i], trace.A[i], noise) for i in (0, 1)]

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
for block, colour in ((0, BLUE), (1, ORANGE)):
    falling = np.sort(half_lives[block], axis=None)[::-1]
    ax.loglog(np.arange(1, 2049), falling, color=colour)
    ax.text(1.1, falling[0] * 2, f"block {block}", color=colour, weight="bold")
for tokens, name in ((million, "a million tokens"), (TRAINED, "length in training")):
    ax.axhline(tokens, color=GREY, linestyle=":")
    ax.text(2300, tokens, name, color=GREY, va="center", backgroundcolor="white")
ax.set(xlabel="the 128 x 16 states of a block, sorted (log)", ylabel="half-life in tokens (log)")
ax.set(xlim=(0.8, 2e4), ylim=(1e-3, 1e11))
plt.show()

enough = half_lives[0] >= half_life_for(million, 0.5)
print(f"block 0: {enough.sum()} states, in channels {np.flatnonzero(enough.any(axis=1))}")
assert enough.sum() > 50
assert half_lives[1].max() < 10_000  # block 1 only reads what block 0 says

# %% [markdown]
# Almost all of the model forgets within a few thousand tokens. A handful of channels does not: with
# half-lives of up to a billion tokens they were pushed far beyond the 256 that training ever asked
# for. (The last part of [its training](../mamba_np/models/induction_heads/README.md) did that.)
#
# ## Fast forward
#
# With half-lives one need not read a million tokens to know what the state will be. After $L$
# ordinary tokens a share $s = 2^{-L/\text{half-life}}$ of the old $h$ is left. And noise writes,
# too: a little, but always. With means over ordinary tokens, $h$ goes to where both are in balance,
#
# $$h_\infty = \frac{\overline{\Delta B x}}{\overline{\Delta}\,|A|},
# \qquad h_L = s\,h_0 + (1 - s)\,h_\infty .$$
#
# So: let the model read the special token and each of the 15 answers, move the states of block 0
# ahead by $L$ tokens at once, read some real noise, so that all that forgets quickly is as it would
# be, and ask. (It is the state of the *past* that is set here, as in notebook 06.)

# %%
ordinary = np.convolve(noise == SPECIAL, np.ones(4))[: len(noise)] == 0
delta, B, x = (getattr(trace, name)[0, ordinary].astype(float) for name in ("delta", "B", "x"))
h_inf = (delta * x).T @ B / (delta.sum(axis=0)[:, None] * np.abs(trace.A[0]))  # (E, N)

rng, every = np.random.default_rng(5), np.arange(15)
beginning = np.c_[rng.integers(0, 15, (15, 8)), np.full(15, SPECIAL), every]
written = model(np.c_[beginning, rng.integers(0, 15, (15, 8))]).cache_params
lately = rng.integers(0, 15, (15, 2048))


def ahead(tokens):
    """Return the scores (15, 16) of a question asked so many tokens after each answer was read."""
    cache, s = written.copy(), 0.5 ** (tokens / half_lives[0])
    cache.ssm_states[0][...] = s * cache.ssm_states[0] + (1 - s) * h_inf
    return model(np.c_[lately, [SPECIAL] * 15], cache_params=cache, logits_to_keep=1).logits[:, -1]


foretold = {2**k: ahead(2**k).argmax(axis=1) == every for k in range(12, 31, 2)}
for tokens, right in foretold.items():
    print(f"{tokens:13,} tokens: {right.sum():2} of 15, lost: {every[~right]}")
assert foretold[2**18].all()

# %% [markdown]
# A prediction with an edge: at a million tokens ($2^{20}$) one answer in fifteen has gone, the
# token 0, and a few million further the others follow. Nobody has read a million tokens yet.
#
# ## A million tokens
#
# Now read them. The special token stands near the beginning, the hardest case. There are two such
# sequences: in one the answer is 0, in the other 4. On the way we look at the state itself: the
# slowest number $h$ in each of six channels, as a share of what was written. And at each stop a
# copy of the state is asked the question.

# %%
channels = np.array([5, 51, 77, 33, 54, 83])
slowest = np.abs(trace.A[0, channels]).argmin(axis=1)
ids = np.repeat(induction_heads(np.random.default_rng(279), 1, million)[0], 2, axis=0)
place = int(ids[0].argmax())
ids[:, [place + 1, million]] = [[0], [4]]
distances = np.array([6, *2 ** np.arange(4, 20), million - place - 1])
kept, answers = [], []
for cache, _scores in stream(ids, place + distances):
    kept.append(cache.ssm_states[0][0, channels, slowest].copy())
    asked = model([[SPECIAL]] * 2, cache_params=cache.copy()).logits[:, -1]
    answers.append(asked.argmax(axis=1) == [0, 4])
share, answers = np.array(kept) / kept[0], np.array(answers)  # (stops, channels), (stops, 2)

predicted = 0.5 ** (distances[:, None] / half_lives[0][channels, slowest])
np.testing.assert_allclose(share, predicted, atol=0.05)
print("left:", share[-1].round(3), "predicted:", predicted[-1].round(3))
assert answers[:-1].all()  # up to half a million tokens
assert answers[-1].tolist() == foretold[million][[0, 4]].tolist()
print("after a million tokens, answers 0 and 4 are right:", answers[-1])

# %% [markdown]
# As foretold: what is left of each number, and which answer is lost. (The model's card counts ten
# right out of ten at this length. There the special token stands anywhere, on average half as far
# back.)
#
# ## Take the memory away
#
# Is it really the shut gate that does it? Prop it open: keep $\Delta$ in block 0 from falling below
# a floor. With the smallest $|A|$ of the block, floors of 0.01 and 0.1 leave half-lives of some 90
# and 9 tokens. So recall should break down after some multiple of these, at lengths that the
# model otherwise finds easy.

# %%
smallest = np.abs(trace.A[0]).min()
floors, short = {0.01: ORANGE, 0.1: RED}, (64, 256, 1024)
propped = {}
for floor in floors:
    with model.intervene(ClampDelta(low=floor, layers=[0])):
        for length in short:
            ids, _ = induction_heads(np.random.default_rng(length), 16, length)
            ((_, scores),) = stream(ids, [length])
            propped[floor, length] = (scores.argmax(axis=1) == ids[:, -1]).mean()
    print(f"floor {floor}: half-life {eq.half_life(floor, smallest):.0f} tokens at most")
assert propped[0.01, 64] == 1
assert propped[0.1, 1024] < 0.25

# %% tags=["heart"]
fig, (top, low) = plt.subplots(2, 1, figsize=(7.6, 4.8), layout="constrained", sharex=True)
top.semilogx(list(recall), [100 * one for one in recall.values()], "o", color=BLUE, zorder=9)
top.plot(list(foretold), [100 * one.mean() for one in foretold.values()], color=BLUE)
top.plot([2**20], [100], "o", color=BLUE)
top.plot([2**20], [0], "X", color=BLUE, clip_on=False)
top.text(2**19.5, 11, "answer 0: lost", color=BLUE, ha="right")
top.text(2**20.5, 97, "answer 4: right", color=BLUE)
top.text(2**11.5, 74, "as it is: dots are read,\nthe line is foretold", color=BLUE, weight="bold")
low.loglog(distances, share, color=BLUE, linewidth=2)
low.text(2**12, 0.06, "what six numbers of its state hold", color=BLUE, weight="bold")
beyond = np.geomspace(2**5, 2**30, 600)
low.plot(beyond, 0.5 ** (beyond[:, None] / half_lives[0][channels, slowest]), ":", color=BLUE)
for (floor, colour), at in zip(floors.items(), (2**10.3, 2**5.2), strict=True):
    top.plot(short, [100 * propped[floor, length] for length in short], "o-", color=colour)
    low.plot(beyond, eq.exp(-floor * smallest * beyond), color=colour)
    top.text(at, 42, f"Δ ≥ {floor}", color=colour, weight="bold")
    low.text(at, 1e-3 if floor < 0.1 else 1e-4, f"Δ ≥ {floor}", color=colour, weight="bold")
for ax in (top, low):
    ax.axvline(TRAINED, color=GREY, linestyle="--", linewidth=0.8)
low.text(TRAINED * 1.1, 3e-6, "length in\ntraining", color=GREY)
top.axhline(100 / 15, color=GREY, linestyle=":")
top.text(2**30, 9, "guessing", color=GREY, ha="right")
top.set(ylabel="right answers, %", ylim=(0, 108))
low.set(ylabel="share that is left (log)", ylim=(1e-6, 2), xlim=(2**5, 2**30.5))
low.set_xlabel("tokens between what was written and the question (log)")
plt.show()

# %% [markdown]
# (A dot is the length of a text; its special token stands anywhere in it.) The panels bend in the
# same places, over seven powers of ten: an answer is lost when what was written has decayed too
# far to be told from what noise writes. Nothing special happens at 256 tokens.
#
# So the limit is not the length. A state of 16 numbers cannot hold a million tokens, and it does
# not try to: it holds *one* thing, and lets in nothing else. What a state cannot do is to keep
# everything because any of it may be asked for; there a list of all tokens, attention, wins.
#
# ## Can a state overflow?
#
# A million additions, and no end: will $h$ not grow until it is infinite, or NaN? (People who see
# NaN in training ask: [mamba #6](https://github.com/state-spaces/mamba/issues/6).) Since $A < 0$
# and $\Delta > 0$, $\bar A = e^{\Delta A}$ lies between 0 and 1: nothing is ever amplified. And
# what is added is $\Delta B x$, small where little decays. Together, at every token of any text,
#
# $$|h_t| \;\le\; \Big(\Delta_{\max} + \frac{1}{|A|}\Big) \max_s |B_s x_s| .$$
#
# (The sum over $s$ of $e^{-|A|(\Delta_{s+1} + \dots + \Delta_t)}\,\Delta_s$ is a Riemann sum of
# $\int_0^\infty e^{-|A|\tau} d\tau = 1/|A|$, too large by one step at most.) There is no length on
# the right. Let us see how near a language model comes, with twice the length it was trained on.

# %%
tokenizer = mamba_np.AutoTokenizer.from_pretrained(bundled_model_path())
stories = MambaForCausalLM.from_pretrained(bundled_model_path())
text = " ".join(topics[name] for name in sorted(topics))  # what Python's help() knows
ids = tokenizer(text[:40_000])["input_ids"][: 2**13]

few = stories.trace(ids[:1024], layers=[0, 5], capture=("delta", "B", "x", "h"))
for i in (0, 1):
    Bx = np.abs(few.B[i][:, None] * few.x[i][:, :, None]).max(axis=0)  # (E, N)
    bound = (few.delta[i].max(axis=0)[:, None] + 1 / np.abs(few.A[i])) * Bx
    reached = np.abs(few.h[i]).max(axis=0) / bound
    print(f"block {few.layers[i]}: at most {reached.max():.0%} of the bound")
    assert reached.max() <= 1

# %% [markdown]
# Bounded does not yet mean healthy: a state might still creep up over thousands of tokens, beyond
# anything seen in training, and confuse the next layers. Read sixteen times as many tokens as
# the stories model ever saw at once, and look at the length of its states:

# %%
trace = stories.trace(ids, capture=("h",), every=64)
figure = plt.figure(figsize=(7, 4), layout="constrained")
plot.state_size(trace, training_length=512, figure=figure)
plt.show()
norms = np.array([analysis.state_size(trace, layer).norm for layer in range(6)])
assert norms[:, 8:].max() < 3 * norms[:, :8].max()

# %% [markdown]
# The lines go straight on across the dashed one: neither the length nor the rank runs away. A model
# that writes a little at each token and hardly forgets would show a rising line here, and
# [does so in larger models](https://arxiv.org/abs/2410.07145).
#
# Where then do NaNs come from? From inputs or weights that are not finite, from 16-bit numbers, and
# from one tempting shortcut: $h_t = P_t \sum_s \bar B_s x_s / P_s$ with the running product
# $P_t = \bar A_1 \cdots \bar A_t$. It is the same formula, without a loop. But $P$ underflows.

# %%
A_bar, B_bar = eq.discretise(few.delta[0][:, 7, None], few.A[0][7], few.B[0])  # (L, N) each
product = np.cumprod(A_bar, axis=0)
with np.errstate(all="ignore"):
    shortcut = product * np.cumsum(B_bar * few.x[0][:, 7, None] / product, axis=0)
np.testing.assert_allclose(shortcut[:4], few.h[0][:4, 7], rtol=1e-4, atol=1e-5)  # so far so good
print(f"finite for {np.isfinite(shortcut).all(axis=1).argmin()} tokens of {len(shortcut)}")
assert np.isnan(shortcut).any()
assert np.isfinite(few.h).all()

# %% [markdown]
# The recurrence, and the scans that compose steps (notebook 04), divide by nothing.
#
# ## How far does a language model look?
#
# One question remains. That a channel *can* reach back a million tokens does not mean that a
# language model does. With the hidden attention $\alpha$ of notebook 08, $y_t = \sum_s \alpha_{ts}
# x_s$, ask how far back the weight lies on average (after
# [DeciMamba](https://arxiv.org/abs/2406.14528), which calls it the Mamba Mean Distance):
#
# $$d_t = \frac{\sum_{s \le t} (t - s)\,|\alpha_{ts}|}{\sum_{s \le t} |\alpha_{ts}|}$$
#
# ### Exercise 09c: the mean distance of one channel
#
# Write `mean_distance(alpha)`: from the matrix $\alpha$ `(L, L)` of one channel, rows $t$, columns
# $s$, signed, make $d$ `(L,)`.


# %%
def mean_distance(alpha): ...


check("09c", mean_distance)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 09c: open it when you have tried.
def distances_of(alpha):
    weight = np.abs(alpha)
    t = np.arange(len(alpha))
    far = t[:, None] - t  # t - s
    return (far * weight).sum(axis=1) / weight.sum(axis=1)


check("09c", distances_of)

# %% [markdown]
# On the left the package's picture for all channels together, block by block; on the right single
# channels of the last block, among them the one of which most survives.

# %%
trace = stories.trace(ids[:768])
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3), layout="constrained")
plot.receptive_field(trace, ax=left)
left.set_xlabel("block")
order = analysis.survival(trace, 5).max(axis=1).argsort()  # the longest memory last
for channel, colour in zip(order[[192, 346, 380, 383]], (GREY, RED, ORANGE, BLUE), strict=True):
    alpha = analysis.hidden_attention(trace, layer=5, channel=channel)
    d = distances_of(alpha)
    np.testing.assert_allclose(d, analysis.receptive_field(alpha).mean_distance, rtol=1e-5)
    right.plot(d, color=colour)
    right.text(775, d[-1], f"channel {channel}", color=colour, va="center")
right.plot([0, 767], [0, 767 / 2], color="black", linestyle=":")
right.text(400, 210, "looks at all alike", rotation=40, ha="center", va="bottom")
right.set(xlabel="token read", ylabel="mean distance in tokens", xlim=(0, 980), ylim=(0, 430))
plt.show()

# %% [markdown]
# Block by block, nine tenths of the weight lie within the last 50 to 200 tokens, while a few
# channels look at everything so far. That is no defect of the state: it is what predicting the
# next word of a story asks for. A state remembers what training made worth remembering.

# %% [markdown]
# ## Read next
#
# - [12 Train it by hand](12_train_it_by_hand.ipynb): how step sizes of a billionth come about.
# - [The model's card](../mamba_np/models/induction_heads/README.md), and section 4.1.2 and table 2
#   of [the paper](https://arxiv.org/abs/2312.00752): the task, and how other architectures do.
# - `mamba_np/analysis/memory.py`: half-life, survival, and whose part is left in a state;
#   [notation](../docs/notation.md) has them in one table.
# - [Stuffed Mamba](https://arxiv.org/abs/2410.07145): states of large models that do not forget
#   enough, and what happens to them beyond the length of their training.
