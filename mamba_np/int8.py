"""Weights in one byte each: whole numbers from -127 to 127, and a scale for every group of them.

A matrix (O, I) is cut along its inputs into groups of ``group`` neighbours. The largest weight of
a group becomes 127 or -127, and the others are rounded to the nearest step in between, so that no
weight moves by more than half a step: max|w| / 254. Activations stay float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, NonFiniteError
from .params import MATRICES, Layer, Params

GROUP = 128
"""Inputs that share a scale. docs/accuracy.md compares sizes of groups."""

LARGEST = 127
"""The largest whole number used: -128 would have no opposite."""

ROWS = 2**20
"""How many weights are quantised at once: 4 MB of float32."""

DTYPE = np.dtype(np.int8)

FIELDS = tuple(name for name in MATRICES if name != "dt_proj")
"""The matrices that are quantised. dt_proj has few weights, and the step size feels each."""


@dataclass(frozen=True, eq=False)
class Int8Matrix:
    """A weight matrix (O, I) that is read as float32: ``values`` times the scale of their group.

    It is indexed like an array: some rows give their weights as float32, a slice of rows gives a
    smaller Int8Matrix. ``astype`` widens all of it.
    """

    values: NDArray  # (O, I) int8
    scales: NDArray  # (O, ceil(I / group)) float32
    group: int  # a multiple of 16

    dtype = DTYPE

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I)."""
        return self.values.shape

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.values.size

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[NDArray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: Any) -> Any:
        """Return rows: an Int8Matrix for a slice, else float32 (..., I). Raises IndexError."""
        if isinstance(rows, slice):
            return replace(self, values=self.values[rows], scales=self.scales[rows])
        return self._widened(self.values[rows], self.scales[rows])

    def astype(self, dtype: Any, copy: bool = True) -> NDArray:
        """Return all weights (O, I) in a floating-point dtype: always a new array."""
        return self._widened(self.values, self.scales).astype(dtype, copy=False)

    def _widened(self, values: NDArray, scales: NDArray) -> NDArray:
        each = np.repeat(scales, self.group, axis=-1)[..., : values.shape[-1]]
        return values * each


def quantise(matrix: NDArray, group: int = GROUP, name: str = "matrix") -> Int8Matrix:
    """Return an (O, I) matrix of floating-point numbers as int8 in groups of ``group`` inputs.

    Raises InputError unless ``group`` is a positive multiple of 16, NonFiniteError naming the
    matrix if it holds NaN or infinity.
    """
    if group < 16 or group % 16:
        raise InputError(f"group: expected a positive multiple of 16, found {group}")
    O, I = matrix.shape  # noqa: E741
    groups = -(-I // group)
    values, scales = np.empty((O, I), np.int8), np.empty((O, groups), np.float32)
    rows = max(1, ROWS // max(1, I))
    for first in range(0, O, rows):
        block = np.zeros((min(rows, O - first), groups * group), np.float32)
        block[:, :I] = matrix[first : first + rows]
        if not np.isfinite(block).all():
            raise NonFiniteError(f"{name}: expected finite weights to store as int8, found others")
        parts = block.reshape(len(block), groups, group)
        scale = np.abs(parts).max(axis=2) / np.float32(LARGEST)
        steps = parts / np.where(scale > 0, scale, 1)[..., None]
        whole = np.rint(steps).clip(-LARGEST, LARGEST).reshape(len(block), -1)
        values[first : first + rows] = whole[:, :I]
        scales[first : first + rows] = scale
    for array in (values, scales):
        array.flags.writeable = False
    return Int8Matrix(values, scales, group)


def quantised(params: Params, group: int = GROUP) -> Params:
    """Return parameters whose large matrices are int8 and whose other arrays are float32.

    One matrix after another: the float32 of one alone exists at a time. Raises NonFiniteError
    naming the array.
    """

    def each(part: Layer | Params, prefix: str) -> dict[str, Any]:
        arrays = ((f.name, getattr(part, f.name)) for f in fields(part))
        return {
            field: _kept(field, array, group, prefix + field)
            for field, array in arrays
            if isinstance(array, np.ndarray)
        }

    layers = tuple(
        replace(layer, **each(layer, f"layers.{i}.")) for i, layer in enumerate(params.layers)
    )
    tied = params.tied
    own = each(replace(params, lm_head=None) if tied else params, "")
    if tied:
        own["lm_head"] = own["embeddings"]
    return replace(params, **own, layers=layers)


def _kept(field: str, array: NDArray, group: int, name: str) -> Any:
    if field in FIELDS:
        return quantise(array, group, name)
    return array.astype(np.float32, copy=False)


def is_int8(dtype: Any) -> bool:
    """Tell whether a dtype, given by name or as a dtype, is int8."""
    return dtype is not None and (dtype == "int8" or dtype in (np.int8, DTYPE))


def refuse(params: Params, what: str, instead: str) -> None:
    """Raise InputError if the parameters are int8, saying what cannot be done and what can."""
    if isinstance(params.embeddings, Int8Matrix):
        raise InputError(
            f"{what}: expected weights in a floating-point dtype, found int8; {instead}"
        )
