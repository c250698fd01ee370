"""Hidden attention: a layer's scan written as a matrix over pairs of tokens (arXiv:2403.01590).

y_t = sum over s <= t of alpha[t, s] x_s, with alpha[t, s] = C_t A_bar_t ... A_bar_{s+1} B_bar_s:
each channel has its own matrix, lower triangular and signed. With the skip connection the scan's
output is alpha x + D x. All of it holds for texts that began with an empty state.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import number
from ..errors import InputError
from .parts import dynamics, of_layer


def hidden_attention(trace: Any, layer: int, channel: int) -> NDArray:  # (L L)
    """Return alpha of one channel: row t says what y_t gets of each x_s. Needs delta, B and C.

    Raises InputError where the trace lacks the channel or a quantity.
    """
    column, C = trace.column(channel), of_layer(trace, layer, "C")
    A_bar, B_bar = (part[:, 0] for part in dynamics(trace, layer).steps(channels=[column]))
    alpha = np.zeros((len(C), len(C)), C.dtype)
    for t, kept in enumerate(written(A_bar, B_bar)):
        alpha[t, : t + 1] = kept @ C[t]
    return alpha


def written(A_bar: NDArray, B_bar: NDArray) -> Iterator[NDArray]:
    """Yield what the state holds of each token so far, after each step, had their x been 1.

    The recurrence itself, with what each token wrote kept apart: no logarithm, no division.
    (L ... N), (L ... N) -> (t + 1 ... N) for each t; a view that the next step writes over.
    """
    kept = np.zeros_like(B_bar)
    for t in range(len(B_bar)):
        kept[:t] *= A_bar[t]
        kept[t] = B_bar[t]
        yield kept[: t + 1]


def mean_hidden_attention(trace: Any, layer: int) -> NDArray:  # (L L)
    """Return the mean of |alpha| over the traced channels. Needs delta, B and C.

    Compiled where the trace is in float32 and the rule is Mamba's; else channel by channel.
    """
    d, C = dynamics(trace, layer), of_layer(trace, layer, "C")
    if C.dtype == np.float32 and d.rule == "mamba":
        from ..kernels.attention import absolute_attention

        return absolute_attention(d.delta, d.A, d.B, C) / np.float32(len(d.A))
    total = np.zeros((len(C), len(C)), C.dtype)
    for channel in trace.channels:
        total += np.abs(hidden_attention(trace, layer, channel))
    return total / len(d.A)


class ReceptiveField(NamedTuple):
    """How far back each token looks, (L) each."""

    mean_distance: NDArray
    """The mean of t - s, weighted by the attention to s."""
    reach: NDArray
    """How many of the latest tokens, t included, get the asked share of it."""


def receptive_field(alpha: NDArray, share: float = 0.9) -> ReceptiveField:
    """Return how far back each row of a matrix of attention (L, L) looks, by |alpha|.

    ``alpha`` is ``hidden_attention`` or its mean (after DeciMamba, arXiv:2406.14528). Raises
    InputError for a share that is not above 0 and at most 1.
    """
    share = number("share", share, low=0, high=1, above=True, error=InputError)
    weights = np.tril(np.abs(np.asarray(alpha, np.float64)))
    distances = np.arange(len(weights))[:, None] - np.arange(len(weights))
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a row without any attention looks nowhere
        mean = np.nan_to_num((weights * distances).sum(axis=1) / total)
    newest_first = np.array([np.roll(row[::-1], t + 1) for t, row in enumerate(weights)])
    reached = np.cumsum(newest_first, axis=1) >= share * total[:, None] * (1 - 1e-12)
    return ReceptiveField(mean, reached.argmax(axis=1) + 1)
