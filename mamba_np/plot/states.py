"""What the state does: one channel's numbers over the text, and the size of all of it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import effective_rank
from ..analysis import state_size as state_size_of
from ..analysis.parts import of_layer
from .figures import bars, figure_of, marker_for, plain_log, ramp, ramp_bar, width_for
from .images import of_layers
from .tokens import token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

LINES = 16
"""Most states of one channel that are drawn."""


def state(trace: Any, layer: int, channel: int, *, figure: Any = None) -> "Figure":
    """Show what one channel's state does: its numbers h (P, N) as lines, and x, delta, y (L) below.

    Dark lines are the states that forget fast, light ones those that keep; with more than 16, some
    between them. Where delta is tall, lines jump towards what x writes; where it is low they coast.
    y is what C reads of them. All panels share the axis of tokens.
    Needs h, x, delta and y; raises InputError without, or for a channel that was not traced.
    """
    column = trace.column(channel)
    h = of_layer(trace, layer, "h")[:, column]  # (P N)
    x, steps, y = (of_layer(trace, layer, name)[:, column] for name in ("x", "delta", "y"))
    rates = np.abs(of_layer(trace, layer, "A")[column])
    order = np.argsort(-rates, kind="stable")  # the fastest first
    order = order[
        np.unique(np.linspace(0, len(order) - 1, min(len(order), LINES)).round().astype(int))
    ]
    figure = figure_of(figure, width_for(len(trace)), 6.0)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1, 1, 1))
    colours, marker = ramp(len(order)), marker_for(len(h))
    for n, colour in zip(order, colours, strict=True):
        panels[0].plot(
            trace.h_positions, h[:, n], color=colour, marker=marker, markersize=2, linewidth=1
        )
    panels[0].axhline(0, color="0.3", linewidth=0.6)
    panels[0].set_ylabel("h")
    panels[0].set_title(f"state of layer {layer}, channel {channel}", loc="left")
    ramp_bar(panels[0], colours, [f"{rates[n]:.3g}" for n in order], "decay rate |A|")
    for ax, values, name in zip(panels[1:], (x, steps, y), ("x", "Δ", "y = C h"), strict=True):
        bars(ax, values)
        ax.set_ylabel(name)
    token_axis(panels[-1].xaxis, trace.labels, tokens=trace.tokens)
    figure.align_ylabels(list(panels))
    return figure


def state_size(trace: Any, *, figure: Any = None, training_length: int | None = None) -> "Figure":
    """Show whether states blow up or collapse: their length and effective rank over the text.

    One line a layer (P), dark ones first, against the number of tokens read, on logarithmic axes.
    A length that goes on growing beyond ``training_length``, which gets a dashed line, warns of a
    model that does not forget enough; a rank that falls to 1 says that all channels hold the same.
    See ``analysis.state_size`` and ``analysis.effective_rank``. Needs h; raises InputError without.
    """
    norms = [state_size_of(trace, layer).norm for layer in trace.layers]
    ranks = [effective_rank(trace, layer) for layer in trace.layers]
    figure = figure_of(figure, 6.4, 5.0)
    panels = figure.subplots(2, 1, sharex=True)
    colours, read = ramp(len(norms)), trace.before + trace.h_positions + 1
    marker = marker_for(len(read))
    for ax, lines in zip(panels, (norms, ranks), strict=True):
        for values, colour in zip(lines, colours, strict=True):
            ax.plot(read, values, color=colour, marker=marker, markersize=2)
        if training_length is not None:
            ax.axvline(training_length, color="0.4", linestyle="--", linewidth=1)
    panels[0].set_yscale("log")
    plain_log(panels[0].yaxis, *panels[0].get_ylim())
    panels[0].set_ylabel("length of h, ‖h‖ (log)")
    panels[1].set_ylim(bottom=0)
    panels[1].set_ylabel(f"effective rank, of {trace.need('h').shape[-1]}")
    panels[1].set_xscale("log")
    plain_log(panels[1].xaxis, 1, max(read, default=1))
    panels[1].set_xlabel("tokens read (log)")
    ramp_bar(panels[0], colours, [str(layer) for layer in trace.layers], "layer")
    figure.align_ylabels(list(panels))
    return figure


def residual_norm(trace: Any, *, ax: Any = None, norm: Any = None, cmap: Any = "magma") -> "Axes":
    """Show how long the residual stream is after each layer, at each token (n, L).

    It grows with depth, as every layer adds to it; a token that stands out over all layers is one
    that the model parks something at. Needs residual_norm or residual; raises InputError without.
    """
    values = trace.residual_norm
    if values is None:
        values = np.linalg.norm(trace.need("residual"), axis=-1)
    label = "length of the residual (log)"
    return of_layers(trace, values, label, ax=ax, norm=norm, cmap=cmap)
