"""Who looks at whom: matrices over pairs of tokens, and how far back they reach."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import contribution_norms, mean_hidden_attention
from ..analysis import contributions as contributions_of
from ..analysis import hidden_attention as hidden_attention_of
from ..analysis import mixer_attention as mixer_attention_of
from ..analysis import receptive_field as receptive_field_of
from ..analysis import similarity as similarity_of
from .figures import axes_of, bars_and_rest, library, marker_for, width_for
from .images import of_pairs, of_past
from .tokens import layer_axis, text_of, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]


def hidden_attention(
    trace: Any, layer: int, channel: int | None = None, *, ax: Any = None, norm: Any = None,
    cmap: Any = None,
) -> "Axes":  # fmt: skip
    """Show who attends to whom in a layer's scan: its hidden attention (L, L), row by row.

    Row t says what output t gets of each token's input. With ``channel``: that channel's own,
    signed, red above and blue below zero. Without: the mean of its size over traced channels, on a
    logarithmic scale down to a thousandth. A bright column is a token that is kept for long, a
    bright diagonal alone a layer that forgets at once.
    Needs delta, B and C; raises InputError without, or for a channel that was not traced.
    """
    if channel is None:
        values = mean_hidden_attention(trace, layer)
        label = r"mean $|\alpha|$ over channels (log)"
    else:
        values = hidden_attention_of(trace, layer, channel)
        label = rf"$\alpha$ of channel {channel}"
    signed = channel is not None
    ax = of_past(trace, values, label, ax=ax, norm=norm, cmap=cmap, signed=signed)
    ax.set_title(f"hidden attention, layer {layer}", loc="left")
    return ax


def mixer_attention(
    model: Any, ids: Any, layer: int, channel: int, *, ax: Any = None, norm: Any = None,
    cmap: Any = "RdBu_r",
) -> "Axes":  # fmt: skip
    """Show one channel's whole mixer as attention (L, L): convolution, scan, skip and gate.

    Row t says what the gated output t gets of each token's input to the convolution, signed. Beside
    the hidden attention, the convolution smears columns over its width and the gate scales rows.
    Raises InputError for a bad argument.
    """
    values = mixer_attention_of(model, ids, layer, channel)
    label, text = f"attention of channel {channel}", text_of(model, ids)
    ax = of_past(text, values, label, ax=ax, norm=norm, cmap=cmap, signed=True)
    ax.set_title(f"mixer attention, layer {layer}", loc="left")
    return ax


def contributions(
    model: Any, ids: Any, layer: int, at: int | None = None, *, ax: Any = None, norm: Any = None,
    cmap: Any = None,
) -> "Axes":  # fmt: skip
    """Show which token moved a mixer's output: the length of what each contributes to it.

    Without ``at``: to each output (rows) by each token (columns), (L, L), on a logarithmic scale
    down to a thousandth; the cost grows with L**2, so choose a passage of a long text. With
    ``at``: bars, to the output at that token alone, and beside them one of the biases. Raises
    InputError for a bad argument.
    """
    text = text_of(model, ids)
    title = f"contributions to the mixer of layer {layer}"
    if at is None:
        values, label = contribution_norms(model, ids, layer), "length of the contribution (log)"
        ax = of_past(text, values, label, ax=ax, norm=norm, cmap=cmap, signed=False)
        ax.set_title(title, loc="left")
        return ax
    found = contributions_of(model, ids, layer, at)
    lengths, count = np.linalg.norm(found.tokens, axis=1), len(text.labels)
    values = np.zeros(count)
    values[: len(lengths)] = lengths
    ax = axes_of(ax, width_for(count + 1), 3.0)
    bars_and_rest(ax, values, float(np.linalg.norm(found.bias)))
    token_axis(ax.xaxis, (*text.labels, "biases"), tokens=(*text.tokens, "biases"))
    ax.set_ylabel("length of the contribution")
    ax.set_title(f"{title} at {len(lengths) - 1}", loc="left", parse_math=False)
    return ax


def receptive_field(
    trace: Any, layer: int | None = None, *, ax: Any = None, share: float = 0.9
) -> "Axes":
    """Show how far back the mean hidden attention looks: its mean distance, and its reach.

    The reach is how many of the latest tokens get ``share`` of it. Without ``layer``: both against
    the layer, the mean over tokens, with a band from the tenth to the ninetieth percentile. With
    ``layer``: both against the token (L). Costs L**2 a channel. Needs delta, B and C; raises
    InputError without, and for a share that is not above 0 and at most 1.
    """
    chosen = trace.layers if layer is None else [layer]
    found = [receptive_field_of(mean_hidden_attention(trace, i), share) for i in chosen]
    length = len(trace)
    ax = axes_of(ax, 5.6 if layer is None else width_for(length), 3.4)
    names = (("mean_distance", "mean distance"), ("reach", f"reach of {share:.0%}"))
    for i, (name, label) in enumerate(names):
        values = np.array([getattr(one, name) for one in found], np.float64)  # (n L)
        colour = f"C{i}"
        if layer is None:
            places = np.arange(len(values))
            low, high = np.quantile(values, [0.1, 0.9], axis=1)
            ax.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(places, values.mean(axis=1), marker="o", color=colour, label=label)
        else:
            ax.plot(values[0], color=colour, marker=marker_for(length), markersize=3, label=label)
    if layer is None:
        layer_axis(ax.xaxis, trace.layers)
    else:
        ax.set_title(f"receptive field, layer {layer}", loc="left")
        ax.set_xlim(-0.5, length - 0.5)
        token_axis(ax.xaxis, trace.labels, tokens=trace.tokens)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("tokens, mean and middle 80 %" if layer is None else "tokens")
    ax.legend()
    return ax


def similarity(
    trace: Any, layer: int, rows: str = "C", columns: str = "B", *, ax: Any = None,
    cmap: Any = "RdBu_r",
) -> "Axes":  # fmt: skip
    """Show what B and C address: the cosine between those of each two tokens (L, L).

    C against B is to a scan what queries against keys are to attention: red where a token reads
    what another one wrote, white where they pass each other by, blue where it reads the opposite.
    Nothing is masked, as the future is told apart by position alone.
    Needs B and C; raises InputError without, and for other names.
    """
    values = similarity_of(trace, layer, rows, columns)
    norm = library("matplotlib.colors").Normalize(-1, 1)
    names = (f"{rows} of token", f"{columns} of token")
    label = f"cosine of {rows} and {columns}"
    ax = of_pairs(trace, values, label, ax=ax, norm=norm, cmap=cmap, names=names)
    ax.set_title(f"similarity, layer {layer}", loc="left")
    return ax
