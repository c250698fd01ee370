"""What has to be true of each quantity: call these on your own text before you trust a picture.

Each function is named after the one that it checks, takes the same arguments, and returns by how
much its identity fails, as a share of the largest number in it: about 1e-7 in float32, 1e-15 in
float64. They need a text that began with an empty state.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from . import attention, memory, mixer, predictions, states
from .parts import dynamics, of_layer


def half_life(trace: Any, layer: int) -> float:
    """An impulse that is multiplied by exp(delta A) step by step falls below half at that step.

    Returns the largest overshoot: by how much any is still above 1/2 then, or was below before.
    """
    found, d = memory.half_life(trace, layer), memory.exponential(trace, layer)
    A, worst = d.A.astype(np.float64), 0.0
    for t in range(len(found)):
        A_bar = eq.exp(d.delta[t + 1 :, :, None].astype(np.float64) * A)
        left = np.concatenate([np.ones((1, *A.shape)), np.cumprod(A_bar, axis=0)])
        steps = np.minimum(found[t], len(left) - 1).astype(int)  # (c N)
        then = np.take_along_axis(left, steps[None], axis=0)[0]
        before = np.take_along_axis(left, np.maximum(steps - 1, 0)[None], axis=0)[0]
        above = np.where(np.isfinite(found[t]), then - 0.5, 0.5 - then)
        worst = max(worst, float(above.max()), float((0.5 - before).max()))
    return worst


def state_parts(trace: Any, layer: int, channel: int, at: int = -1) -> float:
    """The parts of all tokens add up to h. Needs h, with the state after token ``at`` kept."""
    parts = memory.state_parts(trace, layer, channel, at)
    place = np.flatnonzero(trace.h_positions == len(parts) - 1)[0]
    h = of_layer(trace, layer, "h")[place, trace.column(channel)]
    return _off(parts.sum(axis=0), h, parts)


def state_shares(trace: Any, layer: int, at: int = -1) -> float:
    """Their squares are those of the parts, added up over channels."""
    squares = [
        np.square(memory.state_parts(trace, layer, channel, at)).sum(axis=1)
        for channel in trace.channels
    ]
    return _off(np.square(memory.state_shares(trace, layer, at)), np.sum(squares, axis=0))


def influence(trace: Any, layer: int) -> float:
    """Token by token it is the sum over later outputs of |C| times what is left of |B_bar x|."""
    x, C, d = of_layer(trace, layer, "x"), of_layer(trace, layer, "C"), dynamics(trace, layer)
    A_bar, B_bar = d.steps()
    expected = np.zeros(len(x))
    sizes = attention.written(np.abs(A_bar), np.abs(B_bar * x[:, :, None]))
    for t, left in enumerate(sizes):
        expected[: t + 1] += (left * np.abs(C[t])).sum(axis=(1, 2))
    return _off(memory.influence(trace, layer), expected)


def hidden_attention(trace: Any, layer: int, channel: int) -> float:
    """alpha x is what the scan has given. Needs delta, B, C, x and y."""
    alpha = attention.hidden_attention(trace, layer, channel)
    column = trace.column(channel)
    x, y = (of_layer(trace, layer, name)[:, column] for name in ("x", "y"))
    return _off(alpha @ x, y, alpha * x)


def mean_hidden_attention(trace: Any, layer: int) -> float:
    """It is the mean of the channels' own."""
    each = [np.abs(attention.hidden_attention(trace, layer, c)) for c in trace.channels]
    return _off(attention.mean_hidden_attention(trace, layer), np.mean(each, axis=0))


def mixer_attention(model: Any, ids: Any, layer: int, channel: int) -> float:
    """Applied to the convolution's inputs it is the channel's gated output without its biases."""
    found, m = mixer.mixer_attention(model, ids, layer, channel), mixer.mixer_of(model, ids, layer)
    inputs, gated = m.steps.inputs[0, :, channel], m.steps.gated[0, :, channel]
    return _off(found @ inputs + mixer.gated_bias(m)[:, channel], gated, found * inputs)


def contributions(model: Any, ids: Any, layer: int, at: int = -1) -> float:
    """The parts of all tokens and of the biases add up to the mixer's output."""
    tokens, bias, output = mixer.contributions(model, ids, layer, at)
    return _off(tokens.sum(axis=0) + bias, output, tokens)


def logit_lens(model: Any, trace: Any, k: int = 5) -> float:
    """After the last layer it gives the model's own probabilities. Needs residual and logits."""
    found, logits = predictions.logit_lens(model, trace, k), trace.need("logits")
    row = trace.row(model.config.num_hidden_layers - 1)
    own = np.take_along_axis(eq.softmax(logits), found.ids[row], axis=-1)
    return _off(found.probabilities[row], own)


def relevance(model: Any, ids: Any, token: int | None = None, at: int = -1) -> float:
    """The shares of all tokens and of the biases add up to the logit."""
    r = predictions.relevance(model, ids, token, at)
    return _off(r.tokens.sum(dtype=np.float64) + r.bias, r.logit, r.tokens)


def effective_rank(trace: Any, layer: int) -> float:
    """It follows from the singular values of each state."""
    s = np.linalg.svd(of_layer(trace, layer, "h").astype(np.float64), compute_uv=False)
    fourth, square = np.square(np.square(s)).sum(axis=-1), np.square(s).sum(axis=-1)
    expected = np.divide(np.square(square), fourth, out=np.zeros_like(square), where=fourth > 0)
    return _off(states.effective_rank(trace, layer), expected)


def _off(found: Any, expected: Any, *parts: NDArray) -> float:
    """Return the largest difference, as a share of the largest of all numbers that were added."""
    scale = max(float(np.max(np.abs(a), initial=0)) for a in (expected, *parts))
    return float(np.max(np.abs(found - expected), initial=0)) / (scale or 1.0)
