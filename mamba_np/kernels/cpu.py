"""The engine for processors: the functions of ``reference``, computed by compiled kernels.

Many tokens go through ``prefill``, one token of each text through ``step``. Arithmetic is float32,
whatever the weights are stored in. The scan is the recurrence, whichever scan a configuration
names: both give the same states.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .. import reference
from ..config import MambaConfig
from ..params import Layer, Params
from ..reference import State, cross_entropy, embed, memory_of, rms_norm
from ..threads import Member, get_num_threads, run_team
from .decode import DECODE_TEXTS, decode
from .head import head
from .lanes import WIDTH
from .packing import PackedLayer, Sizes, aligned, groups_of_channels, packed, padded
from .prefill import Chunk
from .rows import Convolution, convolve
from .scan import NO_STARTS, Channels, Sequence
from .scan import selective_scan as scan_kernel
from .step import Work

__all__ = [
    "block",
    "causal_conv",
    "cross_entropy",
    "embed",
    "head",
    "memory_of",
    "mixer",
    "rms_norm",
    "run",
    "selective_scan",
]

CHUNK = 512
"""Tokens of all texts together that go through the blocks at once."""


# --- the model ------------------------------------------------------------------------------------


def run(
    x: NDArray,
    params: Params,
    config: MambaConfig,
    memory: tuple[NDArray, NDArray],
    lengths: NDArray | None = None,
    keep_all: bool = False,
    observer: Any = None,
) -> list[NDArray]:
    """Do what ``reference.run`` does; ``observer``, if any, looks on: see ``observing``."""
    p = packed(params, config)
    x = np.ascontiguousarray(x)
    texts, L, _ = x.shape
    if L == 1 and texts <= DECODE_TEXTS:
        if observer is not None:
            return [observer.decode(x, p, config, memory)]
        outputs = [np.zeros_like(x) for _ in range(p.sizes.layers if keep_all else 0)]

        def keep(i: int, work: Work, advanced: NDArray, _: NDArray) -> None:
            outputs[i][advanced, 0] = work.residual[0, :, : p.sizes.D]

        normed = decode(x, p, config, memory, lengths, keep if keep_all else None)
        return [*outputs, normed]
    conv, ssm = (np.array(state) for state in memory)  # all or nothing: replaced at the end
    hidden = [np.empty_like(x) for _ in range(p.sizes.layers + 1 if keep_all else 1)]
    length = max(1, min(L, CHUNK // texts))
    chunk = None
    for start in range(0, L, length):
        piece = x[:, start : start + length]
        if chunk is None or chunk.length != piece.shape[1]:
            chunk = Chunk(p.sizes, config.layer_norm_epsilon, texts, piece.shape[1])
        chunk.read(piece, None if lengths is None else lengths - start)
        if observer is not None:
            observer.begin(chunk.length, p.sizes.N)

        def through(member: Member, chunk: Chunk = chunk, start: int = start) -> None:
            outputs = [h[:, start : start + chunk.length] for h in hidden]
            for i, layer in enumerate(p.layers):
                chunk.norm(member, layer.norm)
                if keep_all and i > 0:
                    chunk.write(member, chunk.residual, outputs[i - 1])
                look = None
                if observer is not None:
                    observer.mixed(member, i - 1, chunk)
                    look = partial(observer.mixing, member, i, layer, chunk, ssm[i])
                chunk.mix(member, layer, conv[i], ssm[i], look)
            chunk.norm(member, p.norm_f)
            if observer is not None:
                observer.mixed(member, len(p.layers) - 1, chunk)
            if keep_all:
                chunk.write(member, chunk.residual, outputs[-2])
            chunk.write(member, chunk.normed, outputs[-1])

        run_team(through, team_size(len(chunk.residual)))
    memory[0][:], memory[1][:] = conv, ssm
    return hidden


def team_size(tokens: int) -> int:
    """Return how many threads are worth waking for a chunk of tokens."""
    return max(1, min(get_num_threads(), tokens // 4))


def block(x: NDArray, layer: Layer, config: MambaConfig, state: State, lengths: Any = None):
    """Do what ``reference.block`` does: (B L D) -> (B L D), State."""
    return _one_layer(x, layer, config, state, lengths, with_norm=True)


def mixer(u: NDArray, layer: Layer, config: MambaConfig, state: State, lengths: Any = None):
    """Do what ``reference.mixer`` does: (B L D) -> (B L D), State."""
    return _one_layer(u, layer, config, state, lengths, with_norm=False)


def _one_layer(x, layer, config, state, lengths, *, with_norm):
    sizes, eps = Sizes.of(config), config.layer_norm_epsilon
    packed_layer = PackedLayer.of(layer, sizes)
    window, h = (np.array(part.swapaxes(1, 2), order="C") for part in state)
    y = np.empty_like(x)
    texts, L, _ = x.shape
    length = max(1, CHUNK // texts)
    for start in range(0, L, length):
        piece = x[:, start : start + length]
        chunk = Chunk(sizes, eps, texts, piece.shape[1])
        steps = None if lengths is None else lengths - start
        chunk.read(piece, steps, into=None if with_norm else chunk.normed)

        def through(member: Member, chunk: Chunk = chunk, start: int = start) -> None:
            if with_norm:
                chunk.norm(member, packed_layer.norm)
            chunk.mix(member, packed_layer, window, h)
            chunk.add(member)  # to the residual: zeros for a mixer alone
            chunk.write(member, chunk.residual, y[:, start : start + chunk.length])

        run_team(through, team_size(len(chunk.residual)))
    return y, State(window.swapaxes(1, 2), h.swapaxes(1, 2))


# --- the operators alone --------------------------------------------------------------------------


def causal_conv(x, weight, bias, window, lengths=None):
    """Do what ``reference.causal_conv`` does, in float32.

    (B L E), (E K), (E), (B E K) -> (B L E), window (B E K)
    """
    (texts, L, E), K = x.shape, weight.shape[1]
    wide = padded(E)
    bias = np.zeros(E, np.float32) if bias is None else bias
    c = Convolution(_wide(weight.T, wide), _wide(bias, wide), wide, K, False)
    windows = np.array(window.swapaxes(1, 2), order="C")
    rows, y = _wide(x, wide).reshape(-1, wide), aligned((texts * L, wide))
    steps = np.full(texts, L, np.int64) if lengths is None else lengths.astype(np.int64)
    items = texts * (wide // WIDTH)
    run_team(
        lambda member: convolve(c, rows, windows, y, L, steps, member.share(items)),
        team_size(len(rows)),
    )
    return y[:, :E].reshape(texts, L, E), windows.swapaxes(1, 2)


def selective_scan(
    x, delta, A, B, C, h, *, discretise=eq.discretise, scan=reference.recurrence
):  # fmt: skip
    """Do what ``reference.selective_scan`` does; without kernels for other rules and other scans.

    Channels with B or C of their own and states that could grow are left to it as well.
    (B L E), (B L E), (E N), (B L N), (B L N), (B E N) -> y (B L E), h (B E N)
    """
    growing = (A.size and A.max() > 0) or (delta.size and delta.min() < 0)
    own = B.ndim != 3 or C.ndim != 3 or discretise is not eq.discretise
    if own or growing:
        return reference.selective_scan(x, delta, A, B, C, h, discretise=discretise, scan=scan)
    (texts, L, E), N = x.shape, A.shape[1]
    wide = padded(E)
    flat, steps = (_wide(a, wide).reshape(-1, wide) for a in (x, delta))
    weights = [_wide(a, N).reshape(-1) for a in (B, C)]
    states, y = np.array(h.swapaxes(1, 2), order="C"), aligned((texts * L, wide))
    zeros = np.zeros(wide, np.float32)
    s = Sequence(flat, steps, wide, weights[0], weights[1], N, zeros, 0)
    c = Channels(groups_of_channels(eq.per_octave(A)), zeros, zeros, wide, N, False)
    rows, items = np.full(texts, L, np.int64), texts * (wide // WIDTH)
    run_team(
        lambda member: scan_kernel(s, c, states, y, NO_STARTS, L, rows, member.share(items)),
        team_size(len(flat)),
    )
    return y[:, :E].reshape(texts, L, E), states.swapaxes(1, 2)


def _wide(array: NDArray, width: int) -> NDArray:
    """Return a writeable, C-contiguous array whose last axis is extended with zeros."""
    if array.shape[-1] == width:
        return np.require(array, np.float32, ["C", "W"])
    result = np.zeros((*array.shape[:-1], width), np.float32)
    result[..., : array.shape[-1]] = array
    return result
