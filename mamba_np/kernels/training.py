"""Forward and backward through all blocks, keeping what the way back needs: one training step.

Rows are tokens, text after text. Every rank of a team runs the same functions and does its share
of each part; sums over tokens are made by each rank for itself and added at the end.
"""

import threading
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backward
from .. import derivatives as d
from .. import equations as eq
from ..config import MambaConfig
from ..params import Layer, Params
from ..reference import IGNORED_LABEL, fixed_rows
from ..threads import Member, run_team
from .cpu import team_size
from .lanes import WIDTH
from .packing import Packed, PackedLayer, Sizes, aligned, packed, padded
from .products import product
from .rows import Convolution, convolve, norm_rows
from .rows_backward import (
    ConvolutionGradients,
    activate,
    convolve_backward,
    norm_rows_backward,
    predict_rows,
)
from .scan import STEPS, Channels, Sequence, selective_scan
from .scan_backward import GATED, ScanGradients, scan_backward


class Kept:
    """What one block keeps of its forward pass, float32."""

    def __init__(self, s: Sizes, texts: int, length: int):
        tokens, blocks = texts * length, -(-length // STEPS)
        self.residual = aligned((tokens, s.D_pad))  # what the block was given
        self.normed = aligned((tokens, s.D_pad))
        self.inputs = aligned((tokens, 2 * s.E_pad))  # x, then the gate z
        self.conv = aligned((tokens, s.E_pad))
        self.x = aligned((tokens, s.E_pad))
        self.mixed = aligned((tokens, s.M_pad))  # low rank, B, C
        self.delta = aligned((tokens, s.E_pad))  # before its bias and softplus
        self.gated = aligned((tokens, s.E_pad))
        self.starts = np.zeros((texts, blocks, s.N, s.E), np.float32)


class Sums:
    """Gradients of one block's parameters that are sums over tokens, of one rank."""

    def __init__(self, s: Sizes):
        self.norm = aligned((s.D_pad,))
        self.A = aligned((s.E_pad // WIDTH, s.N, WIDTH))
        self.D = aligned((s.E_pad,))
        self.conv = aligned((s.K, s.E_pad))
        self.conv_bias = aligned((s.E_pad,))


class Way:
    """One way through a model and back: the arrays, and what each rank does."""

    def __init__(self, p: Packed, config: MambaConfig, texts: int, length: int, ranks: int):
        s = self.sizes = p.sizes
        self.p, self.texts, self.length = p, texts, length
        self.eps = np.float32(config.layer_norm_epsilon)
        self.tokens = tokens = texts * length
        self.kept = [Kept(s, texts, length) for _ in p.layers]
        self.residual = aligned((tokens, s.D_pad))
        self.final = aligned((tokens, s.D_pad))
        self.out = aligned((tokens, s.D_pad))
        self.d_residual = aligned((tokens, s.D_pad))
        self.d_normed = aligned((tokens, s.D_pad))
        self.d_inputs = aligned((tokens, 2 * s.E_pad))
        self.d_gated = aligned((tokens, s.E_pad))
        self.d_x = aligned((tokens, s.E_pad))
        self.d_delta = aligned((tokens, s.E_pad))
        self.d_mixed = aligned((ranks, tokens, s.M_pad))
        self.steps = np.full(texts, length, np.int64)
        self.fixed = fixed_rows(s.R, s.N, config.selective)
        self.groups = texts * (s.E_pad // WIDTH)

    # --- forward ---------------------------------------------------------------------------------

    def forward(self, member: Member) -> None:
        """Fill ``kept`` and ``final`` from ``residual``."""
        for layer, kept in zip(self.p.layers, self.kept, strict=True):
            self._norm(member, layer.norm, kept.normed)
            low, high = member.share(self.tokens)
            kept.residual[low:high] = self.residual[low:high]
            self._mix(member, layer, kept)
        self._norm(member, self.p.norm_f, self.final)
        member.barrier()

    def _norm(self, member: Member, weight: NDArray, out: NDArray) -> None:
        rows = member.share(self.tokens)
        norm_rows(self.residual, self.out, weight, self.sizes.D, self.eps, out, rows)

    def _mix(self, member: Member, layer: PackedLayer, k: Kept) -> None:
        s, items = self.sizes, member.share(self.groups)
        member.barrier()
        u = k.normed[:, : s.D]
        for first, place in ((0, 0), (s.E, s.E_pad)):
            columns = k.inputs[:, place : place + s.E]
            low, high = product(member, u, layer.in_proj, first, columns)
            columns[:, low:high] += layer.in_proj_bias[first + low : first + high]
        member.barrier()
        conv = Convolution(layer.conv, layer.conv_bias, s.E_pad, s.K, False)
        windows = np.zeros((self.texts, s.K, s.E), np.float32)
        convolve(conv, k.inputs, windows, k.conv, self.length, self.steps, items)
        member.barrier()
        activate(k.conv, k.x, member.share(self.tokens))
        member.barrier()
        product(member, k.x[:, : s.E], layer.x_proj, 0, k.mixed[:, : s.R + 2 * s.N])
        member.barrier()
        if self.fixed:
            mine = slice(*member.share(self.tokens))
            for rows in self.fixed:
                k.mixed[mine, rows] = layer.x_proj.values[rows].sum(axis=1)
            member.barrier()
        product(member, k.mixed[:, : s.R], layer.dt_proj, 0, k.delta[:, : s.E])
        member.barrier()
        states = np.zeros((self.texts, s.N, s.E), np.float32)
        sequence, channels = self._sequence(layer, k)
        selective_scan(
            sequence, channels, states, k.gated, k.starts, self.length, self.steps, items
        )
        member.barrier()
        low, high = product(member, k.gated[:, : s.E], layer.out_proj, 0, self.out[:, : s.D])
        self.out[:, low:high] += layer.out_proj_bias[low:high]
        member.barrier()

    def _sequence(self, layer: PackedLayer, k: Kept) -> tuple[Sequence, Channels]:
        s = self.sizes
        flat, z = k.mixed.reshape(-1), k.inputs.reshape(-1)[s.E_pad :]
        B, C = flat[s.R :], flat[s.R + s.N :]
        sequence = Sequence(k.x, k.delta, s.E_pad, B, C, s.M_pad, z, 2 * s.E_pad)
        channels = Channels(layer.A_per_octave, layer.D, layer.dt_bias, s.E_pad, s.N, True)
        return sequence, channels

    # --- backward --------------------------------------------------------------------------------

    def backward(self, member: Member, g: list[Layer], sums: list[list[Sums]]) -> None:
        """Turn ``d_residual``, the gradient after the last block, into that before the first.

        ``g`` gets the matrices' gradients of each block, ``sums`` of each block and rank the
        others'.
        """
        for i in reversed(range(len(g))):
            self._back(member, self.p.layers[i], self.kept[i], g[i], sums[i][member.rank])

    def _back(self, member: Member, layer: PackedLayer, k: Kept, g: Layer, own: Sums) -> None:
        s, items, rows = self.sizes, member.share(self.groups), member.share(self.tokens)
        here = slice(*rows)
        dy = self.d_residual[:, : s.D]
        np.matmul(dy[here], layer.out_proj.values, out=self.d_gated[here, : s.E])
        _d_weight(member, dy, k.gated[:, : s.E], g.out_proj)
        _d_bias(member, dy, g.out_proj_bias)
        member.barrier()
        self._scan_back(member, layer, k, own, items)
        member.barrier()
        self._select_back(member, layer, k, g)
        member.barrier()
        conv = Convolution(layer.conv, layer.conv_bias, s.E_pad, s.K, True)
        parts = ConvolutionGradients(self.d_inputs, own.conv, own.conv_bias)
        convolve_backward(conv, k.inputs, k.conv, self.d_x, parts, self.length, items)
        member.barrier()
        self._in_back(member, layer, k, g)
        norm_rows_backward(
            k.residual, self.d_normed, layer.norm, s.D, self.eps, self.d_residual, own.norm, rows
        )
        member.barrier()

    def _scan_back(self, member: Member, layer: PackedLayer, k: Kept, own: Sums, items) -> None:
        s = self.sizes
        mixed = self.d_mixed[member.rank]
        mixed[:] = 0
        sequence, channels = self._sequence(layer, k)
        flat, d_z = mixed.reshape(-1), self.d_inputs.reshape(-1)[s.E_pad :]
        B, C = flat[s.R :], flat[s.R + s.N :]
        g = ScanGradients(self.d_x, self.d_delta, d_z, B, C, own.A, own.D)
        scan_backward(sequence, channels, GATED, k.starts, self.d_gated, g, self.length, items)

    def _select_back(self, member: Member, layer: PackedLayer, k: Kept, g: Layer) -> None:
        s, here = self.sizes, slice(*member.share(self.tokens))
        d_delta, mixed = self.d_delta[:, : s.E], self.d_mixed[0]
        _d_weight(member, d_delta, k.mixed[:, : s.R], g.dt_proj)
        _d_bias(member, d_delta, g.dt_bias)
        for other in self.d_mixed[1 : member.size]:
            mixed[here] += other[here]
        np.matmul(d_delta[here], layer.dt_proj.values, out=mixed[here, : s.R])
        mixed = mixed[:, : s.R + 2 * s.N]
        if self.fixed:
            member.barrier()
            if member.rank == 0:  # models to study are small: one rank will do
                d_x, g.x_proj[:] = backward.d_projected(
                    mixed[None], k.x[None, :, : s.E], layer.x_proj.values, self.fixed
                )
                self.d_x[:, : s.E] += d_x[0]
            return
        self.d_x[here, : s.E] += mixed[here] @ layer.x_proj.values
        member.barrier()
        _d_weight(member, mixed, k.x[:, : s.E], g.x_proj)

    def _in_back(self, member: Member, layer: PackedLayer, k: Kept, g: Layer) -> None:
        s, here = self.sizes, slice(*member.share(self.tokens))
        weights, u = layer.in_proj.values, k.normed[:, : s.D]
        d_x, d_z = self.d_inputs[:, : s.E], self.d_inputs[:, s.E_pad : s.E_pad + s.E]
        d_u = self.d_normed[here, : s.D]
        np.matmul(d_x[here], weights[: s.E], out=d_u)
        d_u += d_z[here] @ weights[s.E :]
        for part, first in ((d_x, 0), (d_z, s.E)):
            rows = slice(first, first + s.E)
            _d_weight(member, part, u, g.in_proj[rows])
            _d_bias(member, part, None if g.in_proj_bias is None else g.in_proj_bias[rows])


def _d_weight(member: Member, dy: NDArray, x: NDArray, d_weight: NDArray) -> None:
    """Write this rank's rows of the gradient of W, where y = x @ W.T: (O, I)."""
    low, high = member.share(len(d_weight))
    np.matmul(dy[:, low:high].T, x, out=d_weight[low:high])


def _d_bias(member: Member, dy: NDArray, d_bias: NDArray | None) -> None:
    if d_bias is not None:
        low, high = member.share(len(d_bias))
        np.sum(dy[:, low:high], axis=0, out=d_bias[low:high])


# --- a whole step ---------------------------------------------------------------------------------


def loss_and_gradients(
    params: Params, config: MambaConfig, ids: NDArray, labels: NDArray
) -> tuple[np.float64, Params]:
    """Return the mean loss, and its gradients in the form of parameters; see ``gradients``.

    ``ids`` and ``labels`` (B, L) are packed: what counts comes first in each row.
    """
    p = packed(params, config)
    (texts, length), s = ids.shape, p.sizes
    size = team_size(texts * length)
    way = _way(p, config, texts, length, size)
    way.residual[:, : s.D] = params.embeddings[ids.reshape(-1)]
    run_team(way.forward, size)
    rows, places = np.nonzero(labels[:, 1:] != IGNORED_LABEL)
    where, targets = rows * length + places, labels[:, 1:][rows, places]
    heads = [np.zeros(params.embeddings.shape, np.float32) for _ in range(size)]
    losses = [0.0] * size

    def score(member: Member) -> None:
        mine = slice(*member.share(len(where)))
        losses[member.rank], way.d_normed[where[mine], : s.D] = _predict(
            way.final[where[mine], : s.D], params.lm_head, targets[mine], len(where),
            heads[member.rank],
        )  # fmt: skip

    run_team(score, size)
    d_head = _sum(heads)
    sums = [[Sums(s) for _ in range(size)] for _ in p.layers]
    g = [_like(layer) for layer in params.layers]
    norm_f = [aligned((s.D_pad,)) for _ in range(size)]

    def back(member: Member) -> None:
        norm_rows_backward(
            way.residual, way.d_normed, p.norm_f, s.D, way.eps, way.d_residual,
            norm_f[member.rank], member.share(way.tokens),
        )  # fmt: skip
        member.barrier()
        way.backward(member, g, sums)

    run_team(back, size)
    d_x = way.d_residual[:, : s.D].reshape(texts, length, s.D)
    d_embeddings = backward.d_embed(d_x, ids, config.vocab_size)
    blocks = zip(g, sums, params.layers, strict=True)
    layers = tuple(_finished(*block, s) for block in blocks)
    loss = np.float64(sum(losses) / len(where) if len(where) else np.nan)
    return loss, Params(d_embeddings, layers, _sum(norm_f)[: s.D], d_head)


between_steps = threading.local()
"""Arrays of a step that a thread keeps for its next one; see ``gradients.forget_arrays``."""


def _way(p: Packed, config: MambaConfig, texts: int, length: int, ranks: int) -> Way:
    """Return the arrays of a step: the same ones as last time, if they still fit."""
    key = (p.sizes, texts, length, ranks, config.selective)
    if getattr(between_steps, "key", None) != key:
        between_steps.key = between_steps.way = None
        between_steps.key, between_steps.way = key, Way(p, config, texts, length, ranks)
    way = between_steps.way
    way.p, way.eps = p, np.float32(config.layer_norm_epsilon)
    for array in (way.out, way.d_normed, way.d_residual):
        array[:] = 0
    return way


SCORES = 2**19
"""Scores that exist at once, for each rank: 2 MB of float32, which a cache can hold."""


def _predict(x, head, targets, count, d_head):  # (P D), (V D), (P), (V D) -> loss, (P D)
    """Do what ``backward.d_predictions`` does."""
    V = len(head)
    size = max(16, SCORES // padded(V))
    room, d_x = aligned((min(size, len(x)), padded(V))), np.empty_like(x)
    top, sums = np.empty((2, len(x)), np.float32)
    chosen = np.empty(len(x), np.float32)
    for first in range(0, len(x), size):
        some = slice(first, first + size)
        n = len(x[some])
        scores = room[:n, :V]
        room[:n, V:] = -np.inf
        np.matmul(x[some], head.T, out=scores)
        chosen[some] = scores[np.arange(n), targets[some]]
        predict_rows(room[:n], targets[some], np.float32(1 / count), top[some], sums[some], (0, n))
        np.matmul(scores, head, out=d_x[some])
        d_head += scores.T @ x[some]
    return -eq.log_share(chosen, top, sums).sum(), d_x


def _like(layer: Layer) -> Layer:
    """Return an empty array for each parameter."""
    arrays = ((f.name, getattr(layer, f.name)) for f in fields(layer))
    empty: Any = {n: None if a is None else np.empty(a.shape, np.float32) for n, a in arrays}
    return Layer(**empty)


def _sum(arrays: list[NDArray]) -> NDArray:
    """Return the sum of what the ranks have, one after another: always the same numbers."""
    return np.add.reduce(arrays)


def _finished(g: Layer, sums: list[Sums], layer: Layer, s: Sizes) -> Layer:
    """Return a block's gradients with what the ranks have summed, in the layout of parameters."""
    total = {name: _sum([getattr(one, name) for one in sums]) for name in vars(sums[0])}
    A_log = layer.A_log
    d_A = total["A"].swapaxes(1, 2).reshape(s.E_pad, s.N)[: s.E]
    return replace(
        g,
        norm=total["norm"][: s.D],
        A_log=d.d_continuous_A(d_A, eq.continuous_A(A_log), A_log),
        D=total["D"][: s.E],
        conv=total["conv"][:, : s.E].T,
        conv_bias=None if layer.conv_bias is None else total["conv_bias"][: s.E],
    )
