"""What opens the gate, how long the state remembers, and who is still in it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..analysis import influence as influence_of
from ..analysis import state_shares as shares_of
from ..analysis import strengths as strengths_of
from ..analysis import survival as survival_of
from ..analysis.parts import BLOCK, exponential, of_layer
from ..checks import integer
from ..errors import InputError
from .figures import (
    axes_of,
    bars,
    colour_bar,
    figure_of,
    library,
    log_norm,
    ramp,
    ramp_bar,
    thinned,
    width_for,
)
from .images import of_layers, rows_of
from .tokens import NUMBERED, layer_axis, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

ROWS = 256
"""Most rows of channels in a picture."""

PER_OCTAVE = 8
"""Bins of a half-life between one power of two and the next."""

LEAST, MOST = -4, 20
"""Powers of two between which half-lives are told apart."""

BINS = PER_OCTAVE * (MOST - LEAST)
SEEN = 1e-3
"""What share of a ridge's height can be seen; the axis ends where nothing can."""

STRATA = 32
"""Most groups of tokens whose shares of a state are stacked."""


def delta(
    trace: Any, layer: int | None = None, *, ax: Any = None, norm: Any = None, cmap: Any = "cividis"
) -> "Axes":
    """Show which tokens open the gate: the step size delta at each token.

    Without ``layer``: a row for each layer, delta's geometric mean over channels (n, L). Columns
    that are bright in all rows are tokens that the model writes down; dark ones it lets pass.
    With ``layer``: a row for each channel (c, L), from those that forget slowly, at the bottom, to
    the fast, by the mean of delta |A|; beyond 256 channels a row is the median of some. The axis
    says in how many tokens they forget half, ln 2 over that mean.
    Needs delta, or for the first picture delta_geometric_mean; raises InputError without.
    """
    if layer is not None:
        return _channels(trace, layer, ax, norm, cmap)
    ax = of_layers(trace, _mean_steps(trace), "mean Δ (log)", ax=ax, norm=norm, cmap=cmap)
    ax.set_title("step size Δ, geometric mean over channels", loc="left")
    return ax


def _mean_steps(trace: Any) -> NDArray:  # (n L)
    if trace.delta_geometric_mean is not None:
        return trace.delta_geometric_mean
    return eq.geometric_mean(trace.need("delta"))


def _channels(trace: Any, layer: int, ax: Any, norm: Any, cmap: Any) -> Any:
    steps, A = of_layer(trace, layer, "delta"), of_layer(trace, layer, "A")
    rates = steps.mean(axis=0) * np.abs(A).mean(axis=1)  # (c)
    order = np.argsort(rates, kind="stable")
    groups = np.array_split(order, min(len(order), ROWS))
    rows = np.array([np.median(steps[:, group], axis=1) for group in groups])  # (r L)
    extend = "neither"
    if norm is None:
        norm, extend = log_norm(rows, share=0.005)
    ax = axes_of(ax, width_for(len(steps)), 4.2)
    image = rows_of(ax, rows, norm, cmap)
    places = thinned(len(groups), 6)
    with np.errstate(divide="ignore"):  # a step of nothing forgets nothing
        halves = [eq.half_life(rates[groups[i]].mean(), 1.0) for i in places]
    ax.set_yticks(places, labels=[f"{one:.2g}" if one < 1 else f"{one:.0f}" for one in halves])
    ax.set_ylabel("channels, by half-life in tokens")
    several = f", {len(order)} channels in {len(rows)} rows" if len(rows) < len(order) else ""
    ax.set_title(f"step size Δ, layer {layer}{several}", loc="left")
    token_axis(ax.xaxis, trace.labels, tokens=trace.tokens)
    colour_bar(ax, image, "Δ (log)", extend)
    return ax


def latest(trace: Any, *, count: int = 40, ax: Any = None, cmap: Any = "cividis") -> "Axes":
    """Show a text while it is generated: delta of its latest tokens, layers by tokens (n, count).

    To be called after each token, with the axes that it returned before, which it clears:

        for _ in tracer.stream(ids):
            ax = plot.latest(tracer.trace, ax=ax)

    The strip grows to ``count`` tokens and then moves on. Its colours are for all tokens so far.
    Needs delta or delta_geometric_mean, which takes less; raises InputError without, and for a
    count that is not from 1 to 200.
    """
    count = integer("count", count, high=NUMBERED, error=InputError)
    values, missing = _mean_steps(trace), max(0, count - len(trace))
    norm, _ = log_norm(values)
    values = np.pad(values[:, -count:], ((0, 0), (0, missing)), constant_values=np.nan)
    tokens, labels = ((*some[-count:], *[""] * missing) for some in (trace.tokens, trace.labels))
    if ax is not None:
        ax.clear()
    shown = replace(trace, tokens=tokens, labels=labels)
    ax = of_layers(shown, values, "mean Δ (log)", ax=ax, norm=norm, cmap=cmap)
    ax.set_title(f"step size Δ, {len(trace)} tokens so far", loc="left")
    return ax


def half_life(trace: Any, *, ax: Any = None, conv_kernel: int = 4) -> "Axes":
    """Show how long each layer remembers: how its half-lives spread, on an axis in octaves.

    One ridge a layer, over all traced tokens, channels and states: in how many tokens half is
    forgotten if the step size stays, ln 2 / (delta |A|). The mark is the median. What lies left of
    1 is gone with the next token, what lies left of the convolution's width sees no further than
    the convolution does, and what lies right of the text's length keeps all of it.
    Needs delta and B; raises InputError without, and where the rule is not exp(delta A).
    """
    conv_kernel = integer("conv_kernel", conv_kernel, low=0, error=InputError)
    spreads = [_half_lives(trace, layer) for layer in trace.layers]
    seen = np.flatnonzero([any(one[i] > SEEN * one.max() for one in spreads) for i in range(BINS)])
    low = int(seen[0]) // PER_OCTAVE * PER_OCTAVE
    high = -(-(int(seen[-1]) + 1) // PER_OCTAVE) * PER_OCTAVE
    edges, colours = _octaves(), ramp(len(spreads))
    ax = axes_of(ax, 6.4, min(max(2.6, 1.4 + 0.34 * len(spreads)), 9.0))
    for row, counts in enumerate(spreads):
        height = row + 0.9 * counts[low:high] / counts.max()
        ax.stairs(height, edges[low : high + 1], baseline=row, fill=True, color=colours[row])
        half = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
        middle = edges[half : half + 2].mean()
        ax.plot(middle, row + 0.15, "o", color="white", markeredgecolor="black", markersize=5)
    ax.set_xscale("log", base=2)
    ax.set_xlim(edges[low], edges[high])
    layer_axis(ax.yaxis, trace.layers)
    ax.set_ylim(-0.1, len(spreads) + 0.1)
    ticker = library("matplotlib.ticker")
    ax.xaxis.set_major_locator(ticker.LogLocator(base=2, numticks=14))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("half-life in tokens, ln 2 / (Δ |A|) (log); mark: median")
    guides = sorted([(conv_kernel, "convolution"), (len(trace), "text")])
    for (at, name), side in zip(guides, ("right", "left"), strict=True):  # apart, however near
        if edges[low] <= at <= edges[high]:
            ax.axvline(at, color="0.4", linestyle=":", linewidth=1)
            ax.annotate(
                f" {name}: {at} ", (at, 1), xycoords=("data", "axes fraction"), va="bottom",
                ha=side, fontsize=7,
            )  # fmt: skip
    return ax


def _octaves() -> NDArray:
    """Return the edges of the bins of half-lives."""
    ends = np.ldexp(1.0, LEAST), np.ldexp(1.0, MOST)
    return np.geomspace(*ends, BINS + 1)


def _half_lives(trace: Any, layer: int) -> NDArray:  # (bins)
    """Return how many half-lives of a layer lie in each bin, those beyond the ends in the last."""
    d, edges = exponential(trace, layer), _octaves()
    counts = np.zeros(len(edges) - 1)
    some = max(1, BLOCK // d.A.size)
    for start in range(0, len(d.delta), some):
        with np.errstate(divide="ignore"):  # a step of nothing forgets nothing
            found = eq.half_life(d.delta[start : start + some, :, None], d.A)
        counts += np.histogram(np.clip(found, edges[0], edges[-1]), edges)[0]
    return counts


def strengths(trace: Any, *, figure: Any = None) -> "Figure":
    """Show what is written, kept and read at each token: three strips, layers by tokens (n, L).

    Write is the length of B_bar x, keep the mean of A_bar (1 keeps all, 0 forgets all), read the
    length of C h: see ``analysis.strengths``. A token with much written and little kept replaces
    what was there; one with much read and little written is answered from memory.
    Needs delta, B, x and y; raises InputError without.
    """
    found = [strengths_of(trace, layer) for layer in trace.layers]
    width, n = width_for(len(trace)), len(trace.layers)
    figure = figure_of(figure, width, min(max(4.6, 2.2 + 0.5 * n), 11.0))
    panels = figure.subplots(3, 1, sharex=True)
    parts = (
        ("write", r"$\Vert\bar{B}x\Vert$ (log)", "magma"),
        ("keep", r"mean $\bar{A}$", "cividis"),
        ("read", r"$\Vert Ch\Vert$ (log)", "magma"),
    )
    for ax, (name, label, cmap) in zip(panels, parts, strict=True):
        values = np.array([getattr(one, name) for one in found])
        norm, extend = (None, "neither") if name == "keep" else log_norm(values, share=0.005)
        image = rows_of(ax, values, norm, cmap)
        layer_axis(ax.yaxis, trace.layers)
        ax.set_title(name, loc="left")
        colour_bar(ax, image, label, extend)
    token_axis(panels[-1].xaxis, trace.labels, tokens=trace.tokens)
    return figure


def state_shares(trace: Any, layer: int, *, ax: Any = None, positions: int = 64) -> "Axes":
    """Show who still lives in the state: each past token's share of it, stacked, over the text.

    The geology of a state: the oldest tokens lie at the bottom, each one's layer begins where it
    is read and thins out as it is forgotten. A share is the length of the token's part of h over
    the sum of these lengths (``analysis.state_shares``). There are at most ``positions`` moments
    and 32 groups of neighbouring tokens; each moment costs as much as reading the text up to it.
    Needs delta, B and x; raises InputError without.
    """
    positions = integer("positions", positions, error=InputError)
    count = len(trace)
    moments = np.unique(np.linspace(0, count - 1, min(count, positions)).round().astype(int))
    groups = np.array_split(np.arange(count), min(count, STRATA))
    firsts = np.array([group[0] for group in groups])
    heights = np.zeros((len(groups), len(moments)))
    for i, t in enumerate(moments):
        lengths = np.zeros(count)
        lengths[: t + 1] = shares_of(trace, layer, int(t))
        heights[:, i] = np.add.reduceat(lengths, firsts) / (lengths.sum() or 1.0)
    tops = np.cumsum(heights, axis=0)
    edges = np.concatenate([[-0.5], (moments[1:] + moments[:-1]) / 2, [count - 0.5]])
    ax = axes_of(ax, width_for(count), 3.8)
    colours = ramp(len(groups))
    for top, bottom, colour in zip(tops, (np.zeros(len(moments)), *tops), colours, strict=False):
        ax.stairs(top, edges, baseline=bottom, fill=True, color=colour, ec="white", linewidth=0.2)
    ax.set_xlim(-0.5, count - 0.5)
    ax.set_ylim(0, 1)
    ax.set_ylabel(f"share of the state of layer {layer}")
    token_axis(ax.xaxis, trace.labels, tokens=trace.tokens, name="after token")
    names = [str(group[0]) for group in groups]
    ramp_bar(ax, colours, names, "read at position" if count <= STRATA else "read from position")
    return ax


def influence(trace: Any, layer: int | None = None, *, ax: Any = None, norm: Any = None) -> "Axes":
    """Show which tokens matter later: how much of what each writes can be seen in later outputs.

    Without ``layer``: layers by tokens (n, L), on a logarithmic scale. With ``layer``: bars (L).
    See ``analysis.influence``. The last tokens have little time left to be seen.
    Needs delta, B, C and x; raises InputError without.
    """
    title = "influence on later outputs"
    if layer is None:
        values = np.array([influence_of(trace, one) for one in trace.layers])
        ax = of_layers(
            trace, values, "influence (log)", ax=ax, norm=norm, cmap="magma", share=0.005
        )
        ax.set_title(title, loc="left")
        return ax
    values = influence_of(trace, layer)
    ax = axes_of(ax, width_for(len(values)), 3.0)
    bars(ax, values)
    ax.set_ylabel("influence")
    ax.set_title(f"{title}, layer {layer}", loc="left")
    token_axis(ax.xaxis, trace.labels, tokens=trace.tokens)
    return ax


def survival(trace: Any, *, ax: Any = None) -> "Axes":
    """Show which share of each layer's memory outlives the text: sorted curves, one a layer.

    For each channel and state, what is left at the end of what the first token wrote
    (``analysis.survival``), from the least to the most. A curve that stays near 0 and then jumps
    to 1 parts local from global memory; the jump's place says how many are global.
    Needs delta and B; raises InputError without.
    """
    found = [np.sort(survival_of(trace, layer), axis=None) for layer in trace.layers]
    ax = axes_of(ax, 5.6, 3.6)
    colours = ramp(len(found))
    for values, colour in zip(found, colours, strict=True):
        shares = (np.arange(len(values)) + 0.5) / len(values)
        ax.plot(shares, values, color=colour)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("share of channels and states, sorted")
    ax.set_ylabel(f"left after {len(trace)} tokens of the first one")
    ramp_bar(ax, colours, [str(one) for one in trace.layers], "layer")
    return ax
