# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 30
#     seconds: 20
#     after: [1]
# ---

# %% [markdown]
# # 02 Run one model three ways
#
# **How can one state space model be a loop, a convolution and a matrix, and which of the three is
# quickest?**
#
# As long as the step size never changes, the memory of notebook 01 can be computed by three
# routes that look nothing like each other. The models before Mamba lived on that: they trained by
# one route and wrote by another. You will walk all three, time them, and then let the step size
# change, to see which routes are still open. That is the price of Mamba's selection.

# %%
import matplotlib.pyplot as plt
import numpy as np

import mamba_np.equations as eq
from lesson import check, show
from lesson.timing import seconds
from mamba_np import lti, plot, reference

plt.style.use(plot.STYLE)
BLUE, ORANGE, GREEN, PINK, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "0.5"

# %% [markdown]
# ## Claps in a hall
#
# Clap once in a large hall. The sound that comes back swells, then fades away. We model it with
# three memories, `N = 3`, each with its own leak $A$, all hearing the same input ($B = 1$). What
# we hear is a weighted sum of them, with weights $C$ of both signs. As in notebook 01 the step
# size $\Delta$ turns the leaks $A$ into the shares $\bar A$ that stay at each step. One condition
# is new: $\Delta$, $B$ and $C$ never change. Such a system is called **linear time-invariant**, LTI
# for short. The input $x$ is three claps and a long hum, 96 steps in all.

# %%
delta, N, L = 0.1, 3, 96
A = np.array([-0.5, -2.0, -8.0])
B = np.ones(N)
C = np.array([10.0, -14.0, 6.0])
A_bar, B_bar = eq.discretise(delta, A, B)

x = np.zeros(L)
x[[6, 26, 32]] = 1.0, 0.5, 0.8
x[62:80] = 0.08
print("of each memory stays, at each step:", A_bar.round(3))

# %% [markdown]
# ## Route 1: step by step
#
# You know this one. Start with $h = 0$, and then for each $t$
#
# $$h_t = \bar A\, h_{t-1} + \bar B\, x_t, \qquad y_t = C\, h_t = \sum_{n} C_n h_{t,n} .$$
#
# It is the **recurrence**. The package's loop has three lines; `lti.recurrence` calls it with the
# same $\bar A$ at every step, and multiplies by $C$.

# %%
show(reference.recurrence)
y, h = lti.recurrence(x, A_bar, B_bar, C)
assert np.allclose(y, h @ C)

fig, (top, middle, bottom) = plt.subplots(
    3, 1, figsize=(7, 4.2), layout="constrained", sharex=True, height_ratios=(1, 2, 2)
)
top.stem(x, linefmt="0.6", markerfmt=" ", basefmt=" ")
top.set(ylabel="input x", ylim=(0, 1.1))
for n, colour in enumerate((BLUE, GREEN, PINK)):
    middle.plot(h[:, n], color=colour)
middle.text(37, 0.125, "A = -0.5: fades slowly", color=BLUE)
middle.text(36, 0.06, "A = -2", color=GREEN)
middle.text(65, 0.021, "A = -8: gone at once", color=PINK, fontsize=7)
middle.set(ylabel="states h", ylim=(0, 0.16))
bottom.plot(y, color="black")
bottom.text(8, 0.75, "the weighted sum: each clap swells, then fades")
bottom.set(xlabel="step t", ylabel="output y", ylim=(0, 0.9))
plt.show()

# %% [markdown]
# What does the loop need to go on? Three numbers. Stop it after step 39, throw everything away
# but $h_{39}$, and the rest comes out the same:

# %%
first, seen = lti.recurrence(x[:40], A_bar, B_bar, C)
rest, _ = lti.recurrence(x[40:], A_bar, B_bar, C, seen[-1])
assert np.array_equal(np.concatenate([first, rest]), y)

# %% [markdown]
# This is what one wants for *writing*: each further token costs the same, however long the text
# is. For *training* it is a pity. All of $x$ is known from the beginning, and still step 95 has to
# wait for step 94, and this for step 93, while most of the machine is idle.
#
# ## Route 2: the sum of all echoes
#
# Unroll the loop. From $h_{-1} = 0$:
#
# $$\begin{aligned}
# y_0 &= C \bar B\, x_0 \\
# y_1 &= C \bar A \bar B\, x_0 + C \bar B\, x_1 \\
# y_2 &= C \bar A^2 \bar B\, x_0 + C \bar A \bar B\, x_1 + C \bar B\, x_2
# \end{aligned}$$
#
# No state is left in it. The weight of an input depends on one thing only: how many steps ago it
# came. Write these weights down once,
#
# $$K_t = C \bar A^t \bar B = \sum_n C_n \bar A_n^t \bar B_n , \qquad
#   y_t = \sum_{s=0}^{t} K_{t-s}\, x_s .$$
#
# $K$ is the **kernel** and the sum is a **convolution**. (In the paper these are equations 3a and
# 3b.)
#
# ### Exercise 02a
#
# Write a function that returns the kernel $K_0, \dots, K_{L-1}$ as an array of shape `(L,)`.
# `A_bar`, `B_bar` and `C` have the shape `(N,)`.


# %%
def my_kernel(A_bar, B_bar, C, L):
    return ...


check("02a", my_kernel)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 02a: open it when you have tried.
def weights_by_age(A_bar, B_bar, C, L):
    ages = np.arange(L)[:, None]  # (L 1): beside A_bar (N) that makes (L N)
    return (C * A_bar**ages * B_bar).sum(axis=1)


check("02a", weights_by_age)

# %% [markdown]
# The package has it for any number of channels. It multiplies the powers up one by one instead of
# computing each anew. (It is that short because the leaks do not mix: $A$ is diagonal. In S4 it
# was not at first, and a good part of that paper is about getting at $K$ at all.) And what does
# one hear in $K$? The answer to a single clap: the *impulse response* of notebook 01.

# %%
show(lti.kernel)
K = lti.kernel(A_bar, B_bar, C, L)
clap = np.eye(L)[0]
answer, faded = lti.recurrence(clap, A_bar, B_bar, C)
assert np.allclose(K, answer, rtol=1e-12)

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for n, colour in enumerate((BLUE, GREEN, PINK)):
    ax.plot(C[n] * faded[:, n], color=colour)
ax.plot(K, color="black", lw=2)
ax.plot(answer, "o", color=ORANGE, ms=3, markevery=4)
ax.axhline(0, color=GRAY, lw=0.5)
ax.text(9, 0.72, "the slow memory, times 10", color=BLUE)
ax.text(6.5, -0.6, "the middle one, times -14: at first it holds the sound back", color=GREEN)
ax.text(-1, 0.25, "the quick\none,\ntimes 6", color=PINK, ha="right")
ax.text(24, 0.37, "their sum: the kernel K (dots: the loop's answer to one clap)")
ax.set(xlabel="steps since the clap", ylabel="weight", xlim=(-11, 98))
plt.show()

# %% [markdown]
# Now every input starts its own copy of $K$, as high as the input is and as late as it came.
# Below the copies are stacked; the upper rim of the stack is $y$. (Three claps, then eighteen
# steps of humming: 21 echoes in all.) Both words of "linear time-invariant" are at work: echoes add
# up because the system is *linear*, and one $K$ does for all of them because it is the same at any
# *time*.

# %%
echoes = np.array([np.concatenate([np.zeros(s), x[s] * K[: L - s]]) for s in range(L)])
assert np.allclose(echoes.sum(axis=0), y)
assert np.allclose(np.convolve(x, K)[:L], y)

heard = echoes[x != 0]
assert len(heard) == 21
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
colours = [BLUE, GREEN, PINK] + ["#e69f00", "#f0c05a"] * 9
ax.stackplot(np.arange(L), heard, colors=colours, alpha=0.75, lw=0)
ax.plot(y, color="black", lw=1.5)
for s, name in ((6, "clap"), (26, "clap"), (32, "clap"), (62, "hum begins")):
    ax.annotate(name, (s, 0), (s, -0.09), ha="center", arrowprops={"arrowstyle": "->"})
ax.text(20, 0.1, "echo of the 1st clap", color="white", fontsize=7)
ax.text(47, 0.68, "the rim of the stack is y")
ax.set(xlabel="step t", ylabel="echoes, stacked", ylim=(-0.13, 0.8))
plt.show()

# %% [markdown]
# ### Can that be quicker? The fast Fourier transform
#
# Adding up the echoes takes $L (L + 1) / 2$ multiplications, more than the loop. But a
# convolution can be had for less: transform $x$ and $K$ into frequencies, multiply them number by
# number, and transform back. The fast Fourier transform (FFT) needs about $L \log_2 L$ steps, and
# no step has to wait for the one before in time.

# %%
show(lti.convolve)
assert np.allclose(lti.convolve(x, K), y)
for length in (64, 1024, 16384):
    room = 2 * length
    sums = 3 * room * np.log2(room)
    print(f"L = {length:6,}: all echoes {length * (length + 1) // 2:12,}, FFT about {sums:10,.0f}")

# %% [markdown]
# *Why is there `room`?* A product of transforms is a convolution on a **circle**: what goes out at
# the end comes in at the front. Without room the hum would be heard before the first clap. So
# zeros are put behind $x$, as many as there are steps, and cut off afterwards.

# %%
circle = np.fft.irfft(np.fft.rfft(x) * np.fft.rfft(K), L)
assert y[0] == 0
assert circle[0] > 0.1, "an echo of the end"

fig, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
ax.fill_between(np.arange(L), y, circle, color=ORANGE, alpha=0.25, lw=0)
ax.plot(circle, color=ORANGE)
ax.plot(y, color="black")
ax.text(13, 0.08, "without room: the hum is heard before it was hummed", color=ORANGE)
ax.text(62, 0.25, "with room")
ax.set(xlabel="step t", ylabel="output y", ylim=(0, 0.85))
plt.show()

# %% [markdown]
# ## Route 3: one matrix
#
# The unrolled loop is a table: row $t$ says what $y_t$ gets of each $x_s$. Written as a matrix,
# $y = M x$ with
#
# $$M_{t,s} = \begin{cases} K_{t-s} & s \le t \\ 0 & s > t \end{cases}
# \qquad
# M = \begin{pmatrix} K_0 & & \\ K_1 & K_0 & \\ K_2 & K_1 & K_0 \end{pmatrix} \text{ for } L = 3 .$$
#
# ### Exercise 02b
#
# Build $M$, of shape `(L, L)`, from a kernel `K` of shape `(L,)`.


# %%
def my_matrix(K):
    return ...


check("02b", my_matrix)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 02b: open it when you have tried.
def table_of_weights(K):
    table = np.zeros((len(K), len(K)))
    for s in range(len(K)):
        table[s:, s] = K[: len(K) - s]  # the echo of an input at s
    return table


check("02b", table_of_weights)

# %%
show(lti.matrix)
M = lti.matrix(K)
assert np.allclose(M @ x, y)
assert np.array_equal(M, table_of_weights(K))
block = M[40:, :40]  # what inputs before step 40 do from there on
assert block.shape == (56, 40)
assert np.linalg.matrix_rank(block) == N

fig, axes = plt.subplots(
    1, 3, figsize=(7, 3.1), layout="constrained", width_ratios=(10, 1, 1), sharey=True
)
look = {"cmap": "RdBu_r", "vmin": -0.85, "vmax": 0.85, "aspect": "auto", "interpolation": "nearest"}
for ax, values in zip(axes, (M, x[:, None], y[:, None]), strict=True):
    image = ax.imshow(values, **look)
    ax.set(xticks=[])
axes[0].set(title="M", ylabel="t, who reads", xlabel="s, who is read", xticks=range(0, 96, 20))
axes[0].text(38, 14, "up here: the future.\nAlong each diagonal all\nnumbers are equal")
box = {"fill": False, "ec": ORANGE, "lw": 1.5}
axes[0].add_patch(plt.Rectangle((-0.5, 39.5), 40, 56, **box))
axes[0].text(2, 62, "this block, and any like\nit, has a rank of only 3", color=ORANGE)
axes[1].set(title="x")
axes[2].set(title="y")
fig.colorbar(image, ax=axes, label="weight, input, output")
plt.show()

# %% [markdown]
# Look at the orange block: all that inputs before step 40 do to outputs from step 40 on. It has
# $56 \times 40$ numbers and yet rank 3, because everything passes through the three numbers of
# $h_{39}$. This is the loop's secret, seen from the matrix: *a model can be run with a state of
# $N$ numbers when each block below the diagonal has rank $N$ at most.* Attention has such a
# matrix too, without that property, and so it has to keep the whole past.
#
# ## One y, three prices
#
# All three routes are now timed from $\bar A$, $\bar B$, $C$ and $x$ to $y$, for longer and longer
# inputs; the kernel is made anew each time, and the quickest of three runs counts.

# %%
ROUTES = {
    "loop": lambda x: lti.recurrence(x, A_bar, B_bar, C)[0],
    "echoes": lambda x: np.convolve(x, lti.kernel(A_bar, B_bar, C, len(x)))[: len(x)],
    "FFT": lambda x: lti.convolve(x, lti.kernel(A_bar, B_bar, C, len(x))),
    "matrix": lambda x: lti.matrix(lti.kernel(A_bar, B_bar, C, len(x))) @ x,
}
LENGTHS = 2 ** np.arange(4, 13)
for route in ROUTES.values():
    assert np.allclose(route(x), y)

noise = np.random.default_rng(0).standard_normal(4096)
took = {
    name: np.array([seconds(route, noise[:n]) for n in LENGTHS if name != "matrix" or n <= 1024])
    for name, route in ROUTES.items()
}
quicker = LENGTHS[took["FFT"] < took["echoes"]]

# %% tags=["heart"]
fig, (left, right) = plt.subplots(
    1, 2, figsize=(9.5, 3.4), layout="constrained", width_ratios=(3, 2)
)
left.plot(lti.convolve(x, K), color=GREEN, lw=6, alpha=0.4)
left.plot(y, color=BLUE, lw=1.2)
left.plot(M @ x, ".", color=ORANGE, ms=3)
left.text(1, 0.92, "one y: by the loop (line),", color=BLUE)
left.text(1, 0.85, "by the convolution (band),", color=GREEN)
left.text(1, 0.78, "by the matrix (dots)", color=ORANGE)
left.set(title="three routes, the same answer", xlabel="step t", ylabel="output y", ylim=(0, 1))

for (name, times), colour in zip(took.items(), (BLUE, GRAY, GREEN, ORANGE), strict=True):
    right.loglog(LENGTHS[: len(times)], 1e3 * times, "o-", ms=2.5, color=colour)
    label = {"loop": "loop,\nin Python", "echoes": "all echoes"}.get(name, name)
    right.annotate(
        label, (LENGTHS[len(times) - 1], 1e3 * times[-1]), (5, -3), textcoords="offset points",
        color=colour, annotation_clip=False,
    )  # fmt: skip
if len(quicker):
    at = np.flatnonzero(quicker[0] == LENGTHS)[0]
    right.plot(quicker[0], 1e3 * took["FFT"][at], "o", ms=9, mfc="none", color="black")
    right.annotate(
        f"from L = {quicker[0]:,} on the FFT\nbeats adding up echoes",
        (quicker[0], 1e3 * took["FFT"][at]), (0.56, 0.04), textcoords="axes fraction", fontsize=7,
        arrowprops={"arrowstyle": "-", "color": GRAY},
    )  # fmt: skip
right.set(title="three prices", xlabel="length L", ylabel="milliseconds", xlim=(12, 12_000))
plt.show()

# %% [markdown]
# Where exactly the lines cross depends on your machine. Their slopes do not.
#
# | route | multiplications for L steps | for one more step | waits for the step before |
# |---|---|---|---|
# | loop | $3 N L$ | $3 N$, from a state of $N$ numbers | yes |
# | convolution, FFT | about $6 L \log_2 2L$ | $L$: all inputs again | no |
# | matrix | $L^2 / 2$ | $L$: all inputs again | no |
#
# The loop does the least work, and still it is slow here: most of its time is Python's, the same
# at each step whatever is in it. A compiled loop is spared that, as you will see in notebooks 04
# and 10, but its steps still wait for each other. So S4 took two routes: it was *trained* by the
# convolution, all steps at once, and it *wrote* by the loop, one step at a time from three
# numbers. The matrix is for understanding: with it one sees who reads whom.
#
# ## What if the step size changes?
#
# Mamba computes $\Delta$, $B$ and $C$ from each token. Take the smallest such change: from step 48
# on $\Delta$ is a third of what it was. Clap once before and once after:

# %%
deltas = np.where(np.arange(L) < 48, delta, delta / 3)


def varying(x, deltas):  # (L), (L) -> (L)
    """Run Mamba's own scan, for a batch of one text with one channel."""
    same = [np.broadcast_to(v, (1, L, N)) for v in (B, C)]
    start = np.zeros((1, 1, N))
    y, _ = reference.selective_scan(x[None, :, None], deltas[None, :, None], A[None], *same, start)
    return y[0, :, 0]


assert np.allclose(varying(x, np.full(L, delta)), y), "an unchanging delta: the same y once more"
early, late = (varying(np.eye(L)[s], deltas) for s in (4, 52))
assert not np.allclose(early[4:48], late[52:96]), "two claps, two different echoes"
assert np.abs(lti.convolve(x, K) - varying(x, deltas)).max() > 0.1, "K is of no use"

# %% [markdown]
# There is no $K$ any more: the echo depends on *when* one claps, not on the age alone. And
# without a kernel there is nothing to transform. The matrix still exists. Follow one input from
# $s$ to $t$: it enters with $\bar B_s$, loses a share at each step from $s + 1$ to $t$, and is read
# by $C$:
#
# $$M_{t,s} = C\, \bar A_t\, \bar A_{t-1} \cdots \bar A_{s+1}\, \bar B_s .$$
#
# ### Exercise 02c
#
# Build this matrix. `A_bar` and `B_bar` now have the shape `(L, N)`, one row for each step; `C` has
# `(N,)`. Two loops are fine.


# %%
def my_varying_matrix(A_bar, B_bar, C):
    return ...


check("02c", my_varying_matrix)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 02c: open it when you have tried.
def table_of_journeys(A_bar, B_bar, C):
    length = len(A_bar)
    table = np.zeros((length, length))
    for s in range(length):
        left = B_bar[s]  # what is left of an input of 1 at s
        table[s, s] = C @ left
        for t in range(s + 1, length):
            left = A_bar[t] * left
            table[t, s] = C @ left
    return table


check("02c", table_of_journeys)

# %%
A_bars, B_bars = eq.discretise(deltas[:, None], A, B)  # (L N) each
M_varying = table_of_journeys(A_bars, B_bars, C)
assert np.allclose(M_varying @ x, varying(x, deltas))
assert np.allclose(M_varying[:, 4], early)
assert np.linalg.matrix_rank(M_varying[40:, :40]) == N, "three numbers are still enough"

fig, (left, right) = plt.subplots(
    1, 2, figsize=(9.5, 3.1), layout="constrained", width_ratios=(3, 2)
)
left.axvspan(48, 96, color="0.94", lw=0)
left.plot(early, color=BLUE)
left.plot(late, color=ORANGE)
left.text(16, 0.44, "clap at step 4", color=BLUE)
left.text(51, 0.23, "the same clap at step 52:\nlower, slower, longer", color=ORANGE)
left.text(60, 0.42, "here Δ is a third", color=GRAY)
left.set(title="the echo depends on when", xlabel="step t", ylabel="output y", ylim=(0, 0.5))
image = right.imshow(M_varying, **look)
right.text(48, 18, "no diagonal\nis constant now")
right.axhline(47.5, color=GRAY, lw=0.6, ls="--")
right.set(title="M with a changing Δ", xlabel="s, who is read", ylabel="t, who reads")
fig.colorbar(image, ax=right)
plt.show()

# %% [markdown]
# Of the three routes two are left. The loop does not mind: it takes each step as it comes. The
# matrix only loses its equal diagonals; its blocks keep their rank of $N$. The convolution is lost,
# and with it the road by which S4 was trained in parallel. So whoever wants to choose
# step by step what to remember needs another way of doing many steps at once. There is one:
# notebook 04. Whether it is worth the trouble is the question of notebook 03.
#
# For a trained Mamba and a real text, $M$ of one channel is `mamba_np.analysis.hidden_attention`:
# who reads whom, as in an attention layer. You will see it in notebook 08.

# %% [markdown]
# ## Read next
#
# * [03 Choose what to remember](03_choose_what_to_remember.ipynb): what a model with fixed
#   $\Delta$, $B$ and $C$ cannot do, and what a step size that follows from the input changes.
# * [04 Scan in parallel](04_scan_in_parallel.ipynb): how the loop is computed many steps at once
#   when there is no kernel.
# * The paper, [Gu and Dao 2023](https://arxiv.org/abs/2312.00752), section 2, for equations 2 and
#   3; [Gu, Goel and Ré 2021](https://arxiv.org/abs/2111.00396), sections 2.3 and 2.4, for both
#   routes of S4. That low rank and a short state are one thing is worked out by [Dao and Gu
#   2024](https://arxiv.org/abs/2405.21060), section 3.
# * `mamba_np/lti.py`, all of this notebook in a hundred lines; [the notation](../docs/notation.md).
