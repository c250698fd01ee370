"""What all forms of the selective scan are made of: a step, and how its numbers get there.

B and C of a step are the same for all channels: a block of threads brings those of a tile of steps
to shared memory together, the next tile while it computes with this one.
"""

from functools import cache
from typing import Any

from ..errors import InputError
from .dialect import cuda, types
from .formulas import F32, decay, routine, state_update
from .intrinsics import load4, store4
from .registry import F32_POINTER, I32_POINTER, INT

THREADS = 128
"""Of a block: as many channels in ``channel_scan``."""

LANES = 4
"""Lanes that share a channel in ``lane_scan``."""

GROUP = 4
"""Steps whose inputs are asked for together, while those before are computed."""

MOST_STATES = 64
MOST_OF_A_THREAD = 32
"""States that one thread can hold: of more, it would have to put some away at each step."""

PIECES = 2
"""Times 16 bytes of B and C that a thread brings for a tile: 4 KB, of which there are two."""

U32, U64 = types.uint32, types.uint64

ARGUMENTS = (*(F32_POINTER,) * 7, I32_POINTER, F32_POINTER)
"""x, raw, xz, selected, A_per_octave, D, dt_bias, lengths, h; then come y and the sizes."""

SIZES = (INT,) * 4
"""L, E_pad, M and how many steps a chunk has."""


def padded_states(N: int, most: int = MOST_STATES) -> int:
    """Return N to a multiple of four. Raises InputError for more states than registers can hold."""
    if not 1 <= N <= most:
        raise InputError(f"state_size: expected 1 to {most} in this kernel, found {N}")
    return -(-N // 4) * 4


# --- B and C in shared memory -------------------------------------------------------------------


def tile_steps(N4: int) -> int:
    """Return how many steps a tile has: what the threads of a block bring in ``PIECES`` reads."""
    return THREADS * PIECES * 4 // (2 * N4) // GROUP * GROUP


def shared_floats(N4: int) -> int:
    """Return how many numbers two tiles have."""
    return 2 * tile_steps(N4) * 2 * N4


@cache
def tile_loader(N4: int) -> Any:
    """Return device functions that read one piece of a tile, and that put it into its place.

    read(selected, row, M, steps, piece) gives four numbers of the ``steps`` rows from ``row`` on,
    and zeros past them; write(tiles, start, piece, numbers).
    """
    quads, count = U32(N4 // 2), U32(tile_steps(N4) * N4 // 2)

    @routine
    def read(selected, row, M, steps, piece):
        i = U32(cuda.threadIdx.x) + U32(piece * THREADS)
        step = i // quads
        if i < count and step < steps:
            return load4(selected, (row + step) * U64(M) + (i - step * quads) * U32(4))
        return F32(0), F32(0), F32(0), F32(0)

    @routine
    def write(tiles, start, piece, v):
        i = U32(cuda.threadIdx.x) + U32(piece * THREADS)
        if i < count:
            store4(tiles, start + i * U32(4), v[0], v[1], v[2], v[3])

    return read, write


# --- the parts of a step ------------------------------------------------------------------------


@cache
def advance(count: int, C: int) -> Any:
    """Return a device function that takes ``count`` states one step on, and returns C h.

    B of these states lies in shared memory from ``place`` on, C ``C`` numbers further.
    """

    @routine
    def one(h, A, tiles, place, delta, drive):
        y = F32(0)
        for n in range(count):
            h[n] = state_update(h[n], decay(delta, A[n]), drive * tiles[place + U32(n)])
            y += h[n] * tiles[place + U32(C + n)]
        return y

    return one


@routine
def read(inputs, place, gate):
    """Return x, raw and z of a channel at a step; z lies in rows twice as long, behind an x."""
    return inputs[0][place], inputs[1][place], inputs[2][place + place + gate]


@routine
def steps_of(lengths, text, begin, end):
    """Return how many of the steps from ``begin`` to ``end`` count."""
    return U32(max(types.int32(min(lengths[text], types.int32(end))) - types.int32(begin), 0))


@routine
def part_of(lengths, L, chunk):
    """Return a block's place among states, its first row, how many rows it has and steps count."""
    text, part = U64(cuda.blockIdx.y), U32(cuda.blockIdx.z)
    begin = U32(part * U32(chunk))
    end = U32(min(U32(begin + U32(chunk)), U32(L)))
    steps = steps_of(lengths, text, begin, end)
    slot = text * U64(cuda.gridDim.z) + U64(part)
    return slot, text * U64(L) + U64(begin), U32(end - begin), steps


@cache
def state_mover(count: int) -> Any:
    """Return device functions that fetch and keep ``count`` numbers, four at once if they can."""

    @routine
    def fetch(array, place, numbers):
        for n in range(0, count, 4):
            v = load4(array, place + U64(n))
            numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3] = v[0], v[1], v[2], v[3]

    @routine
    def keep(array, place, numbers):
        for n in range(0, count, 4):
            a, b, c, d = numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3]
            store4(array, place + U64(n), a, b, c, d)

    @routine
    def fetch_each(array, place, numbers):
        for n in range(count):
            numbers[n] = array[place + U64(n)]

    @routine
    def keep_each(array, place, numbers):
        for n in range(count):
            array[place + U64(n)] = numbers[n]

    return (fetch_each, keep_each) if count % 4 else (fetch, keep)
