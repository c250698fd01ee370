"""The state as a whole: its size, its spread, its rank; and what B and C say to each other."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import choice
from ..errors import InputError
from .parts import of_layer


class StateSize(NamedTuple):
    """One number for each kept state of a layer, (P) each; see ``Trace.h_positions``."""

    norm: NDArray
    """The Euclidean length over the traced channels and states."""
    mean: NDArray
    std: NDArray


def state_size(trace: Any, layer: int) -> StateSize:
    """Return how large the states h of a layer are, and how spread (arXiv:2410.07145). Needs h."""
    h = of_layer(trace, layer, "h").astype(np.float64)  # (P c N)
    return StateSize(np.linalg.norm(h, axis=(1, 2)), h.mean(axis=(1, 2)), h.std(axis=(1, 2)))


def effective_rank(trace: Any, layer: int) -> NDArray:  # (P)
    """Return how many dimensions each state h (c, N) uses: the participation ratio.

    (sum of s**2)**2 / (sum of s**4) of its singular values s: 1 to N, and 0 for a state of zeros.
    Needs h.
    """
    h = of_layer(trace, layer, "h").astype(np.float64)
    gram = h.swapaxes(1, 2) @ h  # (P N N): its eigenvalues are the squares s**2
    trace_of = np.trace(gram, axis1=1, axis2=2)
    squares = np.square(gram).sum(axis=(1, 2))
    return np.divide(np.square(trace_of), squares, out=np.zeros_like(squares), where=squares > 0)


def similarity(trace: Any, layer: int, rows: str = "C", columns: str = "B") -> NDArray:  # (L L)
    """Return the cosine between B or C of each token (rows) and B or C of each other (columns).

    C against B is to a scan what queries against keys are to attention. Needs both. Raises
    InputError for other names.
    """
    names = (("rows", rows), ("columns", columns))
    first, second = (choice(name, value, ("B", "C"), error=InputError) for name, value in names)
    a, b = (_normed(of_layer(trace, layer, name)) for name in (first, second))
    return a @ b.T


def _normed(vectors: NDArray) -> NDArray:  # (L N) -> (L N)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
