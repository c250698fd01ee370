"""One token of one text: four kernels a layer, then the head; recorded once and replayed.

The device counts the tokens itself, so that the same recorded work does for each of them, and a
greedy or sampled text needs nothing from the host but the word to go on.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import decode, head, sequence
from .arena import DeviceParams, DeviceStates, Matrix, Seen
from .device import Block, Device, Recording
from .products import blocks_for, width_for
from .rows import Embedded

STEP_CHANNELS = decode.STEP_THREADS // decode.STEP_LANES


class Token:
    """The way of one token through a model: memory, and work that was recorded.

    It advances ``states``, and begins with what lies in ``residual``.
    """

    def __init__(self, device: Device, params: DeviceParams, states: DeviceStates, eps: float):
        self.device, self.params, self.eps = device, params, eps
        s = params.sizes
        # Not the states themselves, which keep this: blocks hold no way back to them.
        self._blocks_of_states = states.window, states.h
        self._places = [states.places(i) for i in range(s.layers)]
        self.residual, self._normed = (device.allocate(4 * s.D_pad) for _ in range(2))
        self._id = device.allocate(4)
        widths = s.E_pad, s.E_pad, s.M, s.E_pad
        self._x, self._z, self._selected, self._y = (device.allocate(4 * w) for w in widths)
        self._layers: Recording | None = None

    def read(self, x: NDArray | Embedded) -> None:  # (1 1 D)
        """Go through all layers with a vector: the residual is what they leave."""
        self._start(x)
        self.replay()

    def read_watched(self, x: NDArray | Embedded, observer: Any, chunk: Any) -> None:  # (1 1 D)
        """Do the same, with an ``observing.Observer`` looking on; ``chunk`` makes it step sizes."""
        self._start(x)
        observer.begin(self.device, self.params.sizes, 1)
        for i, layer in enumerate(self.params.layers):
            self._select(i)
            if observer.wants(i):
                chunk.step_sizes(self._selected, layer, 1)
                gate, h = (self._z, 0), self._places[i][1]
                observer.mixing(i, layer, Seen(self._x, gate, self._selected, chunk.raw, h))
            self._step(i)
            if observer.wants(i):
                observer.mixed(i, self.residual)

    def _start(self, x: NDArray | Embedded) -> None:
        if isinstance(x, Embedded):
            self.begin(int(x.ids[0, 0]))
        else:
            wide = np.zeros(self.params.sizes.D_pad, np.float32)
            wide[: x.shape[2]] = x[0, 0]
            self.device.upload(self.residual, wide)

    def begin(self, token: int) -> None:
        """Lay a token's embedding where the layers begin."""
        table, D_pad = self.params.embeddings, self.params.sizes.D_pad
        self.device.upload(self._id, np.array([token], np.int32))
        kernel = sequence.embed(table.kind, table.group)
        self.device.launch(kernel, (1,), self._id, *weights(table), self.residual, D_pad)

    def replay(self) -> None:
        """Go through all layers with what lies in ``residual``."""
        if self._layers is None:
            self.layers()  # kernels are compiled and loaded by the first token, not while recording
            with self.device.recording() as self._layers:
                self.layers()
        else:
            self._layers.replay()

    def normed(self) -> Block:
        """Return the last norm of the residual, until the next token."""
        s, p = self.params.sizes, self.params
        ends = self.residual, p.norm_f, self.eps, s.D, s.D_pad, self._normed
        self.device.launch(sequence.rms_norm(), (1,), *ends)
        return self._normed

    def layers(self) -> None:
        """Launch the kernels of all layers."""
        for i in range(self.params.sizes.layers):
            self.layer(i)

    def layer(self, i: int) -> None:
        """Launch the kernels of one layer."""
        self._select(i)
        self._step(i)

    def _select(self, i: int) -> None:
        layer, s, launch = self.params.layers[i], self.params.sizes, self.device.launch
        (window, _), into = self._places[i], layer.in_proj
        width = width_for(s.D_pad)
        launch(
            decode.norm_in_conv(into.kind, s.K, width, into.group), self._blocks(2 * s.E_pad),
            self.residual, layer.norm, self.eps, s.D, s.D_pad, *weights(into), layer.in_proj_bias,
            layer.conv, layer.conv_bias, window, self._x, self._z, s.E_pad,
        )  # fmt: skip
        launch(
            decode.select(layer.x_proj.kind, layer.x_proj.group), (s.M,),
            *weights(layer.x_proj), self._x, self._selected, s.E_pad,
        )  # fmt: skip

    def _step(self, i: int) -> None:
        layer, s, launch = self.params.layers[i], self.params.sizes, self.device.launch
        (_, h), out = self._places[i], layer.out_proj
        launch(
            decode.step(layer.dt_proj.kind, s.N), (s.E_pad // STEP_CHANNELS,),
            self._selected, layer.dt_proj.values, layer.dt_bias, layer.A_per_octave, layer.D,
            self._x, self._z, h, self._y, s.R8,
        )  # fmt: skip
        launch(
            decode.out_residual(out.kind, out.group), self._blocks(s.D_pad),
            *weights(out), layer.out_proj_bias, self._y, self.residual, s.D_pad, s.E_pad,
        )  # fmt: skip

    def _blocks(self, rows: int) -> tuple[int]:
        return (blocks_for(rows, self.device.processors),)


def weights(matrix: Matrix) -> tuple[Block, Block]:
    """Return a matrix as kernels take it: its numbers, and its scales if it has any."""
    return matrix.values, matrix.values if matrix.scales is None else matrix.scales


class Writer:
    """Continues a text on the device: each token is chosen and read there.

    ``temperature`` 0 takes the best token, above 0 one is drawn by ``seed``.
    """

    def __init__(self, token: Token, first: int, room: int, temperature: float = 0, seed: int = 0):
        device, params = token.device, token.params
        assert params.lm_head is not None
        self.token, self._lm_head = token, params.lm_head
        self._grid = blocks_for(params.lm_head.rows, device.processors)
        self.logits = device.allocate(4 * params.lm_head.rows)
        self._bests = device.allocate(8 * self._grid)
        self._ids, self._count = device.allocate(4 * room), device.allocate(4)
        self._temperature, self._seed = device.allocate(4), device.allocate(8)
        self._sampling, self._made, self._room = temperature > 0, 0, room
        device.upload(self._temperature, np.array([temperature or 1], np.float32))
        words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
        device.upload(self._seed, np.array(words, np.uint32))
        token.begin(first)
        self._work: Recording | None = None

    def __iter__(self) -> Iterator[tuple[int, NDArray | None]]:
        return self

    def __next__(self) -> tuple[int, NDArray | None]:
        """Read the token that was chosen last; return the next one, see ``model._writer``."""
        if self._made == self._room:  # as many as there is memory for
            raise StopIteration
        with self.token.device.lock:
            if self._work is None:
                self.token.replay()
                self._choose()
                with self.token.device.recording() as self._work:
                    self.token.layers()
                    self._choose()
            else:
                self._work.replay()
            bests = np.empty((self._grid, 2), np.int32)
            self.token.device.download(self._bests, bests)
            self._made += 1
            ranks, ids = bests.astype(np.int64).T
            best = ((ranks << 32) - ids).argmax()  # the highest rank, and the lowest id that has it
            return int(ids[best]), None if abs(ranks[best]) < head.INFINITE else self._scores()

    def _scores(self) -> NDArray:  # (1 V)
        scores = np.empty((1, self._lm_head.rows), np.float32)
        self.token.device.download(self.logits, scores)
        return scores

    def _choose(self) -> None:
        """Launch the kernels that score, choose and begin the next token."""
        token, params = self.token, self.token.params
        s, lm_head, embeddings = params.sizes, self._lm_head, params.embeddings
        token.device.launch(
            head.score(lm_head.kind, width_for(s.D_pad), self._sampling, lm_head.group),
            (self._grid,), token.residual, params.norm_f, token.eps, s.D, s.D_pad,
            *weights(lm_head), lm_head.rows, self.logits, self._bests, self._temperature,
            self._seed, self._count,
        )  # fmt: skip
        token.device.launch(
            head.pick(embeddings.kind, embeddings.group), (1,), self._bests, self._grid,
            self._ids, self._count, *weights(embeddings), token.residual, s.D_pad,
        )  # fmt: skip
