"""Matrices of each dtype, as kernels have them, and the same numbers in float64."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from mamba_np.int8 import quantise

KINDS = (("float32", 0), ("bfloat16", 0), ("float16", 0), ("int8", 16), ("int8", 48))
"""Dtypes, and how many neighbours share a scale."""

NO_SCALES = np.zeros(1, np.float32)


class Stored(NamedTuple):
    """A matrix: its rows as words of 32 bits, its scales, its numbers in float64."""

    words: np.ndarray
    scales: np.ndarray
    exact: np.ndarray  # (O, I)


def padded(array, *shape):
    """Return a float32 array that grew to a shape by zeros."""
    wide = np.zeros(shape, np.float32)
    wide[tuple(slice(n) for n in array.shape)] = array
    return wide


def stored(matrix, dtype, group=0):
    """Return a matrix (O, I) in a dtype."""
    matrix = np.asarray(matrix, np.float32)
    if dtype == "int8":
        q = quantise(matrix, group)
        return Stored(q.values.view(np.uint32), q.scales, q.astype(np.float64))
    narrow = matrix.astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    return Stored(narrow.view(np.uint32), NO_SCALES, narrow.astype(np.float64))
