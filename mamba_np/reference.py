"""Mamba's forward pass in NumPy: the first file to read, and the judge of every faster engine.

    ids -> embed -> [ rms_norm -> mixer, + residual ] x num_hidden_layers -> rms_norm -> head
    mixer: in_proj -> causal_conv -> act -> select -> discretise -> scan -> gate -> out_proj

Arrays are time-major, (B, L, channels): a channel's neighbours in memory are other channels. Sizes:
B batch, L length, D hidden_size, E intermediate_size (channels), N state_size, R time_step_rank,
K conv_kernel, V vocab_size. What a block remembers between calls is a State: the convolution's
window of the last K inputs and the state h.

Rows of a batch may end early: ``lengths`` (B) says how many positions of each row count. Later
positions leave the State as it is, and their outputs mean nothing. None: all positions count.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import equations as eq
from .config import SELECTIVE, MambaConfig
from .params import Layer, Params

SCAN_BLOCK = 2**16
"""Elements of each (B, L, E, N) array that exist at once: few enough for a cache."""


WIDEN_BLOCK = 2**22
"""How many 16-bit weights are widened at once: 16 MB of float32."""

CHUNK = 512
"""Tokens that go through all blocks together: bounds memory, changes results by rounding only."""

LOSS_BLOCK = 64
"""Positions whose probabilities are computed at once."""

IGNORED_LABEL = -100
"""Positions with this label have no part in the loss, as in torch."""


class State(NamedTuple):
    """What one block remembers of one batch."""

    window: NDArray  # (B, E, K): the last K inputs of the convolution, oldest first
    h: NDArray  # (B, E, N)


# --- the pieces --------------------------------------------------------------------------------


def embed(ids, embeddings, dtype):  # (B L), (V D) -> (B L D)
    """Return the rows of the embedding matrix that the ids name."""
    return embeddings[ids].astype(dtype, copy=False)


def rms_norm(x, weight, eps):  # (B L D), (D) -> (B L D)
    """Divide each vector by its root mean square, then scale each channel.

    Source: Zhang and Sennrich 2019, equation 4.
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / eq.root_mean_square(mean_square, eps) * weight


def linear(x, weight, bias=None):  # (B L I), (O I), (O) -> (B L O)
    """Return x @ weight.T + bias; 16-bit weights are widened to the dtype of x on the way."""
    tokens = x.reshape(-1, x.shape[-1])  # one matrix product for the whole batch
    if weight.dtype == x.dtype:
        y = tokens @ weight.T
    else:  # some rows at a time: the whole matrix never exists twice
        rows = max(1, WIDEN_BLOCK // weight.shape[1])
        pieces = (weight[i : i + rows].astype(x.dtype) for i in range(0, len(weight), rows))
        y = np.concatenate([tokens @ piece.T for piece in pieces], axis=-1)
    y = y.reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


def causal_conv(x, weight, bias, window, lengths=None):
    """Convolve each channel with its own K weights over the present and the past.

    (B L E), (E K), (E), (B E K) -> (B L E), window (B E K)
    """
    K, L = weight.shape[1], x.shape[1]
    inputs = np.concatenate([window.swapaxes(1, 2), x], axis=1)  # (B K+L E)
    # The output at t meets the inputs t-K+1 ... t, which stand K places further right here.
    y = sum(inputs[:, 1 + k : 1 + k + L] * weight[:, k] for k in range(K))
    if lengths is None:
        window = inputs[:, L:]
    else:  # the last K inputs of a row end where the row ends
        last = lengths[:, None] + np.arange(K)
        window = np.take_along_axis(inputs, last[:, :, None], axis=1)
    return (y if bias is None else y + bias), window.swapaxes(1, 2)


class Selected(NamedTuple):
    """What a block makes of each token: the scan's step sizes, and the ways in and out."""

    delta: NDArray  # (B, L, E)
    B: NDArray  # (B, L, N)
    C: NDArray  # (B, L, N)
    low_rank: NDArray  # (B, L, R): what the step sizes are made of
    raw: NDArray  # (B, L, E): the step sizes before softplus


def select(x, x_proj, dt_proj, dt_bias, selective=SELECTIVE):
    """Make the step size and the two ways in and out of the state from the input itself.

    This dependence on x is the selection of the paper (section 3.2, algorithm 2). What is not in
    ``selective`` meets ones instead of x: the same at every step, as in the models before Mamba.
    (B L E), (R+2N E), (E R), (E) -> Selected: delta (B L E), B (B L N), C (B L N), ...
    """
    R = dt_proj.shape[1]
    N = (x_proj.shape[0] - R) // 2
    mixed = linear(x, x_proj)
    for fixed in fixed_rows(R, N, selective):
        mixed[..., fixed] = x_proj[fixed].astype(x.dtype).sum(axis=1)
    low_rank, B, C = mixed[..., :R], mixed[..., R : R + N], mixed[..., R + N :]
    raw = linear(low_rank, dt_proj, dt_bias)
    return Selected(eq.softplus(raw), B, C, low_rank, raw)


def fixed_rows(R: int, N: int, selective) -> list[slice]:
    """Return which of the R+2N rows of x_proj do not meet the input."""
    rows = {"delta": slice(R), "B": slice(R, R + N), "C": slice(R + N, R + 2 * N)}
    return [rows[name] for name in SELECTIVE if name not in selective]


def recurrence(A_bar, drive, h):  # (B L E N), (B L E N), (B E N) -> (B L E N)
    """Return the states after each step, one step at a time (equation 2a)."""
    states = np.empty_like(drive)
    for t in range(drive.shape[1]):
        h = states[:, t] = eq.state_update(h, A_bar[:, t], drive[:, t])
    return states


def associative_scan(A_bar, drive, h):  # (B L E N), (B L E N), (B E N) -> (B L E N)
    """Return the same states as ``recurrence`` in about 2 log2(L) passes over whole arrays.

    Steps compose (``eq.compose``), so neighbours are merged into one step each, the half as long
    sequence is solved the same way, and the states between are filled in.
    """
    first = eq.state_update(h, A_bar[:, 0], drive[:, 0])
    return _scan_from_zero(A_bar, np.concatenate([first[:, None], drive[:, 1:]], axis=1))


def _scan_from_zero(A_bar, drive):  # (B L E N), (B L E N) -> (B L E N)
    L = drive.shape[1]
    if L == 1:
        return drive
    even, odd = slice(0, L - 1, 2), slice(1, L, 2)
    merged = eq.compose(A_bar[:, even], drive[:, even], A_bar[:, odd], drive[:, odd])
    states = np.empty_like(drive)
    states[:, odd] = _scan_from_zero(*merged)
    states[:, 0] = drive[:, 0]
    before = states[:, 1 : L - 1 : 2]  # the states that the steps 2, 4, 6 ... start from
    states[:, 2::2] = eq.state_update(before, A_bar[:, 2::2], drive[:, 2::2])
    return states


def selective_scan(
    x, delta, A, B, C, h, *, discretise: Callable = eq.discretise, scan: Callable = recurrence
):
    """Run the state space model h' = A_bar h + B_bar x, y = C h over the sequence.

    (B L E), (B L E), (E N), (B L N), (B L N), (B E N) -> y (B L E), h (B E N)

    ``B`` and ``C`` may also be (B L E N), each channel having its own. ``discretise`` is one of
    ``eq.DISCRETISATIONS``; ``scan`` is ``recurrence`` or ``associative_scan``. States exist for
    a block of steps at a time, so memory does not grow with L.
    """
    B = B[:, :, None] if B.ndim == 3 else B  # (B L 1 N): the same for every channel
    read = _read_shared if C.ndim == 3 else np.vecdot
    y = np.empty_like(x)
    steps = max(1, SCAN_BLOCK // max(1, h.size))
    for start in range(0, x.shape[1], steps):
        now = slice(start, start + steps)
        A_bar, B_bar = discretise(delta[:, now, :, None], A, B[:, now])
        states = scan(A_bar, B_bar * x[:, now, :, None], h)
        y[:, now] = read(states, C[:, now])
        h = states[:, -1]
    return y, h


def _read_shared(states, C):  # (B L E N), (B L N) -> (B L E)
    return (states @ C[..., None])[..., 0]


# --- the model ---------------------------------------------------------------------------------


class Steps(NamedTuple):
    """What a mixer computes on its way, (B, L, ...); ``y`` is what the scan gives, ungated."""

    inputs: NDArray  # (B, L, E): what the convolution meets
    z: NDArray  # (B, L, E): the gate
    conv: NDArray  # (B, L, E): the convolution's result
    x: NDArray  # (B, L, E): after the activation
    selected: Selected
    y: NDArray  # (B, L, E)
    gated: NDArray  # (B, L, E)


def mixer_steps(u, layer: Layer, config: MambaConfig, state: State, lengths=None):
    """Do all that a mixer does before out_proj: (B L D) -> Steps (B L E) each, State."""
    E = config.intermediate_size
    xz = linear(u, layer.in_proj, layer.in_proj_bias)
    inputs, z = xz[..., :E], xz[..., E:]  # (B L E) each
    conv, window = causal_conv(inputs, layer.conv, layer.conv_bias, state.window, lengths)
    x = eq.ACTIVATIONS[config.hidden_act](conv)
    selected = select(x, layer.x_proj, layer.dt_proj, layer.dt_bias, config.selective)
    delta, B, C, *_ = selected
    if lengths is not None:  # delta = 0 makes a step the identity
        delta[np.arange(delta.shape[1]) >= lengths[:, None]] = 0
    A, discretise = eq.continuous_A(layer.A_log), eq.DISCRETISATIONS[config.discretisation]
    y, h = selective_scan(x, delta, A, B, C, state.h, discretise=discretise, scan=scan_of(config))
    gated = eq.output(y, x, layer.D, z)
    return Steps(inputs, z, conv, x, selected, y, gated), State(window, h)


def mixer(u, layer: Layer, config: MambaConfig, state: State, lengths=None):
    """Mix information along the sequence (paper, figure 3): (B L D) -> (B L D), State."""
    steps, state = mixer_steps(u, layer, config, state, lengths)
    return linear(steps.gated, layer.out_proj, layer.out_proj_bias), state


def block(x, layer: Layer, config: MambaConfig, state: State, lengths=None):
    """Add what the mixer makes of the normed input to the residual: (B L D) -> (B L D), State."""
    u = rms_norm(x, layer.norm, config.layer_norm_epsilon)
    y, state = mixer(u, layer, config, state, lengths)
    return x + y, state


def memory_of(cache):
    """Return what ``run`` advances: the arrays of a cache. An engine may have them elsewhere."""
    return cache.memory


def run(x, params: Params, config: MambaConfig, memory, lengths=None, keep_all: bool = False):
    """Run x through all blocks and the last norm, a chunk of tokens at a time.

    ``memory`` holds the windows (blocks, B, K, E) and the states (blocks, B, N, E): both are
    advanced in place, once all has gone well. Returns the normed output (B, L, D) alone in a list,
    or after the outputs of all blocks with ``keep_all``.
    (B L D) -> list of (B L D)
    """
    conv, ssm = memory
    states = [State(*pair) for pair in zip(conv.swapaxes(2, 3), ssm.swapaxes(2, 3), strict=True)]
    hidden = [np.empty_like(x) for _ in range(len(states) + 1 if keep_all else 1)]
    length = max(1, CHUNK // len(x))
    for start in range(0, x.shape[1], length):
        now = slice(start, start + length)
        piece = x[:, now]
        ends = None if lengths is None else np.clip(lengths - start, 0, piece.shape[1])
        for i, layer in enumerate(params.layers):
            piece, states[i] = block(piece, layer, config, states[i], ends)
            if keep_all:
                hidden[i][:, now] = piece
        hidden[-1][:, now] = rms_norm(piece, params.norm_f, config.layer_norm_epsilon)
    for i, (window, h) in enumerate(states):
        conv[i], ssm[i] = window.swapaxes(1, 2), h.swapaxes(1, 2)
    return hidden


def head(x, lm_head):  # (B L D), (V D) -> (B L V)
    """Return one score for each token of the vocabulary."""
    return linear(x, lm_head)


def cross_entropy(logits, labels):  # (B L V), (B L) -> ()
    """Return the mean of -log p(next label) in nats, and nan if there is no label to predict.

    The logits at each position are held against the label at the following one; labels of -100
    are left out. The sum and the result are in float64.
    """
    rows, places = np.nonzero(labels[:, 1:] != IGNORED_LABEL)
    total = 0.0
    for start in range(0, len(rows), LOSS_BLOCK):  # few at a time: no second array of (B, L, V)
        some = rows[start : start + LOSS_BLOCK], places[start : start + LOSS_BLOCK]
        total -= eq.log_probability(logits[:, :-1][some], labels[:, 1:][some]).sum()
    return np.float64(total / len(rows) if len(rows) else np.nan)


def scan_of(config: MambaConfig) -> Callable:
    """Return the scan that the configuration selects; both give the same states.

    transformers' default, ``use_associative_scan=True``, selects the associative scan.
    """
    if config.use_mambapy or config.use_associative_scan:
        return associative_scan
    return recurrence
