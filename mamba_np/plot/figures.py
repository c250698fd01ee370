"""Figures, axes, scales and colour bars: what every plot needs of matplotlib, and all it gets."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MambaError

STYLE = "mamba_np.plot.mamba_np"
"""The name of a style sheet: ``with matplotlib.pyplot.style.context(STYLE):``."""

INCHES_A_TOKEN = 0.19
NARROWEST, WIDEST = 5.0, 9.5
"""Of the figures made here, in inches."""

POSITIVE, NEGATIVE, REST = "tab:blue", "tab:red", "tab:gray"
BAR = 0.12
"""The width of a colour bar in inches."""


class MissingPackageError(MambaError, ImportError):
    """A package that only some functions need is not installed."""


def library(name: str = "matplotlib") -> Any:
    """Import a module of matplotlib; raises MissingPackageError where that is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingPackageError(
            "matplotlib: expected it for plots, found none; pip install matplotlib"
        ) from error


# --- where to draw --------------------------------------------------------------------------------


def width_for(length: int) -> float:
    """Return the width in inches of a figure that names ``length`` tokens along its axis."""
    return min(max(NARROWEST, 1.6 + INCHES_A_TOKEN * length), WIDEST)


def axes_of(ax: Any, width: float, height: float) -> Any:
    """Return the axes given, or those of a new figure of a size in inches."""
    return figure_of(None, width, height).add_subplot() if ax is None else ax


def figure_of(figure: Any, width: float, height: float) -> Any:
    """Return the figure given, or a new one that notebooks show."""
    if figure is not None:
        return figure
    pyplot = library("matplotlib.pyplot")
    return pyplot.figure(figsize=(width, height), layout="constrained")


# --- colours --------------------------------------------------------------------------------------


def colour_bar(ax: Any, drawn: Any, label: str, extend: str = "neither") -> Any:
    """Add a colour bar as tall as the axes, to their right, and return it.

    It lies in the axes' own coordinates, so that it is in place whatever lays out the figure.
    """
    width = ax.bbox.width / ax.figure.dpi
    share = BAR / max(width, 1.0)
    place = ax.inset_axes((1 + share, 0, share, 1))
    bar = ax.figure.colorbar(drawn, cax=place, extend=extend)
    bar.set_label(label)
    if isinstance(drawn.norm, library("matplotlib.colors").LogNorm):
        plain_log(bar.ax.yaxis, drawn.norm.vmin, drawn.norm.vmax)
    return bar


def plain_log(axis: Any, low: float, high: float) -> None:
    """Mark a logarithmic axis from ``low`` to ``high`` with plain numbers that do not crowd it."""
    ticker = library("matplotlib.ticker")
    if high < 10 * low:
        axis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        subs = (1, 2, 5) if high < 100 * low else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def log_norm(values: NDArray, floor: float | None = None, share: float = 0.0) -> tuple[Any, str]:
    """Return a logarithmic scale for values and which ends of it are cut ("neither", ...).

    It spans the positive values, from ``floor`` times the largest if a floor is given, and without
    the ``share`` of them at either end. What lies below gets the lowest colour.
    """
    positive = values[np.isfinite(values) & (values > 0)].astype(np.float64)
    low, high = np.quantile(positive, [share, 1 - share]) if positive.size else (1.0, 1.0)
    if floor is not None:
        low = high * floor
    if not low < high:  # one value alone: some room on both sides
        low, high = low / 2, high * 2
    cut_below = bool((values < low * (1 - 1e-6)).any())
    cut_above = bool((positive > high * (1 + 1e-6)).any())
    norm = library("matplotlib.colors").LogNorm(low, high, clip=True)
    return norm, _ends(cut_below, cut_above)


def signed_norm(values: NDArray, share: float = 0.0) -> tuple[Any, str]:
    """Return a linear scale as far below zero as above it, and which ends of it are cut.

    The ``share`` of the values other than zero that are largest in size get the last colours.
    """
    finite = np.abs(values[np.isfinite(values) & (values != 0)]).astype(np.float64)
    most = float(np.quantile(finite, 1 - share)) if finite.size else 1.0
    beyond = most * (1 + 1e-6)
    norm = library("matplotlib.colors").Normalize(-most, most)
    return norm, _ends(bool((values < -beyond).any()), bool((values > beyond).any()))


def _ends(below: bool, above: bool) -> str:
    return ("neither", "max", "min", "both")[2 * below + above]


def ramp(count: int, name: str = "viridis") -> list[Any]:
    """Return ``count`` colours from dark to light, without the palest, which white drowns."""
    return list(library("matplotlib").colormaps[name](np.linspace(0, 0.88, max(count, 1))))


def ramp_bar(ax: Any, colours: Sequence[Any], names: Sequence[str], label: str) -> Any:
    """Add a colour bar that says which colour of a ramp stands for what, and return it."""
    colors = library("matplotlib.colors")
    edges = np.arange(len(colours) + 1) - 0.5
    drawn = library("matplotlib.cm").ScalarMappable(
        colors.BoundaryNorm(edges, len(colours)), colors.ListedColormap(colours)
    )
    bar = colour_bar(ax, drawn, label)
    places = thinned(len(names), 8)
    bar.set_ticks(places, labels=[names[i] for i in places])
    bar.ax.minorticks_off()
    return bar


def thinned(count: int, limit: int) -> list[int]:
    """Return at most ``limit`` of the places 0 ... count - 1, evenly apart."""
    return list(range(0, count, -(-count // limit) or 1))


# --- shapes ---------------------------------------------------------------------------------------


def marker_for(count: int) -> str | None:
    """Return the mark of each of a line's ``count`` points; None where marks would touch."""
    return "o" if count <= 60 else None


def bars(ax: Any, values: NDArray) -> None:
    """Draw values (L) as bars at 0 ... L - 1, the negative ones in another colour.

    Two outlines, not L rectangles: so thousands of them take no time.
    """
    edges = np.arange(len(values) + 1) - 0.5
    for part, colour in ((np.maximum(values, 0), POSITIVE), (np.minimum(values, 0), NEGATIVE)):
        ax.stairs(part, edges, fill=True, color=colour, linewidth=0)
    if (values < 0).any():
        ax.axhline(0, color="0.3", linewidth=0.6)
    ax.set_xlim(-0.5, len(values) - 0.5)


def bars_and_rest(ax: Any, values: NDArray, rest: float) -> None:
    """Draw values (L) as ``bars`` does, and after them, at L, what belongs to none of them."""
    bars(ax, values)
    last = len(values)
    ax.stairs([rest], [last - 0.5, last + 0.5], fill=True, color=REST, linewidth=0)
    ax.set_xlim(-0.5, last + 0.5)
