"""Products of a matrix with one vector: all weights pass once, and nothing else takes time.

A warp makes one number: its lanes read the row 16 bytes at a time, next to each other, four such
reads on their way at once. Weights are float32, bfloat16, float16, or int8 with float32 scales for
groups of neighbours; all are read as words of 32 bits, and sums are float32.

``gemv`` is the whole of it: the kernel to read first. The kernels of ``decode`` and ``head`` do
something before and after.
"""

from functools import cache
from typing import Any

from ..errors import InputError
from .dialect import cuda, types
from .formulas import F32, root_mean_square, routine
from .intrinsics import (
    float_of,
    half_of,
    load4,
    lower_bfloat16,
    store4,
    stream4_words,
    upper_bfloat16,
    warp_sum,
)
from .registry import F32_POINTER, INT, U32_POINTER, Budget, Kernel

THREADS = 256
WARPS = THREADS // 32
REGISTERS = 80
"""Of a thread, at most: a multiprocessor has room for three blocks, and mostly takes four."""

QUADS = {"float32": 1, "bfloat16": 2, "float16": 2, "int8": 4}
"""How many times four weights lie in 16 bytes."""

LARGEST_WIDTH = 8192
"""Numbers of a vector in shared memory: 32 of the 48 KB that a block has everywhere."""

U32, U64 = types.uint32, types.uint64


def blocks_for(rows: int, processors: int) -> int:
    """Return how many blocks to give the rows of a matrix: warps go on to further rows."""
    return max(1, min(-(-rows // WARPS), processors * (2048 // THREADS)))


def width_for(D_pad: int) -> int:
    """Return which size of vector in shared memory to compile for: few sizes, so few kernels.

    Raises InputError for vectors that do not fit.
    """
    width = 1024
    while width < D_pad:
        width *= 2
    if width > LARGEST_WIDTH:
        raise InputError(f"hidden_size: expected at most {LARGEST_WIDTH} on a GPU, found {D_pad}")
    return width


def check_dtype(dtype: str, group: int) -> None:
    """Raise InputError unless weights of a dtype, in groups of this size, can be read."""
    if dtype not in QUADS:
        raise InputError(f"dtype: expected one of {', '.join(QUADS)}, found {dtype!r}")
    if (dtype == "int8") != (group > 0) or group % 16:
        raise InputError(f"group: expected a multiple of 16 for int8 alone, found {group}")


# --- 16 bytes of weights ------------------------------------------------------------------------


@routine
def _four_bytes(word):
    return (
        F32(types.int8(word)),
        F32(types.int8(word >> U32(8))),
        F32(types.int8(word >> U32(16))),
        F32(types.int8(word >> U32(24))),
    )


@routine
def _float32(w):
    return float_of(w[0]), float_of(w[1]), float_of(w[2]), float_of(w[3])


@routine
def _bfloat16(w):
    return (
        *(lower_bfloat16(w[0]), upper_bfloat16(w[0]), lower_bfloat16(w[1]), upper_bfloat16(w[1])),
        *(lower_bfloat16(w[2]), upper_bfloat16(w[2]), lower_bfloat16(w[3]), upper_bfloat16(w[3])),
    )


@routine
def _upper_half(word):
    return half_of(U32(word >> U32(16)))


@routine
def _float16(w):
    return (
        *(half_of(w[0]), _upper_half(w[0]), half_of(w[1]), _upper_half(w[1])),
        *(half_of(w[2]), _upper_half(w[2]), half_of(w[3]), _upper_half(w[3])),
    )


@routine
def _int8(w):
    return _four_bytes(w[0]) + _four_bytes(w[1]) + _four_bytes(w[2]) + _four_bytes(w[3])


WIDENED = {"float32": _float32, "bfloat16": _bfloat16, "float16": _float16, "int8": _int8}
"""From four words to the 4, 8 or 16 float32 in them."""


@routine
def _dot4(w, x):
    return w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]


# --- a vector in shared memory ------------------------------------------------------------------


def plane_of(dtype: str, width: int) -> int:
    """Return how many quads of numbers each plane of a vector in shared memory has.

    A lane meets a vector in pieces of 1, 2 or 4 quads. The first quads of all pieces lie in one
    plane, the second ones in the next, so that neighbouring lanes read neighbouring quads: no
    bank has to answer twice. What is added keeps those who write apart as well.
    """
    quads = QUADS[dtype]
    return width // (4 * quads) + (8 // quads if quads > 1 else 0)


def shared_floats(dtype: str, width: int) -> int:
    """Return how many float32 such a vector takes."""
    return 4 * QUADS[dtype] * plane_of(dtype, width)


@cache
def normed(dtype: str, width: int) -> Any:
    """Return a device function that all threads of a block call to norm a vector.

    (vector (D_pad), scale (D_pad), eps, D, D_pad, shared vector, shared (WARPS)) -> root mean
    square. What lies in shared memory then is vector * scale, and has to be divided by it still:
    the sum of the squares is not waited for twice.
    """
    quads, plane = U32(QUADS[dtype]), U32(plane_of(dtype, width))

    @routine
    def norm(vector, scale, eps, sizes, x, squares):
        thread, total = U32(cuda.threadIdx.x), F32(0)
        for q in range(thread, U32(sizes[1]) >> U32(2), U32(THREADS)):
            v, s = load4(vector, U32(4) * q), load4(scale, U32(4) * q)
            place = U32(4) * ((q % quads) * plane + q // quads)
            store4(x, place, v[0] * s[0], v[1] * s[1], v[2] * s[2], v[3] * s[3])
            total += _dot4(v, v)
        total = warp_sum(total)
        if thread % U32(32) == U32(0):
            squares[thread // U32(32)] = total
        cuda.syncthreads()
        total = F32(0)
        for warp in range(WARPS):
            total += squares[warp]
        return root_mean_square(total / F32(sizes[0]), eps)

    return norm


# --- rows ---------------------------------------------------------------------------------------


@cache
def row_product(dtype: str, group: int = 0, lanes: int = 32, plane: int = 0, start: int = 0) -> Any:
    """Return a device function: one lane's part of the product of a row with a vector.

    (weights, scales, row, x, count, lane) -> float32, to be summed over the ``lanes`` that share
    the row. ``count`` is how many times 16 bytes a row has. ``x`` is in planes of shared memory,
    or in order, from ``start`` on, where ``plane`` is 0. ``scales`` (rows, groups) is read for int8
    alone.
    """
    check_dtype(dtype, group)
    piece = _piece_product(dtype, plane, start)
    quantised = dtype == "int8"

    @routine
    def one(words, scales, row, x, c, count):
        """Products of one piece; of the last one, to be dropped, past the end of the row."""
        valid = c < count
        c = min(c, U32(count - U32(1)))
        found = piece(words, x, c)
        if quantised:
            groups = U32((U32(16) * count + U32(group - 1)) // U32(group))
            found *= scales[U64(row) * U64(groups) + U64((U32(16) * c) // U32(group))]
        return found if valid else F32(0)

    @routine
    def words_at(weights, row, c, count):
        start = U64(row) * U64(count)
        return stream4_words(weights, (start + U64(min(c, U32(count - U32(1))))) << U64(2))

    @routine
    def product(weights, scales, row, x, count, lane):
        a, b = F32(0), F32(0)
        for c in range(lane, count, U32(4 * lanes)):
            c1, c2, c3 = U32(c + U32(lanes)), U32(c + U32(2 * lanes)), U32(c + U32(3 * lanes))
            w0, w1 = words_at(weights, row, c, count), words_at(weights, row, c1, count)
            w2, w3 = words_at(weights, row, c2, count), words_at(weights, row, c3, count)
            a += one(w0, scales, row, x, c, count)
            b += one(w1, scales, row, x, c1, count)
            a += one(w2, scales, row, x, c2, count)
            b += one(w3, scales, row, x, c3, count)
        return a + b

    return product


def _piece_product(dtype: str, plane: int, start: int) -> Any:
    """Return a device function: four words of weights times piece ``c`` of a vector."""
    widened, quads = WIDENED[dtype], QUADS[dtype]
    across, along = (U32(4 * plane), U32(4)) if plane else (U32(4), U32(4 * quads))

    @routine
    def quad(x, c, j):
        return load4(x, U64(start) + U64(across) * U64(j) + U64(along) * U64(c))

    @routine
    def one(words, x, c):
        return _dot4(widened(words), quad(x, c, 0))

    @routine
    def two(words, x, c):
        w = widened(words)
        return _dot4(w[0:4], quad(x, c, 0)) + _dot4(w[4:8], quad(x, c, 1))

    @routine
    def four(words, x, c):
        w = widened(words)
        low = _dot4(w[0:4], quad(x, c, 0)) + _dot4(w[4:8], quad(x, c, 1))
        return low + (_dot4(w[8:12], quad(x, c, 2)) + _dot4(w[12:16], quad(x, c, 3)))

    return {1: one, 2: two, 4: four}[quads]


def named(name: str, dtype: str, group: int, **constants: int) -> str:
    """Return a kernel's name with its constants."""
    parts = [f"{key}={value}" for key, value in constants.items()]
    return " ".join([name, dtype, *([f"group={group}"] if group else []), *parts])


def kernel_of(function: Any, name: str, arguments: tuple[Any, ...], floats: int = 0) -> Kernel:
    """Return a kernel that reads weights, and has so many floats in shared memory."""
    return Kernel(name, function, arguments, THREADS, Budget(REGISTERS, 4 * floats))


@routine
def next_row(row):
    """Return the next row of a warp, when the rows are dealt out to all warps of the grid."""
    return U32(row + U32(cuda.gridDim.x) * U32(WARPS))


@cache
def gemv(dtype: str, group: int = 0) -> Kernel:
    """Return the kernel y = W x: weights (O, I_pad), scales, x (I_pad), y (O), O, I_pad.

    I_pad times the size of a weight is a multiple of 16 bytes. Any number of blocks will do.
    Raises InputError for a dtype or a group that cannot be read.
    """
    product, columns = row_product(dtype, group), U32(4 * QUADS[dtype])

    def kernel(weights, scales, x, y, O, I_pad):  # noqa: E741
        thread = U32(cuda.threadIdx.x)
        lane, warp = thread % U32(32), thread // U32(32)
        count = U32(U32(I_pad) // columns)
        row = U32(U32(cuda.blockIdx.x) * U32(WARPS) + warp)
        while row < U32(O):  # not a range, whose length would take a division
            total = warp_sum(product(weights, scales, row, x, count, lane))
            if lane == U32(0):
                y[row] = total
            row = next_row(row)

    arguments = U32_POINTER, F32_POINTER, F32_POINTER, F32_POINTER, INT, INT
    return kernel_of(kernel, named("gemv", dtype, group), arguments)
