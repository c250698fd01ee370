"""A whole mixer as a sum over tokens: what each one before contributes to each output, exactly.

Between in_proj and out_proj a mixer multiplies by numbers that depend on the text and adds up over
the past: convolution, activation, scan, skip and gate. With these numbers as they came, its output
is linear in the convolution's inputs, so it is a sum of one part for each token, and one of the
biases (after arXiv:2405.16504 and arXiv:2502.15612).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..checks import integer
from ..errors import InputError
from ..gradients import keep
from ..params import Layer, convert
from ..reference import Steps, linear
from ..trace.tracer import one_text
from .parts import Dynamics, position


class Mixer(NamedTuple):
    """One mixer and what it computed of one text, in the dtype that the model computes in."""

    layer: Layer
    steps: Steps  # of one row
    dynamics: Dynamics
    slope: NDArray  # (L, E): what the activation multiplied the convolution's result by
    gate: NDArray  # (L, E): what the output is multiplied by


def mixer_of(model: Any, ids: Any, layer: int) -> Mixer:
    """Compute one mixer's steps by the NumPy reference; raises InputError for a bad argument."""
    last = model.config.num_hidden_layers - 1
    layer = integer("layer", layer, low=0, high=last, error=InputError)
    params = convert(model.params, model.compute_dtype)
    some = params.__class__(
        params.embeddings, params.layers[: layer + 1], params.norm_f, params.lm_head
    )
    _, _, s = keep(some, model.config, one_text(ids)).blocks[layer]
    own, (delta, B, *_) = params.layers[layer], s.selected
    moves = Dynamics(delta[0], eq.continuous_A(own.A_log), B[0], model.config.discretisation)
    # x = conv * slope; where conv is 0, so is x for every activation but a shifted one
    slope = np.divide(s.x[0], s.conv[0], out=np.zeros_like(s.x[0]), where=s.conv[0] != 0)
    return Mixer(own, s, moves, slope, eq.silu(s.z[0]))


def mixer_attention(model: Any, ids: Any, layer: int, channel: int) -> NDArray:  # (L L)
    """Return what one channel's gated output gets of each token's input to the convolution.

    silu(z) (alpha + D) sigma(conv) M, where M is the band of the K convolution weights; the
    convolution's bias is no token's. Raises InputError for a bad argument.
    """
    m = mixer_of(model, ids, layer)
    channels = m.slope.shape[1] - 1
    e = integer("channel", channel, low=0, high=channels, error=InputError)
    found = np.zeros((len(m.slope), len(m.slope)), m.slope.dtype)
    for t, row in enumerate(_rows(m, slice(e, e + 1))):
        found[t, : t + 1] = row[:, 0]
    return found


class Contributions(NamedTuple):
    """A mixer's output as a sum: ``output`` = ``tokens`` summed over axis -2, plus ``bias``."""

    tokens: NDArray
    """(t + 1, D): what each token contributes to one output."""
    bias: NDArray
    """(D): what the biases do."""
    output: NDArray
    """(D): the mixer's output."""


def contributions(model: Any, ids: Any, layer: int, at: int = -1) -> Contributions:
    """Return what each token contributes to a mixer's output at token ``at``.

    Computed by the NumPy reference from ``ids`` (L) or (1, L). Raises InputError for a bad
    argument.
    """
    m = mixer_of(model, ids, layer)
    at = position(at, len(m.slope))
    whole = slice(0, m.slope.shape[1])
    row = next(row for t, row in enumerate(_rows(m, whole)) if t == at)
    tokens = linear((row * m.steps.inputs[0, : at + 1])[None], m.layer.out_proj)[0]
    output = linear(m.steps.gated[:, at : at + 1], m.layer.out_proj, m.layer.out_proj_bias)[0, 0]
    bias = linear(gated_bias(m)[None, at : at + 1], m.layer.out_proj, m.layer.out_proj_bias)[0, 0]
    return Contributions(tokens, bias, output)


def contribution_norms(model: Any, ids: Any, layer: int) -> NDArray:  # (L L)
    """Return the length of each token's contribution (columns) to each output (rows)."""
    m = mixer_of(model, ids, layer)
    found = np.zeros((len(m.slope), len(m.slope)), m.slope.dtype)
    for t, row in enumerate(_rows(m, slice(0, m.slope.shape[1]))):
        parts = linear((row * m.steps.inputs[0, : t + 1])[None], m.layer.out_proj)[0]
        found[t, : t + 1] = np.linalg.norm(parts, axis=1)
    return found


def _rows(m: Mixer, channels: slice) -> Iterator[NDArray]:
    """Yield, for each output t, what it gets of the inputs of the tokens so far: (t + 1, c)."""
    A_bar, B_bar = m.dynamics.steps(channels=channels)
    C, K = m.steps.selected.C[0], m.layer.conv.shape[1]
    D, weights = m.layer.D[channels], m.layer.conv[channels]
    kept = np.zeros_like(A_bar)
    for t in range(len(A_bar)):
        kept[:t] *= A_bar[t]
        kept[t] = B_bar[t]
        read = kept[: t + 1] @ C[t]  # (t + 1 c): alpha
        read[t] += D
        met = read * m.slope[: t + 1, channels]
        row = np.zeros_like(met)
        for k in range(min(K, t + 1)):  # weight K - 1 - k meets the token k steps ago
            row[: t + 1 - k] += met[k:] * weights[:, K - 1 - k]
        yield row * m.gate[t, channels]


def gated_bias(m: Mixer) -> NDArray:  # (L E)
    """Return what the convolution's bias does to each gated output."""
    bias = 0 if m.layer.conv_bias is None else m.layer.conv_bias
    driven = m.slope * bias  # (L E): x had the convolution been its bias
    y = np.empty_like(driven)
    h = np.zeros_like(m.dynamics.A)
    for now, A_bar, B_bar in m.dynamics.blocks():
        for i in range(len(A_bar)):
            t = now.start + i
            h = eq.state_update(h, A_bar[i], B_bar[i] * driven[t, :, None])
            y[t] = h @ m.steps.selected.C[0, t]
    return (y + m.layer.D * driven) * m.gate
