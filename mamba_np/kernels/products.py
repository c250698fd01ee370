"""Matrix products of many tokens: the work of a prompt, done by the matrix library.

The library (NumPy's BLAS) is kept to one thread and each rank makes its own columns of the
product: several pools of threads that wait for one another cost more than they bring. Weights
that are not float32 are widened some rows at a time, in a panel that fits a cache.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear import widen
from .packing import Stored

PANEL = 2**18
"""Numbers in a panel of widened weights: 1 MB of float32."""


def panel_rows(matrix: Stored) -> int:
    """Return how many rows of a matrix are widened at once."""
    return max(16, PANEL // matrix.values.shape[1] // 16 * 16)


def product(member: Any, x: NDArray, matrix: Stored, first: int, y: NDArray) -> tuple[int, int]:
    """Write this rank's columns of y = x @ matrix[first : first + columns].T.

    ``x`` (tokens, I) and ``y`` (tokens, columns) may be slices of wider arrays. Returns which
    columns, as (first, last).
    """
    low, high = member.share(y.shape[1], 16)
    if low == high:
        return low, high
    if matrix.float32:
        np.matmul(x, matrix.values[first + low : first + high].T, out=y[:, low:high])
        return low, high
    rows, place, like = panel_rows(matrix), matrix.place, matrix.like
    panel = np.empty((min(rows, high - low), matrix.values.shape[1]), np.float32)
    for start in range(low, high, rows):
        stop = min(start + rows, high)
        piece = panel[: stop - start]
        widen(place, like, matrix.group, first + start, piece)
        np.matmul(x, piece.T, out=y[:, start:stop])
    return low, high
