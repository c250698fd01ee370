"""Control: branches, barriers, fences and the few calls of Numba's."""

import numpy as np

from .build import Control, Run, instruction, type_of
from .errors import PTXError
from .memory import Fault
from .operands import Operands
from .parser import Statement
from .threads import Threads
from .types import TYPES
from .warps import check_together

U32, PRED = TYPES["u32"], TYPES["pred"]


@instruction("bra", allow="uni")
def _branch(s: Statement, operands: Operands) -> Control:
    if operands[0] not in operands.body.labels:
        raise PTXError(f"unknown label {operands[0]!r}")
    return Control("branch", target=operands[0])


@instruction("ret exit", allow="uni")
def _return(s: Statement, operands: Operands) -> Control:
    return Control("exit")


@instruction("trap")
def _trap(s: Statement, operands: Operands) -> Run:
    def run(t: Threads) -> None:
        raise Fault("the kernel stops itself")

    return run


@instruction("bar barrier", allow="sync warp cta aligned red popc and or arrive")
def _barrier(s: Statement, operands: Operands) -> Run | Control:
    if "warp" in s.modifiers:
        mask = operands.read(0, U32)
        return lambda t: _meet_in_warp(t, mask(t))
    if "arrive" in s.modifiers:
        raise PTXError("bar.arrive is not known here")
    if s.guard is not None:
        raise PTXError("a guarded barrier is not known here")
    if "red" in s.modifiers:
        return _voting_barrier(s, operands)
    number = operands.read(0, U32)
    threads = operands.read(1, U32) if len(operands) > 1 else None
    return Control("block", barrier=number, threads=threads)


def _voting_barrier(s: Statement, operands: Operands) -> Control:
    """A barrier that also gives every thread all others' votes."""
    counting = "popc" in s.modifiers
    write = operands.write(0, type_of(s) if counting else PRED)
    vote = operands.read(len(operands) - 1, PRED)

    def finish(t: Threads) -> None:
        slots = t.of(t.slot)
        votes = np.bincount(slots, weights=t.spread(vote(t)), minlength=t.slot[-1] + 1)
        votes = votes.astype(np.int64)
        size = np.bincount(slots, minlength=t.slot[-1] + 1)
        result = votes if counting else votes == size if "and" in s.modifiers else votes > 0
        write(t, result[slots])

    return Control("block", barrier=operands.read(1, U32), finish=finish)


def _meet_in_warp(t: Threads, mask) -> None:
    """Let memory of whole warps be seen by their lanes. Parts of a warp order nothing here."""
    check_together(t, mask)
    if t.mine is None:
        return
    whole = t.spread(mask) == 0xFFFFFFFF
    firsts = t.mine[whole & (t.of(t.lane) == 0)]
    t.shared.shadow.warp_barrier(firsts)
    for region in t.memory.regions:
        region.shadow.warp_barrier(firsts)


@instruction("membar fence", allow="gl cta sys sc acq_rel gpu proxy async acquire release")
def _fence(s: Statement, operands: Operands) -> Run:
    return lambda t: None  # in order anyway; it takes a barrier to order threads


@instruction("griddepcontrol", allow="wait launch_dependents")
def _grid_dependency(s: Statement, operands: Operands) -> Run:
    return lambda t: None  # launches come one after the other


@instruction("nanosleep pragma")
def _nothing(s: Statement, operands: Operands) -> Run:
    return lambda t: None


@instruction("call", allow="uni")
def _call(s: Statement, operands: Operands) -> Run | Control:
    """The two functions by which Numba's kernels wait for the whole grid."""
    names = [one for one in s.operands if not one.startswith("(")]
    if names == ["cudaCGGetIntrinsicHandle"]:
        write = operands.writer(operands[0].strip("() "), TYPES["b64"])
        return lambda t: write(t, np.uint64(1))
    if names == ["cudaCGSynchronize"]:
        write = operands.writer(operands[0].strip("() "), U32)
        return Control("grid", finish=lambda t: write(t, np.uint32(0)))
    raise PTXError(f"calls {', '.join(names)}, which is not known here")
