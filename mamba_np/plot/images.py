"""Pictures of matrices: layers by tokens, and tokens by tokens."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .figures import axes_of, colour_bar, log_norm, signed_norm, width_for
from .tokens import layer_axis, token_axis

COLUMNS = 1024
"""Most columns of a picture of layers or channels by tokens."""


def of_layers(
    trace: Any, values: NDArray, label: str, *, ax: Any, norm: Any, cmap: Any, share: float = 0.0
) -> Any:
    """Draw values (n, L), a row for each traced layer, the first one at the bottom.

    The scale is logarithmic unless a ``norm`` is given, without the ``share`` at its ends.
    """
    n, length = values.shape
    extend = "neither"
    if norm is None:
        norm, extend = log_norm(values, share=share)
    ax = axes_of(ax, width_for(length), min(max(2.6, 1.5 + 0.22 * n), 7.0))
    image = rows_of(ax, values, norm, cmap)
    layer_axis(ax.yaxis, trace.layers)
    token_axis(ax.xaxis, trace.labels, tokens=trace.tokens)
    colour_bar(ax, image, label, extend)
    return ax


def rows_of(ax: Any, values: NDArray, norm: Any, cmap: Any) -> Any:
    """Draw values (r, L) as rows with sharp edges, from the bottom, and return the image.

    A picture has no more columns than a screen can show: beyond COLUMNS tokens, each is the mean
    of some neighbours, so that a token that stands out is not lost between two pixels.
    """
    count, length = values.shape
    shown = values
    if length > COLUMNS:
        starts = np.linspace(0, length, COLUMNS, endpoint=False).astype(int)
        shown = np.add.reduceat(values, starts, axis=1) / np.diff(starts, append=length)
    return ax.imshow(
        shown, aspect="auto", origin="lower", norm=norm, cmap=cmap, interpolation="nearest",
        extent=(-0.5, length - 0.5, -0.5, count - 0.5),
    )  # fmt: skip


def of_pairs(
    text: Any, values: NDArray, label: str, *, ax: Any, norm: Any, cmap: Any,
    names: tuple[str, str] = ("output at token", "input from token"), extend: str = "neither",
) -> Any:  # fmt: skip
    """Draw values (L, L), a row for each token from the top; masked ones stay white."""
    size = min(max(4.4, 2.0 + 0.16 * len(values)), 8.0)
    ax = axes_of(ax, size + 0.9, size)
    image = ax.imshow(values, aspect="equal", norm=norm, cmap=cmap)
    token_axis(ax.yaxis, text.labels, tokens=text.tokens, name=names[0])
    token_axis(ax.xaxis, text.labels, tokens=text.tokens, name=names[1])
    colour_bar(ax, image, label, extend)
    return ax


def of_past(
    text: Any, values: NDArray, label: str, *, ax: Any, norm: Any, cmap: Any, signed: bool
) -> Any:
    """Draw the lower triangle of values (L, L): on a signed scale, or on one of magnitudes.

    That of magnitudes is logarithmic and ends at a thousandth of the largest.
    """
    future = np.triu(np.ones(values.shape, bool), 1)  # nothing can be there
    extend, past = "neither", values[~future]
    if norm is None:
        norm, extend = signed_norm(past, share=0.005) if signed else log_norm(past, floor=1e-3)
    cmap, shown = cmap or ("RdBu_r" if signed else "magma"), np.ma.array(values, mask=future)
    return of_pairs(text, shown, label, ax=ax, norm=norm, cmap=cmap, extend=extend)
