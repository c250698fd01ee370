"""Division, roots, powers and logarithms: those of full precision, and the hardware's quick ones.

The quick ones are computed accurately here. A launch may ask for errors (``approximate``): then
each result is off by as much as PTX's manual permits, up or down, as its own bits decide: always
the same way for the same number, but in no pattern.
"""

import numpy as np

from .arithmetic import calculation, integer_quotient
from .build import Run, instruction, type_of
from .errors import PTXError
from .operands import Operands
from .parser import Statement
from .ufuncs import flush

_F32 = np.float32
_ULP = 2.0**-23
_QUICK = {  # function of float64, error permitted relative to the result, or to this if larger
    "ex2": (np.exp2, 2 * _ULP, 0),
    "lg2": (np.log2, 2 * _ULP, 1),
    "rcp": (lambda x: 1 / x, 1 * _ULP, 0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2 * _ULP, 0),
    "sqrt": (np.sqrt, 2 * _ULP, 0),
    "div": (np.divide, 2 * _ULP, 0),
    "tanh": (np.tanh, 2.0**-11, 0),
    "sin": (np.sin, 2.0**-20.5, 1),
    "cos": (np.cos, 2.0**-20.5, 1),
}


def noise(x: np.ndarray) -> np.ndarray:
    """Return numbers from -1 to 1, the same for the same float32."""
    bits = np.atleast_1d(x).view(np.uint32)
    mixed = (bits ^ bits >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
    mixed = (mixed ^ mixed >> np.uint32(12)) * np.uint32(0x297A2D39)
    return (mixed ^ mixed >> np.uint32(15)) / np.float64(2**31 - 0.5) - 1


def _quick(s: Statement, operands: Operands) -> Run:
    function, relative, least = _QUICK[s.name]
    kind = type_of(s)
    if kind.name != "f32":
        raise PTXError(f"{s.name}.approx in .{kind.name} is not known here")
    flushing = flush if "ftz" in s.modifiers else (lambda x: x)
    write = operands.write(0, kind)
    reads = [operands.read(k, kind) for k in range(1, len(operands))]

    def run(t):
        sources = [flushing(read(t)).astype(np.float64) for read in reads]
        exact = function(*sources)
        result = exact.astype(_F32)
        if t.launch.approximate:
            off = exact + relative * noise(result) * np.maximum(np.abs(exact), least)
            # Zeros, infinities and exact powers of two are exact on the hardware too.
            keep = ~np.isfinite(exact) | (np.frexp(exact)[0] == 0.5) | (exact == 0)
            result = np.where(keep, result, off.astype(_F32))
        write(t, flushing(result))

    return run


@instruction("ex2 lg2 tanh sin cos rsqrt", allow="approx ftz")
def _hardware(s: Statement, operands: Operands) -> Run:
    if "approx" not in s.modifiers:
        raise PTXError("expected .approx")
    if s.name == "rsqrt" and type_of(s).name == "f64":
        return calculation(s, operands, lambda x: 1 / np.sqrt(x))
    return _quick(s, operands)


@instruction("rcp sqrt div", allow="approx full rn ftz")
def _divide(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    if not kind.is_float:
        return calculation(s, operands, integer_quotient)
    if {"approx", "full"} & set(s.modifiers):
        return _quick(s, operands)
    if "rn" not in s.modifiers:
        raise PTXError("expected .approx, .full or .rn")
    one = kind.dtype.type(1)
    function = {"div": np.divide, "sqrt": np.sqrt, "rcp": lambda x: one / x}[s.name]
    if "ftz" not in s.modifiers:
        return calculation(s, operands, function)
    return calculation(s, operands, lambda *x: flush(function(*(flush(one) for one in x))))
