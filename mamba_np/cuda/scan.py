"""The selective scan over many steps: the states of a channel stay in registers, and pass on.

Steps depend on each other, channels do not. So a thread takes a channel, ``channel_scan``; where
there are few of them, four lanes share one, ``scan_lanes``; and where there are fewer still, a long
text is cut into chunks that are scanned at once, ``scan_chunks``. ``choose`` knows which.
"""

from functools import cache
from typing import Any, NamedTuple

from ..errors import InputError
from .dialect import cuda, types
from .formulas import F32, output, routine, softplus
from .intrinsics import bfloat16_bits
from .registry import F32_POINTER, U16_POINTER, Budget, Kernel
from .scan_steps import (
    ARGUMENTS,
    GROUP,
    LANES,
    MOST_OF_A_THREAD,
    SIZES,
    THREADS,
    U32,
    U64,
    advance,
    padded_states,
    part_of,
    read,
    shared_floats,
    state_mover,
    tile_loader,
    tile_steps,
)  # fmt: skip

SHORTEST_CHUNK = 64
"""Steps, so that what is done once a chunk does not matter."""


class Plan(NamedTuple):
    """How to scan: by "channels", "lanes" or "chunks", the latter ``count`` of ``length`` steps."""

    form: str
    count: int
    length: int


def choose(texts: int, L: int, E_pad: int, processors: int, N: int = 16) -> Plan:
    """Return how to scan ``texts`` of L steps each, with N states a channel.

    A step of 16 states is 19 powers and quotients, of which a multiprocessor makes 16 a clock, 4
    in each of its quarters: one warp keeps a quarter as busy as it can be. So there should be 4
    warps for each multiprocessor (some 500 in all), by channels or by lanes, which cost a third
    more instructions. Chunks go through the powers twice: they pay off where lanes leave half of
    the quarters idle, in texts long enough to be cut. Twice as many warps as quarters then hide
    each other's waiting.
    """
    warps, quarters = texts * E_pad // 32, 4 * processors
    if N > MOST_OF_A_THREAD:
        return Plan("lanes", 1, L)
    if warps >= quarters:
        return Plan("channels", 1, L)
    count = min(2 * quarters // max(1, warps), L // SHORTEST_CHUNK)
    if 2 * LANES * warps > quarters or count < 4:
        return Plan("lanes", 1, L)
    length = -(-L // count)
    length = -(-length // GROUP) * GROUP
    return Plan("chunks", -(-L // length), length)


def blocks_of(form: str, E_pad: int) -> int:
    """Return how many blocks the channels of a text take."""
    return E_pad // (THREADS // LANES if form == "lanes" else THREADS)


# --- what kernels differ in ---------------------------------------------------------------------


@routine
def soften(raw, bias):
    """Return the step size that a network asked for."""
    return softplus(raw + bias)


@routine
def _given(raw, bias):
    return raw


@routine
def _bare(y, x, D, z):
    return y


@routine
def _write_float32(y, place, value):
    y[place] = value


@routine
def _write_bfloat16(y, place, value):
    y[place] = types.uint16(bfloat16_bits(value))


OUTPUTS = {"float32": (F32_POINTER, _write_float32), "bfloat16": (U16_POINTER, _write_bfloat16)}


def parts_of(out: str, gated: bool) -> tuple[Any, Any, Any, Any]:
    """Return y's pointer and what kernels differ in: step size, output, how y is written.

    Raises InputError for a dtype that y cannot have.
    """
    if out not in OUTPUTS:
        raise InputError(f"out: expected one of {', '.join(OUTPUTS)}, found {out!r}")
    pointer, write = OUTPUTS[out]
    return pointer, *((soften, output) if gated else (_given, _bare)), write


# --- a thread takes a channel -------------------------------------------------------------------


@cache
def walker(N4: int, each: Any) -> Any:
    """Return a device function that takes a channel through all steps of a text or chunk.

    ``each(h, A, tiles, slot, now, own, y, place)`` does one: ``now`` is x, raw and z, ``own`` the
    channel's bias and D, ``place`` where the step's y lies. The sum of its results is returned.
    """
    tile, width = tile_steps(N4), 2 * N4
    half = U32(tile * width)
    read_tile, write_tile = tile_loader(N4)

    @routine
    def walk(inputs, y, state, tiles, own, where, steps, M):
        (h, A), (row, e, E) = state, where
        selected, two, three = inputs[3], E * U64(2), E * U64(3)
        gate, full, total = U64(E - e), U32(steps & U32(0xFFFFFFFC)), F32(0)
        start = row * E + U64(e)
        place = start
        a = b = c = d = (F32(0), F32(0), F32(0))
        if full > U32(0):
            a, b = read(inputs, place, gate), read(inputs, place + E, gate)
            c, d = read(inputs, place + two, gate), read(inputs, place + three, gate)
        v, w = read_tile(selected, row, M, steps, 0), read_tile(selected, row, M, steps, 1)
        write_tile(tiles, U32(0), 0, v)
        write_tile(tiles, U32(0), 1, w)
        cuda.syncthreads()
        now = U32(0)
        for first in range(U32(0), steps, U32(tile)):
            last = U32(min(U32(first + U32(tile)), steps))
            ahead = row + U64(last)
            v = read_tile(selected, ahead, M, U32(steps - last), 0)
            w = read_tile(selected, ahead, M, U32(steps - last), 1)
            slot = now
            for t in range(first, U32(min(last, full)), U32(GROUP)):
                later = start + U64(min(U32(t + U32(GROUP)), U32(full - U32(GROUP)))) * E
                p, q = read(inputs, later, gate), read(inputs, later + E, gate)
                r, s = read(inputs, later + two, gate), read(inputs, later + three, gate)
                total += each(h, A, tiles, slot, a, own, y, place)
                total += each(h, A, tiles, slot + U32(width), b, own, y, place + E)
                total += each(h, A, tiles, slot + U32(2 * width), c, own, y, place + two)
                total += each(h, A, tiles, slot + U32(3 * width), d, own, y, place + three)
                a, b, c, d = p, q, r, s
                place += E * U64(GROUP)
                slot = U32(slot + U32(GROUP * width))
            for _ in range(U32(max(first, full)), last, U32(1)):
                total += each(h, A, tiles, slot, read(inputs, place, gate), own, y, place)
                place += E
                slot = U32(slot + U32(width))
            now = U32(half - now)
            write_tile(tiles, now, 0, v)
            write_tile(tiles, now, 1, w)
            cuda.syncthreads()
        return total

    return walk


@cache
def channel_scan(N: int, out: str = "float32", gated: bool = True) -> Kernel:
    """Return the kernel of the scan with a thread for each channel.

    x (T, E_pad), raw (T, E_pad), xz (T, 2 E_pad), selected (T, M), A_per_octave (E_pad, N4),
    D (E_pad), dt_bias (E_pad), lengths (B), h (chunks, E_pad, N4), y (T, E_pad), L, E_pad, M,
    chunk. Blocks: (E_pad / 128, B, chunks), where ``chunk`` is L and there is one, unless
    ``scan_chunks`` plans more: h then holds the states that each chunk begins with.

    h moves on by lengths[b] steps in place; y of later steps is 0. y is float32 or, rounded once,
    bfloat16. Without ``gated``, raw is the step size itself, and y is C h alone: xz, D and dt_bias
    are not looked at. Raises InputError for a dtype or a number of states that it cannot do.
    """
    N4 = padded_states(N, MOST_OF_A_THREAD)
    pointer, step_size, finish, write = parts_of(out, gated)
    step, (fetch, keep), room = advance(N4, N4), state_mover(N4), shared_floats(N4)

    @routine
    def each(h, A, tiles, slot, now, own, y, place):
        delta = step_size(now[1], own[0])
        found = step(h, A, tiles, slot, delta, delta * now[0])
        write(y, place, finish(found, now[0], own[1], now[2]))
        return F32(0)

    walk = walker(N4, each)

    def kernel(x, raw, xz, selected, A_per_octave, D, dt_bias, lengths, h, y, L, E_pad, M, chunk):
        tiles = cuda.shared.array(room, types.float32, alignment=16)
        state, A = cuda.local.array(N4, types.float32), cuda.local.array(N4, types.float32)
        e, E = U32(cuda.blockIdx.x) * U32(THREADS) + U32(cuda.threadIdx.x), U64(E_pad)
        slot, row, rows, steps = part_of(lengths, L, chunk)
        own = (slot * E + U64(e)) * U64(N4)
        fetch(A_per_octave, U64(e) * U64(N4), A)
        fetch(h, own, state)
        numbers = dt_bias[e], D[e]
        walk((x, raw, xz, selected), y, (state, A), tiles, numbers, (row, e, E), steps, M)
        keep(h, own, state)
        for t in range(steps, rows, U32(1)):
            write(y, (row + U64(t)) * E + U64(e), F32(0))

    name = f"channel_scan N={N4} {out}{'' if gated else ' bare'}"
    budget = Budget(128 if N4 <= 16 else 160, 4 * room)
    return Kernel(name, kernel, (*ARGUMENTS, pointer, *SIZES), THREADS, budget)
