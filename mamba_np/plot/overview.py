"""One text at a glance: who opens the gate, what is forgotten, written and read, token by token."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..analysis import strengths
from ..analysis.parts import BLOCK, exponential
from .attention import hidden_attention
from .figures import bars, figure_of, library, plain_log, width_for
from .memory import delta
from .tokens import token_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

HEIGHTS = (1.1, 0.8, 0.8, 0.8, 3.6)
"""Of the five panels, one to another."""

SPREAD = (0.1, 0.5, 0.9)
"""Quantiles of the half-lives: the band begins at the first and ends at the last."""


def dashboard(
    trace: Any, layer: int, channel: int | None = None, *, figure: Any = None
) -> "Figure":
    """Show one text at a glance: five panels, one below the other, that share the axis of tokens.

    Delta of all traced layers (n, L). Then of ``channel`` of ``layer``, or of all its channels:
    delta (L), by its geometric mean; the half-life ln 2 / (delta |A|), its median over states with
    a band from the first to the ninth tenth (L); the length of what is written, B_bar x (L); and
    the hidden attention (L, L), signed for one channel, whose columns stand below the tokens that
    wrote. A token with a tall delta is one that the memory makes room for and takes in; where its
    column is bright in a late row, that token still reads it.
    Needs delta, B, C, x and y; raises InputError without, for a channel that was not traced, and
    where the rule is not exp(delta A).
    """
    one = trace if channel is None else _only(trace, channel)
    steps = eq.geometric_mean(one.need("delta")[one.row(layer)])
    halves, write = _half_lives(one, layer), strengths(one, layer).write
    trace.need("C")  # while there is no figure yet
    figure = figure_of(figure, width_for(len(trace)), 9.2)
    panels = figure.subplots(len(HEIGHTS), 1, sharex=True, height_ratios=HEIGHTS)
    delta(trace, ax=panels[0])
    bars(panels[1], steps)
    _draw_half_lives(panels[2], halves, len(trace))
    bars(panels[3], write)
    hidden_attention(trace, layer, channel, ax=panels[4]).set_aspect("auto")
    whose = f"layer {layer}" + ("" if channel is None else f", channel {channel}")
    several = ", geometric mean over channels" if channel is None else ""
    titles = (
        f"{whose}: step size Δ{several}",
        "half-life at this step size: median, and 8 in 10 states",
        "written to the state", f"hidden attention, {whose}",
    )  # fmt: skip
    for ax, title in zip(panels[1:], titles, strict=True):
        ax.set_title(title, loc="left")
    for ax, name in zip(panels[1:4], ("Δ", "tokens (log)", r"$\Vert\bar{B}x\Vert$"), strict=True):
        ax.set_ylabel(name)
    panels[0].set_xlabel("")
    token_axis(panels[-1].xaxis, trace.labels, tokens=trace.tokens, name="input from token")
    figure.align_ylabels(list(panels))
    return figure


def _only(trace: Any, channel: int) -> Any:
    """Return the trace of one of its channels; raises InputError if it was not traced."""
    column = trace.column(channel)
    own = {name: trace.need(name)[:, :, [column]] for name in ("delta", "x", "y")}
    A = trace.need("A")[:, [column]]
    return replace(trace, channels=trace.channels[[column]], A=A, **own)


def _half_lives(trace: Any, layer: int) -> NDArray:  # (3 L)
    """Return quantiles of a layer's half-lives at each token, over its channels and states."""
    d = exponential(trace, layer)
    found, some = np.empty((len(SPREAD), len(d.delta))), max(1, BLOCK // d.A.size)
    for start in range(0, len(d.delta), some):
        now = slice(start, start + some)
        with np.errstate(divide="ignore"):  # a step of nothing forgets nothing
            halves = eq.half_life(d.delta[now, :, None], d.A)
        found[:, now] = np.quantile(halves, SPREAD, axis=(1, 2), method="nearest")
    return found


def _draw_half_lives(ax: Any, halves: NDArray, length: int) -> None:
    """Draw quantiles (3, L) of half-lives, and a line at the text's length, as stairs."""
    edges = np.arange(length + 1) - 0.5
    low, middle, high = halves
    ax.set_yscale("log")
    ax.stairs(high, edges, baseline=low, fill=True, color="tab:blue", alpha=0.25, linewidth=0)
    ax.stairs(middle, edges, baseline=None, color="tab:blue")
    ax.axhline(length, color="0.4", linestyle=":", linewidth=1)
    place = library("matplotlib.transforms").blended_transform_factory(ax.transAxes, ax.transData)
    ax.text(1.01, length, "text", transform=place, va="center", fontsize=7)
    plain_log(ax.yaxis, *ax.get_ylim())
