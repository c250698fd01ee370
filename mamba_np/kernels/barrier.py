"""The barrier at which the ranks of a team meet, inside kernels and between them.

``wait(state, size)`` returns once all ``size`` ranks have called it: what each wrote before, all
can read after. A decode step meets some hundred times, so waiting costs well below a microsecond
when all arrive together: ranks look at a counter in a loop. A rank that has looked for long lets
the system run another thread between looks, so a busy machine slows a team and never stops it.

``state`` is what ``memory()`` returned; a member of a team has it as ``meeting``.
"""

import numpy as np
from llvmlite import ir
from numba import types

from .options import inline, intrinsic, kernel

SPINS = 2000
"""Looks before a rank lets other threads run: some ten microseconds, a pause between two."""

ARRIVED, LEFT, _LENGTH = 16, 32, 48
"""Where the counter and the flag lie: on cache lines that hold nothing else."""

_INT = ir.IntType(64)


def memory():
    """Return the memory of a new barrier."""
    return np.zeros(_LENGTH, np.int64)


@inline
def wait(state, size):
    """Wait until all ``size`` ranks are here; for kernels. Return False if that cannot happen.

    It cannot once a rank has left the region (``state[LEFT]`` is not 0) without coming here.
    """
    if size == 1:  # nobody else, and perhaps no memory
        return True
    ticket = _arrive(state, ARRIVED)
    end = ticket - ticket % size + size  # the counter never goes back: rounds cannot mix
    looks = 0
    while _look(state, ARRIVED) < end:
        if _look(state, LEFT) != 0:  # perhaps all came just now, and one left already
            return _look(state, ARRIVED) >= end
        if looks < SPINS:
            looks += 1
            _pause()
        else:
            _yield_processor()
    return True


@kernel
def meet(state, size):
    """Do what ``wait`` does; called from Python, where it lets other Python threads run."""
    return wait(state, size)


# --- instructions that Numba has no names for ------------------------------------------------


def _place(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def _arrive(typing, state, index):
    """Add one to an element; return what it was. Orders memory for all who do or see it."""

    def emit(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], *args)
        return builder.atomic_rmw("add", place, _INT(1), "seq_cst")

    return types.int64(state, types.intp), emit


@intrinsic
def _look(typing, state, index):
    """Return an element as it is now; later reads see what was written before its writing."""

    def emit(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], *args)
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(state, types.intp), emit


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    known = builder.module.globals.get(name)
    function = known if known is not None else ir.Function(builder.module, kind, name)
    builder.call(function, arguments)


@intrinsic
def _pause(typing):
    """Tell the processor that this is a waiting loop, where it has such an instruction."""

    def emit(context, builder, sig, args):
        machine = builder.module.triple.partition("-")[0]
        if machine in ("x86_64", "i386", "i686"):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif machine in ("aarch64", "arm64"):
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), ir.IntType(32)(1))
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _yield_processor(typing):
    """Let the system run another thread on this processor, if one waits for it."""

    def emit(context, builder, sig, args):
        windows = "windows" in builder.module.triple
        _call(builder, "SwitchToThread" if windows else "sched_yield", ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), emit
