"""Mamba in float64 and plain loops: the independent judge of every implementation here.

Written from the paper (Gu & Dao 2023) and from what checkpoints hold, not from the package: it
imports nothing of ``mamba_np``. It is slow on purpose. Tokens, rows and states are Python loops or
one vector operation over the channels; nothing is blocked, fused, reordered or shared.

Sizes: B batch, L length, D hidden_size, E channels, N state_size, R time_step_rank, K conv_kernel.
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (teaches NumPy, and so safetensors, the dtype bfloat16)
import numpy as np
from safetensors import safe_open

# --- scalar functions, from the C library ------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def silu(x):
    return x / (1 + math.exp(-x)) if x > -700 else 0.0


def softplus(x):
    return x if x > 20 else math.log1p(math.exp(x))


def relu(x):
    return x if x > 0 else 0.0


def gelu(x):
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


def gelu_tanh(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x: x if x >= 0 else 0.01 * x,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": relu,
    "relu2": lambda x: relu(x) ** 2,
    "mish": lambda x: x * math.tanh(softplus(x)),
    "sigmoid": sigmoid,
    "tanh": math.tanh,
    "softplus": softplus,
    "linear": lambda x: x,
    "identity": lambda x: x,
}


def each(function, array):
    """Apply a scalar function to every element."""
    array = np.asarray(array, np.float64)
    return np.array([function(float(x)) for x in array.ravel()]).reshape(array.shape)


# --- the steps of a block, for one sequence ----------------------------------------------------


def rms_norm(x, weight, eps):  # (D), (D) -> (D)
    mean_square = math.fsum(float(v) * float(v) for v in x) / len(x)
    return np.array(
        [float(w) * float(v) / math.sqrt(mean_square + eps) for v, w in zip(x, weight, strict=True)]
    )


def linear(x, weight, bias=None):  # (L I), (O I), (O) -> (L O)
    rows = [weight @ one for one in x]
    if bias is not None:
        rows = [row + bias for row in rows]
    return np.array(rows).reshape(len(x), len(weight))


def causal_conv(x, weight, bias=None, window=None):
    """(L E), (E K), (E), (E K) -> y (L E), the last K inputs (E K), oldest first."""
    E, K = weight.shape
    past = [window[:, k].copy() for k in range(K)] if window is not None else [np.zeros(E)] * K
    y = np.zeros(x.shape)
    for t in range(len(x)):
        past = [*past[1:], x[t].copy()]
        for k in range(K):
            y[t] += weight[:, k] * past[k]
        if bias is not None:
            y[t] += bias
    return y, np.stack(past, axis=1)


def select(x, x_proj, dt_proj, dt_bias):
    """(L E) -> delta (L E), B (L N), C (L N): what makes the state space model selective."""
    R = dt_proj.shape[1]
    N = (len(x_proj) - R) // 2
    projected = linear(x, x_proj)
    delta = each(softplus, linear(projected[:, :R], dt_proj, dt_bias))
    return delta, projected[:, R : R + N], projected[:, R + N :]


def discretise(rule, delta, A, B):
    """(E 1), (E N), (E N) -> A_bar, B_bar of one step."""
    if rule == "mamba":  # zero-order hold for A, first order for B
        return np.exp(delta * A), delta * B
    if rule == "zoh":
        return np.exp(delta * A), np.expm1(delta * A) / A * B
    if rule == "euler":
        return 1 + delta * A, delta * B
    if rule == "bilinear":
        return (1 + delta * A / 2) / (1 - delta * A / 2), delta * B / (1 - delta * A / 2)
    raise KeyError(rule)


def _at(B, b, t, E):
    """Return the (E N) values of B (or C) in row b at position t, from any layout of the peers."""
    if B.ndim == 2:  # (E N): the same everywhere
        return B
    if B.ndim == 3:  # (B N L): the same for every channel
        return np.stack([B[b, :, t]] * E)
    G = B.shape[1]  # (B G N L): the same within a group of neighbouring channels
    return np.stack([B[b, e // (E // G), :, t] for e in range(E)])


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    initial_state=None, rule="mamba",
):  # fmt: skip
    """u, delta, z (B E L); A (E N); D, delta_bias (E) -> y (B E L), last state (B E N)."""
    u, delta, A, B, C = (np.asarray(a, np.float64) for a in (u, delta, A, B, C))
    rows, E, L = u.shape
    y = np.zeros(u.shape)
    h = np.zeros((rows, *A.shape))
    if initial_state is not None:
        h = np.array(initial_state, np.float64)
    if delta_bias is not None:
        delta = delta + np.asarray(delta_bias, np.float64)[None, :, None]
    if delta_softplus:
        delta = each(softplus, delta)
    for b in range(rows):
        for t in range(L):
            A_bar, B_bar = discretise(rule, delta[b, :, t, None], A, _at(B, b, t, E))
            h[b] = A_bar * h[b] + B_bar * u[b, :, t, None]
            y[b, :, t] = (h[b] * _at(C, b, t, E)).sum(axis=1)
    if D is not None:
        y = y + np.asarray(D, np.float64)[None, :, None] * u
    if z is not None:
        y = y * each(silu, z)
    return y, h


# --- the model ---------------------------------------------------------------------------------


class Result(NamedTuple):
    """What a forward pass gives; every array float64."""

    logits: np.ndarray  # (B L V); NaN where a token is masked and counts as absent
    hidden_states: list  # after each block, then after the last norm; (B L D) each
    conv_states: list  # one (B E K) per layer
    ssm_states: list  # one (B E N) per layer


def mixer(u, layer, act, window, h, mask=None):
    """Mix one sequence: u (L D), mask (L) -> (L D), window (E K), h (E N).

    A mask means here what transformers 5.23 makes of it: inputs are zeroed before in_proj and
    again after the convolution, and the state goes on decaying.
    """
    keep = np.ones(len(u)) if mask is None else np.asarray(mask, np.float64)
    xz = linear(u * keep[:, None], layer["in_proj.weight"], layer.get("in_proj.bias"))
    E = xz.shape[1] // 2
    x, z = xz[:, :E], xz[:, E:]
    weight = layer["conv1d.weight"].reshape(E, -1)
    x, window = causal_conv(x, weight, layer.get("conv1d.bias"), window)
    x = each(ACTIVATIONS[act], x) * keep[:, None]
    delta, B, C = select(x, layer["x_proj.weight"], layer["dt_proj.weight"], layer["dt_proj.bias"])
    y, h = selective_scan(
        x.T[None], delta.T[None], -np.exp(layer["A_log"]), B.T[None], C.T[None],
        layer["D"], z.T[None], initial_state=h[None],
    )  # fmt: skip
    return linear(y[0].T, layer["out_proj.weight"], layer.get("out_proj.bias")), window, h[0]


def block(x, layer, config, window, h, mask=None):
    """Return x + mixer(norm(x)) and the states: (L D) -> (L D), (E K), (E N)."""
    eps = config.get("layer_norm_epsilon", 1e-5)
    u = np.array([rms_norm(one, layer["norm.weight"], eps) for one in x]).reshape(x.shape)
    y, window, h = mixer(u, layer, config.get("hidden_act", "silu"), window, h, mask)
    return x + y, window, h


def layers_of(tensors):
    """Return one {short name: array} per layer."""
    layers = {}
    for name, array in tensors.items():
        if name.startswith("backbone.layers."):
            _, _, index, rest = name.split(".", 3)
            layers.setdefault(int(index), {})[rest.removeprefix("mixer.")] = array
    return [layers[i] for i in range(len(layers))]


def zero_states(tensors, rows):
    """Return (conv_states, ssm_states) of a batch that has seen nothing."""
    conv, ssm = [], []
    for layer in layers_of(tensors):
        E = len(layer["D"])
        conv.append(np.zeros((rows, E, layer["conv1d.weight"].size // E)))
        ssm.append(np.zeros((rows, *layer["A_log"].shape)))
    return conv, ssm


def forward_row(tensors, config, x, windows, states, mask=None):
    """Run one sequence of embeddings (L D); windows and states are lists with one per layer."""
    hidden, new_windows, new_states = [], [], []
    for layer, window, h in zip(layers_of(tensors), windows, states, strict=True):
        x, window, h = block(x, layer, config, window, h, mask)
        hidden.append(x)
        new_windows.append(window)
        new_states.append(h)
    eps = config.get("layer_norm_epsilon", 1e-5)
    final = np.array([rms_norm(one, tensors["backbone.norm_f.weight"], eps) for one in x])
    final = final.reshape(x.shape)
    head = tensors.get("lm_head.weight", tensors["backbone.embeddings.weight"])
    return linear(final, head), [*hidden, final], new_windows, new_states


def forward(
    tensors, config, input_ids=None, *, inputs_embeds=None, attention_mask=None,
    states=None, mask_rule="absent",
):  # fmt: skip
    """Run a model. ``mask_rule``: "absent" (masked tokens are removed) or "transformers"."""
    if inputs_embeds is None:
        inputs_embeds = tensors["backbone.embeddings.weight"][np.asarray(input_ids)]
    inputs_embeds = np.asarray(inputs_embeds, np.float64)
    rows, L, _ = inputs_embeds.shape
    conv, ssm = states if states is not None else zero_states(tensors, rows)
    results = []
    for b in range(rows):
        keep = np.ones(L, bool) if attention_mask is None else np.asarray(attention_mask[b]) != 0
        windows, hs = [c[b] for c in conv], [s[b] for s in ssm]
        if mask_rule == "transformers":
            mask = None if attention_mask is None else attention_mask[b]
            results.append(forward_row(tensors, config, inputs_embeds[b], windows, hs, mask))
        else:
            logits, hidden, *new = forward_row(tensors, config, inputs_embeds[b][keep], windows, hs)
            results.append((_spread(logits, keep), [_spread(a, keep) for a in hidden], *new))
    logits, hidden, windows, hs = zip(*results, strict=True)
    stack = lambda parts: [np.stack(one) for one in zip(*parts, strict=True)]  # noqa: E731
    return Result(np.stack(logits), stack(hidden), stack(windows), stack(hs))


def _spread(values, keep):
    """Put the results of the kept positions back in their places, NaN between them."""
    out = np.full((len(keep), values.shape[1]), np.nan)
    out[keep] = values
    return out


def cross_entropy(logits, labels):
    """Return the mean of -log p(labels[t + 1]) given logits[t], over labels other than -100."""
    losses = []
    for row, wanted in zip(np.asarray(logits, np.float64), np.asarray(labels), strict=True):
        for scores, label in zip(row[:-1], wanted[1:], strict=True):
            if label != -100:
                top = max(scores)
                total = math.fsum(math.exp(s - top) for s in scores)
                losses.append(top + math.log(total) - scores[label])
    return math.fsum(losses) / len(losses) if losses else math.nan


def greedy(tensors, config, input_ids, new_tokens, attention_mask=None):
    """Return input_ids (B L) with ``new_tokens`` more, each the most likely one."""
    ids = np.asarray(input_ids)
    result = forward(tensors, config, ids, attention_mask=attention_mask)
    last = [int(np.flatnonzero(~np.isnan(row[:, 0]))[-1]) for row in result.logits]
    scores = np.stack([row[t] for row, t in zip(result.logits, last, strict=True)])
    for _ in range(new_tokens):
        new = scores.argmax(axis=1)[:, None]
        ids = np.concatenate([ids, new], axis=1)
        result = forward(tensors, config, new, states=(result.conv_states, result.ssm_states))
        scores = result.logits[:, 0]
    return ids


# --- checkpoints -------------------------------------------------------------------------------


def read_tensors(folder):
    """Return {Hugging Face name: float64 array} of a checkpoint folder of the fixtures."""
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    tensors = {}
    for path in files:
        with safe_open(path, framework="np") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not files:
        tensors = _read_trusted_bin(folder / "pytorch_model.bin")
    renamed = {
        n.replace("backbone.embedding.", "backbone.embeddings."): a for n, a in tensors.items()
    }
    return {name: array.astype(np.float64) for name, array in renamed.items()}


def read_config(folder):
    return json.loads((Path(folder) / "config.json").read_text("utf-8"))


def _read_trusted_bin(path):
    """Read a float32 ``pytorch_model.bin`` of the fixtures; unfit for files of unknown origin."""

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            known = {
                "OrderedDict": OrderedDict,
                "_rebuild_tensor_v2": rebuild,
                "FloatStorage": "<f4",
            }
            return known[name]

        def persistent_load(self, pid):
            _, dtype, key, _, _ = pid
            return np.frombuffer(archive.read(f"{root}/data/{key}"), dtype)

    def rebuild(storage, offset, shape, strides, *_):
        strides = [4 * step for step in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)

    with zipfile.ZipFile(path) as archive:
        (member,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        root = member.removesuffix("/data.pkl")
        return dict(Reader(archive.open(member)).load())
