# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 25
#     seconds: 30
#     after: [1, 2]
# ---

# %% [markdown]
# # 04 Scan in parallel
#
# **Each state needs the state before it: how can all of them be computed at the same time?**
#
# Step by step, a million tokens are a million turns of waiting. A convolution does not wait, but
# needs a model whose numbers never change (notebook 02), and Mamba's change at every token. You
# will find the one property of a step that lets many workers share a recurrence, see three ways to
# use it, count what each costs, and measure when it pays.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lesson import check, show
from lesson.rounds import draw_rounds
from lesson.timing import seconds
from mamba_np import MambaConfig, equations, plot, reference, scans

plt.style.use(plot.STYLE)
rng = np.random.default_rng(0)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"

# %% [markdown]
# ## Two clerks, one account
#
# Here is an account with sixteen entries. Entry $t$ first multiplies the balance $h$ by $a_t$,
# then adds $b_t$:
#
# $$h_t = a_t\,h_{t-1} + b_t$$
#
# This is Mamba's recurrence for one number of the state: $a_t$ is $\bar A_t$, which says how much
# is kept, and $b_t$ is $\bar B_t x_t$, what the token writes. The package calls the second one
# `drive`. To keep the numbers short, $a_t$ is 1 (keep all), ½ (keep half) or 0 (forget all).

# %%
L = 16
a = np.array([1, 1, 0.5, 1, 0, 1, 1, 0.5, 1, 1, 0.5, 1, 1, 0.5, 1, 1])
b = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3.0])


def account(a, b, h):
    return np.array([h := a_t * h + b_t for a_t, b_t in zip(a, b, strict=True)])


h = account(a, b, 0.0)
print(h)

# %% [markdown]
# One clerk needs sixteen turns. Could a second clerk do entries 8 to 15 while the first does 0 to
# 7? She does not know the balance that her part begins with, so she has nothing to multiply. But
# she can try some: what does her part make of 0, of 10, of 20?

# %%
guesses = np.array([0.0, 10, 20, 30])
ends = [account(a[8:], b[8:], guess)[-1] for guess in guesses]

fig, ax = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
ax.plot(guesses, ends, "o-", color=BLUE)
ax.plot([h[7], h[7], 0], [30, h[15], h[15]], "o:", color=ORANGE, markevery=[1])
ax.text(14.6, 33.2, f"it really begins with {h[7]:g},\nand ends with {h[15]:g}", color=ORANGE)
ax.text(10, 38.2, "four guesses, one straight line", color=BLUE)
ax.set(xlabel="balance before entry 8", ylabel="balance after entry 15", ylim=(31, 41))
plt.show()

# %% [markdown]
# The guesses lie on a straight line, and must: multiplying by a number and adding a number is a
# straight line, and a straight line of a straight line is one again. So two numbers say all about
# her eight entries: the line's slope, and where it starts. She computes them while the first clerk
# works. When he calls out his 14, she needs one multiplication and one addition.

# %%
slope, start = np.prod(a[8:]), ends[0]
print(f"eight entries as one: multiply by {slope:g}, add {start:g}")
np.testing.assert_allclose(ends, slope * guesses + start)
assert slope * h[7] + start == h[15]

# %% [markdown]
# ## Two steps are one step
#
# Write a step as the pair $(a, b)$. First $(a_1, b_1)$ and then $(a_2, b_2)$ makes of $h$
#
# $$a_2\,(a_1 h + b_1) + b_2 .$$
#
# Sort this by $h$ and you have a step again. Call it $(a_1, b_1) \bullet (a_2, b_2)$, the earlier
# one on the left.
#
# ### Exercise 04a
# Write the operator $\bullet$: `merge(a1, b1, a2, b2)` returns the pair (a, b) that does both
# steps, the first one first.


# %%
def merge(a1, b1, a2, b2):
    return ...


check("04a", merge)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 04a: open it when you have tried.
def both(a1, b1, a2, b2):
    return a2 * a1, a2 * b1 + b2


check("04a", both)

# %% [markdown]
# The package has it as `compose`. Its second half is a plain state update: what the first step has
# added is a state for the second.

# %%
show(equations.compose, equations.state_update)

# %% [markdown]
# ## The law: brackets do not matter
#
# Three steps can be merged in two ways: $(p \bullet q) \bullet r$ or $p \bullet (q \bullet r)$.
# Both do the same three things in the same order, so both have to be the same pair. Written out,
# both are
#
# $$(a_3 a_2 a_1,\;\; a_3 a_2 b_1 + a_3 b_2 + b_3).$$
#
# An operator with this property is called *associative*. It is not *commutative*: the order of the
# steps matters, only the brackets do not.

# %%
compose = equations.compose
p, q, r = rng.uniform(0, 1, size=(3, 2, 1000))  # a thousand triples of steps
left, right = compose(*compose(*p, *q), *r), compose(*p, *compose(*q, *r))
print(f"brackets change at most {np.abs(np.subtract(left, right)).max():.0e}")
np.testing.assert_allclose(left, right, atol=1e-15)
assert compose(0.5, 1, 1, 3) != compose(1, 3, 0.5, 1)  # order matters
assert compose(1, 0, 0.5, 3) == (0.5, 3)  # (1, 0) is the step that does nothing

# %% [markdown]
# Why does this help? Left to right, $((s_0 \bullet s_1) \bullet s_2) \bullet s_3$, each merge
# waits for the one before. In pairs, $(s_0 \bullet s_1) \bullet (s_2 \bullet s_3)$, the inner two
# can happen at once. Pairs of pairs make four rounds of sixteen steps, instead of fifteen merges
# in a row.
#
# ## All states, not only the last
#
# That is the last state. We need all sixteen: the output $y_t = C_t h_t$ reads each of them. A
# computation of all running results of an operator is called a *scan*. Describe one by its
# *rounds*. A round is a list of merges `(i, j)`: position `j` replaces what it holds by (what `i`
# holds) $\bullet$ (what `j` holds). All merges of a round happen at once, each reading what was
# there before the round.
#
# One scan goes up a tree and comes down again (Brent and Kung drew it for adders, Blelloch made it
# a tool for everything). Up: neighbours merge, then neighbours of these, until the last position
# holds everything. Down: the positions that were left out take what stands just before them.


# %%
def in_order(L):
    return [[(t - 1, t)] for t in range(1, L)]


def tree(L):
    reaches = [2**k for k in range(L.bit_length())]
    up = [[(t - r, t) for t in range(2 * r - 1, L, 2 * r)] for r in reaches]
    down = [[(t - r, t) for t in range(3 * r - 1, L, 2 * r)] for r in reaches[::-1]]
    return [merges for merges in up + down if merges]


def run(rounds, a, b, operator=compose):
    """Return what all positions hold, (a, b), before the first round and after each."""
    held = [(a, b)]
    for merges in rounds:
        i, j = np.array(merges).T
        a, b = a.copy(), b.copy()
        a[j], b[j] = operator(a[i], b[i], a[j], b[j])
        held.append((a, b))
    return held


for number, merges in enumerate(tree(L), 1):
    print(f"round {number}:", *merges)
assert np.array_equal(run(tree(L), a, b)[-1][1], h)

# %% [markdown]
# Here it is with the numbers of the account. A white box is a part of the account as one step; a
# blue box has reached back to entry 0 and is a finished balance.


# %% tags=["heart"]
fig, ax = plt.subplots(figsize=(8.6, 5.8), layout="constrained")
draw_rounds(ax, tree(L), L, run(tree(L), a, b))
title = "Sixteen entries in seven rounds: finished balances (blue) spread from the left"
ax.set(xlim=(-0.7, L + 1.6), title=title)
for top, bottom, text in ((1, 4, "up:\nmerge\nneighbours"), (5, 7, "down:\nfill in")):
    ax.plot([15.75, 15.9, 15.9, 15.75], [top, top, bottom, bottom], color=GREY, lw=0.8)
    ax.text(16.05, (top + bottom) / 2, text, va="center", fontsize=8)
ax.text(14.9, 4.5, "ready after 4 rounds\n(one by one: 15)", color=BLUE, ha="right", va="center",
        fontsize=8, backgroundcolor="white")  # fmt: skip
plt.show()

# %% [markdown]
# Follow a box upwards and you see whose steps it holds. A box is blue once nothing is missing
# before it, and then its $a$ is not needed any more. Note entry 4, where $a = 0$: each box that
# reaches across it has the factor 0. Forgetting needs no special case.
#
# The package's `associative_scan` is the same tree, over whole arrays: neighbours merge, half the
# sequence is solved in the same way, the rest is filled in.

# %%
show(reference.associative_scan, reference._scan_from_zero)

# %% [markdown]
# ### Exercise 04b
# Break it on purpose. Write an operator `broken(a1, b1, a2, b2)` with which going left to right
# still gives each state right, but with which the tree is wrong. Such a bug passes every test that
# goes step by step.


# %%
def broken(a1, b1, a2, b2):
    return ...


check("04b", broken)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 04b: open it when you have tried.
def forgetful(a1, b1, a2, b2):
    return a2, a2 * b1 + b2  # the factor of the first step is lost


check("04b", forgetful)
print("in a row:", run(in_order(L), a, b, forgetful)[-1][1])
print("tree:    ", run(tree(L), a, b, forgetful)[-1][1])

# %% [markdown]
# Left to right nobody ever reads the $a$ of what has been merged so far: nothing comes before it.
# In the tree it is what an earlier part is multiplied by. That is its whole purpose. So test a
# scan with brackets in more than one place, and with lengths that are no powers of two.
#
# ## Fewer rounds for more work
#
# In the tree most positions are idle in most rounds. Kogge and Stone (1973) let everybody work
# always, for recurrences like ours: in the first round each position merges with its neighbour on
# the left, in the second with the position 2 to the left, then 4, then 8. After each round every
# position knows twice as many entries.
#
# ### Exercise 04c
# Write `doubling(L)`: the list of these rounds, each a list of merges `(i, j)`, for any length
# $L \ge 1$.


# %%
def doubling(L):
    return ...


check("04c", doubling)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 04c: open it when you have tried.
def kogge_stone(L):
    rounds, reach = [], 1
    while reach < L:
        rounds.append([(t - reach, t) for t in range(reach, L)])
        reach *= 2
    return rounds


check("04c", kogge_stone)

# %% [markdown]
# A third way is that of the two clerks, for as many as there are. Cut the sequence into *chunks*.
# In each chunk go step by step, in all chunks at once; then the finished balance goes from chunk
# to chunk, and each position of a chunk takes it in with one merge. (The picture has chunks of 4.)


# %%
def chunks(L, size=scans.CHUNK):
    starts = range(0, L, size)
    within = [[(c + t - 1, c + t) for c in starts if c + t < L] for t in range(1, size)]
    across = [[(c - 1, t) for t in range(c, min(c + size, L))] for c in starts[1:]]
    return within + across


ways = dict(zip(scans.SCANS, (in_order, kogge_stone, tree, chunks), strict=True))
fig, axes = plt.subplots(1, 4, figsize=(9, 3.6), layout="constrained")
for ax, (name, way) in zip(axes, ways.items(), strict=True):
    rounds = chunks(L, 4) if name == "chunked" else way(L)
    draw_rounds(ax, rounds, L)
    counts = f"{len(rounds)} rounds, {sum(map(len, rounds))} merges"
    ax.set(ylim=(15.6, -0.7), title=f"{name}\n{counts}")
    assert np.array_equal(run(rounds, a, b)[-1][1], h)
axes[0].set_ylabel("time runs down")
plt.show()

# %% [markdown]
# `mamba_np.scans` has the four of them for arrays (B, L, E, N): batch, length, channels, numbers
# in a channel's state. Every channel and every state is a recurrence of its own, and all go
# through the rounds side by side. Our lists of merges and the package's arrays do the same
# arithmetic in the same order, so they agree to the last bit. Between two *different* orders there
# is rounding.

# %%
show(scans.kogge_stone, scans.chunked)

# %%
A_bar, drive = rng.uniform(0.5, 1, (1, 100, 1, 1)), rng.normal(size=(1, 100, 1, 1))
expected = scans.recurrence(A_bar, drive, np.zeros((1, 1, 1)))
for name, scan in scans.SCANS.items():
    states = scan(A_bar, drive, np.zeros((1, 1, 1)))
    by_hand = run(ways[name](100), A_bar.ravel(), drive.ravel())[-1][1]
    assert np.array_equal(states.ravel(), by_hand)
    np.testing.assert_allclose(states, expected, rtol=1e-12, atol=1e-14)
    print(f"{name:17} differs from the recurrence by {np.abs(states - expected).max():.0e}")

# %% [markdown]
# ## Work and depth
#
# Two numbers describe such an algorithm. *Depth* is how many rounds there are: what is left to
# wait for with a worker for each merge. *Work* is how many merges there are: what a single worker
# has to do. With $P$ workers a round of $m$ merges takes $\lceil m / P \rceil$ turns.

# %%
n, P = 4096, 2 ** np.arange(13)
colors = dict(zip(scans.SCANS, (GREY, ORANGE, BLUE, GREEN), strict=True))
fig, (trade, turns) = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
dial = [chunks(n, 2**k) for k in range(2, 11)]
trade.loglog([len(r) for r in dial], [sum(map(len, r)) / n for r in dial], ".:", color=GREEN)
for name, way in ways.items():
    sizes = np.array([len(merges) for merges in way(n)])
    trade.loglog(len(sizes), sizes.sum() / n, "o", color=colors[name])
    side = "right" if name == "recurrence" else "left"
    trade.text(
        len(sizes), 1.1 * sizes.sum() / n, f" {name} ", color=colors[name], ha=side, fontsize=8
    )
    turns.loglog(P, [np.ceil(sizes / p).sum() for p in P], color=colors[name])
    print(f"{name:17} {len(sizes):5} rounds, {sizes.sum():6} merges")
trade.set(
    xlabel="depth: rounds",
    ylabel="work: merges for each step",
    ylim=(0.8, 20),
    title="4,096 steps: rounds against merges",
)
trade.text(120, 1.55, "dots: chunks of 4 to 1,024 steps", color=GREEN, fontsize=8)
turns.set(
    xlabel="workers P (colours as on the left)",
    ylabel=f"turns for {n:,} steps",
    title="who is first depends on how many work",
)
plt.show()
assert len(min(dial, key=len)) == len(chunks(n, 64)) == 126
assert (len(kogge_stone(n)), sum(map(len, kogge_stone(n)))) == (12, 12 * n - n + 1)

# %% [markdown]
# Depth falls from $L - 1$ to $\log_2 L$, 12 for 4,096 steps, but not for nothing: Kogge-Stone
# merges almost $\log_2 L$ times for each step, the tree and the chunks almost twice. So a single
# worker should go one by one, a few workers should take chunks or the tree, and only with about as
# many workers as steps is Kogge-Stone the fastest.
#
# How large should a chunk be? The rounds are one fewer than the steps of a chunk, and one fewer
# than the chunks. Their sum is smallest where both are $\sqrt L$: chunks of 64 need 126 rounds. A
# real machine adds what a round costs by itself, and what fits its caches.
#
# ## Measured
#
# Now the time of the four scans here, in NumPy. A narrow sequence has one channel with 16 states,
# so a step is 16 numbers; a wide one has 128 channels, 2,048 numbers. Do not expect the same
# winner.

# %%
powers = np.arange(4, 13)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.1), layout="constrained")
for ax, channels, lengths in zip(axes, (1, 128), (2**powers, 2 ** powers[:6]), strict=True):
    inputs = [rng.random((2, 1, steps, channels, 16), np.float32) for steps in lengths]
    zero = np.zeros((1, channels, 16), np.float32)
    for name, scan in scans.SCANS.items():
        times = [1e3 * seconds(scan, *pair, zero) for pair in inputs]
        ax.loglog(lengths, times, "o-", ms=3, color=colors[name], label=name)
        print(f"{channels:3} channels, {lengths[-1]:4} steps: {times[-1]:6.2f} ms, {name}")
    ax.set(title=f"{16 * channels:,} numbers a step", xlabel="length L", ylabel="milliseconds")
    ax.set_xticks(lengths[::2], lengths[::2])
    ax.minorticks_off()
axes[0].legend()
plt.show()

# %% [markdown]
# In NumPy a round is a few calls, and a call costs about the same for ten numbers as for a
# thousand. Where a step is narrow, further numbers in a round are nearly free, and *depth* is what
# you pay: the scans with few rounds leave the loop behind as the sequence grows. Where a step is
# wide, one step alone fills the calls, and *work* is what you pay: each further merge computes and
# moves more numbers, and the plain recurrence, which merges least, is hard to beat. A parallel
# scan feeds on idle hardware.
#
# ## Why not divide and use cumsum?
#
# A formula without any waiting is often proposed. With $P_t = a_0 a_1 \cdots a_t$,
#
# $$h_t = P_t \sum_{s \le t} \frac{b_s}{P_s},$$
#
# which is one `cumprod` and one `cumsum`. It is true, and it does not survive floating-point
# numbers. $P_t$ falls exponentially, below the smallest float32 after some hundred steps, and the
# quotients leave at the other end.

# %%
a_long, b_long = rng.uniform(0.6, 1, 400).astype("f4"), rng.normal(size=400).astype("f4")
exact = account(a_long.astype(float), b_long.astype(float), 0.0)
with np.errstate(all="ignore"):
    P = np.cumprod(a_long)
    divided = P * np.cumsum(b_long / P)
scanned = run(tree(400), a_long, b_long)[-1][1]
print("cumsum: no numbers from step", np.flatnonzero(~np.isfinite(divided))[0], "on")
print(f"tree: off by at most {np.abs(scanned - exact).max():.0e}")
assert not np.isfinite(divided[-1])
np.testing.assert_allclose(scanned, exact, atol=2e-6)

# %% [markdown]
# The tree multiplies the same factors, and its products become 0 as well. But it only ever
# *multiplies* by them, and 0 is the right factor for a past that is forgotten. Nothing is divided
# by it.
#
# ## The scan inside Mamba
#
# "Is there a selective scan in plain Python?" is asked often. Here it is: discretise, scan, read.
# The scan is an argument, and each of the four fits. Its gradient is a scan, too, which runs from
# the end to the start (notebook 12).

# %%
show(reference.selective_scan)

# %%
steps, E, N = 200, 8, 16
x, delta = rng.normal(size=(1, steps, E)), rng.uniform(0.01, 0.3, (1, steps, E))
A, (B, C) = -rng.uniform(0.5, 8, (E, N)), rng.normal(size=(2, 1, steps, N))
arguments = x, delta, A, B, C, np.zeros((1, E, N))
y, _ = reference.selective_scan(*arguments)
for scan in scans.SCANS.values():
    again, _ = reference.selective_scan(*arguments, scan=scan)
    np.testing.assert_allclose(again, y, atol=1e-13 * np.abs(y).max())
model = MambaConfig()  # the sizes of mamba-130m
print(f"recurrences in one of its layers: {model.intermediate_size * model.state_size:,}")

# %% [markdown]
# Which scan should a program use? The picture with the workers answers. A core of a CPU computes
# with 4 to 16 numbers at once, and a layer has thousands of independent recurrences: they fill the
# core without cutting the sequence. So the package's CPU kernels go one by one, with the least
# work (notebook 10). A GPU keeps a hundred thousand threads busy, and a layer of one text has
# fewer recurrences than that. Mamba's authors scan in parallel there, chunk by chunk, and this
# package's GPU engine cuts a long text into chunks, too (notebook 11). In its NumPy reference the
# configuration chooses, by the name that it has in transformers: `use_associative_scan`.

# %% [markdown]
# ## Read next
#
# - [10 Make it fast on a CPU](10_make_it_fast_on_a_cpu.ipynb): the same recurrence at the speed of
#   the hardware, without a tree.
# - `mamba_np/cuda/scan_chunks.py`: chunks on a GPU, where the product of all factors of a chunk is
#   one exponential; [the GPU's kernels](../docs/gpu-kernels.md) says what bounds them.
# - Gu and Dao 2023, section 3.3 and appendix D: the scan of Mamba's authors, and why its states
#   should never leave the fast memory.
# - Blelloch 1990, "Prefix sums and their applications": what else is a scan, sorting and parsing
#   among them.
