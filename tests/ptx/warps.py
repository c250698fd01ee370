"""Exchange within a warp: shuffles, votes, matches.

All lanes that an instruction's mask names must run it together.
"""

import numpy as np

from .build import Run, instruction, type_of
from .errors import PTXError
from .memory import Apart, Fault
from .operands import Operands
from .parser import Statement
from .threads import WARP, Threads
from .types import TYPES

U32, PRED = TYPES["u32"], TYPES["pred"]
MODES = "up down bfly idx"


def present(t: Threads) -> np.ndarray:
    """Return a mask of the lanes that run now, for each present thread: uint32."""
    warps = t.of(t.warp)
    masks = np.zeros(t.warp[-1] + 1, np.uint32)
    np.bitwise_or.at(masks, warps, np.uint32(1) << t.of(t.lane).astype(np.uint32))
    return masks[warps]


def check_together(t: Threads, named) -> None:
    """Check that every named lane runs this, and that whoever runs this is named.

    Lanes whose companions come later wait for them: see ``Apart``.
    """
    if t.lanes is None and t.block_size % WARP == 0 and (named == 0xFFFFFFFF).all():
        return
    named = t.spread(named)
    absent = named & ~present(t) != 0
    if absent.any():
        raise Apart(t.numbers(), named, absent)
    lane = t.of(t.lane).astype(np.uint32)
    if (unnamed := named >> lane & np.uint32(1) == 0).any():
        raise Fault("the mask does not name a lane that runs this", unnamed)


@instruction("shfl", allow=f"sync {MODES}")
def _shuffle(s: Statement, operands: Operands) -> Run:
    if "sync" not in s.modifiers:
        raise PTXError("expected .sync")
    mode = next(one for one in s.modifiers if one in MODES.split())
    kind = TYPES["b32"]
    target, inside = operands.pair(0)
    write = operands.writer(target, kind)
    write_inside = operands.writer(inside, PRED) if inside else None
    value, by, clamp, mask = (
        operands.read(k, one) for k, one in zip((1, 2, 3, 4), (kind, U32, U32, U32), strict=True)
    )

    def run(t: Threads) -> None:
        check_together(t, mask(t))
        lane = t.of(t.lane)
        source, valid = _source(mode, lane, by(t).astype(np.int64), clamp(t).astype(np.int64))
        numbers = t.numbers()
        everyone = np.zeros(t.count, kind.dtype)
        everyone[numbers] = value(t)
        runs = np.zeros(t.count, bool)
        runs[numbers] = True
        source = numbers - lane + np.where(valid, source, lane)
        if (gone := (source >= t.count) | ~runs[np.minimum(source, t.count - 1)]).any():
            raise Fault("reads from a lane that does not run this", gone)
        write(t, everyone[source])
        if write_inside:
            write_inside(t, valid)

    return run


def _source(mode: str, lane, by, clamp):
    """Return (the lane to read from, whether it is in range): the PTX manual's own words."""
    segment, last = clamp >> 8 & 31, clamp & 31
    highest = lane & segment | last & ~segment
    lowest = lane & segment
    by = by & 31
    if mode == "up":
        return lane - by, lane - by >= highest
    if mode == "down":
        return lane + by, lane + by <= highest
    if mode == "bfly":
        return lane ^ by, lane ^ by <= highest
    source = lowest | by & ~segment
    return source, source <= highest


def ballot(t: Threads, votes: np.ndarray) -> np.ndarray:
    """Return the lanes that voted yes, for each present thread: uint32."""
    warps = t.of(t.warp)
    masks = np.zeros(t.warp[-1] + 1, np.uint32)
    bits = np.uint32(1) << t.of(t.lane).astype(np.uint32)
    np.bitwise_or.at(masks, warps, np.where(votes, bits, np.uint32(0)))
    return masks[warps]


@instruction("vote", allow="sync all any uni ballot")
def _vote(s: Statement, operands: Operands) -> Run:
    mode = s.modifiers[-1]
    write = operands.write(0, U32 if mode == "ballot" else PRED)
    vote, mask = operands.read(1, PRED), operands.read(2, U32)

    def run(t: Threads) -> None:
        named = t.spread(mask(t))
        check_together(t, named)
        yes = ballot(t, t.spread(vote(t)))
        results = {"ballot": yes, "all": yes == named, "any": yes != 0}
        results["uni"] = results["all"] | ~results["any"]
        write(t, results[mode])

    return run


@instruction("match", allow="any all sync")
def _match(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    target, every = operands.pair(0)
    write = operands.writer(target, U32)
    write_every = operands.writer(every, PRED) if every else None
    value, mask = operands.read(1, kind), operands.read(2, U32)

    def run(t: Threads) -> None:
        named = t.spread(mask(t))
        check_together(t, named)
        values, result = t.spread(value(t)), np.zeros(t.active, np.uint32)
        for one in np.unique(values):
            equal = values == one
            result = np.where(equal, ballot(t, equal), result)
        if "all" in s.modifiers:
            result = np.where(result == named, result, np.uint32(0))
        write(t, result)
        if write_every:
            write_every(t, result != 0)

    return run


@instruction("activemask")
def _active_mask(s: Statement, operands: Operands) -> Run:
    write = operands.write(0, U32)
    return lambda t: write(t, present(t))


@instruction("redux", allow="sync add min max and or xor")
def _reduce(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    function = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[s.modifiers[-1]]  # fmt: skip
    write, value, mask = operands.write(0, kind), operands.read(1, kind), operands.read(2, U32)

    def run(t: Threads) -> None:
        check_together(t, mask(t))
        warps = t.of(t.warp)  # ascending, as threads are
        starts = np.flatnonzero(np.diff(warps, prepend=-1))
        sums = function.reduceat(t.spread(value(t)), starts)
        write(t, np.repeat(sums, np.diff(starts, append=len(warps))).astype(kind.dtype))

    return run
