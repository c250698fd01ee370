"""An emulator of GPUs: it executes PTX, the text that CUDA kernels compile to, in NumPy.

    module = parse(text)
    memory = Memory()
    x, y = memory.alloc(x_array), memory.alloc_uninitialised(y_array)
    launch(module.kernel, grid, block, [x, y, 100], memory)
    assert memory.unwritten() == 0

It finds what a GPU would hide: access out of bounds, misaligned or racing, reads of what nobody
wrote, barriers and shuffles that not everybody reaches. It does not tell how fast a kernel is.
"""

from .counters import Counters
from .errors import PTXError
from .machine import Kernel, Module, launch
from .memory import Memory


def parse(text: str) -> Module:
    """Parse PTX; what is not understood is an error that names it."""
    return Module(text)


__all__ = ["Counters", "Kernel", "Memory", "Module", "PTXError", "launch", "parse"]
