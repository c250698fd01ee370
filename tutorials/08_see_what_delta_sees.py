# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 35
#     seconds: 60
#     after: [3, 5]
# ---

# %% [markdown]
# # 08 See what delta sees
#
# **What does a Mamba keep of a sentence, for how long, and which of its states can I see?**
#
# All of them. The small model that comes with the package finishes a tale about two animals; to
# find the right word it must remember one that was named eighteen tokens ago. You will open the
# model, find the few channels that write that animal down, watch the step size $\Delta$ decide it,
# and then make the model forget, by holding one number down at one token.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lesson import check, show
from mamba_np import (
    AutoTokenizer,
    MambaForCausalLM,
    analysis,
    bundled_model_path,
    ops,
    plot,
    report,
)
from mamba_np import equations as eq
from mamba_np import interventions as change

plt.style.use(plot.STYLE)
tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
model = MambaForCausalLM.from_pretrained(bundled_model_path())
print(model)

# %% [markdown]
# ## A question that needs memory
#
# `answers` asks the model for the next token, and returns the likeliest ones with their
# probabilities. The two tales differ in nothing but who meets whom.


# %%
def chances(text):  # (V): the probability of each token to come next
    return eq.softmax(model(**tokenizer(text, return_tensors="np")).logits[0, -1])


def answers(text, k=3):
    p = chances(text)
    return [(tokenizer.decode([i]), round(float(p[i]), 3)) for i in np.argsort(-p)[:k]]


WOLF_FIRST = 'The wolf met the fox in the forest. "Good day," said the wolf. "Good day," said the'
FOX_FIRST = 'The fox met the wolf in the forest. "Good day," said the fox. "Good day," said the'
print(answers(WOLF_FIRST))
print(answers(FOX_FIRST))
assert answers(WOLF_FIRST)[0][0] == " fox"
assert answers(FOX_FIRST)[0][0] == " wolf"

# %% [markdown]
# The one who has not spoken yet answers. Where is this knowledge while the model reads
# `in the forest. "Good day," said the`? There is no list of earlier tokens to look back at, as in
# a transformer. A block hands only two things from token to token: the last few inputs of its
# convolution, and its state $h$. So empty the states, and nothing else, after the ninth token (the
# full stop), and ask again. `model.intervene` runs the model with such a change.

# %%
with model.intervene(change.SetState(0, at=9)):
    print("all states emptied:      ", answers(WOLF_FIRST))
with model.intervene(change.SetState(0, at=9, layers=[0, 1, 2, 3, 4])):
    print("those of layers 0 to 4:  ", answers(WOLF_FIRST))
with model.intervene(change.SetState(0, at=9, layers=5)):
    only_last = answers(WOLF_FIRST)
    print("that of layer 5 alone:   ", only_last)
assert " fox" not in dict(only_last)

# %% [markdown]
# The animals live in the state of the last layer, and there alone. The rest of this notebook looks
# at it. (Six layers are counted from 0, as everything here is.)
#
# ## Which states can I see?
#
# `model.trace(text)` reads a text and keeps what goes on inside. You say what: `capture` takes
# names from the list that the next cell prints, `layers` and `channels` choose some.

# %%
EVERYTHING = ("delta", "B", "C", "x", "z", "y", "h", "residual", "logits")
trace = model.trace(WOLF_FIRST, capture=EVERYTHING)
print(trace)
for name, array in trace.arrays().items():
    print(f"{name:9}{array.shape!s:22}{array.nbytes:>10,} bytes")
print(*trace.labels)
needed = trace.estimate(model, 2000, capture=("h",))
print(f"h alone, for 2,000 tokens: {needed / 1e6:,.0f} MB")

# %% [markdown]
# Axes are layers (6), tokens ($L$ = 23), channels ($E$ = 384), states of each channel ($N$ = 16);
# `residual` has the model's width and `logits` its vocabulary. `h` is the state after *each*
# token, which no cache keeps: it takes most of the room, so it is not captured unless you ask, and
# for a long text `every=` keeps fewer. Four things are true of a trace, and you can test them on
# any text: looking changed no logit; the last `h` is what the model hands on in its cache; $h$
# obeys
#
# $$h_t = \bar{A}_t\, h_{t-1} + \bar{B}_t\, x_t, \qquad
# \bar{A}_t = e^{\Delta_t A}, \quad \bar{B}_t = \Delta_t B_t;$$
#
# and the output is $y_t = C_t h_t$. Here is the second line in the package, and all four as code:

# %%
show(eq.discretise)
seen = model(trace.ids[None], use_cache=True)
assert (trace.logits == seen.logits[0]).all()  # to the bit
assert (trace.h[5, -1] == seen.cache_params.ssm_states[5][0]).all()

delta, A, B, C = trace.delta[5], trace.A[5], trace.B[5], trace.C[5]  # (L E), (E N), (L N), (L N)
x, h, y = trace.x[5], trace.h[5], trace.y[5]  # (L E), (L E N), (L E)
A_bar, B_bar = eq.discretise(delta[:, :, None], A, B[:, None])
np.testing.assert_allclose(h[1:], A_bar[1:] * h[:-1] + B_bar[1:] * x[1:, :, None], atol=1e-5)
np.testing.assert_allclose(y, (C[:, None] * h).sum(axis=-1), atol=1e-4)

# %% [markdown]
# ## What opens for the animals?
#
# $\Delta$, the step size, is one number for each token and channel, made from the token. It sits
# in both formulas above: a large $\Delta$ makes $\bar{B} = \Delta B$ large, so the token is
# written into the state, and $\bar{A} = e^{\Delta A}$ small ($A$ is negative), so what was there
# is erased. A $\Delta$ near zero does neither: the token passes by and the state stays. Let us see
# who opens.

# %%
fig, (above, below) = plt.subplots(2, 1, figsize=(7, 6), height_ratios=(1, 2), layout="constrained")
plot.delta(trace, ax=above)
plot.delta(trace, layer=5, ax=below)
above.set(xlabel="", title="")
above.set_title("mean over the channels of each layer: no animal stands out", loc="left")
below.set_title("each channel of layer 5: some light up for wolf, fox, wolf", loc="left", pad=14)
for token in (1, 4, 15):
    below.text(token, 1, "▼", ha="center", transform=below.get_xaxis_transform(), color="tab:red")
plt.show()
mean = eq.geometric_mean(trace.delta)  # (layers, tokens)
print("largest over smallest mean, by layer:", (mean.max(axis=1) / mean.min(axis=1)).round(1))

# %% [markdown]
# Above, the mean over channels: in most layers it hardly moves. If you stop there, as averages do,
# you see nothing. Below, the channels of layer 5, those that forget slowly at the bottom: some
# rows are dark for the whole text and bright at three tokens. How selective is a channel? Take its
# largest step size over its median one, and count.

# %%
contrast = trace.delta.max(axis=1) / np.median(trace.delta, axis=1)  # (layers, channels)
loudest = trace.delta.argmax(axis=1)  # the token at which each channel opens widest
for layer in range(6):
    picky = loudest[layer, contrast[layer] > 10]
    places = [f"{trace.labels[t]} {(picky == t).sum()}" for t in np.unique(picky)]
    print(f"layer {layer}: {len(picky):2} channels open tenfold, at", ", ".join(places) or "-")
assert np.isin(loudest[5, contrast[5] > 10], (1, 4, 15)).mean() > 0.95

# %% [markdown]
# Nobody told layer 5 what an animal is, or that it will be asked. Training did: forty-six of its
# 384 channels open more than tenfold for one token, and all but one of them for an animal.
#
# ## How long is it kept?
#
# After token $s$, one state of one channel is multiplied by $e^{\Delta_t A}$ at each later token
# $t$. Half of it is left when $\sum \Delta_t\,|A| = \ln 2$. If the step size stays as it is, that
# is after $\ln 2 / (\Delta |A|)$ tokens, the *half-life*; `show` prints it as code. In a real text
# $\Delta$ changes at each token, and `analysis.half_life` counts those that follow. Do not believe
# it: send an impulse through, and watch. We take channel 297, and will see below why.

# %%
show(eq.half_life)
CHANNEL, FOX = 297, 4
left = np.cumprod(np.vstack([np.ones(16), A_bar[FOX + 1 :, CHANNEL]]), axis=0)  # (19, N)
counted = analysis.half_life(trace, layer=5)[FOX, CHANNEL]  # (N), in tokens
for n in range(16):
    if np.isfinite(counted[n]):
        k = int(counted[n])
        assert left[k, n] <= 0.5 < left[k - 1, n]
    else:  # the text ends before
        assert left[-1, n] > 0.5
print("tokens until half of the fox is left, state by state:", counted)

# %%
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
order = np.argsort(A[CHANNEL])
for n, colour in zip(order, plt.colormaps["viridis"](np.linspace(0, 0.88, 16)), strict=True):
    ax.plot(np.arange(FOX, 23), left[:, n], color=colour, marker="o", markersize=2)
ax.axhline(0.5, color="0.4", linestyle=":")
ax.text(0, 0.52, "half")
arrow = {"arrowprops": {"arrowstyle": "->", "color": "0.3"}}
ax.annotate("the next animal comes in:\nfast states are wiped", (14.5, 0.25), (5, 0.1), **arrow)
ax.annotate("four slow states keep the fox", (19, 0.8), (15.3, 0.95), **arrow)
plot.token_axis(ax.xaxis, trace.labels)
ax.set(ylabel="share of the fox that is left", xlim=(-0.5, 22.5), ylim=(0, 1.05), xlabel="")
ax.set_title("One channel's 16 states after the token ·fox, from fast (dark) to slow", loc="left")
plt.show()

# %% [markdown]
# One channel holds sixteen clocks, one for each entry of $A$. The second wolf opens the channel
# again, and what forgets fast is overwritten; the slow states take it up beside the fox. Over all
# channels, layers differ: a ridge below is the spread of $\ln 2 / (\Delta|A|)$, and to its right
# is the share of what the *first* token wrote that is still there after the last.

# %%
fig, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
plot.half_life(trace, ax=left_ax)
plot.survival(trace, ax=right_ax)
left_ax.set_xlim(0.1, 5000)
right_ax.annotate("layer 5 keeps most", (0.6, 0.4), (0.05, 0.6), **arrow)
plt.show()
print([round(float((analysis.survival(trace, i) > 0.5).mean()), 2) for i in range(6)])

# %% [markdown]
# The numbers are the share of states, layer by layer, that keep more than half of the first token.
# Layer 5 keeps the most.
#
# ### Exercise 08a: the longest memory
#
# Which channel of layer 5 remembers longest? Write `longest(delta, A)`, for `delta` (L, E) and `A`
# (E, N). Average each channel's step size over the tokens, take the half-life of its slowest state
# at that step size, and return the channel in which it is longest, and that half-life in tokens.


# %%
def longest(delta, A):
    return ...


check("08a", longest)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 08a: open it when you have tried.
def slowest_channel(delta, A):
    slowest = np.abs(A).min(axis=1)  # (E): the smallest rate of each channel
    halves = eq.half_life(delta.mean(axis=0), slowest)
    return int(halves.argmax()), float(halves.max())


check("08a", slowest_channel)
champion, tokens = slowest_channel(delta, A)
print(f"channel {champion}: half is left after {tokens:,.0f} tokens")
own, other = delta[:, champion].max(), delta[:, CHANNEL].max()
print(f"its largest step size: {own:.6f}; that of channel {CHANNEL}: {other:.3f}")
assert own < 1e-3 * other

# %% [markdown]
# The record holder remembers for thousands of tokens, because its step size is next to nothing all
# the time. So it also writes next to nothing: a vault that nobody ever opens.
# **A long half-life is not yet a memory.** What we want is a door that opens once, wide, and then
# stays shut. That is what selection buys, and no fixed $\Delta$ can do it.
#
# ## What is written, and who reads it?
#
# Three numbers for each token and layer: what it writes (the length of $\bar{B}x$ over all
# channels), what it keeps (the mean of $\bar{A}$), what is read from the state (the length of
# $Ch$). And to the right, who reads whom. Insert the recurrence into itself, and each output is a
# sum over the past:
#
# $$y_t = \sum_{s \le t} \alpha_{t,s}\, x_s, \qquad
# \alpha_{t,s} = C_t\, \bar{A}_t \cdots \bar{A}_{s+1}\, \bar{B}_s,$$
#
# which is what attention is, row by row, but for a softmax: the *hidden attention* of a channel.

# %%
fig = plt.figure(figsize=(9, 4.4), layout="constrained")
strips, matrix = fig.subfigures(1, 2)
plot.strengths(trace, figure=strips)
ax = plot.hidden_attention(trace, layer=5, ax=matrix.subplots())
ax.set_title("hidden attention, layer 5, mean over channels", loc="left")
plt.show()
strength = analysis.strengths(trace, layer=5)
print("written most:", [trace.labels[t] for t in np.argsort(-strength.write)[:3]])
print("read most:   ", [trace.labels[t] for t in np.argsort(-strength.read)[:2]])

# %% [markdown]
# Writing and reading are two things, at different tokens: layer 5 writes most at the animals, and
# reads most at the two ·the that stand after ·said, where a speaker has to be named. In the matrix
# these are two bright rows, and the animals are bright columns.
#
# The formula is exact, for each channel. With the skip connection $D$ the scan's output is
# $\alpha x + D x$; here against `ops.selective_scan`, which runs the recurrence and knows of no
# matrix. The same loop finds the channel that reads most of the fox when the answer is due.

# %%
scan = ops.selective_scan(x.T[None], delta.T[None], A, B.T[None], C.T[None], trace.D[5])[0]  # (E L)
read = np.empty(384)
for channel in range(384):
    alpha = analysis.hidden_attention(trace, 5, channel)  # (L L)
    expected = alpha @ x[:, channel] + trace.D[5, channel] * x[:, channel]
    np.testing.assert_allclose(expected, scan[channel], atol=2e-5)
    read[channel] = alpha[-1, FOX] * x[FOX, channel]
best = np.argsort(-np.abs(read))[:5]
print("read most of the fox at the end: channels", best, "namely", read[best].round(2))
assert best[0] == CHANNEL
assert contrast[5, CHANNEL] > 50

# %% [markdown]
# ## All of it on one page
#
# So this is why channel 297. `plot.dashboard` puts one text, one layer and one channel above each
# other, with the tokens as the common axis. Read it from the top.

# %% tags=["heart"]
fig = plt.figure(figsize=(7.2, 9), layout="constrained")
by_layer, opens, half, writes, attention = plot.dashboard(trace, 5, CHANNEL, figure=fig).axes[:5]
by_layer.set_title("Δ by layer: the mean over channels tells no animal from the rest", loc="left")
opens.text(5, 0.18, "this one opens for wolf, fox, wolf,\nand for nothing else")
half.set_title("half-life of its states: short where it makes room, long in between", loc="left")
writes.text(5, 0.33, "what it writes down: the animal")
attention.text(8.2, 3.2, "a column is what one token wrote,\na row what one token reads")
attention.annotate(
    "the last ·the, which must name who speaks,\nreads the fox of 18 tokens ago", (4.6, 21.9),
    (6.5, 18.6), **arrow,
)  # fmt: skip
plt.show()

# %% [markdown]
# One token at a time, this channel was handed 23 tokens, and by its own $\Delta$ it decided which
# three to write down. Here are the sixteen numbers themselves, $h$, as they jump at the animals
# and coast between. (Where $y$ is tall, somebody asked: at ·the after ·said.)

# %%
plot.state(trace, layer=5, channel=CHANNEL)
plt.show()

# %% [markdown]
# ## Is it really delta? Change it and see
#
# A picture suggests; an intervention shows. `FreezeDelta` gives a channel the same step size at
# every token (what its bias alone makes), as if it could not see the input. First all channels of
# one layer at a time; then, in layer 5, the twenty channels with the highest contrast, and all
# *but* these.


# %%
def chance(animal, *changes):
    with model.intervene(*changes):
        return float(chances(WOLF_FIRST)[tokenizer(animal)["input_ids"][0]])


ranked = np.argsort(-contrast[5])
cases = {"as it is": ()}
for layer in range(6):
    cases[f"layer {layer}"] = (change.FreezeDelta(layers=layer),)
cases["20 channels\nof layer 5"] = (change.FreezeDelta(layers=5, channels=ranked[:20]),)
cases["the other\n364"] = (change.FreezeDelta(layers=5, channels=ranked[20:]),)
fox = [chance(" fox", *changes) for changes in cases.values()]
wolf = [chance(" wolf", *changes) for changes in cases.values()]

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
places = np.arange(len(cases))
ax.bar(places - 0.2, fox, 0.4, color="tab:orange")
ax.bar(places + 0.2, wolf, 0.4, color="tab:blue")
ax.text(-0.2, fox[0], "fox", ha="center", va="bottom", color="tab:orange", fontweight="bold")
ax.text(0.2, wolf[0], "wolf", ha="center", va="bottom", color="tab:blue", fontweight="bold")
for place in (6, 7):
    ax.annotate("forgotten", (place, 0.03), (6.5, 0.2), ha="center", **arrow)
ax.set_xticks(places, list(cases))
ax.set_ylabel("probability")
ax.set_title("the next token, with a Δ that is blind to the text in ...", loc="left")
plt.show()
assert max(fox[6:8]) < 0.02
assert min(fox[:6] + fox[8:]) > 0.4

# %% [markdown]
# Freeze the step sizes of any of the first five layers, and the answer stays. Freeze 364 of the
# 384 channels of the last, and it stays. Freeze the other twenty, and the tale has no fox. So
# these twenty channels of 2,304 are where this model remembers who is there.
#
# ### Exercise 08b: make it say wolf
#
# Write the smallest change of $\Delta$ that you can think of: at **one token**, in **one layer**,
# so that the wolf answers itself. `change.ScaleDelta(factor, ...)` multiplies step sizes,
# `ClampDelta(low, high, ...)` keeps them within bounds, `FreezeDelta(value, ...)` sets them; each
# takes `tokens=`, `layers=` and `channels=`. Assign the change to `spell`.

# %%
spell = ...
check("08b", spell)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 08b: open it when you have tried.
unseen = change.ClampDelta(high=0, tokens=FOX, layers=5)
check("08b", unseen)
with model.intervene(unseen):
    print(answers(WOLF_FIRST))
assert chance(" wolf", unseen) > 0.4 > 0.1 > chance(" fox", unseen)

# %% [markdown]
# With $\Delta = 0$ at that token, $\bar{B} = 0$ and $\bar{A} = 1$: layer 5 neither writes the fox
# nor forgets the wolf. The word still went through the convolution and through all layers below.
# But what $\Delta$ does not see is not remembered.
#
# ## Your own sentence
#
# Is it animals? Give the model a beginning, let it write, and watch these twenty channels while it
# does: `model.tracer` traces what is read and written, and `plot.latest` shows the last tokens.
# (In Jupyter, call it in the loop, with `ax=ax`, and the strip moves.)
# **Change `MINE` and run on.**

# %%
MINE = "Once upon a time there was a queen who had a cat and a goose. One day the"
tracer = model.tracer(layers=[5], channels=ranked[:20], capture=("delta",))
ids = tokenizer(MINE, return_tensors="np")["input_ids"]
for _ in tracer.stream(ids, max_new_tokens=40, do_sample=True, temperature=0.7, top_p=0.9, seed=4):
    pass  # here, ax = plot.latest(tracer.trace, ax=ax) would show each step
fig, ax = plt.subplots(figsize=(9, 2.2), layout="constrained")
plot.latest(tracer.trace, count=len(tracer), ax=ax)
steps = eq.geometric_mean(tracer.trace.delta)[0]  # (tokens)
for t in np.flatnonzero(steps > 8 * np.median(steps)):
    ax.text(t, 0.6, tracer.trace.labels[t], rotation=45, fontsize=8)
ax.set_title("Δ of the twenty channels, and who made it tall", loc="left", pad=38)
plt.show()
print(tokenizer.decode(tracer.trace.ids))
named = np.argsort(-steps[: ids.shape[1]])[:4]
print("of the beginning:", [tracer.trace.labels[t] for t in sorted(named)])

# %%
mine = model.trace(MINE, capture=report.CAPTURE)
plot.dashboard(mine, layer=5, channel=CHANNEL)
plt.show()
page = Path(tempfile.mkdtemp()) / "mine.html"
report.save_report(page, mine, model)
print(f"{page.name}: {page.stat().st_size // 1024} KB; open it in a browser and choose a token")
assert page.stat().st_size < 1_000_000

# %% [markdown]
# The page is one file that needs no network: your text coloured by its step sizes; choose a token
# and see what it wrote, how that decays, and who reads it. In Jupyter a cell that ends with `mine`
# shows the same page in place. From a shell: `mamba-np trace "your text" --out mine.html`.
#
# Twenty channels are not a law. They are what this small model learnt from old tales; another
# model keeps other things elsewhere. The way to find them is the same: empty states to find the
# layer, contrast to find the channels, attention to see who reads, and an intervention to be sure.

# %% [markdown]
# ## Read next
#
# - [13 Ask why](13_ask_why.ipynb): which token moved this prediction, in shares that add up to
#   the logit.
# - [09 Push the memory](09_push_the_memory.ipynb): how far back can a state reach? To a million
#   tokens.
# - [What the letters mean](../docs/notation.md), with the table "Looking inside", and the
#   [gallery](../docs/gallery/README.rst): one script for each plot used here.
# - `mamba_np/analysis/identities.py`: what must be true of each quantity, to be called on your own
#   text. The paper's section 3.5.2 says what $\Delta$ was meant to do; Ali, Zimerman and Wolf
#   (2024), [arXiv:2403.01590](https://arxiv.org/abs/2403.01590), introduced hidden attention.
