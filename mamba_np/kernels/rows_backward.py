"""The backward pass of what happens between the matrix products: norm, convolution, activation."""

from typing import Any, NamedTuple

import numpy as np

from .. import derivatives as d
from .. import equations as eq
from . import vectorised  # noqa: F401
from .lanes import WIDTH, largest, spread, total
from .linear import ZERO
from .memory import load, store
from .options import inline, kernel


@inline
def _normed_row(x, first, weight, size, eps, dy):
    """Return the root mean square of a row of x, and the mean of dy * weight * x / rms."""
    squares, products = spread(ZERO), spread(ZERO)
    for i in range(0, size, WIDTH):
        v = load(x, first + i)
        squares = squares + v * v
        products = products + load(dy, first + i) * load(weight, i) * v
    n = np.float32(size)
    rms = eq.root_mean_square(total(squares) / n, eps)
    return rms, total(products) / n / rms


@kernel
def norm_rows_backward(x, dy, weight, size, eps, d_x, d_weight, rows):
    """Add the gradient of an RMSNorm of rows of ``x`` to ``d_x``, and that of its scale.

    ``x``, ``dy`` and ``d_x`` are (rows, stride) with whole Lanes in a row; ``d_weight`` (stride) is
    added to: each rank has its own. ``rows`` = (first, last) are to be done.
    """
    stride = x.shape[1]
    for r in range(rows[0], rows[1]):
        first = r * stride
        rms, mean = _normed_row(x, first, weight, size, eps, dy)
        for i in range(0, size, WIDTH):
            g, y = load(dy, first + i), load(x, first + i) / rms
            store(d_weight, i, load(d_weight, i) + g * y)
            part = d.d_normed(g * load(weight, i), y, rms, mean)
            store(d_x, first + i, load(d_x, first + i) + part)


@kernel
def activate(x, y, rows):
    """Write silu(x) to y, both (rows, stride) with whole Lanes in a row."""
    stride = x.shape[1]
    for i in range(rows[0] * stride, rows[1] * stride, WIDTH):
        store(y, i, eq.silu(load(x, i)))


@inline
def _largest(x, first, size):
    """Return the largest of a row's numbers."""
    top = load(x, first)
    for i in range(WIDTH, size, WIDTH):
        top = np.maximum(load(x, first + i), top)
    return largest(top)


@kernel
def predict_rows(scores, targets, weight, top, sums, rows):
    """Turn scores (rows, stride) into ``weight`` times the slope of -log softmax(scores)[target].

    Rows are whole Lanes, filled up with very small numbers. ``top`` and ``sums`` (rows) get what
    the log of the probability is made of: the largest score and the sum of the exponentials.
    """
    stride = scores.shape[1]
    for r in range(rows[0], rows[1]):
        first, total_of = r * stride, spread(ZERO)
        largest_score = _largest(scores, first, stride)
        for i in range(first, first + stride, WIDTH):
            e = eq.exp(load(scores, i) - largest_score)
            store(scores, i, e)
            total_of = total_of + e
        top[r], sums[r] = largest_score, total(total_of)
        share = weight / sums[r]
        for i in range(first, first + stride, WIDTH):
            store(scores, i, load(scores, i) * share)
        scores[r, targets[r]] -= weight


class ConvolutionGradients(NamedTuple):
    """What the backward pass of a convolution writes: float32, channels last, whole Lanes."""

    inputs: Any  # (rows, stride), as the inputs
    weight: Any  # (K, E_pad), added to: each rank has its own
    bias: Any  # (E_pad), added to: each rank has its own


@inline
def _conv_parameters(c, x, x_stride, dy, g, first, length, e):
    """Add to the gradients of the weights and of the bias of 16 channels of a text."""
    for k in range(c.K):
        before = c.K - 1 - k
        sums = load(g.weight, k * c.stride + e)
        for t in range(before, length):
            v = load(x, (first + t - before) * x_stride + e)
            sums = sums + load(dy, (first + t) * c.stride + e) * v
        store(g.weight, k * c.stride + e, sums)
    sums = load(g.bias, e)
    for t in range(length):
        sums = sums + load(dy, (first + t) * c.stride + e)
    store(g.bias, e, sums)


@inline
def _conv_inputs(c, x_stride, dy, g, first, length, e):
    """Write the gradients of the inputs of 16 channels of a text: each meets the next K outputs."""
    for t in range(length):
        sums = spread(ZERO)
        for k in range(c.K):
            after = c.K - 1 - k
            if t + after < length:
                v = load(dy, (first + t + after) * c.stride + e)
                sums = sums + v * load(c.weight, k * c.stride + e)
        store(g.inputs, (first + t) * x_stride + e, sums)


@kernel
def convolve_backward(c, x, conv, dy, g, length, items):
    """Run the backward pass of ``convolve`` with its silu, for whole texts that begin with zeros.

    ``x`` and ``g.inputs`` (rows, stride) are the inputs and their gradients, ``conv`` (rows,
    c.stride) what came before silu, ``dy`` (rows, c.stride) the gradient after it: replaced by
    that before it. ``items`` as in ``selective_scan``.
    """
    x_stride = x.shape[1]
    groups = c.stride // WIDTH
    for item in range(items[0], items[1]):
        first, e = item // groups * length, item % groups * WIDTH
        for t in range(length):
            i = (first + t) * c.stride + e
            store(dy, i, load(dy, i) * d.d_silu(load(conv, i)))
        _conv_parameters(c, x, x_stride, dy, g, first, length, e)
        _conv_inputs(c, x_stride, dy, g, first, length, e)
