"""Arrays as JSON can hold them: base64 of as few bytes as a picture needs.

``templates/numbers.js`` has the other half, function by function.
"""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANGE = 1e4
"""What the largest number of ``logs`` is divided by to get the smallest that is told from 0."""

LEVELS = 254
"""Steps from one end to the other of what is kept in a byte; the 255th is for what is not there."""


def numbers(array: NDArray) -> dict[str, Any]:
    """Pack numbers as they are, in float32, any shape; what is too large for it is infinite."""
    with np.errstate(over="ignore"):
        return _packed("float32", array, array.astype("<f4"))


def places(array: NDArray) -> dict[str, Any]:
    """Pack whole numbers from 0 to 2**32 - 1, any shape."""
    dtype = "uint16" if array.max(initial=0) < 2**16 else "uint32"
    return _packed(dtype, array, array.astype(np.dtype(dtype).newbyteorder("<")))


def shares(array: NDArray) -> dict[str, Any]:
    """Pack shares from 0 to 1, any shape, to 1/508; NaN stays NaN."""
    there = np.isfinite(array)
    levels = np.rint(np.clip(np.where(there, array, 0), 0, 1) * LEVELS)
    return _packed("share", array, np.where(there, levels, LEVELS + 1).astype(np.uint8))


def logs(array: NDArray) -> dict[str, Any]:
    """Pack numbers from 0, any shape, to 1.9 %; 0 for those below 1/``RANGE`` of the largest.

    NaN counts as 0, and so does everything where the largest is infinite.
    """
    known = np.nan_to_num(array.astype(np.float64), posinf=np.inf)
    high = float(known.max(initial=0))
    if not 0 < high < np.inf:
        return _packed("log", array, np.zeros(array.shape, np.uint8)) | {"high": 0.0}
    share = known / high
    seen = share >= 1 / RANGE
    depth = np.log(share, out=np.zeros_like(share), where=seen) / np.log(RANGE)  # 0 to -1
    levels = np.where(seen, 1 + np.rint((1 + depth) * LEVELS), 0)
    return _packed("log", array, levels.astype(np.uint8)) | {"high": high}


def _packed(kind: str, array: NDArray, stored: NDArray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(stored).tobytes()).decode("ascii")
    return {"kind": kind, "shape": list(array.shape), "data": data}
