"""Reading and writing Lanes, with the weights' dtypes widened on the way.

``load`` takes arrays or pointers of float32, bfloat16 (seen as uint16), float16 (its bits, seen as
int16) and int8, and returns float32. Indices are flat, of C-contiguous arrays, and not checked.
"""

from llvmlite import ir
from numba import types

from .lanes import BITS, FOUR_LANES, LANES, MASK, WIDTH
from .options import inline, intrinsic

_FLOAT, _INT, _MASK = ir.FloatType(), ir.IntType(32), MASK.llvm


@intrinsic
def pointer(typing, address, like):
    """Return an integer address as a pointer to elements of the dtype of the array ``like``."""
    kind = types.CPointer(like.dtype)

    def emit(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), emit


@intrinsic
def data(typing, array):
    """Return a pointer to an array's first element.

    Kernels use arrays through pointers inside their loops: Numba counts the references to an
    array wherever one is passed on, and a pointer has none. The kernel's caller holds the array.
    """

    def emit(context, builder, sig, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), emit


@intrinsic
def first_aligned(typing, array):
    """Return the index of the first float32 of an array that begins a cache line.

    Sixteen numbers that lie on two cache lines take the processor two accesses.
    """

    def emit(context, builder, sig, args):
        place = context.make_array(array)(context, builder, args[0]).data
        address = builder.ptrtoint(place, ir.IntType(64))
        above = builder.and_(builder.neg(address), ir.IntType(64)(63))
        return builder.lshr(above, ir.IntType(64)(2))

    return types.intp(array), emit


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
    place = builder.gep(array, [index])
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


def _masked(builder, what, vector, result, arguments):
    """Return LLVM's load or store of some places of a vector."""
    name = f"llvm.masked.{what}.v{WIDTH}{vector.element.intrinsic_name}.p0"
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _first(builder, count):
    """Return a mask of the first ``count`` places."""
    places = ir.Constant(BITS.llvm, list(range(WIDTH)))
    many = builder.insert_element(
        ir.Constant(BITS.llvm, ir.Undefined), builder.trunc(count, _INT), _INT(0)
    )
    wide = builder.shuffle_vector(
        many, ir.Constant(BITS.llvm, ir.Undefined), ir.Constant(BITS.llvm, None)
    )
    return builder.icmp_signed("<", places, wide)


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


def _prefetch(array, locality: int):
    """Return an intrinsic's signature and code: LLVM's prefetch, to read, of an address."""

    def emit(context, builder, sig, args):
        byte, kind = ir.IntType(8).as_pointer(), [_INT] * 3
        place = _place(context, builder, sig.args[0], args[0], args[1], ir.IntType(8))
        known = builder.module.globals.get("llvm.prefetch.p0")
        signature = ir.FunctionType(ir.VoidType(), [byte, *kind])
        function = known or ir.Function(builder.module, signature, "llvm.prefetch.p0")
        builder.call(function, (place, _INT(0), _INT(locality), _INT(1)))
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def fetch(typing, array, index):
    """Ask for the memory from a flat index on, that will be read soon; it may lie anywhere."""
    return _prefetch(array, locality=3)


@intrinsic
def fetch_l2(typing, array, index):
    """Do what ``fetch`` does, but into the second-level cache: the first keeps what is in use."""
    return _prefetch(array, locality=2)


@intrinsic
def load_part(typing, array, index, count):
    """Return the ``count`` < 16 numbers from a flat index on, then zeros; reads no further."""
    element = _element(array)
    if element is None:
        return None

    def emit(context, builder, sig, args):
        vector = ir.VectorType(_STORED[element], WIDTH)
        place = _place(context, builder, sig.args[0], args[0], args[1], vector)
        function = _masked(builder, "load", vector, vector, (place.type, _INT, _MASK, vector))
        align, zeros = _INT(element.bitwidth // 8), ir.Constant(vector, None)
        part = builder.call(function, (place, align, _first(builder, args[2]), zeros))
        return _widen(builder, element, part)

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
    """Write the first ``count`` < 16 numbers, and nothing after them."""
    if _element(array) is not types.float32:
        return None

    def emit(context, builder, sig, args):
        vector = LANES.llvm
        place = _place(context, builder, sig.args[0], args[0], args[1], vector)
        function = _masked(
            builder, "store", vector, ir.VoidType(), (vector, place.type, _INT, _MASK)
        )
        builder.call(function, (args[2], place, _INT(4), _first(builder, args[3])))
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES, types.intp), emit


@intrinsic
def add_sums(typing, array, index, x):
    """Add the four sums of four Lanes to four float32 numbers, from a flat index on."""
    if _element(array) is not types.float32:
        return None

    def emit(context, builder, sig, args):
        sums = _sums_of_four(builder, args[2])
        place = _place(context, builder, sig.args[0], args[0], args[1], sums.type)
        before = builder.load(place, align=4)
        builder.store(builder.fadd(before, sums), place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FOUR_LANES), emit


def _sums_of_four(builder, part):
    """Return the sums of each quarter of a vector: halves of quarters are added to halves."""
    nothing, width = ir.Constant(part.type, ir.Undefined), part.type.count // 4
    while width > 1:
        width //= 2
        low = [quarter * 2 * width + j for quarter in range(4) for j in range(width)]
        high = [place + width for place in low]
        part = builder.fadd(
            *(
                builder.shuffle_vector(
                    part, nothing, ir.Constant(ir.VectorType(_INT, len(places)), places)
                )
                for places in (low, high)
            )
        )
        nothing = ir.Constant(part.type, ir.Undefined)
    return part


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
