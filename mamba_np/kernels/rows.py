"""What happens to each position between the matrix products: norm, convolution, activation."""

from typing import Any, NamedTuple

import numpy as np

from .. import equations as eq
from . import vectorised  # noqa: F401
from .lanes import WIDTH, spread, total
from .linear import ZERO
from .memory import get, load, set_, store
from .options import inline, kernel


@inline
def norm_row(x, first, weight, size, eps, out, place):
    """Write the RMSNorm of ``size`` numbers of ``x``; rows are padded with zeros to whole Lanes."""
    squares = spread(ZERO)
    for i in range(0, size, WIDTH):
        v = load(x, first + i)
        squares = squares + v * v
    rms = eq.root_mean_square(total(squares) / np.float32(size), eps)
    for i in range(0, size, WIDTH):
        store(out, place + i, load(x, first + i) / rms * load(weight, i))


@inline
def add_row(x, first, y, place, size):
    """Add ``size`` numbers of ``y`` to ``x``, padding included."""
    for i in range(0, size, WIDTH):
        store(x, first + i, load(x, first + i) + load(y, place + i))


@kernel
def norm_rows(x, y, weight, size, eps, out, rows):
    """Add ``y`` to the residual ``x``, and write the norm of the sum to ``out``.

    All are (rows, stride) with whole Lanes in a row; ``rows`` = (first, last) are to be done.
    """
    stride = x.shape[1]
    for r in range(rows[0], rows[1]):
        add_row(x, r * stride, y, r * stride, size)
        norm_row(x, r * stride, weight, size, eps, out, r * stride)


class Convolution(NamedTuple):
    """The weights of a convolution along the sequence: float32 arrays, rows of whole Lanes."""

    weight: Any  # (K, stride); row K-1 meets the current token
    bias: Any  # (stride)
    stride: int
    K: int
    activated: bool  # whether silu follows


@inline
def _conv_row(c, x, first, x_stride, window, E, t, e, count):
    """Return the convolution at step t: inputs before the first come from the window."""
    y = spread(ZERO)
    for k in range(c.K):
        before = c.K - 1 - k
        if t >= before:
            v = load(x, first + (t - before) * x_stride + e)
        else:
            v = get(window, (t + 1 + k) * E + e, count)
        y = y + v * load(c.weight, k * c.stride + e)
    y = y + load(c.bias, e)
    return eq.silu(y) if c.activated else y


@inline
def _slide(K, x, first, x_stride, window, E, steps, e, count):
    """Keep the last K inputs: some are the window's own, if there were fewer steps."""
    for j in range(K):
        t = steps - K + j
        if t >= 0:
            v = load(x, first + t * x_stride + e)
        else:
            v = get(window, (steps + j) * E + e, count)
        set_(window, j * E + e, v, count)


@kernel
def convolve(c, x, windows, y, length, row_steps, items):
    """Convolve some groups of 16 channels of some texts, then silu; slide their windows.

    ``x`` (rows, stride) has the inputs of text b from row b * ``length`` on, of which
    ``row_steps[b]`` count; ``windows`` (B, K, E); ``y`` (rows, c.stride). ``items`` as in
    ``selective_scan``.
    """
    E, x_stride = windows.shape[2], x.shape[1]
    groups = (E + WIDTH - 1) // WIDTH
    for item in range(items[0], items[1]):
        b, e = item // groups, item % groups * WIDTH
        count = min(WIDTH, E - e)
        window = windows[b]
        first, place = b * length * x_stride, b * length * c.stride + e
        for t in range(length):
            row = _conv_row(c, x, first, x_stride, window, E, t, e, count)
            store(y, place + t * c.stride, row)
        _slide(c.K, x, first, x_stride, window, E, row_steps[b], e, count)
