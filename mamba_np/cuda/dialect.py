"""Numba's dialect for GPUs, in which kernels are written.

Type checkers take ``cuda.threadIdx`` and its like for what they are outside of a kernel: to them,
these names may be anything.
"""

from importlib import import_module
from typing import Any

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.types")
extending: Any = import_module("numba.cuda.extending")
arrayobj: Any = import_module("numba.cuda.np.arrayobj")
dispatcher: Any = import_module("numba.cuda.dispatcher")
