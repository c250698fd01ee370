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
# that a crackle writes nothing at all. In each channel stand `N = 12` numbers that listen to the same $x$ and
# forget at different speeds, as at the end of notebook 01.
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
# Suppose there were no noise, and $\Delta = 1$ at each word. Then the word's age says which of the
# six it was: the last has age 0, the first has age 5. After $a$ steps of size 1 a channel holds
# $e^{A_n a}$, $n = 1 \dots N$. To ask "which word has age $a$?" one needs weights $C$ that give 1 at this age and
# 0 at the other five: a kernel, in the words of notebook 02, with a single peak.
#
# ### Exercise 03a
#
# Find twelve weights `C` whose kernel $K_a = \sum_n C_n e^{A_n a}$ is 1 at age 2 and 0 at the ages 0, 1,
# 3, 4 and 5. (Six equations for twelve unknowns: `np.linalg.lstsq` or `np.linalg.pinv` solve
# them.)

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
third = in_tokens[:, 2]
print(f"the third word is between {third.min()} and {third.max()} tokens old")

fig, (left, middle) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
for j, colour in enumerate((BLUE, ORANGE, GREEN, PINK, "#e69f00", "black")):
    counts = np.bincount(in_tokens[:, j], minlength=64) / len(heard)
    left.plot(counts, color=colour)
    left.text(counts.argmax(), counts.max() + 0.02, j + 1, color=colour, ha="center")
    middle.bar(ages[j], 1, width=0.5, color=colour)
    middle.text(ages[j], 1.02, f"word {j + 1}", color=colour, ha="center")
left.text(8, 0.7, "any age belongs to several words:\nno kernel can tell them apart", color=GRAY)
left.set(title="age in tokens", xlabel="tokens since", ylabel="share of the texts", xlim=(63, -1))
middle.set(title="age in words", xlabel="words since", xlim=(5.6, -0.6), ylim=(0, 1.15))
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
# Only the sum of the step sizes counts. It is a clock of the model's own, and the text may wind it.
# Take $\Delta = 1$ at a word and $\Delta = 0$ at a crackle: the clock stands still while it
# crackles. Then $\bar A = 1$ and $\bar B = 0$, and $h$ does not change by a single bit. To the state there
# never was any noise.

# %%
heard, words = texts(64)
gate = np.where(heard == NOISE, 0.0, 1.0)
assert np.array_equal(remember(heard, gate), remember(words, 1.0)), "as if nobody had crackled"
assert right(remember(heard, gate), words, C_by_age) == 1

# %% [markdown]
# ## Measured
#
# To be fair to the fixed model, let it have the best weights $C$ that there are for its task, found by least
# squares on 200 texts, and the best of eight step sizes, at each length anew. Its state needs no
# scan: by notebook 02 it is a sum of echoes, one product with the kernel.


# %%
def fixed(ids, delta):  # (count length), number -> (count WORDS N)
    """Return the same as ``remember``, by convolution."""
    one = np.ones((N, 1))  # each of the N numbers is a system by itself, read with C = 1
    K = lti.kernel(*eq.discretise(delta, A[:, None], one), one, ids.shape[1])  # (length N)
    return one_hot(ids).swapaxes(1, 2) @ K[::-1]


def best_weights(h, words):  # -> (COPIED N)
    """Return the C that reads 1 in the channel of each word, and 0 in others, if it can."""
    wanted = (words[:, None, :] == np.arange(2, 2 + WORDS)[:, None]).astype(float)
    return np.linalg.lstsq(h.reshape(-1, N), wanted.reshape(-1, COPIED))[0].T


def best_fixed(length):
    """Return (share of right texts, delta, C) of the best fixed model for this length."""
    heard, words = texts(length)
    tried = []
    for delta in np.geomspace(0.003, 1, 8):
        h = fixed(heard, delta)
        C = best_weights(h, words)
        tried.append((right(h, words, C), delta, C))
    return max(tried, key=lambda one: one[0])


assert np.allclose(fixed(heard, 0.1), remember(heard, 0.1))

# %% [markdown]
# All models are then asked texts that they were not fitted to. And because no real gate shuts
# completely (more on that below), two gates are measured that let a little time pass at each
# crackle.

# %%
LENGTHS = [6, 8, 12, 16, 32, 64, 128, 256, 512]
asked = {length: texts(length, seed=1) for length in LENGTHS}
_, delta_16, C_16 = best_fixed(16)
curves = {"fixed": [], "fixed for 16": [], 0.01: [], 0.001: [], 0.0: []}
for length, (heard, words) in asked.items():
    _, delta, C = best_fixed(length)
    curves["fixed"].append(right(fixed(heard, delta), words, C))
    curves["fixed for 16"].append(right(fixed(heard, delta_16), words, C_16))
    for leak in (0.01, 0.001, 0.0):
        h = remember(heard[:100], np.where(heard[:100] == NOISE, leak, 1.0))
        curves[leak].append(right(h, words[:100], C_by_age))
assert curves[0.0] == [1.0] * len(LENGTHS), "the gate that shuts: no mistake at any length"
assert curves["fixed"][0] == 1, "without noise the fixed model can do it, too"
assert max(curves["fixed"][3:]) < 0.2, "ten crackles are too many for it"

# %% tags=["heart"]
fig, (left, right_side) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
plt.show()
