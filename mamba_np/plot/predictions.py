"""What the model would say after each layer, which tokens made it say so, and what if."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..analysis import logit_lens as logit_lens_of
from ..analysis import relevance as relevance_of
from ..analysis.parts import position
from ..checks import integer
from ..errors import InputError
from ..sampling import check_scores
from ..scoring import log_probabilities
from ..trace.labels import names_of, texts_of, tokenizer_of
from ..trace.tracer import one_text
from .figures import axes_of, bars, bars_and_rest, colour_bar, library, width_for
from .tokens import SIZE, layer_axis, readable, text_of, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]

CELLS = 30
"""Most tokens whose predictions are spelled out."""

LETTERS = 8
"""Of a token in its cell; what is longer ends with an ellipsis."""


def logit_lens(
    model: Any, trace: Any, *, ax: Any = None, positions: Iterable[int] | None = None,
    tokenizer: Any = None, cmap: Any = "cividis",
) -> "Axes":  # fmt: skip
    """Show when the model knows: the likeliest next token after each layer, at each token.

    A cell (n, L) names the token that the layer's residual would predict, were it the last, and its
    colour is the probability. The top row of a whole trace is the model's own prediction; where the
    same name begins, going up, the answer is found. ``positions`` chooses at most 30 tokens, which
    is a must for longer texts. ``tokenizer`` names tokens, by default that of the model's files.
    Needs residual; raises InputError without, and for too many positions.
    """
    length = len(trace)
    wanted = list(range(length)) if positions is None else [position(i, length) for i in positions]
    if not 0 < len(wanted) <= CELLS:
        raise InputError(
            f"positions: expected 1 to {CELLS} tokens, whose cells can hold names, found "
            f"{len(wanted)}; choose some, as with positions=range(-{CELLS}, 0)"
        )
    some = replace(trace, residual=trace.need("residual")[:, wanted])  # the rest costs as much
    lens = logit_lens_of(model, some, k=1)
    ids, shares = lens.ids[..., 0], lens.probabilities[..., 0]  # (n l) each
    names = _names(ids, tokenizer_of(model) if tokenizer is None else tokenizer)
    width, height = 1.6 + 0.52 * len(wanted), 1.5 + 0.3 * len(ids)
    ax = axes_of(ax, max(4.0, width), min(max(2.4, height), 12.0))
    norm = library("matplotlib.colors").Normalize(0, 1)
    image = ax.imshow(shares, aspect="auto", origin="lower", norm=norm, cmap=cmap)
    _write(ax, names, shares)
    layer_axis(ax.yaxis, trace.layers)
    ax.set_ylabel("after layer")
    labels, tokens = ([texts[i] for i in wanted] for texts in (trace.labels, trace.tokens))
    token_axis(ax.xaxis, labels, tokens=tokens, name="next after token")
    colour_bar(ax, image, "probability")
    return ax


def _names(ids: NDArray, tokenizer: Any) -> list[list[str]]:
    """Return the label of each id (n, l), each by itself, cut to fit into a cell."""
    distinct = np.unique(ids).tolist()
    names = names_of(distinct, tokenizer)
    cut = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names]
    known = dict(zip(distinct, cut, strict=True))
    return [[known[i] for i in row] for row in ids.tolist()]


def _write(ax: Any, names: list[list[str]], shares: NDArray) -> None:
    """Write a name into each cell: dark on light, light on dark."""
    texts, families = readable([name for row in names for name in row])
    room = ax.bbox.width / ax.figure.dpi / shares.shape[1]  # inches a cell
    size = min(SIZE, room / LETTERS / 0.62 * 72)
    for text, (row, column) in zip(texts, np.ndindex(shares.shape), strict=True):
        ax.text(
            column, row, text, ha="center", va="center", fontsize=size, fontfamily=families,
            color="black" if shares[row, column] > 0.5 else "white", parse_math=False,
            usetex=False, clip_on=True,
        )  # fmt: skip


def relevance(
    model: Any, ids: Any, token: int | None = None, at: int = -1, *, ax: Any = None
) -> "Axes":
    """Show why this token: its logit, shared out among the tokens read (L), and the biases.

    Bars above zero speak for the token, those below against it; all bars together are the logit,
    and the title has both sums. ``token`` is the one asked about, by default the likeliest, and
    ``at`` the position that predicts it: see ``analysis.relevance``. Raises InputError for a bad
    argument.
    """
    found, text = relevance_of(model, ids, token, at), text_of(model, ids)
    at, total = position(at, len(text.labels)), found.tokens.sum(dtype=np.float64) + found.bias
    (label,) = names_of([found.token], tokenizer_of(model))
    (name, last), families = readable([label, text.labels[at]])
    ax = axes_of(ax, width_for(len(text.labels) + 1), 3.4)
    bars_and_rest(ax, found.tokens, found.bias)
    token_axis(ax.xaxis, (*text.labels, "biases"), tokens=(*text.tokens, "biases"))
    ax.set_ylabel("share of the logit")
    ax.set_title(
        f"{name} after {last} ({at}): shares add up to {total:.4g}, logit {found.logit:.4g}",
        loc="left", parse_math=False, usetex=False, fontfamily=families, fontsize=SIZE + 1,
    )  # fmt: skip
    return ax


def what_if(
    model: Any, ids: Any, *changes: Any, at: int | None = None, k: int = 10, ax: Any = None
) -> "Axes":
    """Show what changes inside the model do to its predictions: bars of the change of log p.

    ``changes`` are those that ``model.intervene`` takes, such as ``CutPath(source=4)``. Without
    ``at``: of each token of the text (L) after those before it; the first has no bar. With ``at``:
    of the token after that position, for the ``k`` which are likeliest with the changes or without
    them, likeliest first. A bar of -1 says that the token is e times less likely with the changes.
    Raises InputError for a bad argument and where the model cannot be changed, NonFiniteError if a
    logit is not finite.
    """
    ids, tokenizer = one_text(ids), tokenizer_of(model)
    if at is not None:
        at = position(at, ids.shape[1])
        k = integer("k", k, high=model.config.vocab_size, error=InputError)
    before = _log_p(model, ids, at)
    with model.intervene(*changes):
        after = _log_p(model, ids, at)
    if at is None:
        tokens, labels = texts_of(ids[0], tokenizer)
        values, name = np.concatenate([[0.0], after - before]), "token"
        title = f"what if: log p {before.sum():.2f} → {after.sum():.2f}"
    else:
        chosen = np.argsort(-np.maximum(before, after), kind="stable")[:k]
        tokens, labels = None, names_of(chosen.tolist(), tokenizer)
        values, name = (after - before)[chosen], f"next after position {at}"
        title = "what if: the likeliest next tokens"
    ax = axes_of(ax, width_for(len(values)), 3.0)
    bars(ax, values)
    token_axis(ax.xaxis, labels, tokens=tokens, name=name)
    ax.set_ylabel("change of log p")
    ax.set_title(title, loc="left")
    return ax


def _log_p(model: Any, ids: NDArray, at: int | None) -> NDArray:  # (1 L) -> (L-1) or (V), float64
    """Return log p of each token but the first, or of every token that may follow position at."""
    if at is None:
        return log_probabilities(model(ids).logits[0, :-1], ids[0, 1:])
    logits = model(ids[:, : at + 1], logits_to_keep=1).logits[0]  # (1 V)
    check_scores(logits, 1, "logits")
    return eq.log_softmax(logits[0].astype(np.float64))
