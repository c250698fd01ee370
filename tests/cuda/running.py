"""Run one compiled kernel on arrays, in the emulator of tests/ptx, with all that it can check.

    y = empty(T, E)
    run(kernel, (blocks, T), x, InPlace(h), y, length, arch=90)

An array is read only, one of ``empty`` has to be written in full, and one ``InPlace`` may be both.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types
from ptx import Memory, launch, parse

from mamba_np.cuda import compiler

ARCHITECTURES = (75, 90, 120)
"""Those that every kernel's tests run at least once: the oldest, the one tuned for, the newest."""


class InPlace(NamedTuple):
    """An array that a kernel reads and writes."""

    array: np.ndarray


class Empty(NamedTuple):
    """An array that a kernel has to fill: poisoned, and NaN wherever it stays so."""

    array: np.ndarray


def empty(*shape, dtype=np.float32):
    """Return an array for a kernel's results; ``.array`` is what it holds."""
    return Empty(np.empty(shape, dtype))


@cache
def _code(kernel, arch):
    return parse(compiler.ptx(kernel, arch)).kernel


def run(kernel, grid, *arguments, arch=90, approximate=False):
    """Launch a kernel once and return the emulator's counters.

    Numbers are checked against the kernel's own list of arguments, arrays too: the bytes of an
    element have to be those that its pointers point to. ``approximate``: see ``ptx.launch``.
    """
    assert len(arguments) == len(kernel.arguments), f"{kernel.name} has {len(kernel.arguments)}"
    memory, values, outputs = Memory(), [], []
    for k, (argument, kind) in enumerate(zip(arguments, kernel.arguments, strict=True)):
        if isinstance(argument, InPlace | Empty | np.ndarray):
            array = argument if isinstance(argument, np.ndarray) else argument.array
            assert isinstance(kind, types.CPointer), f"argument {k} of {kernel.name} is a number"
            assert array.itemsize == kind.dtype.bitwidth // 8, f"argument {k}: {array.dtype}"
        if isinstance(argument, Empty):
            values.append(memory.alloc_uninitialised(argument.array))
            outputs.append((k, argument.array))
        elif isinstance(argument, InPlace):
            values.append(memory.alloc(argument.array))
        elif isinstance(argument, np.ndarray):
            values.append(memory.alloc(_read_only(argument)))
        else:
            assert not isinstance(kind, types.CPointer), f"argument {k} of {kernel.name}: no array"
            values.append(argument)
    block = (kernel.threads,)
    counters = launch(_code(kernel, arch), grid, block, values, memory, approximate=approximate)
    for k, array in outputs:
        missing = memory.unwritten(array)
        assert missing == 0, f"argument {k} of {kernel.name}: {missing} of {array.size} not written"
    return counters


def _read_only(array):
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
