"""Arithmetic: sums, products, quotients, comparisons, for integers and floats.

Integers wrap around, as NumPy's arrays do. Floats are rounded to nearest; ``.ftz`` is kept.
"""

import numpy as np

from .build import Run, instruction, type_of
from .errors import PTXError
from .memory import Fault
from .operands import Operands
from .parser import Statement
from .types import TYPES, Type, wide
from .ufuncs import add_ftz, flush, fma, fma_ftz, mul_ftz, sub_ftz

PRED = TYPES["pred"]
_FLUSHING = {"add": add_ftz, "sub": sub_ftz, "mul": mul_ftz, "fma": fma_ftz}
_PLAIN = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": fma}
_PAIRS = ("f16x2", "bf16x2", "bf16", "f16")


def calculation(s: Statement, operands: Operands, function, sources=None) -> Run:
    """Return what puts a function of all operands but the first into the first."""
    kind = type_of(s)
    kinds = sources or [kind] * (len(operands) - 1)
    write = operands.write(0, kind)
    reads = [operands.read(k + 1, one) for k, one in enumerate(kinds)]
    if len(reads) == 1:
        (one,) = reads
        return lambda t: write(t, function(one(t)))
    if len(reads) == 2:
        one, two = reads
        return lambda t: write(t, function(one(t), two(t)))
    return lambda t: write(t, function(*(read(t) for read in reads)))


def _saturated(s: Statement, function):
    if "sat" not in s.modifiers:
        return function

    def saturating(*values):
        result = function(*values)
        return np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)

    return saturating


def _no_pairs(kind: Type) -> None:
    if kind.name in _PAIRS and kind.name != "f16":
        raise PTXError(f"arithmetic in .{kind.name} is not known here")


@instruction("add sub", allow="rn ftz sat wrap")
def _add(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    _no_pairs(kind)
    if kind.is_float:
        function = (_FLUSHING if "ftz" in s.modifiers else _PLAIN)[s.name]
        return calculation(s, operands, _saturated(s, function))
    if "sat" in s.modifiers:
        raise PTXError(f"{s.name}.sat in integers is not known here")
    return calculation(s, operands, _PLAIN[s.name])


@instruction("fma", allow="rn ftz sat")
def _fused(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    _no_pairs(kind)
    if kind.name == "f16":  # rounded twice, which may differ in the last place

        def half(a, b, c):
            return fma(a.astype("f8"), b.astype("f8"), c.astype("f8")).astype("f2")

        return calculation(s, operands, half)
    function = (_FLUSHING if "ftz" in s.modifiers else _PLAIN)["fma"]
    return calculation(s, operands, _saturated(s, function))


def _high(kind: Type):
    """Return the upper half of a product of integers."""
    bits = 8 * kind.bytes
    if bits < 64:
        double = wide(kind).dtype
        return lambda a, b: (a.astype(double) * b.astype(double) >> bits).astype(kind.dtype)

    def high64(a, b):
        unsigned = [x.astype(np.uint64) for x in (a, b)]
        low = np.uint64(0xFFFFFFFF)
        shift = np.uint64(32)
        (a1, a0), (b1, b0) = ((x >> shift, x & low) for x in unsigned)
        middle = a1 * b0 + (a0 * b0 >> shift)
        other = a0 * b1 + (middle & low)
        result = a1 * b1 + (middle >> shift) + (other >> shift)
        if kind.is_signed:  # what the sign bits added
            result = result - np.where(a < 0, unsigned[1], 0) - np.where(b < 0, unsigned[0], 0)
        return result.astype(np.uint64).view(kind.dtype)

    return high64


def _product(s: Statement, kind: Type):
    """Return (function of two integers, type of its result)."""
    if "wide" in s.modifiers:
        double = wide(kind)
        return (lambda a, b: a.astype(double.dtype) * b.astype(double.dtype)), double
    if "hi" in s.modifiers:
        return _high(kind), kind
    return np.multiply, kind


@instruction("mul mad", allow="lo hi wide rn ftz sat")
def _multiply(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    _no_pairs(kind)
    if kind.is_float:
        if s.name == "mad":
            return _fused(s, operands)
        function = (_FLUSHING if "ftz" in s.modifiers else _PLAIN)["mul"]
        return calculation(s, operands, _saturated(s, function))
    if not {"lo", "hi", "wide"} & set(s.modifiers):
        raise PTXError("expected .lo, .hi or .wide")
    function, result = _product(s, kind)
    write = operands.write(0, result)
    a, b = operands.read(1, kind), operands.read(2, kind)
    if s.name == "mul":
        return lambda t: write(t, function(a(t), b(t)))
    c = operands.read(3, result)
    return lambda t: write(t, function(a(t), b(t)) + c(t))


@instruction("mul24 mad24", allow="lo")
def _multiply_24(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    narrow = (lambda x: x << 8 >> 8) if kind.is_signed else (lambda x: x & 0xFFFFFF)

    def function(a, b, c=0):
        return narrow(a) * narrow(b) + c

    return calculation(s, operands, function)


def integer_quotient(a, b):
    """Return a / b towards zero, where Python rounds down."""
    a, b = np.broadcast_arrays(a, b)
    if (b == 0).any():
        raise Fault("divides an integer by zero", b == 0)
    if a.dtype.kind == "u":
        return a // b
    down = a // b
    return down + ((down * b != a) & ((a < 0) != (b < 0)))


@instruction("rem")
def _remainder(s: Statement, operands: Operands) -> Run:
    return calculation(s, operands, lambda a, b: a - integer_quotient(a, b) * b)


@instruction("sad")
def _absolute_difference(s: Statement, operands: Operands) -> Run:
    return calculation(s, operands, lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c)


# --- signs, order ---------------------------------------------------------------------------------


def _extreme(s: Statement, kind: Type):
    """Return min or max of two: of a NaN and a number, the number; -0 is less than +0."""
    smaller = s.name == "min"
    if not kind.is_float:
        return np.minimum if smaller else np.maximum
    if "NaN" in s.modifiers:
        ordered = np.minimum if smaller else np.maximum
    else:
        ordered = np.fmin if smaller else np.fmax
    bits = np.dtype(f"uint{8 * kind.bytes}")
    signs = np.bitwise_or if smaller else np.bitwise_and

    def extreme(a, b):
        a, b = np.broadcast_arrays(*np.atleast_1d(a, b))
        equal = signs(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits))
        return np.where(a == b, equal.view(kind.dtype), ordered(a, b))

    return extreme


@instruction("min max", allow="ftz NaN")
def _minimum(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    _no_pairs(kind)
    extreme = _extreme(s, kind)
    flushing = flush if "ftz" in s.modifiers else (lambda x: x)

    def function(*values):
        result = flushing(values[0])
        for value in values[1:]:
            result = extreme(result, flushing(value))
        return result

    return calculation(s, operands, function)


@instruction("neg abs", allow="ftz")
def _sign(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    _no_pairs(kind)
    function = np.negative if s.name == "neg" else np.abs
    if "ftz" in s.modifiers:
        return calculation(s, operands, lambda a: function(flush(a)))
    return calculation(s, operands, function)


@instruction("copysign")
def _copysign(s: Statement, operands: Operands) -> Run:
    return calculation(s, operands, lambda a, b: np.copysign(b, a))


@instruction("testp", allow="finite infinite number notanumber normal subnormal")
def _test(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    tiny = np.finfo(kind.dtype).tiny
    function = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }[s.modifiers[0]]
    write, read = operands.write(0, PRED), operands.read(1, kind)
    return lambda t: write(t, function(read(t)))


# --- comparisons ----------------------------------------------------------------------------------

_COMPARE = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),  # false for NaN, unlike NumPy's
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),  # those with u: true for NaN
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(s: Statement, operands: Operands, kind: Type, last: int):
    """Return what compares two operands, combined with a third predicate if there is one."""
    names = [one for one in s.modifiers if one in _COMPARE]
    compare = _COMPARE[names[0]] if kind.is_float or names[0] != "ne" else np.not_equal
    a, b = operands.read(1, kind), operands.read(2, kind)
    flushing = flush if "ftz" in s.modifiers else (lambda x: x)
    joined = [one for one in s.modifiers if one in _COMBINE]
    if not joined:
        return lambda t: compare(flushing(a(t)), flushing(b(t)))
    combine, c = _COMBINE[joined[0]], operands.read(last, PRED)
    return lambda t: combine(compare(flushing(a(t)), flushing(b(t))), c(t))


@instruction("setp", allow=" ".join([*_COMPARE, *_COMBINE, "ftz"]))
def _set_predicate(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    _no_pairs(kind)
    first, second = operands.pair(0)
    compare = _comparison(s, operands, kind, 3)
    write = operands.writer(first, PRED)
    if second is None:
        return lambda t: write(t, compare(t))
    if len(operands) > 3:
        raise PTXError("two results with a third predicate are not known here")
    write_other = operands.writer(second, PRED)

    def run(t):
        result = compare(t)
        write(t, result)
        write_other(t, ~result)

    return run


@instruction("set", allow=" ".join([*_COMPARE, *_COMBINE, "ftz"]))
def _set(s: Statement, operands: Operands) -> Run:
    result, kind = s.types
    compare = _comparison(s, operands, kind, 3)
    write = operands.write(0, result)
    true = result.dtype.type(1.0) if result.is_float else ~np.zeros((), result.dtype)
    return lambda t: write(t, np.where(compare(t), true, result.dtype.type(0)))


@instruction("selp")
def _select(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    function = lambda a, b, p: np.where(p, a, b)  # noqa: E731
    return calculation(s, operands, function, [kind, kind, PRED])


@instruction("slct", allow="ftz")
def _select_by_sign(s: Statement, operands: Operands) -> Run:
    kind, by = s.types
    write = operands.write(0, kind)
    a, b, c = operands.read(1, kind), operands.read(2, kind), operands.read(3, by)
    return lambda t: write(t, np.where(c(t) >= 0, a(t), b(t)))
