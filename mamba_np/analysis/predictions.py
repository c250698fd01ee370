"""What the model would say, and why: predictions after each layer, and shares of a logit."""

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..backward import DETACHABLE
from ..checks import integer
from ..errors import InputError
from ..gradients import d_blocks, keep
from ..params import convert
from ..reference import head, rms_norm
from ..trace.tracer import one_text
from .parts import position


class Lens(NamedTuple):
    """The k likeliest next tokens after each traced layer, likeliest first: (n, L, k) each."""

    ids: NDArray
    probabilities: NDArray


def logit_lens(model: Any, trace: Any, k: int = 5) -> Lens:
    """Return what each layer's residual would predict, were it the last: the "logit lens".

    The last norm and the head, applied to the residual after each traced layer; after the last
    layer these are the model's own predictions. Needs residual. Raises InputError for k beyond the
    vocabulary.
    """
    residual, params = trace.need("residual"), convert(model.params, trace.need("residual").dtype)
    k = integer("k", k, low=1, high=model.config.vocab_size, error=InputError)
    shape = (*residual.shape[:2], k)
    ids, probabilities = np.empty(shape, np.int64), np.empty(shape, residual.dtype)
    for row, x in enumerate(residual):
        final = rms_norm(x[None], params.norm_f, model.config.layer_norm_epsilon)
        for start in range(0, x.shape[0], 64):  # scores of some tokens at a time
            now = slice(start, start + 64)
            p = eq.softmax(head(final[:, now], params.lm_head)[0])
            ids[row, now], probabilities[row, now] = _largest(p, k)
    return Lens(ids, probabilities)


def _largest(p: NDArray, k: int) -> tuple[NDArray, NDArray]:  # (l V) -> (l k), (l k)
    """Return the places of the k largest of each row, largest first, and what stands there."""
    some = np.sort(np.argpartition(-p, k - 1, axis=-1)[:, :k], axis=-1)
    found = np.take_along_axis(p, some, axis=-1)
    order = np.argsort(-found, axis=-1, kind="stable")
    return np.take_along_axis(some, order, axis=-1), np.take_along_axis(found, order, axis=-1)


class Relevance(NamedTuple):
    """A logit as a sum: ``tokens.sum() + bias == logit``, to rounding."""

    tokens: NDArray
    """(L): the share of each token; those after the position have none."""
    bias: float
    """The share of the biases."""
    logit: float
    token: int
    """The token whose logit this is."""


def relevance(
    model: Any, ids: Any, token: int | None = None, at: int = -1, *, rules: bool = True
) -> Relevance:
    """Share one logit out among the tokens read, by MambaLRP's rules (arXiv:2406.07592).

    The gradient of the logit times the embeddings, where delta, B, C and norms count as constants,
    an activation as a factor, and both sides of the gate get half: then shares add up. ``ids`` is
    (L) or (1, L), ``at`` the position that predicts, and ``token`` the token predicted, the
    likeliest unless given. Without ``rules`` it is the plain gradient times the embeddings, whose
    shares do not add up: for comparison. Raises InputError for a bad argument.
    """
    ids, dtype = one_text(ids), model.compute_dtype
    params, config = convert(model.params, dtype), model.config
    weights = cast(NDArray, params.lm_head)
    at = position(at, ids.shape[1])
    kept = keep(params, config, ids[:, : at + 1])
    logits = head(kept.final[:, at : at + 1], weights)[0, 0]
    size = config.vocab_size - 1
    chosen = int(logits.argmax()) if token is None else token
    chosen = integer("token", chosen, low=0, high=size, error=InputError)
    d_final = np.zeros_like(kept.final)
    d_final[0, at] = weights[chosen]
    x = kept.blocks[0][0] if kept.blocks else kept.x
    d_x, layers, _ = d_blocks(d_final, params, config, kept, frozenset(DETACHABLE if rules else ()))
    shares = np.zeros(ids.shape[1], dtype)
    shares[: at + 1] = (d_x * x)[0].sum(axis=-1)
    bias = 0.0
    for layer, gradient in zip(params.layers, layers, strict=True):
        for name in ("in_proj_bias", "conv_bias", "out_proj_bias"):
            value = getattr(layer, name)
            bias += 0.0 if value is None else float(np.sum(value * getattr(gradient, name)))
    return Relevance(shares, bias, float(logits[chosen]), chosen)
