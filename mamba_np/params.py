"""What a Mamba model learns: named arrays, and nothing else.

Sizes: V vocab_size, D hidden_size, E intermediate_size, N state_size, R time_step_rank,
K conv_kernel. Every ``*_proj`` is kept as checkpoints have it, (outputs, inputs): y = x @ W.T + b.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import InputError

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Storage dtypes of weights, by name."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The arrays of one block. ``None`` is a bias that the configuration leaves out."""

    norm: NDArray  # (D)
    in_proj: NDArray  # (2E, D): rows 0..E-1 make x, rows E..2E-1 the gate z
    in_proj_bias: NDArray | None  # (2E)
    conv: NDArray  # (E, K): column K-1 meets the current token
    conv_bias: NDArray | None  # (E)
    x_proj: NDArray  # (R+2N, E): rows make delta's low-rank input, then B, then C
    dt_proj: NDArray  # (E, R)
    dt_bias: NDArray  # (E)
    A_log: NDArray  # (E, N): A = -exp(A_log)
    D: NDArray  # (E): the skip connection
    out_proj: NDArray  # (D, E)
    out_proj_bias: NDArray | None  # (D)


@dataclass(frozen=True, eq=False)
class Params:
    """The arrays of a model. ``lm_head`` is ``embeddings`` itself when the two are tied."""

    embeddings: NDArray  # (V, D)
    layers: tuple[Layer, ...]
    norm_f: NDArray  # (D)
    lm_head: NDArray | None  # (V, D); None in a model without a head

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding matrix itself."""
        return self.lm_head is self.embeddings


MATRICES = ("embeddings", "lm_head", "in_proj", "x_proj", "dt_proj", "out_proj")
"""Fields kept in the storage dtype. All others are few numbers that the recurrence is sensitive
to (A_log, D, biases, norms, convolution): they are float32, or float64 in a float64 model."""


def as_dtype(dtype: str | np.dtype | type) -> np.dtype:
    """Return the NumPy dtype of a storage dtype given by name or as a dtype.

    Raises InputError for anything but float64, float32, float16 and bfloat16.
    """
    try:
        found = np.dtype(dtype) if not isinstance(dtype, str) else DTYPES[dtype.split(".")[-1]]
    except (KeyError, TypeError):
        found = None
    # Compared by name: NumPy takes None for float64, in np.dtype() and in comparisons.
    if dtype is None or found is None or found.name not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    return DTYPES[found.name]  # in native byte order


def compute_dtype(storage: np.dtype) -> np.dtype:
    """Return the dtype that activations and states have: float64 for float64, else float32."""
    return DTYPES["float64"] if storage == np.float64 else DTYPES["float32"]


def field_dtype(field: str, storage: np.dtype) -> np.dtype:
    """Return the dtype in which a field of Layer or Params is kept."""
    return storage if field in MATRICES else compute_dtype(storage)


def map_arrays(function: Callable[[str, NDArray], NDArray], params: Params) -> Params:
    """Return ``params`` with ``function(field, array)`` in place of each array; ties stay tied."""

    def each(part: Layer | Params) -> dict[str, NDArray]:
        arrays = ((f.name, getattr(part, f.name)) for f in fields(part))
        return {k: function(k, a) for k, a in arrays if isinstance(a, np.ndarray)}

    layers = tuple(replace(layer, **each(layer)) for layer in params.layers)
    if not params.tied:
        return replace(params, **each(params), layers=layers)
    own = each(replace(params, lm_head=None))
    shared = own.get("embeddings", params.embeddings)  # int8 ones are no arrays, and stay
    return replace(params, **own, lm_head=shared, layers=layers)


def may_change(array: NDArray | None) -> bool:
    """Return whether an array, or one that it is a view of, can be written to."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return False


def convert(params: Params, dtype: str | np.dtype) -> Params:
    """Return ``params`` stored in ``dtype``; arrays that have it already are shared."""
    storage = as_dtype(dtype)
    return map_arrays(lambda name, a: a.astype(field_dtype(name, storage), copy=False), params)
