"""Matrix times a few vectors: what one token of each text needs.

All weights are read once and used for every text of the batch, so the time is that of reading
them. For many tokens at a time the matrix library is faster: see ``prefill``.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .lanes import WIDTH, four, multiply_add, one_of, spread, total
from .memory import at, fetch, fetch_l2, get, load, load_part, pointer, put, set_
from .options import INLINE, inline, kernel

ZERO = np.float32(0)

AHEAD = 2048
"""How many int8 weights before they are read memory is asked for: widening them takes so long that
the processor does not look far enough ahead by itself."""

FAR = 3072
"""The same where two rows meet two texts, for weights of any dtype. All pairs of texts together ask
for two later rows, and for each of them about once: asking four times takes as long as reading."""

FEW = 4
"""Texts from which on rows and texts are taken in twos: fewer wait for the memory in any case."""


class Matrix(NamedTuple):
    """A weight matrix (O, I) as kernels see it: addresses and sizes.

    Weights are float32, bfloat16 (as uint16), float16 (as int16) or int8. int8 weights have one
    float32 scale for each ``group`` of inputs, (O, ceil(I / group)); the others have none.
    """

    weights: Any  # pointer
    scales: Any  # pointer to float32
    group: int
    inputs: int
    bias: Any  # pointer to O float32, or None


class Vectors(NamedTuple):
    """One vector of float32 for each text, ``stride`` apart in memory."""

    numbers: Any  # pointer
    first: int  # index of the first text's vector
    stride: int


@inline
def with_bias(m, bias):
    """Return the matrix with a bias."""
    return Matrix(m.weights, m.scales, m.group, m.inputs, bias)


def bias_at(m, row):
    """Return what a row adds to its products."""
    raise NotImplementedError("exists in kernels only")


@overload(bias_at, jit_options=INLINE)
def _bias_at(m, row):
    if m.types[4] is types.none:
        return lambda m, row: ZERO
    return lambda m, row: at(m.bias, row)


# --- one row of weights ---------------------------------------------------------------------------


@inline
def _dot_piece(sums, weights, start, x, first, count):
    """Add ``count`` products to 16 running sums: weights from ``start``, x from ``first`` on."""
    whole = count - count % WIDTH
    for k in range(0, whole, WIDTH):
        sums = multiply_add(load(weights, start + k), load(x, first + k), sums)
    if whole < count:
        rest = count - whole
        w = load_part(weights, start + whole, rest)
        sums = multiply_add(w, load_part(x, first + whole, rest), sums)
    return sums


def _dot_floats(m, row, x, first):
    return total(_dot_piece(spread(ZERO), m.weights, row * m.inputs, x, first, m.inputs))


def _dot_int8(m, row, x, first):
    groups = (m.inputs + m.group - 1) // m.group
    sums = spread(ZERO)
    for g in range(groups):
        start, place = g * m.group, row * m.inputs + g * m.group
        count = min(m.group, m.inputs - start)
        pairs = count - count % (2 * WIDTH)
        even, odd = spread(ZERO), spread(ZERO)  # neither waits for the other
        for k in range(0, pairs, 2 * WIDTH):
            i = first + start + k
            fetch(m.weights, place + k + AHEAD)
            even = multiply_add(load(m.weights, place + k), load(x, i), even)
            odd = multiply_add(load(m.weights, place + k + WIDTH), load(x, i + WIDTH), odd)
        i = first + start + pairs
        even = _dot_piece(even, m.weights, place + pairs, x, i, count - pairs)
        sums = sums + (even + odd) * at(m.scales, row * groups + g)
    return total(sums)


def dot(m, row, x, first):
    """Return the product of one row of ``m`` with the I numbers of ``x`` from ``first`` on."""
    raise NotImplementedError("exists in kernels only")


def _is_int8(m):
    return m.types[0].dtype is types.int8


@overload(dot, jit_options=INLINE)
def _dot(m, row, x, first):
    return _dot_int8 if _is_int8(m) else _dot_floats


# --- two rows and two texts at a time -------------------------------------------------------------


@inline
def _two_by_two(top, bottom, left, right, sums):
    """Add products to four times 16 sums: two rows of weights with two vectors, row after row."""
    return multiply_add(four(top, top, bottom, bottom), four(left, right, left, right), sums)


@inline
def _tile_step(sums, m, i, x, j, stride):
    """Add 16 products of each: weights from ``i`` on and in the next row, vectors from ``j`` on."""
    top, bottom = load(m.weights, i), load(m.weights, i + m.inputs)
    return _two_by_two(top, bottom, load(x, j), load(x, j + stride), sums)


@inline
def _tile_piece(sums, m, start, x, first, stride, count, later, shift):
    """Do what ``_dot_piece`` does for two rows and two vectors that lie ``stride`` apart.

    The arithmetic takes longer than reading, so the weights from ``later`` on are asked for
    meanwhile.
    """
    whole = count - count % WIDTH
    for k in range(0, whole, WIDTH):
        fetch_l2(m.weights, later + (k >> shift))
        sums = _tile_step(sums, m, start + k, x, first + k, stride)
    if whole < count:
        rest, i, j = count - whole, start + whole, first + whole
        top, bottom = load_part(m.weights, i, rest), load_part(m.weights, i + m.inputs, rest)
        left, right = load_part(x, j, rest), load_part(x, j + stride, rest)
        sums = _two_by_two(top, bottom, left, right, sums)
    return sums


def _tile_floats(m, row, x, first, stride, later, shift):
    sums = four(ZERO, ZERO, ZERO, ZERO)
    return _tile_piece(sums, m, row * m.inputs, x, first, stride, m.inputs, later, shift)


@inline
def _every_other(m, start, x, first, stride, count, later, shift):
    """Return the sums of the first 16 of every 32 products of two rows and two vectors."""
    sums = four(ZERO, ZERO, ZERO, ZERO)
    for k in range(0, count, 2 * WIDTH):
        fetch_l2(m.weights, later + (k >> shift))
        sums = _tile_step(sums, m, start + k, x, first + k, stride)
    return sums


@inline
def _tile_group(m, start, x, first, stride, count, later, shift):
    """Return a group's products of two rows and two vectors, summed as ``_dot_int8`` does.

    One part after the other: AVX2 has no registers for both at once.
    """
    pairs = count - count % (2 * WIDTH)
    even = _every_other(m, start, x, first, stride, pairs, later, shift)
    i, j = start + pairs, first + pairs
    even = _tile_piece(even, m, i, x, j, stride, count - pairs, later, shift)
    i, j = start + WIDTH, first + WIDTH
    return even + _every_other(m, i, x, j, stride, pairs, later, shift)


def _tile_int8(m, row, x, first, stride, later, shift):
    groups = (m.inputs + m.group - 1) // m.group
    sums = four(ZERO, ZERO, ZERO, ZERO)
    for g in range(groups):
        start = g * m.group
        place, count = row * m.inputs + start, min(m.group, m.inputs - start)
        ahead = later + (start >> shift)
        products = _tile_group(m, place, x, first + start, stride, count, ahead, shift)
        top, bottom = at(m.scales, row * groups + g), at(m.scales, (row + 1) * groups + g)
        sums = sums + products * four(top, top, bottom, bottom)
    return sums


def tile(m, row, x, first, stride, later, shift) -> Any:
    """Return 16 running sums of each of four products: two rows, the first with both vectors.

    The vectors lie ``stride`` apart. The weights from ``later`` on are asked for meanwhile, one for
    each 2**``shift`` that are read.
    """
    raise NotImplementedError("exists in kernels only")


@overload(tile, jit_options=INLINE)
def _tile(m, row, x, first, stride, later, shift):
    return _tile_int8 if _is_int8(m) else _tile_floats


@inline
def _multiply_tile(m, r, x, y, b, batch, shift):
    """Write the products of rows r and r + 1 with the texts b and b + 1, if there is one."""
    apart = 1 if b + 1 < batch else 0  # an odd last text is both of the two
    later = r * m.inputs + FAR + (b * m.inputs >> shift + 1)
    sums = tile(m, r, x.numbers, x.first + b * x.stride, apart * x.stride, later, shift)
    top, bottom = bias_at(m, r), bias_at(m, r + 1)
    place, right = y.first + b * y.stride + r, apart * y.stride
    put(y.numbers, place, total(one_of(sums, 0)) + top)
    put(y.numbers, place + right, total(one_of(sums, 1)) + top)
    put(y.numbers, place + 1, total(one_of(sums, 2)) + bottom)
    put(y.numbers, place + right + 1, total(one_of(sums, 3)) + bottom)


# --- rows of weights ------------------------------------------------------------------------------


@inline
def multiply(m, rows, x, y, batch):
    """Write y[b, r] = m[r] . x[b] + bias[r] for r from rows[0] to rows[1] - 1.

    A text's result does not depend on the other texts: its products are summed in one order.
    """
    shift = 0
    while 4 << shift < batch:
        shift += 1
    for r in range(rows[0], rows[1], 2):
        if batch >= FEW and r + 1 < rows[1]:
            for b in range(0, batch, 2):
                _multiply_tile(m, r, x, y, b, batch, shift)
            continue
        for row in range(r, min(r + 2, rows[1])):
            for b in range(batch):
                product = dot(m, row, x.numbers, x.first + b * x.stride)
                put(y.numbers, y.first + b * y.stride + row, product + bias_at(m, row))


# --- weights as float32, for the matrix library ---------------------------------------------------


def _widen_floats(m, first, panel):
    rows, inputs = panel.shape
    count = rows * inputs
    for i in range(0, count, WIDTH):
        n = min(WIDTH, count - i)
        set_(panel, i, get(m.weights, first * inputs + i, n), n)


def _widen_int8(m, first, panel):
    rows, inputs = panel.shape
    groups = (inputs + m.group - 1) // m.group
    for r in range(rows):
        for g in range(groups):
            scale = at(m.scales, (first + r) * groups + g)
            start, stop = g * m.group, min((g + 1) * m.group, inputs)
            for k in range(start, stop, WIDTH):
                n = min(WIDTH, stop - k)
                w = get(m.weights, (first + r) * inputs + k, n)
                set_(panel, r * inputs + k, w * scale, n)


def _widen(m, first, panel):
    raise NotImplementedError("exists in kernels only")


@overload(_widen, jit_options=INLINE)
def _choose_widen(m, first, panel):
    return _widen_int8 if _is_int8(m) else _widen_floats


@kernel
def widen(place, like, group, first, panel):
    """Write rows ``first``, ``first`` + 1 ... of a matrix to ``panel`` (rows, I) as float32.

    ``place`` has the addresses of the weights, of the dtype of ``like``, and of their scales.
    """
    scales = pointer(place[1], panel)
    m = Matrix(pointer(place[0], like), scales, group, panel.shape[1], None)
    _widen(m, first, panel)
