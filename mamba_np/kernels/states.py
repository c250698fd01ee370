"""Four states of sixteen channels, or the last one to three of them, and their weights B and C.

A ``span`` is the number of channels that share B or C, which then have N numbers for each span in
the row of a step. None stands for weights that are each channel's own and the same at all steps:
(stride / 16, N, 16). ``count`` is how many of four states exist; zeros stand for the others.

What branches here takes pointers, not arrays, whose references Numba would count at each call.
"""

from .lanes import WIDTH, four, one_of, spread, total
from .linear import ZERO
from .memory import add_sums, at, data, load, put, store
from .options import inline

ROW = 4 * WIDTH
"""Numbers of four states of sixteen channels."""


@inline
def in_fours(N):
    """Return N, or the next multiple of four."""
    return (N + 3) // 4 * 4


@inline
def _load_rows(rows, i, count):
    none = spread(ZERO)
    second = load(rows, i + WIDTH) if count > 1 else none
    third = load(rows, i + 2 * WIDTH) if count > 2 else none
    return four(load(rows, i), second, third, load(rows, i + 3 * WIDTH) if count > 3 else none)


@inline
def _store_rows(rows, i, x, count):
    store(rows, i, one_of(x, 0))
    if count > 1:
        store(rows, i + WIDTH, one_of(x, 1))
    if count > 2:
        store(rows, i + 2 * WIDTH, one_of(x, 2))
    if count > 3:
        store(rows, i + 3 * WIDTH, one_of(x, 3))


@inline
def load_four(array, i, count=4):
    """Return ``count`` rows of 16 numbers, then zeros."""
    return _load_rows(data(array), i, count)


@inline
def store_four(array, i, x, count=4):
    """Write ``count`` rows of 16 numbers."""
    _store_rows(data(array), i, x, count)


@inline
def same(x):
    """Return the same Lanes for each of four states."""
    return four(x, x, x, x)


@inline
def added(x):
    """Return the sum of four states: Lanes."""
    return (one_of(x, 0) + one_of(x, 1)) + (one_of(x, 2) + one_of(x, 3))


@inline
def place_of(s, span, N, row, e, n):
    """Return where B or C has state n of a row; the next row's numbers are ``stride_of`` on."""
    if span is None:
        return e * N + n * WIDTH
    return row * s.weights_stride + e // span * N + n


@inline
def stride_of(s, span):
    """Return how far apart the numbers of two steps are in B or C."""
    if span is None:
        return 0
    return s.weights_stride


@inline
def _numbers(weights, k, count):
    second = at(weights, k + 1) if count > 1 else ZERO
    third = at(weights, k + 2) if count > 2 else ZERO
    return four(at(weights, k), second, third, at(weights, k + 3) if count > 3 else ZERO)


@inline
def _add_sums(weights, k, x, count):
    if count == 4:
        add_sums(weights, k, x)
    else:
        put(weights, k, at(weights, k) + total(one_of(x, 0)))
        if count > 1:
            put(weights, k + 1, at(weights, k + 1) + total(one_of(x, 1)))
        if count > 2:
            put(weights, k + 2, at(weights, k + 2) + total(one_of(x, 2)))


@inline
def weights_of(weights, k, span, count):
    """Return B or C of four states: ``count`` of them, then zeros."""
    if span is None:
        return _load_rows(weights, k, count)
    return _numbers(weights, k, count)


@inline
def add_weights(weights, k, x, span, count):
    """Add to the gradient of B or C what sixteen channels of four states give."""
    if span is None:
        _store_rows(weights, k, _load_rows(weights, k, count) + x, count)
    else:
        _add_sums(weights, k, x, count)
