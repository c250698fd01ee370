"""The scan of one long text in chunks that are done at the same time, in three kernels.

    chunk_states: each chunk from a state of zeros -> what it ends with, and the sum of its delta
    carry:        the states that the chunks begin with, one after another
    channel_scan: each chunk again, from there (``scan.channel_scan`` with h of all chunks)

A state decays over a chunk by exp(A delta_1) exp(A delta_2) ... = exp(A sum of delta): one
exponential for a whole chunk, and no product of many.
"""

from functools import cache

from .dialect import cuda, types
from .formulas import F32, decay, routine, state_update
from .registry import F32_POINTER, I32_POINTER, INT, Budget, Kernel
from .scan import Plan, parts_of, walker
from .scan_steps import (
    GROUP,
    MOST_OF_A_THREAD,
    SIZES,
    THREADS,
    U32,
    U64,
    advance,
    padded_states,
    part_of,
    shared_floats,
    state_mover,
)  # fmt: skip


def scratch(plan: Plan, texts: int, E_pad: int, N4: int) -> tuple[int, int]:
    """Return how many float32 the states of all chunks take, and how many the sums of delta."""
    channels = texts * plan.count * E_pad
    return channels * N4, channels


@cache
def chunk_states(N: int, gated: bool = True) -> Kernel:
    """Return the kernel that scans each chunk as if nothing had been before.

    x (T, E_pad), raw (T, E_pad), selected (T, M), A_per_octave (E_pad, N4), dt_bias (E_pad),
    lengths (B), ends (B, chunks, E_pad, N4), sums (B, chunks, E_pad), L, E_pad, M, chunk. Blocks:
    (E_pad / 128, B, chunks). Without ``gated``, raw is the step size itself. Raises InputError for
    a number of states that it cannot do.
    """
    N4 = padded_states(N, MOST_OF_A_THREAD)
    _, step_size, _, _ = parts_of("float32", gated)
    step, (fetch, keep), room = advance(N4, N4), state_mover(N4), shared_floats(N4)

    @routine
    def each(h, A, tiles, slot, now, own, y, place):
        delta = step_size(now[1], own[0])
        step(h, A, tiles, slot, delta, delta * now[0])  # C h is not asked for, and not computed
        return delta

    walk = walker(N4, each)

    def kernel(x, raw, selected, A_per_octave, dt_bias, lengths, ends, sums, L, E_pad, M, chunk):
        tiles = cuda.shared.array(room, types.float32, alignment=16)
        state, A = cuda.local.array(N4, types.float32), cuda.local.array(N4, types.float32)
        e, E = U32(cuda.blockIdx.x) * U32(THREADS) + U32(cuda.threadIdx.x), U64(E_pad)
        slot, row, _, steps = part_of(lengths, L, chunk)
        fetch(A_per_octave, U64(e) * U64(N4), A)
        for n in range(N4):
            state[n] = F32(0)
        inputs, own = (x, raw, x, selected), (dt_bias[e], F32(0))  # there is no z to be read
        total = walk(inputs, sums, (state, A), tiles, own, (row, e, E), steps, M)
        keep(ends, (slot * E + U64(e)) * U64(N4), state)
        sums[slot * E + U64(e)] = total

    arguments = (*(F32_POINTER,) * 5, I32_POINTER, F32_POINTER, F32_POINTER, *SIZES)
    name = f"chunk_states N={N4}{'' if gated else ' bare'}"
    return Kernel(name, kernel, arguments, THREADS, Budget(128 if N4 <= 16 else 160, 4 * room))


@cache
def carry(N: int) -> Kernel:
    """Return the kernel that hands states from chunk to chunk, with a thread for each state.

    ends (B, chunks, E_pad, N4), sums (B, chunks, E_pad), A_per_octave (E_pad, N4),
    h (B, E_pad, N4), E_pad, chunks. Blocks: (E_pad N4 / 128, B).

    ``ends`` becomes the states that chunks begin with, h those after the last one. Chunks are read
    four at a time: reads do not wait for each other, only states do. Raises InputError for a number
    of states that cannot be done.
    """
    N4 = padded_states(N)

    @routine
    def state_and_decay(ends, sums, place, A):
        return ends[place], decay(sums[place // U64(N4)], A)

    def kernel(ends, sums, A_per_octave, h, E_pad, chunks):
        i, text = U32(cuda.blockIdx.x) * U32(THREADS) + U32(cuda.threadIdx.x), U64(cuda.blockIdx.y)
        size, A = U64(E_pad) * U64(N4), A_per_octave[i]
        own = text * size + U64(i)
        place, state = text * U64(chunks) * size + U64(i), h[own]
        whole = U32(chunks) & U32(0xFFFFFFFC)
        for _ in range(U32(0), whole, U32(GROUP)):
            a, p = state_and_decay(ends, sums, place, A)
            b, q = state_and_decay(ends, sums, place + size, A)
            c, r = state_and_decay(ends, sums, place + size * U64(2), A)
            d, s = state_and_decay(ends, sums, place + size * U64(3), A)
            ends[place], state = state, state_update(state, p, a)
            ends[place + size], state = state, state_update(state, q, b)
            ends[place + size * U64(2)], state = state, state_update(state, r, c)
            ends[place + size * U64(3)], state = state, state_update(state, s, d)
            place += size * U64(GROUP)
        for _ in range(whole, U32(chunks), U32(1)):
            a, p = state_and_decay(ends, sums, place, A)
            ends[place], state = state, state_update(state, p, a)
            place += size
        h[own] = state

    arguments = (*(F32_POINTER,) * 4, INT, INT)
    budget = Budget(64, wide_loads=False)
    return Kernel(f"carry N={N4}", kernel, arguments, THREADS, budget)
