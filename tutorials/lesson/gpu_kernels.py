"""The kernels that the exercises of "Write the GPU kernel in Python" are parts of.

Each factory takes the parts, which are device functions, and returns the kernel. Sizes that a
compiler has to know are constants; channels are a multiple of a block's, steps of a chunk's.
"""

from .gpu import cuda, float32

N = 4
"""States of a channel."""

WIDTH = 2 * N
"""Numbers of a step that all channels share: B, then C."""

CHUNK = 4
"""Steps that shared memory has room for."""

LANES, SHARE = 2, N // 2
"""Threads that share a channel, and states of each."""

THREADS = 4
"""Of a block."""


@cuda.jit(device=True)
def begin(h, rates, A_per_octave, e, first):
    """Set a thread's states to zero, and bring their rates to registers."""
    for n in range(h.size):
        h[n] = 0
        rates[n] = A_per_octave[e, first + n]


def states_scan(advance):
    """A thread takes a channel, all its states in registers."""

    @cuda.jit
    def kernel(x, delta, A_per_octave, selected, y):
        h, rates = cuda.local.array(N, float32), cuda.local.array(N, float32)
        e = cuda.grid(1)
        begin(h, rates, A_per_octave, e, 0)
        for t in range(x.shape[0]):
            y[t, e] = advance(h, rates, selected[t], 0, delta[t, e], x[t, e])

    return kernel


def shared_scan(advance, bring):
    """The same, with B and C of some steps in the block's shared memory."""

    @cuda.jit
    def kernel(x, delta, A_per_octave, selected, y):
        tile = cuda.shared.array((CHUNK, WIDTH), float32)
        h, rates = cuda.local.array(N, float32), cuda.local.array(N, float32)
        e = cuda.grid(1)
        begin(h, rates, A_per_octave, e, 0)
        for first in range(0, x.shape[0], CHUNK):
            bring(tile, selected, first)
            for k in range(CHUNK):
                t = first + k
                y[t, e] = advance(h, rates, tile[k], 0, delta[t, e], x[t, e])

    return kernel


def lanes_scan(advance, sum_of_lanes):
    """LANES threads share a channel, some of its states each, and add up what they read."""

    @cuda.jit
    def kernel(x, delta, A_per_octave, selected, y):
        parts = cuda.shared.array(THREADS, float32)
        h, rates = cuda.local.array(SHARE, float32), cuda.local.array(SHARE, float32)
        e, lane = cuda.grid(1) // LANES, cuda.grid(1) % LANES
        begin(h, rates, A_per_octave, e, lane * SHARE)
        for t in range(x.shape[0]):
            mine = advance(h, rates, selected[t], lane * SHARE, delta[t, e], x[t, e])
            total = sum_of_lanes(parts, cuda.threadIdx.x, mine)
            if lane == 0:
                y[t, e] = total

    return kernel


def chunk_scan(advance, bring):
    """A thread takes a channel through one chunk, from the states that the chunk begins with."""

    @cuda.jit
    def kernel(x, delta, A_per_octave, selected, starts, y, ends, sums):
        tile = cuda.shared.array((CHUNK, WIDTH), float32)
        h, rates = cuda.local.array(N, float32), cuda.local.array(N, float32)
        e, chunk = cuda.grid(2)
        begin(h, rates, A_per_octave, e, 0)
        for n in range(N):
            h[n] = starts[chunk, e, n]
        total = float32(0)
        bring(tile, selected, chunk * CHUNK)
        for k in range(CHUNK):
            t = chunk * CHUNK + k
            step_size = delta[t, e]
            y[t, e] = advance(h, rates, tile[k], 0, step_size, x[t, e])
            total += step_size
        for n in range(N):
            ends[chunk, e, n] = h[n]
        sums[chunk, e] = total

    return kernel


@cuda.jit(device=True)
def hasty(tile, selected, first):
    """Bring a tile, without the barrier that has to come after it."""
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, CHUNK * WIDTH, cuda.blockDim.x):
        tile[i // WIDTH, i % WIDTH] = selected[first + i // WIDTH, i % WIDTH]
