"""What a kernel is: a function, its arguments, how many threads it wants, what it may cost.

Sizes that a compiler has to know (how many states, which dtype) are constants of a factory, which
returns a Kernel; all other sizes are arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .dialect import types

F32_POINTER: Any = types.CPointer(types.float32)
U16_POINTER: Any = types.CPointer(types.uint16)
U32_POINTER: Any = types.CPointer(types.uint32)
I32_POINTER: Any = types.CPointer(types.int32)
INT: Any = types.int32


class Budget(NamedTuple):
    """What the compiled kernel may cost at most, on any architecture."""

    registers: int
    shared: int = 0  # bytes a block
    wide_loads: bool = True  # whether it has to load 16 bytes at once


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel before it is compiled.

    ``name`` names it and its constants, such as "channel_scan N=16"; ``arguments`` are Numba's
    types; ``threads`` the threads of a block; ``least_blocks`` how many blocks a multiprocessor
    should hold at once, which bounds the registers, 0 for any.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    threads: int
    budget: Budget
    least_blocks: int = 0
