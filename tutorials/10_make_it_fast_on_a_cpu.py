# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 30
#     seconds: 90
#     after: [4, 5]
# ---

# %% [markdown]
# # 10 Make it fast on a CPU
#
# **The same formulas can take ten or a hundred times as long: where does the time of a scan go?**
#
# You will climb a ladder from NumPy to the package's own kernel, one idea a rung: fewer bytes,
# compiled loops, the order of the loops, a cheaper exponential, sixteen numbers at once, threads.
# Each rung gives the same numbers, and each is measured here, on your machine: the text does not
# know its speed. Two limits, of memory and of arithmetic, say where the ladder ends.

# %%
import matplotlib.pyplot as plt
import numpy as np
from numba import njit
from numba.extending import register_jitable

from lesson import check, show
from lesson.cache import watch
from lesson.ladder import Ladder
from lesson.timing import seconds
from mamba_np import equations, ops, plot, polynomials, reference, threads

plt.style.use(plot.STYLE)
rng = np.random.default_rng(0)
BLUE, ORANGE = "#0072B2", "#D55E00"

# %% [markdown]
# ## The work
#
# One scan of one layer of mamba-130m over $L = 256$ tokens: $E = 1536$ channels with $N = 16$
# states each. For each token, channel and state the kernel makes a decay and updates a number:
#
# $$\bar A = e^{\Delta_{t,e} A_{e,n}}$$
# $$h_{e,n} \leftarrow \bar A\, h_{e,n} + \Delta_{t,e} B_{t,n}\, x_{t,e}$$
# $$y_{t,e} = \sum_n C_{t,n} h_{e,n}$$
#
# Call that an *update*. There are $L \cdot E \cdot N$, and we measure nanoseconds for each. The
# ladder holds every rung against the NumPy reference in float64, and keeps its time.

# %%
L, E, N = 256, 1536, 16
x = rng.normal(size=(L, E)).astype(np.float32)
delta = rng.uniform(0.001, 0.1, (L, E)).astype(np.float32)
A = np.tile(-np.arange(1, N + 1, dtype=np.float32), (E, 1))  # as a new model begins with
B, C = rng.normal(size=(2, L, N)).astype(np.float32)
exact = (one.astype(float) for one in (x[None], delta[None], A, B[None], C[None]))
expected, _ = reference.selective_scan(*exact, np.zeros((1, E, N)))
ladder = Ladder(expected[0], L * E * N)

# %% [markdown]
# ## NumPy, and what its arrays weigh
#
# The straightforward way: make all decays, then all drives, then all states, then read.


# %%
def whole_arrays(x, delta, A, B, C):
    A_bar, B_bar = equations.discretise(delta[:, :, None], A, B[:, None])
    drive, h = B_bar * x[:, :, None], np.zeros((1, E, N), np.float32)
    states = reference.recurrence(A_bar[None], drive[None], h)
    return (states[0] @ C[:, :, None])[..., 0]


def blocks(x, delta, A, B, C):
    h = np.zeros((1, E, N), np.float32)
    return reference.selective_scan(x[None], delta[None], A, B[None], C[None], h)[0][0]


# %%
ladder.rung("NumPy, whole arrays", whole_arrays, x, delta, A, B, C)
ladder.rung("NumPy, in blocks", blocks, x, delta, A, B, C)

# %% [markdown]
# Both compute the same. The first makes arrays of shape (L, E, N), each of 25 MB here, and sends
# them through the memory one after the other. `reference.selective_scan` does a few steps at a
# time, so few that these arrays stay in the processor's cache. How much that is worth depends on
# the length. Here is the cost of an update where everything is small, and where it is not:

# %%
lengths = 2 ** np.arange(9)
fig, ax = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
for function, color in ((whole_arrays, ORANGE), (blocks, BLUE)):
    times = [seconds(function, x[:n], delta[:n], A, B[:n], C[:n]) for n in lengths]
    cost = 1e9 * np.array(times) / (lengths * E * N)
    ax.semilogx(4 * lengths * E * N / 1e6, cost, "o-", ms=3, color=color, label=function.__name__)
ax.set(xlabel="size of one array of (L, E, N), MB", ylabel="ns an update", ylim=(0, None))
ax.legend()
plt.show()
assert (4 * L * E * N, 4 * E * N) == (25_165_824, 98_304)  # bytes of all states, and of one step

# %% [markdown]
# ## Compiled, as one would say it
#
# A loop in Python costs far more than what is inside it. `numba.njit` compiles a function to
# machine code, loops and all. The formulas come from `equations`, as everywhere. A compiled
# function does not call back to Python, so Numba has to be told that it may compile these
# functions into their callers. That is all `register_jitable` does, and it is how the package's
# kernels share one text with the NumPy reference (`mamba_np/kernels/vectorised.py`).
#
# In words the scan is: for each channel and each state, go through time. So we write just that:

# %%
for function in (equations.exp, equations.discretise, equations.state_update):
    register_jitable(function)


# %%
@njit
def channel_by_channel(x, delta, A, B, C):
    y = np.zeros_like(x)
    for e in range(x.shape[1]):
        for n in range(A.shape[1]):
            h = np.float32(0)
            for t in range(x.shape[0]):
                A_bar, B_bar = equations.discretise(delta[t, e], A[e, n], B[t, n])
                h = equations.state_update(h, A_bar, B_bar * x[t, e])
                y[t, e] += h * C[t, n]
    return y


# %%
ladder.rung("compiled, channel by channel", channel_by_channel, x, delta, A, B, C)

# %% [markdown]
# No array of (L, E, N) is left; the state is a single number in a register. And yet this is a
# disappointment: compare the lines above. Two things are wrong with it, and neither can be seen in
# the formulas.
#
# ## Where numbers lie
#
# A memory hands over 64 bytes at once, a *cache line*: sixteen neighbouring float32. In a
# C-ordered array (t, e, n) the neighbours are those with the next $n$, and one step in $t$ is a
# jump over all of E and N. To see what that means alone, take a simpler loop: decays and drives
# are given, and states are wanted.


# %%
@njit
def in_memory_order(A_bar, drive, states):
    for t in range(1, A_bar.shape[0]):
        for e in range(A_bar.shape[1]):
            for n in range(A_bar.shape[2]):
                h = states[t - 1, e, n]
                states[t, e, n] = equations.state_update(h, A_bar[t, e, n], drive[t, e, n])


# %% [markdown]
# ### Exercise 10a
# Write the same function with the three loops in another order, so that it moves as many bytes as
# you can make it move. The states have to stay right. `check` runs it on a small model of a cache
# (`lesson/cache.py`), which counts lines.


# %%
def swapped(A_bar, drive, states): ...


check("10a", swapped)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 10a: open it when you have tried.
@njit
def across_memory(A_bar, drive, states):
    for n in range(A_bar.shape[2]):
        for e in range(A_bar.shape[1]):
            for t in range(1, A_bar.shape[0]):
                h = states[t - 1, e, n]
                states[t, e, n] = equations.state_update(h, A_bar[t, e, n], drive[t, e, n])


check("10a", across_memory)

# %%
small = [np.full((12, 32, 16), 0.5, np.float32) for _ in range(3)]
A_bar, B_bar = equations.discretise(delta[:, :, None], A, B[:, None])
large = [A_bar, B_bar * x[:, :, None], np.zeros_like(A_bar)]
fig, ax = plt.subplots(figsize=(6.4, 2.7), layout="constrained")
moved, times = {}, {}
for function, color, height in ((in_memory_order, BLUE, 2.2), (across_memory, ORANGE, 15)):
    name = function.__name__
    moved[name], addresses = watch(function, *small)
    function(*large)  # compiles
    times[name] = seconds(function, *large)
    ax.plot(np.array(addresses[0][:40]) / 1024, ".-", color=color, lw=0.6)
    ax.text(40, height, name, color=color, fontsize=8)
    print(f"{name}: model {moved[name]:,} bytes; full size {1e3 * times[name]:.1f} ms")
ax.set(xlabel="reads of A_bar, one after the other", ylabel="address, KB", xlim=(-1, 52))
plt.show()
print(f"{times['across_memory'] / times['in_memory_order']:.0f} times as long")
assert moved["across_memory"] > 12 * moved["in_memory_order"]

# %% [markdown]
# In order, a line of 64 bytes serves sixteen updates. Across, it serves one, and is gone from the
# cache when its neighbour is wanted: 64 bytes moved for 4 used, for each array. (In order the last
# state is fetched once more, across it is still there: hence not quite 16 times.) On a real
# machine pages and the prefetcher, which guesses what will be read next, make it better or worse.
# The arithmetic was the same.
#
# So the time loop belongs outside. The states do not fit into a register any more, but 98 KB fit
# into the second-level cache.


# %%
@njit
def step_by_step(x, delta, A, B, C):
    y, h = np.zeros_like(x), np.zeros_like(A)
    for t in range(x.shape[0]):
        for e in range(x.shape[1]):
            for n in range(A.shape[1]):
                A_bar, B_bar = equations.discretise(delta[t, e], A[e, n], B[t, n])
                h[e, n] = equations.state_update(h[e, n], A_bar, B_bar * x[t, e])
                y[t, e] += h[e, n] * C[t, n]
    return y


# %%
ladder.rung("compiled, step by step", step_by_step, x, delta, A, B, C)

# %% [markdown]
# ## A cheaper exponential, sixteen at once
#
# What is left? The loop calls the C library's `exp` for each update, one number at a time, while
# the processor could work on a vector of 4, 8 or 16 numbers with one instruction. A library call
# cannot be part of a vector loop; multiplications can. So the package writes the exponential as a
# polynomial. Two ideas make it short:
#
# $$e^{\Delta A} = 2^{\Delta \cdot (A \log_2 e)}, \qquad 2^{m + f} = 2^m \cdot 2^f$$
#
# $A \log_2 e$ does not depend on the token, so it is made once. The whole part $m$ goes into the
# exponent bits of the result, and $2^f$ for $|f| \le \frac12$ is a polynomial of degree 6.

# %%
show(equations.per_octave, equations.decay, polynomials.exp2)

# %%
power = np.linspace(-4, 0, 4001, dtype=np.float32)
exact = np.exp2(power.astype(float))
error = np.abs(polynomials.exp2(power) / exact - 1).max()
print(f"error {error:.1e}, of which rounding to float32 makes {2.0**-24:.1e}")
assert error < 2.5e-7
assert polynomials.exp2(np.float32(0)) == 1  # a step of size 0 keeps all

# %% [markdown]
# Now the lanes. Which sixteen numbers should be neighbours? Not the states of a channel: their sum
# $\sum_n C_n h_n$ would go across the vector. Sixteen *channels*: then $\Delta$, $x$ and $y$ are
# vectors, $B$ and $C$ single numbers, and nothing goes across. So A and h are kept as (N, E),
# channels last. `load` takes sixteen neighbours, and the formulas of `equations` mean sixteen at
# once: `vectorised` has registered them for that type.

# %%
from mamba_np.kernels import vectorised  # noqa: F401
from mamba_np.kernels.lanes import WIDTH, spread
from mamba_np.kernels.memory import load, store
from mamba_np.kernels.options import OPTIONS


@njit(**OPTIONS)
def sixteen_channels(x, delta, A_per_octave, B, C, y, h, low, high):
    """Run the channels low to high; A_per_octave and h are (N, E)."""
    E, N = x.shape[1], len(h)
    for t in range(x.shape[0]):
        for e in range(low, high, WIDTH):
            step = load(delta, t * E + e)
            drive, total = step * load(x, t * E + e), spread(np.float32(0))
            for n in range(N):
                A_bar = equations.decay(step, load(A_per_octave, n * E + e))
                state = equations.state_update(load(h, n * E + e), A_bar, drive * B[t, n])
                store(h, n * E + e, state)
                total = total + state * C[t, n]
            store(y, t * E + e, total)


# %%
def on_threads(x, delta, A_per_octave, B, C, count, share):
    y, h = np.empty_like(x), np.zeros_like(A_per_octave)

    def work(member):
        channels = share(E, member.size, member.rank)
        sixteen_channels(x, delta, A_per_octave, B, C, y, h, *channels)

    threads.run_team(work, count)
    return y


# %%
A_per_octave = np.ascontiguousarray(equations.per_octave(A).T)
inputs = x, delta, A_per_octave, B, C
ladder.rung("sixteen channels at once", on_threads, *inputs, 1, lambda *_: (0, E), repeats=20)

# %% [markdown]
# ## How fast could it be?
#
# Two things take time whatever the program looks like: bytes have to come from the memory, and
# arithmetic has to be done. Each gives a least time; the larger of the two is called the
# *roofline*.
#
# ### Exercise 10b
# How many bytes must a scan move at least? `x`, `delta`, `A`, `B` and `C` are read once, `y` is
# written once, all in float32, and the states never leave the cache. Write `least_bytes(L, E, N)`.


# %%
def least_bytes(L, E, N):
    return ...


check("10b", least_bytes)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 10b: open it when you have tried.
def fused_bytes(L, E, N):
    return 4 * (3 * L * E + 2 * L * N + E * N)  # x, delta, y; B, C; A


check("10b", fused_bytes)

# %% [markdown]
# With whole arrays at least these come on top: the decays and the drives are written and read, and
# so are the states. Measure what the memory gives (a copy of 64 MB), and what the arithmetic
# allows: the powers of two alone, on numbers that stay in the first-level cache.


# %%
@njit(**OPTIONS)
def powers_alone(steps, rates, times):
    for _ in range(times):
        for i in range(0, rates.size, WIDTH):
            store(rates, i, equations.decay(load(steps, i), load(rates, i)))


# %%
powers_alone(delta[0], A_per_octave[0].copy(), 1)
arithmetic = seconds(powers_alone, delta[0], A_per_octave[0].copy(), 2000) / (2000 * E)
source = np.ones(2**24, np.float32)
bandwidth = 2 * source.nbytes / seconds(np.copyto, np.empty_like(source), source, repeats=5)
fused = fused_bytes(L, E, N) / (L * E * N)
whole = fused + 6 * 4  # bytes an update
floors = {
    "memory,\nfused": 1e9 * fused / bandwidth,
    "powers of two,\none thread": 1e9 * arithmetic,
    "memory,\nwhole arrays": 1e9 * whole / bandwidth,
}
print(f"{bandwidth / 1e9:.0f} GB/s; bytes an update: whole arrays {whole:.1f}, fused {fused:.1f}")
print("ns an update:", {" ".join(k.split()): round(v, 3) for k, v in floors.items()})
assert whole / fused > 25

# %% [markdown]
# However clever the arithmetic, whole arrays never take less time than their bytes. Fused, the
# bytes hardly count, and the powers of two are the limit. That is what fusing is for: it turns a
# memory problem into an arithmetic one, and arithmetic can be shared among cores that share one
# memory.
#
# ## Threads
#
# The scan depends on time, so time cannot be cut without more work (notebook 04). Channels can:
# none knows of another. Each thread takes a range of channels.
#
# ### Exercise 10c
# Write `share(E, threads, rank)`: the first channel of this rank, and the one after its last.
# Shares begin at multiples of 16, since two threads that write into one cache line take it from
# each other all the time; together they are all channels, and they differ by no more than 16.


# %%
def share(E, threads, rank):
    return ...


check("10c", share)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 10c: open it when you have tried.
def whole_lines(E, threads, rank):
    groups = -(-E // 16)  # rounded up
    low, high = groups * rank // threads, groups * (rank + 1) // threads
    return 16 * low, min(16 * high, E)


check("10c", whole_lines)

# %% [markdown]
# Compiled with `nogil`, the kernel lets other Python threads run meanwhile, so plain threads are
# enough. `run_team`, which we have used with one thread so far, keeps them ready and gives each
# its rank.


# %%
print(threads.get_num_threads(), "threads")
ladder.rung("sixteen, on all threads", on_threads, *inputs, None, whole_lines, repeats=20)
channels_first = x.T[None], delta.T[None], A, B.T[None], C.T[None]  # mamba-ssm's order
ladder.rung(
    "mamba_np.ops.selective_scan", lambda: ops.selective_scan(*channels_first)[0].T, repeats=20
)

# %% [markdown]
# The last rung is the package's kernel, behind a function with the arguments of mamba-ssm's. It is
# the loop above with three more ideas. Sixteen channels go through 64 steps before the next
# sixteen, so that their states stay in the first-level cache. Four states are advanced in turns,
# because each power is a chain of a dozen operations that wait for one another. And the rows that
# come next are asked for in advance. These are the small steps near the end of a ladder: on a busy
# machine, or for a short text, you may not see them, and checking the arguments costs something,
# too.

# %% tags=["heart"]
fig, ax = plt.subplots(figsize=(8.4, 3.9), layout="constrained")
ladder.draw(ax, floors)
ax.set_title("The same numbers, seven times. Dashed: no faster than this")
plt.show()

# %% [markdown]
# Read it from the top. NumPy pays for each number more than once: it goes to memory and back
# between any two operations. Compiling alone brings little as long as the numbers are walked in
# the wrong order, and in the right order one `exp` at a time is what takes the time. The large
# step is the vector with an exponential of its own. Above the powers of two there are now only the
# multiplications, the loads and the stores of the update itself. Threads divide all of this, where
# there are cores to spare: with many of them a bar can pass the line of one thread.
#
# How far are you from that line, on your machine?

# %%
cost, share_of_power = list(ladder.cost.values()), 1e9 * arithmetic / threads.get_num_threads()
print(f"the last rung takes {cost[-1] / share_of_power:.1f} times as long as its powers of two")
print(f"from the first rung to the last: {cost[0] / cost[-1]:.0f} times as fast")

# %% [markdown]
# "Why not `prange`, or `fastmath=True`?" `prange` compiles slowly and its threads fight with those
# of the BLAS; `fastmath` lets the compiler reorder sums, and the trick that splits $m$ and $f$ is
# a sum that must not be reordered. [Decision
# 0006](../docs/decisions/0006-lanes-and-a-team-of-threads.md) tells what was tried, and what was
# not worth keeping.

# %% [markdown]
# ## Read next
#
# - [11 Write the GPU kernel in Python](11_write_the_gpu_kernel_in_python.ipynb): the same
#   questions where threads come by the thousand.
# - `mamba_np/kernels/scan.py`: the last rung, in full; `mamba_np/kernels/lanes.py`: what sixteen
#   numbers are to a compiler.
# - [Benchmarks](../docs/benchmarks/README.md): the whole model beside its peers, on machines that
#   did nothing else.
