"""What a page shows of a trace: the quantities of each panel, and which panels cannot be there."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..analysis import logit_lens, mean_hidden_attention, strengths
from ..analysis.parts import BLOCK
from ..errors import InputError
from ..trace import Trace
from ..trace.labels import names_of, tokenizer_of
from . import packing

CAPTURE = ("delta", "B", "C", "x", "y", "residual")
"""What a trace has to hold for all panels to be there."""

NEEDS = {
    "strengths": ("delta", "B", "x", "y"),
    "decay": ("delta",),
    "attention": ("delta", "B", "C"),
    "predictions": ("residual",),
}
"""The panels, in their order on the page, and the quantities that each is made of."""

COLOURS = {
    "delta_geometric_mean": "geometric mean of delta",
    "delta": "geometric mean of delta",
    "delta_mean": "mean of delta",
}
"""What the text is coloured by: the first of these that was captured, and what it is called."""

PREDICTED = 5
"""How many of the likeliest next tokens are shown after each layer."""


def contents(
    trace: Trace, model: Any = None, tokenizer: Any = None, work: float = np.inf
) -> dict[str, Any]:
    """Return what the page of a trace shows, as JSON can hold it.

    Always: ``labels`` (L), ``layers`` (n) and ``left_out``, why each panel that is missing is
    missing. Packed, each only where the trace has what it needs: ``colour`` (n, L), ``write``,
    ``keep`` and ``read`` (n, L), ``lags`` (K) with ``decay`` (n, L, K), ``attention``, for each
    layer the rows of its lower triangle (L (L + 1) / 2), and ``predicted`` with ``probabilities``
    (n, L, k), places in ``names``. ``model`` is the one that was traced, without which nothing is
    predicted. Hidden attention is left out where it takes more than ``work`` products. Raises
    InputError for an empty trace and for another model.
    """
    if len(trace) == 0:
        raise InputError("trace: expected some tokens, found none")
    if model is not None and model.fingerprint != trace.model:
        raise InputError(
            f"model: expected the one that was traced, {trace.model}, found {model.fingerprint}"
        )
    found = {
        "labels": list(trace.labels),
        "layers": trace.layers.tolist(),
        "before": trace.before,
        "left_out": _left_out(trace, model, work),
    }
    name, steps = step_sizes(trace)
    if steps is not None:
        found |= {"colour": packing.numbers(steps), "colour_name": COLOURS[name]}
    if "strengths" not in found["left_out"]:
        each = [strengths(trace, layer) for layer in trace.layers]
        names = ("write", "keep", "read")
        found |= {n: packing.numbers(np.array([getattr(s, n) for s in each])) for n in names}
    if "decay" not in found["left_out"]:
        found["lags"] = lags = _lags(len(trace))
        left = np.array([share_left(trace, layer, lags) for layer in trace.layers])
        found["decay"] = packing.shares(left)
    if "attention" not in found["left_out"]:
        lower = np.tril_indices(len(trace))
        each = [mean_hidden_attention(trace, layer)[lower] for layer in trace.layers]
        found["attention"] = [packing.logs(triangle) for triangle in each]
    if "predictions" not in found["left_out"]:
        found |= _predictions(trace, model, tokenizer_of(model) if tokenizer is None else tokenizer)
    return found


def _left_out(trace: Trace, model: Any, work: float) -> dict[str, str]:
    """Return why panels are missing, by their names."""
    missing = {panel: _missing(trace, names) for panel, names in NEEDS.items()}
    found = {
        panel: f"trace with capture=({', '.join(map(repr, names))}, ...)"
        for panel, names in missing.items()
        if names
    }
    if not any(name in trace.captured for name in COLOURS):
        found["colour"] = "trace with capture=('delta', ...)"
    if model is None and "predictions" not in found:
        found["predictions"] = "needs the model: mamba_np.report.save_report(path, trace, model)"
    if trace.discretisation not in ("mamba", "zoh") and "decay" not in found:
        found["decay"] = f"the rule {trace.discretisation!r} has no decay of the form exp(delta A)"
    products = trace.delta.size * len(trace) if trace.delta is not None else 0
    if trace.B is not None and products * trace.B.shape[-1] > work and "attention" not in found:
        found["attention"] = (
            "takes long for a trace of this size: mamba_np.report.save_report(path, trace) has it"
        )
    return found


def _missing(trace: Trace, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name not in trace.captured]


def step_sizes(trace: Trace) -> tuple[str, NDArray | None]:  # (), (n L)
    """Return what the text is coloured by, and its name; None if nothing that can was captured."""
    name = next((name for name in COLOURS if name in trace.captured), "")
    values = trace.need(name) if name else None
    return name, eq.geometric_mean(values) if name == "delta" else values


def scale(trace: Trace) -> tuple[NDArray, float, float]:  # (L), (), ()
    """Return each token's colour from 0 to 1, and the step sizes that 0 and 1 stand for.

    Of the geometric mean over layers; the scale is logarithmic.
    """
    values = step_sizes(trace)[1]
    if values is None:
        return np.zeros(len(trace)), 0.0, 0.0
    over_layers = eq.geometric_mean(values.T.astype(np.float64))
    known = np.isfinite(over_layers) & (over_layers > 0)
    if not known.any():
        return np.zeros(len(trace)), 0.0, 0.0
    low, high = over_layers[known].min(), over_layers[known].max()
    depth = np.log(np.where(known, over_layers, low) / low)
    return depth / (depth.max() or 1.0), float(low), float(high)


def _lags(length: int) -> list[int]:
    """Return 0, 1, 2, 4, 8 ... below the length of the text (K)."""
    return [0, *(2**k for k in range(length.bit_length()) if 2**k < length)]


def share_left(trace: Trace, layer: int, lags: list[int]) -> NDArray:  # (L K) float64
    """Return which share of what each token writes is left after so many more tokens.

    exp(A (S_{t+k} - S_t)) with S_t = delta_1 + ... + delta_t: the mean over a channel's states,
    then the median over channels; NaN where the text ends before. Needs delta, and a rule whose
    A_bar is exp(delta A). Raises InputError as ``Trace.need`` does.
    """
    row = trace.row(layer)
    delta, A = trace.need("delta")[row], trace.need("A")[row]
    time = np.cumsum(delta, axis=0, dtype=np.float64)  # (L c)
    left, count = np.full((len(time), len(lags)), np.nan), max(1, BLOCK // A.size)
    for k, lag in enumerate(lags):
        passed = (time[lag:] - time[: len(time) - lag]).astype(A.dtype)
        for start in range(0, len(passed), count):
            now = slice(start, min(start + count, len(passed)))
            of_channels = eq.exp(passed[now, :, None] * A).mean(axis=-1)  # (l c)
            left[now, k] = np.median(of_channels, axis=-1)
    return left


def _predictions(trace: Trace, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the likeliest tokens as places in a list of names."""
    lens = logit_lens(model, trace, min(PREDICTED, model.config.vocab_size))
    distinct, where = np.unique(lens.ids, return_inverse=True)
    return {
        "names": names_of(distinct.tolist(), tokenizer),
        "predicted": packing.places(where.reshape(lens.ids.shape)),
        "probabilities": packing.numbers(lens.probabilities),
        "next": packing.places(_of_the_text(distinct, trace)),
    }


def _of_the_text(distinct: NDArray, trace: Trace) -> NDArray:  # (L)
    """Return 1 + the place of each token's successor in ``distinct``; 0 where it is not there."""
    places = {token: 1 + place for place, token in enumerate(distinct.tolist())}
    return np.array([*(places.get(token, 0) for token in trace.ids[1:].tolist()), 0])
