"""The scan for few channels: four lanes of a warp share one, a quarter of its states each.

What belongs to a channel and not to a state (step size, gate) is done once all the same: of four
steps, each lane does one, hands it round, and gets the sum of its step's outputs back.
"""

from functools import cache
from typing import Any

from .dialect import cuda, types
from .formulas import F32, routine
from .intrinsics import WHOLE_WARP
from .registry import Budget, Kernel
from .scan import parts_of
from .scan_steps import (
    ARGUMENTS,
    GROUP,
    LANES,
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


@routine
def sums_of_four(y, lane):
    """Return, in lane k of four, the sum of y[k] over the four lanes: three shuffles, not eight."""
    upper, odd = lane & U32(2) != U32(0), lane & U32(1) != U32(0)
    a = (y[2] if upper else y[0]) + cuda.shfl_xor_sync(WHOLE_WARP, y[0] if upper else y[2], 2)
    b = (y[3] if upper else y[1]) + cuda.shfl_xor_sync(WHOLE_WARP, y[1] if upper else y[3], 2)
    return (b if odd else a) + cuda.shfl_xor_sync(WHOLE_WARP, a if odd else b, 1)


def _walker(N4: int, step_size: Any, finish: Any, write: Any) -> Any:
    """Return a device function that takes a quarter of a channel's states through all steps."""
    share, width, tile = N4 // LANES, 2 * N4, tile_steps(N4)
    step, (read_tile, write_tile) = advance(share, N4), tile_loader(N4)

    @routine
    def one(h, A, tiles, slot, delta, drive, source):
        """Take this lane's states one step on: the step whose size lane ``source`` has."""
        delta = cuda.shfl_sync(WHOLE_WARP, delta, source)
        drive = cuda.shfl_sync(WHOLE_WARP, drive, source)
        return step(h, A, tiles, slot, delta, drive)

    @routine
    def walk(inputs, y, state, tiles, own, where, steps, M):
        (h, A), (row, e, E), selected = state, where, inputs[3]
        lane = U32(cuda.threadIdx.x) % U32(LANES)
        source = U32(cuda.threadIdx.x) % U32(32) - lane
        gate, start, final = U64(E - e), row * E + U64(e), U32(steps - U32(1))
        now = (F32(0), F32(0), F32(0))
        if steps > U32(0):
            now = read(inputs, start + U64(min(lane, final)) * E, gate)
        v, w = read_tile(selected, row, M, steps, 0), read_tile(selected, row, M, steps, 1)
        write_tile(tiles, U32(0), 0, v)
        write_tile(tiles, U32(0), 1, w)
        cuda.syncthreads()
        front = U32(0)
        for first in range(U32(0), steps, U32(tile)):
            last = U32(min(U32(first + U32(tile)), steps))
            v = read_tile(selected, row + U64(last), M, U32(steps - last), 0)
            w = read_tile(selected, row + U64(last), M, U32(steps - last), 1)
            slot = U32(front + lane * U32(share))
            for t in range(first, last, U32(GROUP)):
                mine = U32(t + lane)  # past the end: a step of size 0, which changes nothing
                later = read(inputs, start + U64(min(U32(mine + U32(GROUP)), final)) * E, gate)
                delta = step_size(now[1], own[0]) if mine < steps else F32(0)
                drive = delta * now[0]
                y0 = one(h, A, tiles, slot, delta, drive, source)
                y1 = one(h, A, tiles, slot + U32(width), delta, drive, source + U32(1))
                y2 = one(h, A, tiles, slot + U32(2 * width), delta, drive, source + U32(2))
                y3 = one(h, A, tiles, slot + U32(3 * width), delta, drive, source + U32(3))
                total = sums_of_four((y0, y1, y2, y3), lane)
                if mine < steps:
                    write(y, start + U64(mine) * E, finish(total, now[0], own[1], now[2]))
                now = later
                slot = U32(slot + U32(GROUP * width))
            front = U32(U32(tile * width) - front)
            write_tile(tiles, front, 0, v)
            write_tile(tiles, front, 1, w)
            cuda.syncthreads()

    return walk


@cache
def lane_scan(N: int, out: str = "float32", gated: bool = True) -> Kernel:
    """Return the kernel of the scan with four lanes for each channel.

    Arguments, results and errors are those of ``scan.channel_scan``. Blocks: (E_pad / 32, B,
    chunks).
    """
    N4 = padded_states(N)
    share, channels, room = N4 // LANES, THREADS // LANES, shared_floats(N4)
    pointer, step_size, finish, write = parts_of(out, gated)
    walk, (fetch, keep) = _walker(N4, step_size, finish, write), state_mover(share)

    def kernel(x, raw, xz, selected, A_per_octave, D, dt_bias, lengths, h, y, L, E_pad, M, chunk):
        tiles = cuda.shared.array(room, types.float32, alignment=16)
        state, A = cuda.local.array(share, types.float32), cuda.local.array(share, types.float32)
        thread, E = U32(cuda.threadIdx.x), U64(E_pad)
        e, lane = U32(cuda.blockIdx.x) * U32(channels) + thread // U32(LANES), thread % U32(LANES)
        slot, row, rows, steps = part_of(lengths, L, chunk)
        mine = U64(lane * U32(share))
        own = (slot * E + U64(e)) * U64(N4) + mine
        fetch(A_per_octave, U64(e) * U64(N4) + mine, A)
        fetch(h, own, state)
        inputs, numbers = (x, raw, xz, selected), (dt_bias[e], D[e])
        walk(inputs, y, (state, A), tiles, numbers, (row, e, E), steps, M)
        keep(h, own, state)
        for t in range(steps + lane, rows, U32(LANES)):
            write(y, (row + U64(t)) * E + U64(e), F32(0))

    name = f"lane_scan N={N4} {out}{'' if gated else ' bare'}"
    budget = Budget(160 if N4 <= 16 else 224, 4 * room)
    return Kernel(name, kernel, (*ARGUMENTS, pointer, *SIZES), THREADS, budget)
