"""Reading and writing Lanes, with the weights' dtypes widened on the way.

``load`` takes arrays or pointers of float32, bfloat16 (seen as uint16), float16 (its bits, seen as
int16) and int8, and returns float32. Indices are flat, of C-contiguous arrays, and not checked.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .lanes import BITS, LANES, WIDTH
from .options import inline, intrinsic

_FLOAT = ir.FloatType()


@intrinsic
def pointer(typing, address, like):
    """Return an integer address as a pointer to elements of the dtype of the array ``like``."""
    kind = types.CPointer(like.dtype)

    def emit(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), emit


_STORED = {
    types.float32: _FLOAT,
    types.uint16: ir.IntType(16),
    types.int16: ir.IntType(16),
    types.int8: ir.IntType(8),
}


def _element(array):
    """Return the element type of an array or pointer that can be loaded from, or None."""
    element = getattr(array, "dtype", None)
    return element if element in _STORED else None


def _place(context, builder, kind, array, index, llvm_type):
    """Return a pointer to ``array``'s element at a flat index, typed as ``llvm_type``."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, array).data
    place = builder.gep(array, [index], inbounds=True)
    return builder.bitcast(place, llvm_type.as_pointer())


def _widen(builder, element, stored):
    """Return stored weights as float32."""
    if element is types.float32:
        return stored
    if element is types.uint16:  # bfloat16 is the upper half of a float32
        bits = builder.zext(stored, BITS.llvm)
        sixteen = ir.Constant(BITS.llvm, [16] * WIDTH)
        return builder.bitcast(builder.shl(bits, sixteen), LANES.llvm)
    if element is types.int16:
        half = builder.bitcast(stored, ir.VectorType(ir.HalfType(), WIDTH))
        return builder.fpext(half, LANES.llvm)
    return builder.sitofp(stored, LANES.llvm)


@intrinsic
def load(typing, array, index):
    """Return the 16 numbers from a flat index on, as float32."""
    element = _element(array)
    if element is None or not isinstance(index, types.Integer):
        return None

    def emit(context, builder, sig, args):
        vector = ir.VectorType(_STORED[element], WIDTH)
        place = _place(context, builder, sig.args[0], args[0], args[1], vector)
        loaded = builder.load(place, align=element.bitwidth // 8)
        return _widen(builder, element, loaded)

    return LANES(array, types.intp), emit


@intrinsic
def load_part(typing, array, index, count):
    """Return the ``count`` < 16 numbers from a flat index on, then zeros; reads no further."""
    element = _element(array)
    if element is None:
        return None

    def emit(context, builder, sig, args):
        stored = _STORED[element]
        vector = ir.VectorType(stored, WIDTH)
        room = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, None), room)
        first = builder.bitcast(room, stored.as_pointer())
        with cgutils.for_range(builder, args[2]) as loop:
            where = builder.add(args[1], loop.index)
            place = _place(context, builder, sig.args[0], args[0], where, stored)
            builder.store(builder.load(place), builder.gep(first, [loop.index]))
        return _widen(builder, element, builder.load(room))

    return LANES(array, types.intp, types.intp), emit


@intrinsic
def store(typing, array, index, x):
    """Write the 16 numbers to a float32 array, from a flat index on."""
    if _element(array) is not types.float32:
        return None

    def emit(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], args[0], args[1], LANES.llvm)
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), emit


@intrinsic
def store_part(typing, array, index, x, count):
    """Write the first ``count`` < 16 numbers."""
    if _element(array) is not types.float32:
        return None

    def emit(context, builder, sig, args):
        room = cgutils.alloca_once(builder, LANES.llvm)
        builder.store(args[2], room)
        first = builder.bitcast(room, _FLOAT.as_pointer())
        with cgutils.for_range(builder, args[3]) as loop:
            where = builder.add(args[1], loop.index)
            place = _place(context, builder, sig.args[0], args[0], where, _FLOAT)
            builder.store(builder.load(builder.gep(first, [loop.index])), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES, types.intp), emit


@intrinsic
def at(typing, array, index):
    """Return one float32 number, at a flat index."""
    if _element(array) is not types.float32:
        return None

    def emit(context, builder, sig, args):
        return builder.load(_place(context, builder, sig.args[0], args[0], args[1], _FLOAT))

    return types.float32(array, types.intp), emit


@intrinsic
def put(typing, array, index, x):
    """Write one float32 number, at a flat index."""
    if _element(array) is not types.float32:
        return None

    def emit(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], args[0], args[1], _FLOAT)
        builder.store(args[2], place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), emit


@inline
def get(array, index, count):
    """Return ``count`` numbers, at most 16, and zeros in the other places."""
    return load(array, index) if count >= WIDTH else load_part(array, index, count)


@inline
def set_(array, index, x, count):
    """Write the first ``count`` numbers, at most 16."""
    if count >= WIDTH:
        store(array, index, x)
    else:
        store_part(array, index, x, count)
