# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 50
#     seconds: 60
#     after: [4, 10]
# ---

# %% [markdown]
# # 11 Write the GPU kernel in Python
#
# **How do thousands of threads share one scan, and what does each of them read?**
#
# Threads compute faster than numbers arrive, so a kernel is above all a plan of who reads what,
# and when. In six steps you write the one that `device="cuda"` runs, each with a check, a score
# and a picture. You need no GPU: without one, Python plays it, one thread at a time, and writes
# down every access. The form is that of Sasha Rush's GPU-Puzzles.

# %%
from lesson.gpu_choice import use_gpu_or_simulator

print(f"Kernels run on: {use_gpu_or_simulator()}")
import matplotlib.pyplot as plt
import numpy as np

from lesson import check, gpu, gpu_kernels, gpu_pictures, show
from lesson.checking import problem
from lesson.gpu import cuda, decay, empty, float32, launch, softplus, state_update
from lesson.gpu_kernels import CHUNK, LANES, THREADS, WIDTH, N
from mamba_np import equations as eq
from mamba_np import plot, reference

plt.style.use(plot.STYLE)

# %% [markdown]
# ## One thread for each number
#
# A **kernel** is a function that many threads run at the same time, each with its own number.
# Threads come in **blocks** of equal size. In blocks of four, thread 2 of block 1 is number 6 of
# all: `cuda.grid(1)` computes `cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x`. A kernel
# returns nothing; it writes to arrays.
#
# Here is something to compute: the step sizes of ten positions, $\delta =
# \mathrm{softplus}(\mathrm{raw})$. The formula is the package's own. The very same code becomes
# NumPy, a processor's loop, and a GPU's instructions.

# %%
show(eq.softplus, eq.decay, eq.state_update)
rng = np.random.default_rng(0)
raw = rng.standard_normal(10).astype(np.float32)
spec = eq.softplus(raw)  # what the kernel has to compute

# %% [markdown]
# ### Exercise 11a: a map, with a guard
#
# Ten numbers and blocks of four: three blocks are needed, and two threads are left over. Let
# thread $i$ write `delta[i]`, if there is one. (Two lines.)


# %%
@cuda.jit
def your_step_sizes(raw, delta):
    i = cuda.grid(1)
    delta[i] = ...


check("11a", your_step_sizes)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 11a: open it when you have tried.
@cuda.jit
def step_sizes(raw, delta):
    i = cuda.grid(1)
    if i < raw.size:
        delta[i] = softplus(raw[i])


check("11a", step_sizes)

# %% [markdown]
# Without the guard, the last two threads write behind the array. A GPU does not say so: somebody
# else's numbers change.
#
# In Numba, a kernel is started with `kernel[blocks, threads](x, y)`: on a GPU or, with
# `NUMBA_ENABLE_CUDASIM=1`, in Numba's simulator, as in the last lines below. That one lets threads
# run as it comes, and does not notice what they do to each other. So here `launch(kernel, blocks,
# threads, arrays...)` runs them from `lesson/gpu.py`, one at a time and always in the same order,
# and keeps a log. Where there is a GPU, it runs the kernel there too, and compares.

# %%
run = launch(step_sizes, 3, THREADS, raw, empty(10))
np.testing.assert_allclose(run["delta"], spec, rtol=1e-6)
ax = gpu_pictures.threads_and_cells(run, "raw")
ax.text(11.1, 0.62, "nothing to do:\nthe guard", ha="right", va="top", fontsize=8)
plt.show()
by_numba = np.empty_like(raw)
step_sizes[3, THREADS](raw, by_numba)
np.testing.assert_allclose(by_numba, spec, rtol=1e-6)

# %% [markdown]
# ## One thread for each channel
#
# Now the scan. A channel $e$ with a single state, over $L$ steps, starts from $h_0 = 0$:
#
# $$h_t = \bar A_t h_{t-1} + \delta_t B_t x_t,\quad y_t = C_t h_t,\quad \bar A_t = e^{\delta_t A}$$
#
# *Why not a thread for each step?* Because step $t$ needs $h_{t-1}$: the threads would wait for
# each other. Channels do not know of each other, and a layer has thousands. So a thread takes a
# channel and walks through time. Its state $h$ is a local variable, which lives in a **register**:
# the fastest memory there is, and nobody else's.
#
# Arrays lie as everywhere in the package, time first: `x` is (L, E), and all channels of a step
# are neighbours. A GPU knows powers of two, so $A$ comes as `per_octave(A)` $= A \log_2 e$, and
# $\bar A$ is `decay(delta, A_per_octave)`.

# %%
L, E = 12, 8
x, raw, A = (rng.standard_normal(s).astype(np.float32) for s in [(L, E), (L, E), (E, N)])
delta, A, selected = eq.softplus(raw), -abs(A), rng.standard_normal((L, WIDTH)).astype(np.float32)
B, C, A_per_octave = selected[:, :N], selected[:, N:], eq.per_octave(A)
np.testing.assert_allclose(eq.decay(delta[0, 0], A_per_octave), np.exp(delta[0, 0] * A), rtol=1e-5)
h = np.zeros((1, E, N))
y, _ = reference.selective_scan(x[None], delta[None], A, B[None], C[None], h)  # the spec

# %% [markdown]
# ### Exercise 11b: time in a loop, the state in a register
#
# Fill in one step: $\bar A$ by `decay`, what drives the state, and the output. `x`, `delta` and
# `y` are (L, E), `A_per_octave` is (E), `B` and `C` are (L). (Two or three lines.)


# %%
@cuda.jit
def your_scan(x, delta, A_per_octave, B, C, y):
    e = cuda.grid(1)
    if e < x.shape[1]:
        h = float32(0)
        for t in range(x.shape[0]):
            h = state_update(h, ..., ...)
            y[t, e] = ...


check("11b", your_scan)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 11b: open it when you have tried.
@cuda.jit
def one_state_scan(x, delta, A_per_octave, B, C, y):
    e = cuda.grid(1)
    if e < x.shape[1]:
        h, rate = float32(0), A_per_octave[e]
        for t in range(x.shape[0]):
            step = delta[t, e]
            h = state_update(h, decay(step, rate), step * B[t] * x[t, e])
            y[t, e] = C[t] * h


check("11b", one_state_scan)

# %% [markdown]
# In the picture a row is a thread, a column a number in memory, and the colour says when: dark is
# a thread's first access, bright its last. At each moment, neighbouring threads read neighbouring
# numbers. That matters: 32 threads, a **warp**, run in step, and what they read together comes in
# pieces of neighbours. With channels first, as (E, L), the same read would touch a piece for each
# thread.

# %%
one_state = x, delta, A_per_octave[:, 0], B[:, 0], C[:, 0]
run = launch(one_state_scan, E // THREADS, THREADS, *one_state, empty(L, E))
at_five = [a.place for a in run.reads("x") if a.block == 0 and a.place[0] == 5]
assert at_five == [(5, 0), (5, 1), (5, 2), (5, 3)]  # one step, four threads: four neighbours
gpu_pictures.who_reads((run, "x", "At each step, the threads of a block read neighbours"))
plt.show()

# %% [markdown]
# ## Several states for each channel
#
# A channel of Mamba has $N$ states, each with its own rate $A_n$, and the output adds up what is
# read of them: $y_t = \sum_n C_{t,n} h_{t,n}$. The thread keeps all of them, in an array of its
# own (`cuda.local.array`, which a compiler turns into registers if $N$ is a constant). $B_t$ and
# $C_t$ lie side by side in a row of `selected`, (L, 2N), since one matrix product made them both.
#
# What is around your code from now on is given. It calls a function that you write, a **device
# function**:

# %%
show(gpu_kernels.begin, gpu_kernels.states_scan)

# %% [markdown]
# ### Exercise 11c: one step of all states
#
# Take the states in `h` one step on, each with its rate, and return $y$. $B$ of the states begins
# at `row[first]`, $C$ at `row[N + first]`; `first` is 0 for now. (Four or five lines.)


# %%
@cuda.jit(device=True)
def your_advance(h, rates, row, first, delta, x): ...


check("11c", your_advance)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 11c: open it when you have tried.
@cuda.jit(device=True)
def advance(h, rates, row, first, delta, x):
    y = float32(0)
    for n in range(h.size):
        h[n] = state_update(h[n], decay(delta, rates[n]), delta * row[first + n] * x)
        y += row[N + first + n] * h[n]
    return y


check("11c", advance)

# %% [markdown]
# It is right, and this is its score: accesses to memory for each output.

# %%
arrays, scores = (x, delta, A_per_octave, selected), {}
naive = launch(gpu_kernels.states_scan(advance), E // THREADS, THREADS, *arrays, empty(L, E))
np.testing.assert_allclose(naive["y"], y[0], rtol=1e-4, atol=1e-5)
scores["all from global memory"] = naive.score(L * E)
print(scores["all from global memory"])

# %% [markdown]
# Two of these reads are `x` and `delta`, which nobody else needs. But $2N$ of them are $B$ and
# $C$, and *every* thread reads the same ones: most reads bring a number that was just brought.
#
# ## Share what all of them need
#
# The threads of a block have **shared memory** in common: small, and much nearer than the **global
# memory** where arrays lie. So let them bring $B$ and $C$ of some steps (a **tile**) together, a
# share each, and then all read from the tile. There is one danger. A block has several warps, each
# at its own pace: one may read its neighbour's share before it has arrived. `cuda.syncthreads()`
# is a **barrier**: nobody passes it before everybody has reached it.

# %%
show(gpu_kernels.shared_scan)

# %% [markdown]
# ### Exercise 11d: bring a tile
#
# `bring` copies the rows `first` ... `first + CHUNK - 1` of `selected` to `tile`, (CHUNK, WIDTH).
# Thread $i$ of the block takes the numbers $i$, $i$ + `cuda.blockDim.x`, ...; number $i$ is in row
# `i // WIDTH` and column `i % WIDTH`. Think about two moments that need a barrier: when may the
# tile be read, and when may it be written? (Four lines.)


# %%
@cuda.jit(device=True)
def your_bring(tile, selected, first): ...


check("11d", your_bring)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 11d: open it when you have tried.
@cuda.jit(device=True)
def bring(tile, selected, first):
    cuda.syncthreads()  # somebody may still read the tile before
    for i in range(cuda.threadIdx.x, CHUNK * WIDTH, cuda.blockDim.x):
        tile[i // WIDTH, i % WIDTH] = selected[first + i // WIDTH, i % WIDTH]
    cuda.syncthreads()  # the tile is complete


check("11d", bring)

# %% [markdown]
# What goes wrong without the second barrier? Here it is missing, and the check says who met whom.
# On a GPU such a kernel may be right a thousand times, and nearly always in a block of a single
# warp: whether thread 1 comes in time is luck. So do not trust a run; trust the order.

# %%
show(gpu_kernels.hasty)
print(problem("11d", gpu_kernels.hasty))

# %% [markdown]
# And with both:

# %%
scan = gpu_kernels.shared_scan(advance, bring)
shared = launch(scan, E // THREADS, THREADS, *arrays, empty(L, E))
np.testing.assert_array_equal(shared["y"], naive["y"])  # the same sums, to the last bit
scores["B and C shared"] = shared.score(L * E)
print(scores["B and C shared"])
first = shared, "selected", "A block brings each number once, between two barriers ..."
gpu_pictures.who_reads(first, (shared, "shared", "... all its threads read it"))
plt.show()

# %% [markdown]
# The reads have not become fewer, but most of them are near now. A block fetches each number of
# $B$ and $C$ once, however many channels it has. What would that be for Mamba's 16 states, with
# blocks of 128 threads as the package has them?

# %%
for states, threads in [(N, THREADS), (16, 128)]:
    print(f"{states} states: {2 + 2 * states} global reads, with tiles {2 + 2 * states / threads}")
begun = N / L  # and the rates of its states, which a thread reads once in L steps
assert scores["all from global memory"].global_reads == 2 + 2 * N + begun
assert scores["B and C shared"].global_reads == 2 + 2 * N / THREADS + begun

# %% [markdown]
# ## Several threads for each channel
#
# A single short text has few channels, and most of a GPU would sleep. *Can threads share a
# channel?* Yes: its states do not know of each other either, until $y$ adds them up. Here two
# threads, the **lanes** of a channel, have half of the states each. You have written what they
# need already: `advance` with another `first`.

# %%
show(gpu_kernels.lanes_scan)

# %% [markdown]
# ### Exercise 11e: the sum over the lanes
#
# Each thread of the block comes with its part, `mine`. Put it into `parts[i]`, and return the sum
# of the parts of a channel: those from `parts[i - i % LANES]` on, LANES = 2 of them. The same
# array serves at every step, so two moments need a barrier again. (Four lines.)


# %%
@cuda.jit(device=True)
def your_sum_of_lanes(parts, i, mine): ...


check("11e", your_sum_of_lanes)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 11e: open it when you have tried.
@cuda.jit(device=True)
def sum_of_lanes(parts, i, mine):
    cuda.syncthreads()  # somebody may still add up the step before
    parts[i] = mine
    cuda.syncthreads()
    return parts[i - i % LANES] + parts[i - i % LANES + 1]


check("11e", sum_of_lanes)

# %% [markdown]
# Look where a barrier must not stand: under `if lane == 0`. The threads that skip it would keep
# the others waiting for good.

# %%
scan = gpu_kernels.lanes_scan(advance, sum_of_lanes)
lanes = launch(scan, E * LANES // THREADS, THREADS, *arrays, empty(L, E))
np.testing.assert_allclose(lanes["y"], naive["y"], rtol=1e-4, atol=1e-5)
scores["two lanes a channel"] = lanes.score(L * E)
gpu_pictures.who_reads((lanes, "selected", "Even lanes read half of B and C, odd lanes the rest"))
plt.show()

# %% [markdown]
# Twice as many threads, and half of the states for each. The price: both lanes read `x` and
# `delta`, and barriers at every step. Within a warp there is something better than shared memory,
# an instruction that hands a register to another thread (a *shuffle*), which the package uses.
# Python's GPU has none.
#
# ## Many chunks at the same time
#
# And if a long text has few channels? Then time has to be cut after all. In
# [04](04_scan_in_parallel.ipynb) two steps composed to one. So do the steps of a whole **chunk**,
# and its decay needs no product, as $e^{\delta_1 A} e^{\delta_2 A} = e^{(\delta_1 + \delta_2) A}$:
#
# 1. all chunks at once, each as if it began with zeros: keep its last states, `ends`, and the sum
#    of its $\delta$, `sums`;
# 2. from chunk to chunk, the **carry**: $h$ after a chunk is $e^{A \sum \delta}\,
#    h_{\text{before}} + \text{end}$;
# 3. all chunks at once again, now from the states that they really begin with, `starts`.
#
# One kernel does 1 and 3. A chunk is a block here, and $B$ and $C$ of a chunk are its tile.

# %%
show(gpu_kernels.chunk_scan)

# %% [markdown]
# ### Exercise 11f: the carry
#
# A thread for each state of each channel walks from chunk to chunk. `starts[chunk, e, n]` is what
# the chunk begins with, `ends` is (chunks, E, N), `sums` (chunks, E). Fill in the dots, and decide
# in which order the two lines have to stand. (Two lines.)


# %%
@cuda.jit
def your_carry(ends, sums, A_per_octave, starts):
    e, n = cuda.grid(2)
    h = float32(0)
    for chunk in range(ends.shape[0]):
        h = state_update(h, decay(..., A_per_octave[e, n]), ...)
        starts[chunk, e, n] = ...


check("11f", your_carry)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 11f: open it when you have tried.
@cuda.jit
def carry(ends, sums, A_per_octave, starts):
    e, n = cuda.grid(2)
    h = float32(0)
    for chunk in range(ends.shape[0]):
        starts[chunk, e, n] = h
        h = state_update(h, decay(sums[chunk, e], A_per_octave[e, n]), ends[chunk, e, n])


check("11f", carry)

# %% [markdown]
# The decay of a chunk comes from one power, of the sum of its step sizes. Here are the three
# kernels, one after another:

# %%
chunks, scan = L // CHUNK, gpu_kernels.chunk_scan(advance, bring)
grid, states = (E // THREADS, chunks), (chunks, E, N)
results = empty(L, E), empty(*states), empty(chunks, E)  # y, ends, sums
one = launch(scan, grid, THREADS, *arrays, np.zeros(states, np.float32), *results)
ends, sums = one["ends"], one["sums"]
two = launch(carry, (E // THREADS, N), THREADS, ends, sums, A_per_octave, empty(*states))
three = launch(scan, grid, THREADS, *arrays, two["starts"], *results)
np.testing.assert_allclose(three["y"], y[0], rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(three["ends"][:-1], two["starts"][1:], rtol=1e-4, atol=1e-5)
scores["chunks, three kernels"] = one.score(L * E, two, three)

# %% [markdown]
# The states that chunks really end with are those that the next ones begin with. Now the whole
# path in one picture: who reads $B$ and $C$, in the third step and in the sixth. On the left eight
# threads go through all numbers, each for itself, one step after another. On the right three times
# as many threads start everywhere at once, and fetch each number once a block.

# %% tags=["heart"]
gpu_pictures.naive_and_chunked(naive, three, L)
plt.show()
assert len(naive.reads("selected")) == L * E * 2 * N  # every thread reads every number
assert len(three.reads("selected")) == L * 2 * N * (E // THREADS)  # every block of channels does

# %% [markdown]
# ## What did it cost, and what is it good for?
#
# Chunks do the work twice, and states come and go between the kernels. They read the most of all.

# %%
gpu_pictures.score_bars(scores)
plt.show()

# %% [markdown]
# So they pay off only where a GPU would be half empty. What they shorten is the path of a single
# thread: $L$ steps become $2c + L/c$ with chunks of $c$, two scans of a chunk and one carry.

# %%
c = np.arange(1, 4097)
steps = 2 * c + 4096 / c
best = np.argmin(steps)
print(f"4096 steps in chunks of {c[best]}: {steps[best]:.0f} steps, one after another")
assert abs(c[best] - np.sqrt(4096 / 2)) < 1  # where the derivative 2 - L / c**2 is zero

# %% [markdown]
# ## The kernel that the package runs
#
# It is made of your six steps. Here is the heart of it, `advance`, and the kernel with a thread
# for each channel:

# %%
show(gpu.package_source("scan_steps", "advance"), gpu.package_source("scan", "channel_scan"))

# %% [markdown]
# All six are there:
#
# - **11a**, [`formulas.py`](../mamba_np/cuda/formulas.py): formulas as device functions. Channels
#   are padded to a multiple of 128 with zeros; guards stand only where a text or a tile ends.
# - **11b**, `walker` in [`scan.py`](../mamba_np/cuda/scan.py): time in a loop. It asks for the
#   inputs of four steps before it needs them, so that waiting and computing overlap.
# - **11c**, `advance` in [`scan_steps.py`](../mamba_np/cuda/scan_steps.py), which you see above.
# - **11d**, `tile_loader` there. `walker` has two tiles: one is filled while the other is read,
#   and one barrier a tile is enough.
# - **11e**, [`scan_lanes.py`](../mamba_np/cuda/scan_lanes.py): four lanes, added up by shuffles.
# - **11f**, `chunk_states` and `carry` in [`scan_chunks.py`](../mamba_np/cuda/scan_chunks.py).
#
# `step_size` and `finish` are softplus, and skip and gate: done in the same pass, on numbers that
# are in registers already. `choose` in `scan.py` takes channels, lanes or chunks, by how many
# threads keep a GPU busy.

# %%
others = ("scan", "walker"), ("scan_steps", "tile_loader"), ("scan_chunks", "carry")
assert all(f"def {name}(" in gpu.package_source(module, name) for module, name in others)

# %% [markdown]
# ## Read next
#
# - [12 Train it by hand](12_train_it_by_hand.ipynb): the same scan, backwards, and what learns
#   from it.
# - [On an NVIDIA GPU](../docs/gpu.md): how to use the engine, and how it is tested without a GPU.
# - [GPU kernels](../docs/gpu-kernels.md): registers and instructions of every kernel, on every
#   GPU.
# - Gu and Dao 2023, section 3.3.2: why the states should never leave the fast memory.
# - [GPU-Puzzles](https://github.com/srush/GPU-Puzzles): more of this kind, up to products of
#   matrices.
