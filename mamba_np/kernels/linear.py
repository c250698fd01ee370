"""Matrix times a few vectors: what one token of each text needs.

All weights are read once and used for every text of the batch, so the time is that of reading
them. For many tokens at a time the matrix library is faster: see ``prefill``.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .lanes import WIDTH, multiply_add, spread, total
from .memory import at, fetch, get, load, load_part, pointer, put, set_
from .options import INLINE, inline, kernel

ZERO = np.float32(0)

AHEAD = 2048
"""How many int8 weights before they are read memory is asked for: widening them takes so long that
the processor does not look far enough ahead by itself."""


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


# --- four texts at a time -------------------------------------------------------------------------


@inline
def _four_piece(sums, m, start, x, first, stride, count):
    """Do what ``_dot_piece`` does for four vectors that lie ``stride`` apart.

    The arithmetic of four takes longer than reading one row, so the next is asked for meanwhile.
    """
    s0, s1, s2, s3 = sums
    whole = count - count % WIDTH
    for k in range(0, whole, WIDTH):
        w, i = load(m.weights, start + k), first + k
        fetch(m.weights, start + k + m.inputs)
        s0 = multiply_add(w, load(x, i), s0)
        s1 = multiply_add(w, load(x, i + stride), s1)
        s2 = multiply_add(w, load(x, i + 2 * stride), s2)
        s3 = multiply_add(w, load(x, i + 3 * stride), s3)
    if whole < count:
        rest, i = count - whole, first + whole
        w = load_part(m.weights, start + whole, rest)
        s0 = multiply_add(w, load_part(x, i, rest), s0)
        s1 = multiply_add(w, load_part(x, i + stride, rest), s1)
        s2 = multiply_add(w, load_part(x, i + 2 * stride, rest), s2)
        s3 = multiply_add(w, load_part(x, i + 3 * stride, rest), s3)
    return s0, s1, s2, s3


@inline
def _nothing():
    zero = spread(ZERO)
    return zero, zero, zero, zero


def _four_floats(m, row, x, first, stride):
    return _four_piece(_nothing(), m, row * m.inputs, x, first, stride, m.inputs)


@inline
def _four_group(m, start, x, first, stride, count):
    """Return a group's products of four vectors, summed as ``_dot_int8`` does."""
    e0, e1, e2, e3 = _nothing()
    o0, o1, o2, o3 = _nothing()
    pairs = count - count % (2 * WIDTH)
    for k in range(0, pairs, 2 * WIDTH):
        fetch(m.weights, start + k + m.inputs)
        w, v, i = load(m.weights, start + k), load(m.weights, start + k + WIDTH), first + k
        e0 = multiply_add(w, load(x, i), e0)
        e1 = multiply_add(w, load(x, i + stride), e1)
        e2 = multiply_add(w, load(x, i + 2 * stride), e2)
        e3 = multiply_add(w, load(x, i + 3 * stride), e3)
        i += WIDTH
        o0 = multiply_add(v, load(x, i), o0)
        o1 = multiply_add(v, load(x, i + stride), o1)
        o2 = multiply_add(v, load(x, i + 2 * stride), o2)
        o3 = multiply_add(v, load(x, i + 3 * stride), o3)
    even, rest = (e0, e1, e2, e3), count - pairs
    e0, e1, e2, e3 = _four_piece(even, m, start + pairs, x, first + pairs, stride, rest)
    return e0 + o0, e1 + o1, e2 + o2, e3 + o3


def _four_int8(m, row, x, first, stride):
    groups = (m.inputs + m.group - 1) // m.group
    s0, s1, s2, s3 = _nothing()
    for g in range(groups):
        start = g * m.group
        count = min(m.group, m.inputs - start)
        p0, p1, p2, p3 = _four_group(m, row * m.inputs + start, x, first + start, stride, count)
        scale = at(m.scales, row * groups + g)
        s0, s1 = s0 + p0 * scale, s1 + p1 * scale
        s2, s3 = s2 + p2 * scale, s3 + p3 * scale
    return s0, s1, s2, s3


def four_dots(m, row, x, first, stride) -> Any:
    """Return 16 running sums of each of four products, the vectors ``stride`` apart."""
    raise NotImplementedError("exists in kernels only")


@overload(four_dots, jit_options=INLINE)
def _four_dots(m, row, x, first, stride):
    return _four_int8 if _is_int8(m) else _four_floats


# --- rows of weights ------------------------------------------------------------------------------


@inline
def multiply(m, rows, x, y, batch):
    """Write y[b, r] = m[r] . x[b] + bias[r] for r from rows[0] to rows[1] - 1.

    A text's result does not depend on the other texts: its products are summed in one order.
    """
    fours = batch - batch % 4
    for r in range(rows[0], rows[1]):
        bias, to = bias_at(m, r), y.first + r
        for b in range(0, fours, 4):
            first, place = x.first + b * x.stride, to + b * y.stride
            s0, s1, s2, s3 = four_dots(m, r, x.numbers, first, x.stride)
            put(y.numbers, place, total(s0) + bias)
            put(y.numbers, place + y.stride, total(s1) + bias)
            put(y.numbers, place + 2 * y.stride, total(s2) + bias)
            put(y.numbers, place + 3 * y.stride, total(s3) + bias)
        for b in range(fours, batch):
            product = dot(m, r, x.numbers, x.first + b * x.stride)
            put(y.numbers, to + b * y.stride, product + bias)


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
        for k in range(0, inputs, WIDTH):
            n = min(WIDTH, inputs - k)
            w = get(m.weights, (first + r) * inputs + k, n)
            scale = at(m.scales, (first + r) * groups + k // m.group)
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
