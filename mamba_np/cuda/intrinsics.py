"""What Numba's CUDA dialect lacks: wide loads and stores, narrow floats, sums over a warp.

Pointers are flat (``types.CPointer``) or arrays in shared memory; an index counts elements of the
pointer's type and, for wide access, is a multiple of as many: the hardware wants whole, aligned
vectors.
"""

from typing import Any

from llvmlite import ir

from .dialect import arrayobj, cuda, extending, types
from .formulas import device

intrinsic: Any = extending.intrinsic  # type checkers misread its result

WHOLE_WARP = 0xFFFFFFFF
I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_LLVM = {types.float32: F32, types.uint32: I32, types.int32: I32}


def _place(context, builder, kind, base, index_kind, index):
    """Return the address of an element of a flat pointer or a shared array."""
    index = context.cast(builder, index, index_kind, types.intp)
    if isinstance(kind, types.CPointer):
        return builder.gep(base, [index])
    array = arrayobj.make_array(kind)(context, builder, value=base)
    return builder.gep(array.data, [index])


def _as(builder, place, llvm_type):
    return builder.bitcast(place, ir.PointerType(llvm_type, addrspace=place.type.addrspace))


def _loader(element):
    vector = ir.VectorType(_LLVM[element], 4)

    @intrinsic
    def load(typing_context, base, index):
        def generate(context, builder, signature, arguments):
            kinds = signature.args
            place = _place(context, builder, kinds[0], arguments[0], kinds[1], arguments[1])
            loaded = builder.load(_as(builder, place, vector), align=16)
            parts = [builder.extract_element(loaded, I32(k)) for k in range(4)]
            return context.make_tuple(builder, signature.return_type, parts)

        return types.UniTuple(element, 4)(base, index), generate

    return load


load4 = _loader(types.float32)
"""Read four float32 at once: (pointer, index) -> four numbers."""
load4_words = _loader(types.uint32)
"""Read four uint32 at once."""


def _stored(element):
    def generate(context, builder, signature, arguments):
        kinds, parts = signature.args, arguments[2:]
        vector = ir.VectorType(_LLVM[element], len(parts))
        place = _place(context, builder, kinds[0], arguments[0], kinds[1], arguments[1])
        value = ir.Constant(vector, ir.Undefined)
        for k, part in enumerate(parts):
            value = builder.insert_element(value, part, I32(k))
        builder.store(value, _as(builder, place, vector), align=4 * len(parts))
        return context.get_dummy_value()

    return generate


@intrinsic
def store4(typing_context, base, index, a, b, c, d):
    """Write four float32 at once."""
    return types.void(base, index, *(types.float32,) * 4), _stored(types.float32)


@intrinsic
def store2_words(typing_context, base, index, a, b):
    """Write two uint32 at once."""
    return types.void(base, index, *(types.uint32,) * 2), _stored(types.uint32)


@intrinsic
def stream4_words(typing_context, base, index):
    """Read four uint32 that nobody reads again, past the first-level cache: weights."""

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        place = _place(context, builder, kinds[0], arguments[0], kinds[1], arguments[1])
        result = ir.LiteralStructType([I32] * 4)
        text = "ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4];"
        assembly = ir.InlineAsm(ir.FunctionType(result, [I64]), text, "=r,=r,=r,=r,l")
        loaded = builder.call(assembly, [builder.ptrtoint(place, I64)])
        parts = [builder.extract_value(loaded, k) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.uint32, 4)(base, index), generate


# --- narrow numbers -----------------------------------------------------------------------------


@intrinsic
def float_of(typing_context, bits):
    """Return the float32 with these bits (uint32)."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.uint32), generate


@intrinsic
def bits_of(typing_context, x):
    """Return the bits (uint32) of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], I32)

    return types.uint32(types.float32), generate


@intrinsic
def half_of(typing_context, bits):
    """Return the float16 with the lower 16 bits of a uint32, as float32."""

    def generate(context, builder, signature, arguments):
        half = builder.bitcast(builder.trunc(arguments[0], I16), ir.HalfType())
        return builder.fpext(half, F32)

    return types.float32(types.uint32), generate


@intrinsic
def _shifted_left(typing_context, word):
    def generate(context, builder, signature, arguments):
        return builder.shl(arguments[0], I32(16))

    return types.uint32(types.uint32), generate


@device
def lower_bfloat16(word):
    """Return the bfloat16 in the lower half of a uint32, as float32."""
    return float_of(_shifted_left(word))


@device
def upper_bfloat16(word):
    """Return the bfloat16 in the upper half of a uint32, as float32."""
    return float_of(types.uint32(word & types.uint32(0xFFFF0000)))


@device
def bfloat16_bits(x):
    """Return the bits (uint32, of which 16 count) of a finite float32 rounded to bfloat16.

    To the nearest, ties to even, in integer arithmetic, which every architecture has.
    """
    bits = bits_of(x)
    odd = types.uint32((bits >> types.uint32(16)) & types.uint32(1))
    return types.uint32((bits + types.uint32(0x7FFF) + odd) >> types.uint32(16))


@device
def bfloat16_pair(a, b):
    """Return two finite float32 as bfloat16 in one uint32, ``a`` in the lower half."""
    return types.uint32(bfloat16_bits(a) | _shifted_left(bfloat16_bits(b)))


# --- a warp together ----------------------------------------------------------------------------


@device
def warp_sum(x):
    """Return the sum of x over the 32 lanes of a warp, in every lane."""
    for distance in (16, 8, 4, 2, 1):
        x += cuda.shfl_xor_sync(WHOLE_WARP, x, distance)
    return x
