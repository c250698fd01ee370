"""What many tokens go through one by one or along a window: norm, convolution, change of dtype.

All of it waits for memory: numbers are read and written 16 bytes at a time, and arithmetic is free.
A row is a token's, T = B L of them; widths are multiples of 128.
"""

from functools import cache
from typing import Any

from ..errors import InputError
from .dialect import cuda, types
from .formulas import F32, device, root_mean_square, silu
from .intrinsics import bfloat16_pair, load4, load4_words, store2_words, store4, warp_sum
from .products import QUADS, WIDENED, check_dtype, named
from .registry import F32_POINTER, I32_POINTER, INT, U32_POINTER, Budget, Kernel

THREADS = 128
WARPS = THREADS // 32
STEPS = 16
"""Steps of a convolution that a warp does: enough that the inputs before them matter little."""

PIECE = WARPS * STEPS
"""Steps of a convolution that a block does."""

LARGEST_KERNEL = 16
"""Inputs of a window that fit into registers, four channels of each."""

REGISTERS = 64
U32, U64 = types.uint32, types.uint64


# --- where results go ---------------------------------------------------------------------------


@device
def _write_float32(y, place, a, b, c, d):
    store4(y, place, a, b, c, d)


@device
def _write_bfloat16(y, place, a, b, c, d):
    store2_words(y, place >> U64(1), bfloat16_pair(a, b), bfloat16_pair(c, d))


OUTPUTS = {"float32": (F32_POINTER, _write_float32), "bfloat16": (U32_POINTER, _write_bfloat16)}
"""Pointers, and how to write four numbers; bfloat16 are rounded to the nearest."""


def _output(out: str) -> tuple[Any, Any]:
    if out not in OUTPUTS:
        raise InputError(f"out: expected one of {', '.join(OUTPUTS)}, found {out!r}")
    return OUTPUTS[out]


# --- norm and convolution -----------------------------------------------------------------------


@cache
def rms_norm(out: str = "float32") -> Kernel:
    """Return the kernel of RMSNorm: a block a row.

    residual (T, D_pad), scale (D_pad), eps, D, D_pad, normed (T, D_pad). Blocks: T. What is zero
    from D on, in residual or scale, is zero in the result. Raises InputError for another dtype
    than float32 or bfloat16.
    """
    pointer, write = _output(out)

    def kernel(residual, scale, eps, D, D_pad, normed):
        sums = cuda.shared.array(WARPS, types.float32)
        thread, row, total = U32(cuda.threadIdx.x), U64(cuda.blockIdx.x) * U64(D_pad), F32(0)
        for i in range(U32(4) * thread, U32(D_pad), U32(4 * THREADS)):
            v = load4(residual, row + U64(i))
            total += v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]
        total = warp_sum(total)
        if thread % U32(32) == U32(0):
            sums[thread // U32(32)] = total
        cuda.syncthreads()
        total = F32(0)
        for warp in range(WARPS):
            total += sums[warp]
        factor = F32(1) / root_mean_square(total / F32(D), eps)
        for i in range(U32(4) * thread, U32(D_pad), U32(4 * THREADS)):
            v, s = load4(residual, row + U64(i)), load4(scale, i)
            a, b = v[0] * factor * s[0], v[1] * factor * s[1]
            write(normed, row + U64(i), a, b, v[2] * factor * s[2], v[3] * factor * s[3])

    arguments = F32_POINTER, F32_POINTER, types.float32, INT, INT, pointer
    return Kernel(f"rms_norm {out}", kernel, arguments, THREADS, Budget(REGISTERS, 4 * WARPS))


@cache
def causal_conv(K: int) -> Kernel:
    """Return the kernel of the convolution and silu: a warp takes 128 channels through 16 steps.

    xz (T, 2 E_pad), weights (K, E_pad), bias (E_pad), window (B, K, E_pad), lengths (B),
    x (T, E_pad), L, E_pad. Blocks: (E_pad / 128, L / PIECE rounded up, B).

    The window moves on by lengths[b] steps, in place: whoever needs the old one, for the first
    steps, writes the new one afterwards. Raises InputError for a K that it cannot do.
    """
    if not 1 <= K <= LARGEST_KERNEL:
        raise InputError(f"conv_kernel: expected 1 to {LARGEST_KERNEL} on a GPU, found {K}")
    size = 4 * K

    @device
    def set4(array, k, v):
        for j in range(4):
            array[4 * k + j] = v[j]

    @device
    def advance(window, length, xz, place, row, E):
        """Replace K inputs by those that end ``length`` steps later, oldest first."""
        for k in range(K):
            t = length - types.int32(K - k)
            if t < types.int32(0):
                v = load4(window, place + U64(length + types.int32(k)) * E)
            else:
                v = load4(xz, row + U64(t) * E * U64(2))
            store4(window, place + U64(k) * E, v[0], v[1], v[2], v[3])

    @device
    def one(taps, past, bias, j):
        y = bias[j]
        for k in range(K):
            y += taps[4 * k + j] * past[4 * k + j]
        return silu(y)

    def kernel(xz, weights, bias, window, lengths, x, L, E_pad):
        taps, past = cuda.local.array(size, types.float32), cuda.local.array(size, types.float32)
        thread, text, E = U32(cuda.threadIdx.x), U64(cuda.blockIdx.z), U64(E_pad)
        e = U64(cuda.blockIdx.x) * U64(128) + U64(thread % U32(32)) * U64(4)
        part = U32(cuda.blockIdx.y) * U32(WARPS) + thread // U32(32)
        begin = types.int32(part * U32(STEPS))
        if begin >= L:
            return
        row, place = text * U64(L) * E * U64(2) + e, text * U64(K) * E + e
        for k in range(K):
            set4(taps, k, load4(weights, U64(k) * E + e))
        for k in range(K - 1):
            t = begin - types.int32(K - 1 - k)
            if t < types.int32(0):
                set4(past, k, load4(window, place + U64(types.int32(K) + t) * E))
            else:
                set4(past, k, load4(xz, row + U64(t) * E * U64(2)))
        b = load4(bias, e)
        for t in range(begin, types.int32(min(begin + types.int32(STEPS), L)), types.int32(1)):
            set4(past, K - 1, load4(xz, row + U64(t) * E * U64(2)))
            y0, y1 = one(taps, past, b, 0), one(taps, past, b, 1)
            y2, y3 = one(taps, past, b, 2), one(taps, past, b, 3)
            store4(x, (text * U64(L) + U64(t)) * E + e, y0, y1, y2, y3)
            for k in range(4 * (K - 1)):
                past[k] = past[k + 4]
        if part == U32(0):
            advance(window, lengths[text], xz, place, row, E)

    arguments = (*(F32_POINTER,) * 4, I32_POINTER, F32_POINTER, INT, INT)
    budget = Budget(REGISTERS if K <= 4 else 255)
    return Kernel(f"causal_conv K={K}", kernel, arguments, THREADS, budget)


# --- rows ---------------------------------------------------------------------------------------


@cache
def narrow() -> Kernel:
    """Return the kernel that rounds columns of float32 rows to bfloat16, a block a row.

    x (T, width), of which the first ``count`` columns are taken, y (T, to_width), count, width,
    to_width. x may begin at any column; what is counted is a multiple of 4. Blocks: T.
    """

    def kernel(x, y, count, width, to_width):
        row = U64(cuda.blockIdx.x)
        for i in range(U32(4) * U32(cuda.threadIdx.x), U32(count), U32(4 * THREADS)):
            v = load4(x, row * U64(width) + U64(i))
            _write_bfloat16(y, row * U64(to_width) + U64(i), v[0], v[1], v[2], v[3])

    arguments = F32_POINTER, U32_POINTER, *(INT,) * 3
    return Kernel("narrow", kernel, arguments, THREADS, Budget(REGISTERS))


def _quads_of(write: Any, count: int) -> Any:
    """Return a device function that writes 4, 8 or 16 numbers times a scale."""

    @device
    def quad(y, place, w, s):
        write(y, place, w[0] * s, w[1] * s, w[2] * s, w[3] * s)

    @device
    def one(y, place, w, s):
        quad(y, place, w, s)

    @device
    def two(y, place, w, s):
        quad(y, place, w[0:4], s)
        quad(y, place + U64(4), w[4:8], s)

    @device
    def four(y, place, w, s):
        two(y, place, w[0:8], s)
        two(y, place + U64(8), w[8:16], s)

    return {1: one, 2: two, 4: four}[count]


def _row_widener(dtype: str, group: int, write: Any) -> Any:
    """Return a device function by which a block widens a row: (words, scales, y, rows, width)."""
    check_dtype(dtype, group)
    columns, widened = U32(4 * QUADS[dtype]), WIDENED[dtype]
    write_all, quantised = _quads_of(write, QUADS[dtype]), dtype == "int8"

    @device
    def widen_row(words, scales, y, rows, width):
        count = U32(U32(width) // columns)
        for c in range(U32(cuda.threadIdx.x), count, U32(THREADS)):
            w = widened(load4_words(words, (rows[0] * U64(count) + U64(c)) * U64(4)))
            scale = F32(1)
            if quantised:
                groups = (U32(width) + U32(group - 1)) // U32(group)
                scale = scales[rows[0] * U64(groups) + U64((c * columns) // U32(group))]
            write_all(y, rows[1] * U64(width) + U64(c) * U64(columns), w, scale)

    return widen_row


@cache
def widen(dtype: str, group: int = 0, out: str = "float32") -> Kernel:
    """Return the kernel that widens a matrix, a block a row.

    weights (O, I_pad), scales (O, groups) of int8 ones, y (O, I_pad), I_pad. Blocks: O. y is
    float32 or bfloat16. Raises InputError for dtypes or groups that it cannot do.
    """
    pointer, write = _output(out)
    widen_row = _row_widener(dtype, group, write)

    def kernel(weights, scales, y, width):
        row = U64(cuda.blockIdx.x)
        widen_row(weights, scales, y, (row, row), width)

    name = f"{named('widen', dtype, group)} to {out}"
    arguments = U32_POINTER, F32_POINTER, pointer, INT
    return Kernel(name, kernel, arguments, THREADS, Budget(REGISTERS))


@cache
def embed(dtype: str, group: int = 0) -> Kernel:
    """Return the kernel that gives each token the row of its id, a block a token.

    ids (T), embeddings (V, D_pad), scales (V, groups) of int8 ones, residual (T, D_pad), D_pad.
    Blocks: T. Ids are not checked. Raises InputError for a dtype or a group that it cannot do.
    """
    widen_row = _row_widener(dtype, group, _write_float32)

    def kernel(ids, embeddings, scales, residual, width):
        row = U64(cuda.blockIdx.x)
        widen_row(embeddings, scales, residual, (U64(ids[row]), row), width)

    arguments = I32_POINTER, U32_POINTER, F32_POINTER, F32_POINTER, INT
    return Kernel(named("embed", dtype, group), kernel, arguments, THREADS, Budget(REGISTERS))


def _each_row(name: str, add: bool) -> Kernel:
    factor = F32(1 if add else 0)

    def kernel(rows, vector, width):
        row = U64(cuda.blockIdx.x) * U64(width)
        for i in range(U32(4) * U32(cuda.threadIdx.x), U32(width), U32(4 * THREADS)):
            v, place = load4(vector, i), row + U64(i)
            if factor:
                old = load4(rows, place)
                v = (v[0] + old[0], v[1] + old[1], v[2] + old[2], v[3] + old[3])
            store4(rows, place, v[0], v[1], v[2], v[3])

    return Kernel(name, kernel, (F32_POINTER, F32_POINTER, INT), THREADS, Budget(REGISTERS))


@cache
def fill_rows() -> Kernel:
    """Return the kernel that makes rows a vector: rows (T, width), vector, width. Blocks: T."""
    return _each_row("fill_rows", add=False)


@cache
def add_rows() -> Kernel:
    """Return the kernel that adds a vector to rows: rows (T, width), vector, width. Blocks: T."""
    return _each_row("add_rows", add=True)
