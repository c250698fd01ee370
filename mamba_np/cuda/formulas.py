"""The equations as device functions: the same code, compiled again, not written again.

Each function of ``equations`` that kernels need is bound anew: its code object stays, the names it
looks up become device functions and float32 constants. So a kernel computes what the NumPy
reference computes, and a change of a formula changes both.

An exponential is the GPU's own power of two (2 ulp); log1p is the polynomial of ``polynomials``,
whose error is relative where log(1 + x) would lose every digit of a small x.
"""

import math
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from .. import equations, polynomials
from .dialect import cuda

F32 = np.float32


def device(function: Callable) -> Any:
    """Compile a function into every kernel that calls it.

    ``fastmath`` is a property of each function: one without it would bring back slow exponentials.
    """
    return cuda.jit(device=True, fastmath=True, inline="always")(function)


def routine(function: Callable) -> Any:
    """Compile as ``device`` does, for functions that hand no arrays of a thread's own on.

    LLVM puts them where they are called instead of Numba: the same code, in a third of the time.
    """
    return cuda.jit(device=True, fastmath=True, forceinline=True)(function)


def _narrowed(value: Any) -> Any:
    """Return constants as float32: a Python float would make a kernel compute in float64."""
    if isinstance(value, float):
        return F32(value)
    return tuple(_narrowed(v) for v in value) if isinstance(value, tuple) else value


def _constants(module: Any) -> dict[str, Any]:
    kinds = (float, tuple, np.number)
    return {k: _narrowed(v) for k, v in vars(module).items() if isinstance(v, kinds)}


def _bound(function: Callable, names: dict[str, Any]) -> Any:
    """Return the device function that has this function's code, with other meanings of names."""
    return device(FunctionType(function.__code__, names, function.__name__))


# --- elementary functions: what the hardware has ------------------------------------------------


@device
def _maximum(x, y):
    return x if x > y else y


@device
def _minimum(x, y):
    return x if x < y else y


_numpy: Any = ModuleType("numpy")  # what the equations call of it
_numpy.maximum, _numpy.minimum = _maximum, _minimum
_BUILTINS = {"__builtins__": {"abs": abs}, "abs": abs, "np": _numpy}
_polynomials = _BUILTINS | {"F32": F32} | _constants(polynomials)
_equations = _BUILTINS | _constants(equations)


@device
def _exp(x):
    return math.exp(x)


@device
def _exp2(x):
    return math.exp2(x)


@device
def _log(x):
    return math.log(x)


@device
def _sqrt(x):
    return math.sqrt(x)


@device
def _where(condition, x, y):
    return x if condition else y


_equations |= {"exp": _exp, "exp2": _exp2, "log": _log, "sqrt": _sqrt, "where": _where}
_equations["log1p"] = _bound(polynomials.log1p, _polynomials)

for _name in (
    *("sigmoid", "silu", "softplus", "decay", "state_update", "output", "root_mean_square"),
    "gumbel",
):
    _equations[_name] = _bound(getattr(equations, _name), _equations)

softplus, silu, decay = (_equations[name] for name in ("softplus", "silu", "decay"))
state_update, output = _equations["state_update"], _equations["output"]
root_mean_square, gumbel = (_equations[name] for name in ("root_mean_square", "gumbel"))
