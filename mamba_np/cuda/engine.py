"""The engine for NVIDIA GPUs: the functions of ``reference``, computed on a device.

Weights, states and everything in between stay there: ids go in, scores come out. A prompt goes
through products of matrices and kernels for sequences, a chunk of tokens at a time; one token of
one text through four kernels a layer, recorded once and replayed (see ``token``). Arithmetic is
float32; with bfloat16 weights a prompt's products take their inputs in bfloat16, too.
"""

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .. import reference
from ..config import MambaConfig
from ..errors import BackendError
from ..params import Layer, Params, map_arrays, may_change
from ..reference import State, cross_entropy
from . import arena, driver, operators
from .arena import DeviceStates, Matrix, Sizes
from .device import Block, Device, upload_new
from .products import blocks_for, gemv
from .prompt import Chunk, Rows
from .rows import DeviceRows, Embedded
from .token import Token, Writer, weights

if TYPE_CHECKING:
    from ..cache import MambaCache

__all__ = [
    "block",
    "cross_entropy",
    "device",
    "embed",
    "head",
    "memory_of",
    "mixer",
    "run",
    "selective_scan",
    "writer",
]

CHUNK = 4096
"""Tokens of all texts together that go through the blocks at once."""

SCORED = 512
"""Positions whose scores exist on the device at once."""


def device() -> Device:
    """Return the GPU to compute on: the first that CUDA_VISIBLE_DEVICES shows.

    Raises BackendError saying what is missing.
    """
    return driver.gpu()


# --- what stays on the device ---------------------------------------------------------------------


class Loaded:
    """A model on a device: its parameters, and copies of the arrays that somebody may change."""

    def __init__(self, device: Device, params: Params, config: MambaConfig):
        self.device = device
        needed, free = arena.nbytes(params, config), device.free_bytes()
        if needed > free:
            raise BackendError(
                f"backend: expected {needed:,} bytes of free memory on {device.name} for the "
                f"model's weights, found {free:,}"
            )
        self._seen = [(a, a.copy()) for a in _arrays(params) if may_change(a)]
        self.params = arena.upload(device, params, config)
        self.chunk: Chunk | None = None
        self.scores: Block | None = None

    def unchanged(self, device: Device) -> bool:
        """Return whether the device has what the arrays hold now."""
        same = all(np.array_equal(now, then, equal_nan=True) for now, then in self._seen)
        return device is self.device and same

    def room(self, rows: int) -> Chunk:
        """Return memory for a chunk of tokens: that of the call before, if it is enough."""
        if self.chunk is None or self.chunk.rows < rows:
            self.chunk = None  # given back before there is more
            self.chunk = Chunk(self.device, self.params, rows)
        return self.chunk

    def room_for_scores(self, positions: int, V: int) -> Block:
        """Return memory for the scores of some positions: that of the call before, likewise."""
        if self.scores is None or self.scores.nbytes < 4 * positions * V:
            self.scores = None
            self.scores = self.device.allocate(4 * positions * V)
        return self.scores


def _arrays(params: Params) -> list[NDArray]:
    found: list[NDArray] = []
    map_arrays(lambda _, array: found.append(array) or array, params)
    return found


_loaded: "WeakKeyDictionary[Params, Loaded]" = WeakKeyDictionary()


def loaded(params: Params, config: MambaConfig) -> Loaded:
    """Return a model on the device: sent there the first time, and when a number has changed."""
    found, gpu = _loaded.get(params), device()
    if found is None or not found.unchanged(gpu):
        _loaded.pop(params, None)  # its memory first
        del found
        found = _loaded[params] = Loaded(gpu, params, config)
    return found


def memory_of(cache: "MambaCache") -> DeviceStates:
    """Return the states of a cache on the device, sent there if they are not."""
    gpu = device()
    if isinstance(cache.away, DeviceStates) and cache.away.device is gpu:
        return cache.away
    with gpu.lock:
        states = DeviceStates(gpu, Sizes.of_states(*cache.memory), cache.batch_size)
        states.send(*cache.memory)
    cache.away = states
    return states


# --- the model ------------------------------------------------------------------------------------


def embed(ids: NDArray, embeddings: Any, dtype: Any) -> Embedded:  # (B L), (V D) -> (B L D)
    """Return what stands for the embeddings until ``run`` looks them up on the device."""
    return Embedded(ids, embeddings)


def run(
    x: NDArray | Embedded,
    params: Params,
    config: MambaConfig,
    memory: DeviceStates | tuple[NDArray, NDArray],
    lengths: NDArray | None = None,
    keep_all: bool = False,
    observer: Any = None,
) -> list[Any]:
    """Do what ``reference.run`` does; the last output is rows on the device (``DeviceRows``).

    ``observer`` looks on at the blocks of one text (``observing.Observer``).
    """
    with device().lock:
        model = loaded(params, config)
        if isinstance(memory, DeviceStates):
            return _run(x, model, config, memory, lengths, keep_all, observer)
        states = DeviceStates(model.device, model.params.sizes, len(x))
        states.send(*memory)
        hidden = _run(x, model, config, states, lengths, keep_all, observer)
        states.fetch(*memory)
        return hidden


def _run(
    x: Any, model: Loaded, config: MambaConfig, states: DeviceStates, lengths: Any,
    keep_all: bool, observer: Any,
) -> list[Any]:  # fmt: skip
    texts, L, D = x.shape
    if texts == L == 1 and lengths is None and not keep_all:
        return [_one_token(x, model, config, states, observer)]
    gpu, s = model.device, model.params.sizes
    length = max(1, min(L, CHUNK // texts))
    chunk = model.room(texts * length)
    normed = gpu.allocate(4 * texts * L * s.D_pad)
    hidden = [np.empty(x.shape, np.float32) for _ in range(s.layers if keep_all else 0)]
    eps = config.layer_norm_epsilon
    for start in range(0, L, length):
        piece = x[:, start : start + length]
        now = piece.shape[1]
        ends = np.full(texts, now) if lengths is None else np.clip(lengths - start, 0, now)
        chunk.read(piece, ends)
        if observer is not None:
            observer.begin(gpu, s, now)
        for i in range(s.layers):
            chunk.block(i, states, now, eps, observer)
            if keep_all:
                rows = DeviceRows(gpu, chunk.residual, piece.shape, s.D_pad)
                hidden[i][:, start : start + now] = np.asarray(rows)
        chunk.norm(model.params.norm_f, eps, texts * now)
        for text in range(texts):  # the chunk's memory is the next chunk's
            to, source = (4 * s.D_pad * row for row in (text * L + start, text * now))
            gpu.copy(normed.address + to, chunk.normed.address + source, 4 * s.D_pad * now)
    last = DeviceRows(gpu, normed, (texts, L, D), s.D_pad)
    return [*hidden, np.asarray(last)] if keep_all else [last]


def _one_token(
    x: Any, model: Loaded, config: MambaConfig, states: DeviceStates, observer: Any
) -> DeviceRows:  # (1 1 D) -> (1 1 D)
    token = _token(model, config, states)
    if observer is None:
        token.read(x)
    else:
        token.read_watched(x, observer, model.room(1))
    shape = 1, 1, x.shape[2]
    return DeviceRows(model.device, token.normed(), shape, model.params.sizes.D_pad)


def _token(model: Loaded, config: MambaConfig, states: DeviceStates) -> Token:
    if states.token is None or states.token.params is not model.params:
        eps = config.layer_norm_epsilon
        states.token = Token(model.device, model.params, states, eps)
    return states.token


def writer(
    params: Params,
    config: MambaConfig,
    cache: "MambaCache",
    token: int,
    most: int,
    drawing: tuple[float, int] = (0.0, 0),
) -> Writer:
    """Return an iterator of the tokens after one, chosen and read on the device.

    ``drawing`` is a temperature, 0 for the best tokens, and a seed.
    """
    with device().lock:
        model, states = loaded(params, config), memory_of(cache)
        return Writer(_token(model, config, states), token, most, *drawing)


def head(x: Any, lm_head: Any) -> NDArray:  # (B L D), (V D) -> (B L V)
    """Do what ``reference.head`` does, with rows on the device or an array.

    NumPy does it for a head that was never sent to the device: nothing was run with it.
    """
    model = next((m for p, m in _loaded.items() if p.lm_head is lm_head), None)
    if model is None or model.params.lm_head is None or model.device is not device():
        return reference.head(np.asarray(x), lm_head)
    with model.device.lock:
        return _scores(x, model, model.params.lm_head)


def _scores(x: Any, model: Loaded, matrix: Matrix) -> NDArray:  # (B L D) -> (B L V)
    gpu, D_pad = model.device, model.params.sizes.D_pad
    texts, L, D = x.shape
    if not isinstance(x, DeviceRows):
        wide = np.zeros((texts * L, D_pad), np.float32)
        wide[:, :D] = np.reshape(x, (-1, D))
        x = DeviceRows(gpu, upload_new(gpu, wide), (texts, L, D), D_pad)
    scores = np.empty((texts * L, matrix.rows), np.float32)
    block = model.room_for_scores(min(SCORED, len(scores)), matrix.rows)
    for start in range(0, len(scores), SCORED):
        part = scores[start : start + SCORED]
        address = x.address + 4 * D_pad * start
        if len(part) == 1:
            grid = (blocks_for(matrix.rows, gpu.processors),)
            kernel = gemv(matrix.kind, matrix.group)
            gpu.launch(kernel, grid, *weights(matrix), address, block, matrix.rows, D_pad)
        else:
            rows = Rows(address, D_pad), matrix, (block, matrix.rows)
            model.room(len(part)).product(*rows, len(part))
        gpu.download(block, part)
    return scores.reshape(texts, L, matrix.rows)


# --- a layer or a scan alone ----------------------------------------------------------------------


def selective_scan(
    x, delta, A, B, C, h, *, discretise=eq.discretise, scan=reference.recurrence
):  # fmt: skip
    """Do what ``reference.selective_scan`` does, for B and C that all channels share.

    (B L E), (B L E), (E N), (B L N), (B L N), (B E N) -> y (B L E), h (B E N)
    """
    return operators.selective_scan(
        device(), x, delta, A, B, C, h, discretise=discretise, scan=scan
    )


def block(x: NDArray, layer: Layer, config: MambaConfig, state: State, lengths: Any = None):
    """Do what ``reference.block`` does: (B L D) -> (B L D), State."""
    return _one_layer(x, layer, config, state, lengths, with_norm=True)


def mixer(u: NDArray, layer: Layer, config: MambaConfig, state: State, lengths: Any = None):
    """Do what ``reference.mixer`` does: (B L D) -> (B L D), State."""
    return _one_layer(u, layer, config, state, lengths, with_norm=False)


def _one_layer(x, layer, config, state, lengths, *, with_norm):
    gpu, s = device(), Sizes.of(config)._replace(layers=1)
    (window, h), (texts, L, D) = (part.swapaxes(1, 2)[None].copy() for part in state), x.shape
    with gpu.lock:
        params = arena.one_layer(gpu, layer, s)
        states, chunk = DeviceStates(gpu, s, texts), Chunk(gpu, params, max(1, texts * L))
        states.send(window, h)
        ends = np.full(texts, L) if lengths is None else np.clip(lengths, 0, L)
        chunk.read(x, ends, None if with_norm else chunk.normed)
        u = Rows(chunk.normed.address, s.D_pad)
        if with_norm:
            u = chunk.norm(params.layers[0].norm, config.layer_norm_epsilon, texts * L)
        chunk.mix(u, params.layers[0], *states.places(0), texts, L)
        states.fetch(window, h)
        y = np.asarray(DeviceRows(gpu, chunk.residual, (texts, L, D), s.D_pad))
    return y, State(window[0].swapaxes(1, 2), h[0].swapaxes(1, 2))
