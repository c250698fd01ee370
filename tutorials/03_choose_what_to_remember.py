# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 30
#     seconds: 30
#     after: [1, 2]
# ---

# %% [markdown]
# # 03 Choose what to remember
#
# **Why must delta, B and C depend on the input?**
#
# Notebook 02 ended with a warning: whoever lets the step size change loses the convolution. What
# does one get for it? You will give a state space model a job that no fixed one can do, do it with
# a step size set by hand, and then look into a trained model that has found the same trick.

# %%
import matplotlib.pyplot as plt
import numpy as np

import mamba_np.equations as eq
from lesson import check, show
from mamba_np import MambaForCausalLM, bundled_model_path, lti, plot
from mamba_np.reference import selective_scan
from mamba_np.training.tasks import induction_heads, selective_copying

plt.style.use(plot.STYLE)
BLUE, ORANGE, GREEN, PINK, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "0.5"

# %% [markdown]
# ## The job: six words out of a noisy line
#
# Somebody dictates six words over a bad line. There are 14 words, written here `a` to `n`; a dot is
# a crackle. At the question mark you repeat the six, in order. The paper calls it **selective
# copying** (section 4.1.1). Where the words stand is random.

# %%
NOISE, SIGN, WORDS, COPIED = 0, 1, 14, 6


def texts(length, count=200, seed=0):  # -> (count length), (count COPIED)
    """Return what is heard before the sign, and the words to repeat; both are token ids."""
    rng = np.random.default_rng((seed, length))
    ids, _ = selective_copying(rng, count, length, WORDS + 2, COPIED)
    return ids[:, :length], ids[:, -COPIED:]


def spelled(ids):
    return "".join("·?abcdefghijklmn"[i] for i in ids)


for heard, words in zip(*texts(40, 4), strict=True):
    print(f"{spelled(heard)}?   {spelled(words)}")

# %% [markdown]
# ## A memory that would do
#
# Give each word a channel of its own: its input $x$ is 1 where that word is heard and else 0, so
# that a crackle writes nothing at all. In each channel stand `N = 12` numbers that listen to the
# same $x$ and forget at different speeds, as at the end of notebook 01.
#
# `remember` lets Mamba's own scan read a text, with step sizes `delta` of your choice, one for
# all tokens or one for each, and returns the state at the end. $B$ is 1 everywhere.

# %%
N = 12
A = -np.linspace(0.2, 2.4, N)


def one_hot(ids):  # (count length) -> (count length WORDS)
    return (ids[..., None] == np.arange(2, 2 + WORDS)).astype(float)


def remember(ids, delta):  # (count length), (count length) or number -> (count WORDS N)
    """Return h after the last token."""
    x = one_hot(ids)
    steps = np.broadcast_to(np.broadcast_to(delta, ids.shape)[..., None], x.shape)
    B = C = np.ones((*ids.shape, N))
    h = np.zeros((len(ids), WORDS, N))
    return selective_scan(x, steps, np.tile(A, (WORDS, 1)), B, C, h)[1]


# %% [markdown]
# Suppose there were no noise, and $\Delta = 1$ at each word. Then the word's age says which of
# the six it was: the last has age 0, the first has age 5. After $a$ steps of size 1 a channel
# holds $e^{A_n a}$, $n = 1 \dots N$. To ask "which word has age $a$?" one needs weights $C$ that
# give 1 at this age and
# 0 at the other five: a kernel, in the words of notebook 02, with a single peak.
#
# ### Exercise 03a
#
# Find twelve weights `C` whose kernel $K_a = \sum_n C_n e^{A_n a}$ is 1 at age 2 and 0 at the
# ages 0, 1, 3, 4 and 5. (Six equations for twelve unknowns: `np.linalg.lstsq` or `np.linalg.pinv`
# solve them.)

# %%
my_C = ...  # an array of N = 12 numbers

check("03a", my_C)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 03a: open it when you have tried.
at_age = np.exp(np.arange(COPIED)[:, None] * A)  # (6 N): what is left at each age
wanted = np.array([0.0, 0, 1, 0, 0, 0])
peak_at_two = np.linalg.lstsq(at_age, wanted)[0]

check("03a", peak_at_two)

# %% [markdown]
# Six such sets of weights, one for each word, and the job is done: for word $j$ the channel in
# which $C_j h$ is largest is the answer.

# %%
ages = np.arange(COPIED)[::-1]  # the first word is the oldest
C_by_age = np.linalg.pinv(np.exp(ages * A[:, None]))  # (6 N): one row for each word


def answers(h, C):  # (count WORDS N), (COPIED N) -> (count COPIED)
    return (h @ C.T).argmax(axis=1) + 2


def right(h, words, C):
    """Return the share of texts that are repeated without a mistake."""
    return np.mean((answers(h, C) == words).all(axis=1))


heard, words = texts(length=COPIED)
assert np.array_equal(heard, words), "no noise"
assert right(remember(heard, 1.0), words, C_by_age) == 1

# %% [markdown]
# ## Why a fixed model cannot do it
#
# Now let it crackle. To a fixed model a word is as old as the *tokens* since it, crackles
# included, since time passes at each of them. Here is how old each of the six words is at the
# question mark, in two thousand texts of 64 tokens; and how old if only words are counted.

# %%
heard, words = texts(64, count=2000)
spoken = heard != NOISE
in_tokens = 63 - np.nonzero(spoken)[1].reshape(-1, COPIED)
in_words = (spoken[:, ::-1].cumsum(axis=1)[:, ::-1] - 1)[spoken].reshape(-1, COPIED)
assert (in_words == ages).all()
assert all((in_tokens[:, j] == 20).any() for j in (2, 3, 4))
print("the third word is", in_tokens[:, 2].min(), "to", in_tokens[:, 2].max(), "tokens old")

fig, (left, middle) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for j, colour in enumerate((BLUE, ORANGE, GREEN, PINK, "#e69f00", "black")):
    counts = np.bincount(in_tokens[:, j], minlength=64) / len(heard)
    left.plot(counts, color=colour)
    left.text(counts.argmax(), counts.max() + 0.004, j + 1, color=colour, ha="center")
    middle.bar(ages[j], 1, width=0.5, color=colour)
    middle.text(ages[j], 1.02, f"word {j + 1}", color=colour, ha="center")
left.text(54, 0.09, "one age, several words:\nno kernel can tell them apart", color=GRAY)
left.set(ylabel="share of texts", xlabel="age in tokens", xlim=(63, -1), ylim=(0, 0.12))
middle.set(ylabel="share of texts", xlabel="age in words", xlim=(5.6, -0.6), ylim=(0, 1.15))
plt.show()

# %% [markdown]
# On the left the curves overlap: a word that is 20 tokens old may be the third, the fourth or the
# fifth. A fixed model weighs by age in tokens and by nothing else, that is what its kernel $K$ is.
# No choice of $A$, $B$, $C$ or $\Delta$ makes an overlap go away. On the right there is none.
#
# ## Let the words wind the clock
#
# So count words. What makes time pass for a state is $\Delta$: the share that stays from step $s$
# to step $t$ is
#
# $$\bar A_t \cdots \bar A_{s+1} = e^{A\,(\Delta_{s+1} + \dots + \Delta_t)} .$$
#
# Only the sum of the step sizes counts. It is a clock of the model's own, and the text may wind
# it. Take $\Delta = 1$ at a word and $\Delta = 0$ at a crackle: the clock stands still while it
# crackles. Then $\bar A = 1$ and $\bar B = 0$, and $h$ does not change by a single bit. To the
# state there never was any noise.

# %%
heard, words = texts(64)
gate = np.where(heard == NOISE, 0.0, 1.0)
assert np.allclose(remember(heard, gate), remember(words, 1.0), rtol=1e-13), "no noise for h"
assert right(remember(heard, gate), words, C_by_age) == 1

# %% [markdown]
# ## Measured
#
# To be fair to the fixed model, let it have the best weights $C$ that there are for its task,
# found by least squares on 200 texts, and the best of six step sizes, at each length anew. Its
# state needs no scan: by notebook 02 it is a sum of echoes, one product with the kernel.


# %%
def fixed(ids, delta):  # (count length), number -> (count WORDS N)
    """Return the same as ``remember``, by convolution."""
    one = np.ones((N, 1))  # each of the N numbers is a system by itself, read with C = 1
    K = lti.kernel(*eq.discretise(delta, A[:, None], one), one, ids.shape[1])  # (length N)
    return one_hot(ids).swapaxes(1, 2) @ K[::-1]


def best_weights(h, words):  # -> (COPIED N)
    """Return the C that reads 1 in the channel of each word, and 0 in others, if it can."""
    wanted = (words[:, None, :] == np.arange(2, 2 + WORDS)[:, None]).astype(float)
    used = h.any(axis=2)  # in the channel of a word that was not heard all is 0
    return np.linalg.lstsq(h[used], wanted[used])[0].T


def best_fixed(length):
    """Return (share of right texts, delta, C) of the best fixed model for this length."""
    (heard, words), tried = texts(length), []
    for delta in np.geomspace(0.003, 1, 6):
        C = best_weights(h := fixed(heard, delta), words)
        tried.append((right(h, words, C), delta, C))
    return max(tried, key=lambda one: one[0])


assert np.allclose(fixed(heard, 0.1), remember(heard, 0.1))

# %% [markdown]
# All models are then asked texts that they were not fitted to. And because no real gate shuts
# completely (more on that below), two gates are measured that let a little time pass at each
# crackle.

# %%
LENGTHS = [6, 8, 16, 32, 64, 128, 256, 512]
asked = {length: texts(length, seed=1) for length in LENGTHS}
best = {length: best_fixed(length) for length in LENGTHS}
curves = {"fixed": [], "fixed for 16": [], 0.01: [], 0.001: [], 0.0: []}
for length, (heard, words) in asked.items():
    for name, (_, delta, C) in (("fixed", best[length]), ("fixed for 16", best[16])):
        curves[name].append(right(fixed(heard, delta), words, C))
    for leak in (0.01, 0.001, 0.0):
        h = remember(heard[:100], np.where(heard[:100] == NOISE, leak, 1.0))
        curves[leak].append(right(h, words[:100], C_by_age))
assert curves[0.0] == [1.0] * len(LENGTHS), "the gate that shuts: no mistake at any length"
assert curves["fixed"][0] == 1, "without noise the fixed model can do it, too"
assert max(curves["fixed"][2:]) < 0.2, "ten crackles are too many for it"
elsewhere = np.delete(curves["fixed for 16"], LENGTHS.index(16))
assert elsewhere.max() < 0.05

# %% tags=["heart"]
fig, (left, right_side) = plt.subplots(1, 2, figsize=(9.5, 3.5), layout="constrained")
for name, colour in zip(curves, (ORANGE, "#e69f00", PINK, GREEN, BLUE), strict=True):
    left.semilogx(LENGTHS, curves[name], "o-", ms=3, color=colour, base=2)
left.text(40, 1.03, "gate: Δ = 0 at each crackle", color=BLUE)
left.text(75, 0.68, "leaks 0.001", color=GREEN)
left.text(13.5, 0.52, "gate leaks 0.01", color=PINK)
left.text(134, 0.08, "fixed, refitted", color=ORANGE, fontsize=7)
left.text(33, 0.02, "fixed, fitted at 16", color="#e69f00", fontsize=7)
left.set_xticks(LENGTHS, LENGTHS)
left.set(title="texts repeated without a mistake", xlabel="tokens before the sign")
left.set(ylabel="share of texts", ylim=(-0.03, 1.12))

line = texts(40, 4)[0][2]
opened = np.where(line == NOISE, 0.0, 1.0)
right_side.bar(range(40), opened, color=BLUE, width=0.6)
right_side.step(range(40), 2 + opened.cumsum() / 2, where="post", color=BLUE)
right_side.plot(range(40), 2 + np.arange(1, 41) * 3 / 40, color=ORANGE)
right_side.text(-0.5, 1.3, "Δ opens at words only", color=BLUE)
right_side.text(24, 2.65, "so its clock, the sum\nof Δ, counts words", color=BLUE)
right_side.text(6, 4.15, "a fixed Δ: the clock runs\nwith the noise", color=ORANGE)
right_side.set(title="one line, two clocks", yticks=[], ylim=(0, 5.2), xlabel="what is heard")
right_side.set_xticks(range(40), spelled(line), fontsize=6)
plt.show()

# %% [markdown]
# The fixed model gets few texts right, even refitted at each length; fitted at another length, it
# gets hardly any. It is not without merit, though. Look at which words it gets right:

# %%
heard, words = asked[64]
_, delta, C = best[64]
each_word = np.mean(answers(fixed(heard, delta), C) == words, axis=0)
print("share of right answers, word by word:", each_word.round(2))
assert min(each_word[[0, -1]]) > 0.85 > 0.6 > max(each_word[1:-1])

# %% [markdown]
# The first and the last: these it can tell, as the oldest and the youngest, at whatever age. In
# between it guesses.
#
# Note what the trouble was *not*. No crackle ever got into the memory, as its input was 0. What
# went wrong is that time passed.
#
# ## How tightly must a gate shut?
#
# Look at the leaking gates: the smaller the leak, the longer they hold; a leak of 0.001 is good for
# some dozens of tokens. In a model $\Delta =
# \text{softplus}(\text{what a matrix makes of the token} + b)$, and softplus is never 0, only
# very small for very negative numbers. For a memory with $A = -1$:

# %%
show(eq.softplus)
for raw in (-2.0, -6.0, -12.0):
    life = eq.half_life(eq.softplus(raw), -1.0)
    print(f"softplus({raw:g}) = {eq.softplus(raw):.2g}: half is left after {life:,.0f} tokens")

# %% [markdown]
# ### Exercise 03b
#
# Now a third kind of token: **reset** (id 1), "forget all that was said". Write a function that
# takes ids, an array of any shape, and returns a step size for each: at noise (id 0) $h$ stays as
# it is, at a reset everything is cleared, also the slowest memory, $A = -0.2$, of which less than
# 1 % may stay. Words (ids from 2 on) count the clock on, as before.


# %%
def my_delta(ids):
    return ...


check("03b", my_delta)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 03b: open it when you have tried.
def keep_clear_count(ids):
    delta = np.where(ids >= 2, 1.0, 0.0)
    delta[ids == 1] = 25.0  # exp(-0.2 * 25) = 0.7 %
    return delta


check("03b", keep_clear_count)

# %% [markdown]
# Here is your clock at work, or ours, if yours is still to come: the slowest memory of three words
# while a line with a reset in it is read.

# %%
line = np.array([2, 0, 0, 3, 0, 0, 0, 2, 0, 1, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0])
delta = keep_clear_count(line)
h = np.array([remember(line[None, : t + 1], delta[: t + 1])[0, :3, 0] for t in range(len(line))])
assert np.array_equal(h[4], h[6]), "crackles change nothing"
assert h[9].max() < 0.01 * h[8].max(), "the reset clears everything"

fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
for e, colour in enumerate((BLUE, ORANGE, GREEN)):
    ax.step(range(len(line)), h[:, e], where="post", color=colour, lw=1.5)
    first = np.flatnonzero(line == 2 + e)[0]
    ax.text(first + 0.2, h[first, e] + 0.06, f"channel of {'abc'[e]}", color=colour)
ax.annotate("reset: Δ = 25", (9, 0.9), (9.4, 1.5), arrowprops={"arrowstyle": "-", "color": GRAY})
ax.text(4.1, 0.35, "crackles: flat", color=GRAY)
ax.set(xlabel="what is heard (! is the reset)", ylabel="h, slowest memory", ylim=(0, 1.9))
ax.set_xticks(range(len(line)), "".join("·!abc"[i] for i in line))
plt.show()

# %% [markdown]
# ### Exercise 03c
#
# A model has to remember over 4,096 crackles. For a memory with $A = -1$, which bias $b$ leaves
# 99 % of it, if $\Delta = \text{softplus}(b)$ at each crackle? (98.9 % to 99.1 % will do. There
# is `eq.inverse_softplus`.)

# %%
my_b = ...  # a number

check("03c", my_b)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 03c: open it when you have tried.
all_steps = -np.log(0.99)  # what the clock may move on in all
b_for_4096 = eq.inverse_softplus(all_steps / 4096)

check("03c", b_for_4096)

# %% [markdown]
# ## And why B and C?
#
# $\Delta$ alone ties two things together: where the gate opens, the old goes and the new comes
# in. With $B$ and $C$ from the input as well, a model decides three things at each token:
#
# | made from the token | says | here, by hand |
# |---|---|---|
# | $\Delta_t$ | how much of the old goes | 1 at words, 0 at crackles |
# | $B_t$ | what is written, and where | words alone: at a crackle $x = 0$ does it |
# | $C_t$ | what is read | $C_j$ while the $j$-th word is asked for |
#
# Without noticing we used all three. With one $C$ for all six questions we would have got the
# same answer six times:

# %%
heard, words = texts(64)
h = remember(heard, np.where(heard == NOISE, 0.0, 1.0))
same_C = np.tile(C_by_age[0], (COPIED, 1))
assert np.array_equal(answers(h, same_C), np.tile(words[:, :1], COPIED))

# %% [markdown]
# *Why not make $A$ depend on the input, too?* It enters only as $\Delta A$: a $\Delta$ that
# follows from the input makes $\bar A$ follow from it. The authors say so in section 3.5.2, and
# left $A$ alone.
#
# *What does one pay?* The kernel. With step sizes that differ from token to token the convolution
# of notebook 02 is gone, and the scan of notebook 04 takes its place.
#
# ## What training makes of it
#
# We set the gates by hand. Do models find them? These are small models that were trained here,
# all alike but for what follows from the input ([how, and the numbers](../docs/selection.md)).
# They have two layers with convolutions and nonlinear gates, so that even the fixed one can do
# more than ours. On the left, selective copying of four words. On the right *induction heads*: a
# special token stands somewhere in the noise, and much later again. What followed it the first
# time? They were trained at length 64 and are asked at 4,096.

# %%
CHOICES = ["nothing", "B", "C", "Δ", "Δ, B, C"]
COPYING = [52.4, 82.3, 98.7, 100.0, 100.0]  # docs/selection.md
INDUCTION = [5.1, 12.5, 9.0, 90.2, 99.2]

fig, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained", sharey=True)
for ax, shares, chance in zip(axes, (COPYING, INDUCTION), (100 / 14, 100 / 15), strict=True):
    bars = ax.barh(CHOICES, shares, color=[ORANGE, GRAY, GRAY, BLUE, BLUE], height=0.6)
    ax.bar_label(bars, fmt="%.1f %%", fontsize=7, padding=9)
    ax.axvline(chance, color="black", lw=0.6, ls=":")
    ax.set(xlim=(0, 122), xlabel="right answers in % (dotted: by chance)")
axes[0].invert_yaxis()
axes[0].set(title="selective copying, length 64", ylabel="from the input follows")
axes[1].set(title="induction heads, trained at 64, asked at 4,096")
plt.show()

# %% [markdown]
# The step size is what matters most when lengths differ, as in our experiment. A model of the
# second kind comes with the package: trained longer, it is right at a million tokens. How? Let it
# read one text of 64 tokens, and look at the step sizes of its first layer.

# %%
model = MambaForCausalLM.from_pretrained(bundled_model_path("induction_heads"), backend="numpy")
ids, _ = induction_heads(np.random.default_rng(20), batch=1, length=63)
special = int(np.flatnonzero(ids[0] == 15)[0])
delta = model.trace(ids[0], capture=("delta",)).delta[0]  # (L E)
largest, next_largest = np.sort(delta, axis=0)[[-1, -2]]
gates = (largest > 3) & (next_largest < 1e-3)
print(f"the special token is at {special}; {gates.sum()} of {len(gates)} channels open just once")
assert (delta[:, gates].argmax(axis=0) == special + 2).all(), "and all at the same place"

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.semilogy(delta[:, gates], color=BLUE, lw=0.8, alpha=0.7)
ax.text(special + 3, 3, "open: forget everything, take this", color=BLUE)
ax.text(special + 6, 0.01, "shut: whatever comes, keep what you have", color=BLUE)
for place, name in ((special, "the special\ntoken"), (63, "and again:\nwhat came next?")):
    ax.axvline(place, color=ORANGE, lw=0.8, ls="--", zorder=0)
    ax.text(place - 0.7, 0.3, name, color=ORANGE, ha="right")
ax.set(xlabel="token", ylabel="Δ, one line for each channel", ylim=(None, 60))
plt.show()

# %% [markdown]
# There it is: our gate, built by training and not by hand. Shut, shut, shut; then, once, wide open;
# and shut again. It opens two tokens after the special one. The model's convolution, of width 4,
# lets a channel see the three tokens before as well: at this moment the special token and what
# followed it are in view. The other channels do other things, and not all of them are this clear.

# %%
A_model = eq.continuous_A(model.params.layers[0].A_log[gates])  # (gates, N)
open_step, shut_step = largest[gates], np.median(delta[:, gates], axis=0)
slowest = np.abs(A_model).min(axis=1)
life = eq.half_life(shut_step, slowest)
print(f"open: Δ from {open_step.min():.1f} to {open_step.max():.1f}")
print(f"shut: half-life of the slowest memory from {life.min():,.0f} to {life.max():,.0f} tokens")
assert np.all(np.exp(-open_step * slowest) < 0.05), "what was there before is gone"
assert life.min() > 1e5

# %% [markdown]
# Wide open, nothing is left of what was there before. Shut, half of the slowest memory is still
# there after some hundred thousand tokens or more: compare that with the leaks of 0.01 and 0.001
# above, and with the million tokens at which this model is still right.

# %% [markdown]
# To take with you:
#
# * A fixed system weighs what it heard by age in tokens. Where ages say nothing, it cannot choose.
# * A step size that follows from the token makes a clock that the text winds. At 0 it stands
#   still and the state stays as it is; large, it clears the state.
# * $B$ chooses what is written, $C$ what is read. Together the three are the *selection* in
#   "selective state space model".

# %% [markdown]
# ## Read next
#
# * [04 Scan in parallel](04_scan_in_parallel.ipynb): how to compute all that quickly, without the
#   kernel that was given up.
# * [What selection is for, measured](../docs/selection.md): the trained models above, and the
#   commands that train them.
# * The paper, [Gu and Dao 2023](https://arxiv.org/abs/2312.00752): section 3.1 for the two tasks,
#   3.5 for what $\Delta$, $B$ and $C$ mean, 4.1 for its own measurements.
# * `select` in `mamba_np/reference.py`, six lines that make $\Delta$, $B$ and $C$ from a token, and
#   `mamba_np/training/tasks.py`.
