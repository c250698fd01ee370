"""The backward pass of ``reference``, by hand: the gradients of the inputs of each function there.

``dy`` is the gradient of the loss with respect to y. Each ``d_f`` takes dy and what f took or made,
and returns the gradients of f's inputs in f's order; arrays have the layouts of ``reference``.
"""

from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import derivatives as d
from . import equations as eq
from .checks import shown
from .config import MambaConfig
from .errors import InputError
from .params import Layer
from .reference import IGNORED_LABEL, SCAN_BLOCK, Steps, fixed_rows, recurrence

LOGITS = 2**22
"""Scores that exist at once where the loss is made: 16 MB of float32."""

DETACHABLE = ("delta", "B", "C", "gate", "activation", "norm")
"""What a backward pass can be told to leave out; see ``d_mixer`` and ``d_rms_norm``."""

NOTHING: Set[str] = frozenset()


def check_detach(detach: Set[str]) -> None:
    """Raise InputError naming the first name that is none of ``DETACHABLE``."""
    for name in detach:
        if name not in DETACHABLE:
            expected = ", ".join(DETACHABLE)
            raise InputError(f"detach: expected names among {expected}, found {shown(name)}")


# --- the pieces --------------------------------------------------------------------------------


def d_linear(dy, x, weight):  # (B L O), (B L I), (O I) -> (B L I), (O I), (O)
    """Return (dx, dweight, dbias) of y = x @ weight.T + bias."""
    rows = dy.reshape(-1, dy.shape[-1])
    dx = (rows @ weight.astype(dy.dtype, copy=False)).reshape(*dy.shape[:-1], weight.shape[1])
    return dx, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(axis=0)


def d_rms_norm(dy, x, weight, eps, detach: Set[str] = NOTHING):
    """Return (dx, dweight). With "norm" detached, the root mean square counts as a constant.

    (B L D), (B L D), (D) -> (B L D), (D). Raises InputError for unknown names in ``detach``.
    """
    check_detach(detach)
    rms = eq.root_mean_square(np.mean(x * x, axis=-1, keepdims=True), eps)
    normed, d_scaled = x / rms, dy * weight
    mean = 0 if "norm" in detach else np.mean(d_scaled * normed, axis=-1, keepdims=True)
    return d.d_normed(d_scaled, normed, rms, mean), (dy * normed).sum(axis=(0, 1))


def d_embed(dx, ids, vocab_size):  # (B L D), (B L) -> (V D)
    """Return the gradient of the embedding matrix: each row's is the sum over its tokens."""
    rows, tokens = dx.reshape(-1, dx.shape[-1]), ids.reshape(-1)
    order = np.argsort(tokens, kind="stable")
    found, first = np.unique(tokens[order], return_index=True)
    result = np.zeros((vocab_size, dx.shape[-1]), dx.dtype)
    result[found] = np.add.reduceat(rows[order], first, axis=0)
    return result


def d_causal_conv(dy, x, weight, window, d_window=None):
    """Return (dx, dweight, dbias, dwindow); ``d_window`` is that of the window after the last step.

    (B L E), (B L E), (E K), (B E K) -> (B L E), (E K), (E), (B E K)
    """
    K, L = weight.shape[1], x.shape[1]
    inputs = np.concatenate([window.swapaxes(1, 2), x], axis=1)  # (B K+L E), as in causal_conv
    d_inputs, d_weight = np.zeros_like(inputs), np.empty_like(weight)
    for k in range(K):
        met = slice(1 + k, 1 + k + L)
        d_inputs[:, met] += dy * weight[:, k]
        d_weight[:, k] = np.einsum("ble,ble->e", dy, inputs[:, met])
    if d_window is not None:
        d_inputs[:, L:] += d_window.swapaxes(1, 2)
    return d_inputs[:, K:], d_weight, dy.sum(axis=(0, 1)), d_inputs[:, :K].swapaxes(1, 2)


# --- the scan ----------------------------------------------------------------------------------


class ScanGradients(NamedTuple):
    """The gradients of the inputs of a scan, each shaped like the input."""

    x: NDArray  # (B, L, E)
    delta: NDArray  # (B, L, E)
    A: NDArray  # (E, N)
    B: NDArray  # (B, L, N), or (B, L, E, N)
    C: NDArray  # (B, L, N), or (B, L, E, N)
    h: NDArray  # (B, E, N)


def d_selective_scan(dy, x, delta, A, B, C, h, d_h=None) -> ScanGradients:
    """Return the gradients of ``reference.selective_scan``; ``d_h`` is that of the last state.

    States are not kept from the forward pass: those at the beginning of each block are made first,
    then, block after block from the end, those inside it. Memory grows with the number of blocks.
    (B L E), (B L E), (B L E), (E N), (B L N), (B L N), (B E N) -> ScanGradients
    """
    shared = B.ndim == 3, C.ndim == 3
    B, C = (m[:, :, None] if m.ndim == 3 else m for m in (B, C))
    L, steps = x.shape[1], max(1, SCAN_BLOCK // max(1, h.size))
    blocks = [slice(start, min(start + steps, L)) for start in range(0, L, steps)]
    before = [h]
    for now in blocks[:-1]:
        before.append(_states(x, delta, A, B, now, before[-1])[1][:, -1])
    d_x, d_delta = np.empty_like(x), np.empty_like(delta)
    d_A, d_B, d_C = np.zeros_like(A), np.empty_like(B), np.empty_like(C)
    d_h = np.zeros_like(h) if d_h is None else d_h
    # Not strict: a sequence of length 0 has a beginning, and no block.
    for now, h_before in zip(reversed(blocks), reversed(before), strict=False):
        A_bar, states = _states(x, delta, A, B, now, h_before)
        d_states, d_h = _d_states(dy[:, now, :, None] * C[:, now], A_bar, d_h)
        previous = np.concatenate([h_before[:, None], states[:, :-1]], axis=1)
        _, d_exponent, _ = d.d_state_update(d_states, previous, A_bar)
        d_C[:, now] = _summed(dy[:, now, :, None] * states, C)
        d_B[:, now] = _summed(d_states * (delta[:, now] * x[:, now])[..., None], B)
        d_drive = np.sum(d_states * B[:, now], axis=-1)  # of delta * x
        d_x[:, now] = d_drive * delta[:, now]
        d_delta[:, now] = d_drive * x[:, now] + np.sum(d_exponent * A, axis=-1)
        d_A += np.einsum("blen,ble->en", d_exponent, delta[:, now])
    d_B, d_C = (m[:, :, 0] if one else m for m, one in zip((d_B, d_C), shared, strict=True))
    return ScanGradients(d_x, d_delta, d_A, d_B, d_C, d_h)


def _states(x, delta, A, B, now, h):  # -> A_bar (B l E N), states (B l E N)
    A_bar, B_bar = eq.discretise(delta[:, now, :, None], A, B[:, now])
    return A_bar, recurrence(A_bar, B_bar * x[:, now, :, None], h)


def _d_states(d_read, A_bar, d_h):  # (B l E N), (B l E N), (B E N) -> (B l E N), (B E N)
    """Return the gradients of the states after each step, and of the one before the first."""
    result = np.empty_like(d_read)
    for t in reversed(range(d_read.shape[1])):
        result[:, t] = d_read[:, t] + d_h
        d_h = result[:, t] * A_bar[:, t]
    return result, d_h


def _summed(gradient, like):
    """Sum over channels what all of them share."""
    return gradient.sum(axis=2, keepdims=True) if like.shape[2] == 1 else gradient


# --- the model ---------------------------------------------------------------------------------


class MixerGradients(NamedTuple):
    """The gradients of a mixer's input, of its parameters by field, and of its first state."""

    u: NDArray  # (B, L, D)
    parameters: dict[str, NDArray]
    window: NDArray  # (B, E, K)
    h: NDArray  # (B, E, N)


def d_mixer(
    dy,
    u,
    layer: Layer,
    config: MambaConfig,
    steps: Steps,
    state: Any,
    lengths=None,
    detach: Set[str] = NOTHING,
) -> MixerGradients:
    """Return the gradients of ``reference.mixer``; ``steps`` are what its forward pass made.

    ``state`` is the one that the forward pass began with. Detached, "delta", "B" and "C" count as
    constants. With "activation" so does what each activation multiplies its input by: the sigmoid
    of a silu. With "gate" both factors of the gate get half of their gradient, so that their sum
    is conserved. Raises InputError for unknown names.
    """
    check_detach(detach)
    s = steps.selected
    d_gated, d_out_proj, d_out_bias = d_linear(dy, steps.gated, layer.out_proj)
    half = 0.5 if "gate" in detach else 1
    held = "activation" in detach
    d_gate = d.d_gate_held if held else d.d_gate
    d_y = half * d.d_ungated(d_gated, steps.z)
    d_z = half * d_gate(d_gated, steps.y, steps.x, layer.D, steps.z)
    A = eq.continuous_A(layer.A_log)
    scan = d_selective_scan(d_y, steps.x, s.delta, A, s.B, s.C, state.h)
    d_x = scan.x + d_y * layer.D
    d_raw = scan.delta * d.d_softplus(s.raw)
    if lengths is not None:
        d_raw[np.arange(d_raw.shape[1]) >= lengths[:, None]] = 0
    if "delta" in detach:
        d_raw = np.zeros_like(d_raw)
    d_low_rank, d_dt_proj, d_dt_bias = d_linear(d_raw, s.low_rank, layer.dt_proj)
    d_B, d_C = (g * (name not in detach) for name, g in (("B", scan.B), ("C", scan.C)))
    d_mixed = np.concatenate([d_low_rank, d_B, d_C], axis=-1)
    fixed = fixed_rows(config.time_step_rank, config.state_size, config.selective)
    d_x_selected, d_x_proj = d_projected(d_mixed, steps.x, layer.x_proj, fixed)
    d_conv = (d_x + d_x_selected) * activation_slope(steps.conv, config.hidden_act, held=held)
    d_inputs, d_weight, d_conv_bias, d_window = d_causal_conv(
        d_conv, steps.inputs, layer.conv, state.window
    )
    d_u, d_in_proj, d_in_bias = d_linear(np.concatenate([d_inputs, d_z], -1), u, layer.in_proj)
    parameters = {
        "in_proj": d_in_proj,
        "in_proj_bias": d_in_bias,
        "conv": d_weight,
        "conv_bias": d_conv_bias,
        "x_proj": d_x_proj,
        "dt_proj": d_dt_proj,
        "dt_bias": d_dt_bias,
        "A_log": d.d_continuous_A(scan.A, A, layer.A_log),
        "D": np.einsum("ble,ble->e", d_y, steps.x),
        "out_proj": d_out_proj,
        "out_proj_bias": d_out_bias,
    }
    present = {name: g for name, g in parameters.items() if getattr(layer, name) is not None}
    return MixerGradients(d_u, present, d_window, scan.h)


def d_projected(d_mixed, x, x_proj, fixed: list[slice]):
    """Return (dx, dweight) of what ``reference.select`` projects; ``fixed`` rows meet ones, not x.

    (B L R+2N), (B L E), (R+2N E) -> (B L E), (R+2N E)
    """
    sums = [d_mixed[..., rows].sum(axis=(0, 1)) for rows in fixed]
    for rows in fixed:
        d_mixed[..., rows] = 0
    d_x, d_x_proj, _ = d_linear(d_mixed, x, x_proj)
    for rows, total in zip(fixed, sums, strict=True):
        d_x_proj[rows] = total[:, None]
    return d_x, d_x_proj


def activation_slope(x, hidden_act: str, *, held: bool):
    """Return the derivative of an activation at x; ``held``: what it multiplies x by, act(x) / x.

    Any shape -> the same shape.
    """
    act = eq.ACTIVATIONS[hidden_act]
    slope = d.DERIVATIVES[act](x)
    if held:  # at 0 the two are the same, where act(0) = 0
        np.divide(act(x), x, out=slope, where=x != 0)
    return slope


def d_cross_entropy(x, lm_head, labels):  # (B L D), (V D), (B L) -> loss, (B L D), (V D)
    """Return the mean loss of the head's scores, and the gradients of x and of the head."""
    d_x, d_head = np.zeros_like(x), np.zeros(lm_head.shape, x.dtype)
    rows, places = np.nonzero(labels[:, 1:] != IGNORED_LABEL)
    head, count = lm_head.astype(x.dtype, copy=False), len(rows)
    total, d_x[rows, places] = d_predictions(
        x[rows, places], head, labels[:, 1:][rows, places], count, d_head
    )
    return np.float64(total / count if count else np.nan), d_x, d_head


def d_predictions(x, head, targets, count, d_head):  # (P D), (V D), (P), (V D) -> loss, (P D)
    """Return the summed loss of P predictions, and its gradient with respect to x over ``count``.

    That of the head is added to ``d_head``. Some predictions at a time, so that scores of (P, V)
    never exist.
    """
    total, d_x = 0.0, np.empty_like(x)
    size = max(1, LOGITS // len(head))
    for start in range(0, len(x), size):
        some = slice(start, start + size)
        scores = x[some] @ head.T
        total -= eq.log_probability(scores, targets[some]).sum()
        chosen = np.zeros_like(scores)
        np.put_along_axis(chosen, targets[some, None], 1, axis=-1)
        d_scores = d.d_cross_entropy(scores, chosen, x.dtype.type(count))
        np.matmul(d_scores, head, out=d_x[some])
        d_head += d_scores.T @ x[some]
    return total, d_x
