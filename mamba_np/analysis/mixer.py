"""A whole mixer as a sum over tokens: what each one before contributes to each output, exactly.

Between in_proj and out_proj a mixer multiplies by numbers that depend on the text and adds up over
the past: convolution, activation, scan, skip and gate. With these numbers as they came, its output
is linear in the convolution's inputs, so it is a sum of one part for each token, and one of the
biases (after arXiv:2405.16504 and arXiv:2502.15612).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..backward import activation_slope
from ..checks import integer
from ..errors import InputError
from ..gradients import keep
from ..params import Layer, convert
from ..reference import Steps, linear, selective_scan
from ..trace.tracer import one_text
from .attention import written
from .memory import kept_until_the_end
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
    params, config = convert(model.params, model.compute_dtype), model.config
    so_far = replace(params, layers=params.layers[: layer + 1])
    _, _, s = keep(so_far, config, one_text(ids)).blocks[layer]
    own, (delta, B, *_) = params.layers[layer], s.selected
    moves = Dynamics(delta[0], eq.continuous_A(own.A_log), B[0], config.discretisation)
    slope = activation_slope(s.conv[0], config.hidden_act, held=True)
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
    A_bar, B_bar = m.dynamics.steps(slice(at + 1))
    tokens = _parts(m, _row(m, kept_until_the_end(A_bar) * B_bar, slice(None)))
    output = linear(m.steps.gated[:, at : at + 1], m.layer.out_proj, m.layer.out_proj_bias)[0, 0]
    bias = linear(gated_bias(m)[None, at : at + 1], m.layer.out_proj, m.layer.out_proj_bias)[0, 0]
    return Contributions(tokens, bias, output)


def contribution_norms(model: Any, ids: Any, layer: int) -> NDArray:  # (L L)
    """Return the length of each token's contribution (columns) to each output (rows)."""
    m = mixer_of(model, ids, layer)
    found = np.zeros((len(m.slope), len(m.slope)), m.slope.dtype)
    for t, row in enumerate(_rows(m, slice(None))):
        found[t, : t + 1] = np.linalg.norm(_parts(m, row), axis=1)
    return found


def _parts(m: Mixer, row: NDArray) -> NDArray:  # (t + 1, E) -> (t + 1, D)
    """Return what each token contributes to an output of the mixer that has such a row."""
    return linear((row * m.steps.inputs[0, : len(row)])[None], m.layer.out_proj)[0]


def _rows(m: Mixer, channels: slice) -> Iterator[NDArray]:
    """Yield, for each output t, what it gets of the inputs of the tokens so far: (t + 1, c)."""
    for kept in written(*m.dynamics.steps(channels=channels)):
        yield _row(m, kept, channels)


def _row(m: Mixer, kept: NDArray, channels: slice) -> NDArray:  # (t + 1, c, N) -> (t + 1, c)
    """Return the row of the last token, of whose state ``kept`` has each token's part."""
    count, weights = len(kept), m.layer.conv[channels]
    read = kept @ m.steps.selected.C[0, count - 1]  # alpha
    read[-1] += m.layer.D[channels]
    met, row = read * m.slope[:count, channels], np.zeros_like(read)
    K = weights.shape[1]
    for k in range(min(K, count)):  # weight K - 1 - k meets the token k steps ago
        row[: count - k] += met[k:] * weights[:, K - 1 - k]
    return row * m.gate[count - 1, channels]


def gated_bias(m: Mixer) -> NDArray:  # (L, E)
    """Return what the convolution's bias does to each gated output."""
    delta, A, B, rule = m.dynamics
    driven = m.slope * (0 if m.layer.conv_bias is None else m.layer.conv_bias)
    nothing, discretise = np.zeros((1, *A.shape), A.dtype), eq.DISCRETISATIONS[rule]
    scan = driven[None], delta[None], A, B[None], m.steps.selected.C, nothing
    y, _ = selective_scan(*scan, discretise=discretise)
    return (y[0] + m.layer.D * driven) * m.gate
