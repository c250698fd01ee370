"""Lanes: 16 float32 numbers that a kernel computes with at once.

A compiler turns plain loops into vector instructions when it can prove enough about them, and
falls back to one number at a time when it cannot. Kernels here do not leave that to luck: they
load 16 neighbours as one value, compute with it as with a number, and store it. LLVM maps the
value to what the processor has: one AVX-512 register, two of AVX2, four of NEON or SSE.
``four`` joins four Lanes to one value, whose arithmetic goes through the four in turns.

    x, y = load(a, i), load(b, i)
    store(c, i, x * y + 1)

``load`` and ``store`` are in ``memory``. These names exist inside compiled functions only. No
operation is reordered; ``a * b + c`` is fused.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, signature
from numba.extending import (
    lower_builtin,
    models,
    overload,
    register_model,
)

from .options import infer_global, intrinsic

WIDTH = 16
"""Numbers in one Lanes."""

_FLAGS = ("contract", "nsz")  # a * b + c in one rounding; the sign of a zero does not matter
_FLOAT, _INT, _BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)


class _Vector(types.Type):
    """The Numba type of 16 equal elements, or of four times as many."""

    def __init__(self, name: str, element: ir.Type, width: int = WIDTH):
        super().__init__(name=name)
        self.llvm = ir.VectorType(element, width)


LANES = _Vector("Lanes", _FLOAT)
BITS = _Vector("Bits", _INT)  # the same 16 places as int32: bit patterns of float32 numbers
MASK = _Vector("Mask", _BIT)  # 16 times yes or no
FOUR_LANES = _Vector("FourLanes", _FLOAT, 4 * WIDTH)
FOUR_BITS = _Vector("FourBits", _INT, 4 * WIDTH)
FOUR_MASKS = _Vector("FourMasks", _BIT, 4 * WIDTH)

FLOATS = (LANES, FOUR_LANES)
_BITS_OF = {LANES: BITS, FOUR_LANES: FOUR_BITS}
_MASK_OF = {LANES: MASK, FOUR_LANES: FOUR_MASKS}
FLOATS_OF = {vector: floats for table in (_BITS_OF, _MASK_OF) for floats, vector in table.items()}


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


def _spread(builder, value, vector: _Vector):
    """Return an LLVM vector with ``value`` in every place."""
    one = builder.insert_element(ir.Constant(vector.llvm, ir.Undefined), value, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, vector.llvm.count), None)
    return builder.shuffle_vector(one, ir.Constant(vector.llvm, ir.Undefined), zeros)


# --- arithmetic ------------------------------------------------------------------------------

_SCALAR = {
    **dict.fromkeys(FLOATS, types.float32),
    **dict.fromkeys(_BITS_OF.values(), types.int32),
}


def _define(function, emit, vector: _Vector, result: _Vector, flags: tuple[str, ...] = ()):
    """Teach the compiler ``function(a, b)`` of two vectors, or of a vector and a number."""
    number = _SCALAR[vector]
    pairs = ((vector, vector), (vector, number), (number, vector))

    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and tuple(args) in pairs:
                return signature(result, *args)
            return None

    for pair in pairs:

        @lower_builtin(function, *pair)
        def _lower(context, builder, sig, args):
            wide = [
                value if kind is vector else _spread(builder, value, vector)
                for kind, value in zip(sig.args, args, strict=True)
            ]
            return emit(builder, *wide, **({"flags": flags} if flags else {}))


for _function, _method in (
    (operator.add, ir.IRBuilder.fadd),
    (operator.sub, ir.IRBuilder.fsub),
    (operator.mul, ir.IRBuilder.fmul),
    (operator.truediv, ir.IRBuilder.fdiv),
):
    for _vector in FLOATS:
        _define(_function, _method, _vector, _vector, _FLAGS)
for _function, _method in (
    (operator.add, ir.IRBuilder.add),
    (operator.lshift, ir.IRBuilder.shl),
):
    for _vector in _BITS_OF.values():
        _define(_function, _method, _vector, _vector)


def _comparison(sign: str):
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


for _function, _sign in (
    (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="),
):  # fmt: skip
    for _vector, _mask in _MASK_OF.items():
        _define(_function, _comparison(_sign), _vector, _mask)


def _unary(function, emit):
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            return signature(*args, *args) if len(args) == 1 and args[0] in FLOATS else None

    for vector in FLOATS:

        @lower_builtin(function, vector)
        def _lower(context, builder, sig, args):
            return emit(builder, args[0])


def _absolute(builder, x):
    bits = ir.VectorType(_INT, x.type.count)
    without_sign = ir.Constant(bits, [0x7FFFFFFF] * x.type.count)
    return builder.bitcast(builder.and_(builder.bitcast(x, bits), without_sign), x.type)


_unary(operator.neg, ir.IRBuilder.fneg)
_unary(abs, _absolute)


@intrinsic
def select(typing, condition, x, y):
    """Return x where the condition holds, else y, place by place."""
    if condition not in _MASK_OF.values():
        return None
    vector = FLOATS_OF[condition]
    sig = signature(vector, condition, x, y)

    def emit(context, builder, sig, args):
        wide = [
            value if kind is vector else _spread(builder, value, vector)
            for kind, value in zip(sig.args[1:], args[1:], strict=True)
        ]
        return builder.select(args[0], *wide)

    return sig, emit


@overload(np.minimum)
def _minimum(x1, x2):
    if x1 in FLOATS:  # a NaN in x1 stays: comparisons with it are false
        return lambda x1, x2: select(x1 > x2, x2, x1)
    return None


@overload(np.maximum)
def _maximum(x1, x2):
    if x1 in FLOATS:
        return lambda x1, x2: select(x1 < x2, x2, x1)
    return None


@intrinsic
def bits_of(typing, x):
    """Return the bit patterns of 16 float32 numbers, or of one."""
    if x in FLOATS:
        bits = _BITS_OF[x]
        return bits(x), lambda c, builder, s, args: builder.bitcast(args[0], bits.llvm)
    return types.int32(types.float32), lambda c, b, s, args: b.bitcast(args[0], _INT)


@intrinsic
def from_bits(typing, bits):
    """Return the float32 numbers that have these bit patterns."""
    if bits in FLOATS_OF:
        floats = FLOATS_OF[bits]
        return floats(bits), lambda c, builder, s, args: builder.bitcast(args[0], floats.llvm)
    return types.float32(types.int32), lambda c, b, s, args: b.bitcast(args[0], _FLOAT)


@intrinsic
def square_root(typing, x):
    """Return the square root of one float32 number."""

    def emit(context, builder, sig, args):
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", (_FLOAT,)), args)

    return types.float32(types.float32), emit


@intrinsic
def multiply_add(typing, a, b, c):
    """Return a * b + c of Lanes, or of four, in one rounding, wherever the compiler puts it.

    ``a * b + c`` is fused too where it can be; this always is, on processors that do it at all.
    """

    def emit(context, builder, sig, args):
        kind = sig.return_type.llvm
        name = f"llvm.fmuladd.v{kind.count}f32"
        known = builder.module.globals.get(name)
        function = known or ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, args)

    return a(a, a, a), emit


@intrinsic
def spread(typing, x):
    """Return a number in all 16 places."""
    return LANES(types.float32), lambda c, builder, s, args: _spread(builder, args[0], LANES)


@intrinsic
def total(typing, x):
    """Return the sum of the 16 numbers, halves added to halves."""
    return types.float32(LANES), lambda c, b, s, args: _folded(b, args[0], b.fadd)


@intrinsic
def largest(typing, x):
    """Return the largest of the 16 numbers."""

    def emit(context, builder, sig, args):
        def larger(a, b):
            return builder.select(builder.fcmp_ordered("<", a, b), b, a)

        return _folded(builder, args[0], larger)

    return types.float32(LANES), emit


def _folded(builder, part, join):
    """Return what is left of a vector when its halves are joined until one number remains."""
    width = part.type.count
    while width > 1:
        width //= 2
        low = ir.Constant(ir.VectorType(_INT, width), list(range(width)))
        high = ir.Constant(ir.VectorType(_INT, width), list(range(width, 2 * width)))
        nothing = ir.Constant(part.type, ir.Undefined)
        part = join(
            builder.shuffle_vector(part, nothing, low),
            builder.shuffle_vector(part, nothing, high),
        )
    return builder.extract_element(part, _INT(0))


# --- four at once --------------------------------------------------------------------------------


@intrinsic
def four(typing, a, b, c, d):
    """Return four Lanes as one value, or four numbers, each in the 16 places of its Lanes.

    What is computed of it is computed of the four in turns: a processor that waits for a result
    of one has the others to go on with.
    """

    def emit(context, builder, sig, args):
        if a is not LANES:
            args = [_spread(builder, number, LANES) for number in args]
        pairs = _joined(builder, *args[:2]), _joined(builder, *args[2:])
        return _joined(builder, *pairs)

    return FOUR_LANES(a, b, c, d), emit


@intrinsic(prefer_literal=True)
def one_of(typing, lanes, which):
    """Return one of four Lanes; ``which`` is written as a number."""
    first = which.literal_value * WIDTH
    places = ir.Constant(BITS.llvm, list(range(first, first + WIDTH)))

    def emit(context, builder, sig, args):
        return builder.shuffle_vector(args[0], ir.Constant(args[0].type, ir.Undefined), places)

    return LANES(lanes, which), emit


def _joined(builder, low, high):
    """Return two LLVM vectors of the same width as one."""
    width = 2 * low.type.count
    places = ir.Constant(ir.VectorType(_INT, width), list(range(width)))
    return builder.shuffle_vector(low, high, places)
