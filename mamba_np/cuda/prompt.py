"""Many tokens at once: products of matrices, and kernels for sequences between them.

    rms_norm -> in_proj -> causal_conv -> x_proj -> dt_proj -> scan -> out_proj, + residual

The memory for a chunk of tokens is allocated once and used by every layer and chunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import sequence
from .arena import CHANNELS, DeviceLayer, DeviceParams, DeviceStates, Matrix, Seen
from .device import Block, Device, Product
from .rows import Embedded
from .scanning import Extent, Inputs, Scanner
from .token import weights

WIDENED = ("float16", "int8")
"""Matrices that become float32, one at a time, before a product: their numbers stay what they are,
and cuBLAS multiplies no int8 by float32."""


class Rows(NamedTuple):
    """Where rows of numbers lie, how far apart they begin, and what kind the numbers are."""

    address: int
    width: int
    kind: str = "float32"


class Chunk:
    """Memory for up to ``rows`` tokens of all texts together, and the way through the layers."""

    def __init__(self, device: Device, params: DeviceParams, rows: int):
        self.device, self.params, self.rows = device, params, rows
        s = params.sizes

        def floats(width: int) -> Block:
            return device.allocate(4 * rows * width)

        self.residual, self.normed = floats(s.D_pad), floats(s.D_pad)
        self._xz, self._selected = floats(2 * s.E_pad), floats(s.M)
        self._x, self.raw, self._y = floats(s.E_pad), floats(s.E_pad), floats(s.E_pad)
        self._lengths, self._ids = (device.allocate(4 * rows) for _ in range(2))
        self._scanner = Scanner(device)
        matrices = [m for layer in params.layers for m in vars(layer).values()]
        matrices = [m for m in (*matrices, params.lm_head) if isinstance(m, Matrix)]
        narrow = any(m.kind == "bfloat16" for m in matrices)
        self._narrow = device.allocate(2 * rows * max(s.D_pad, s.E_pad)) if narrow else None
        wide = max((m.rows * m.width for m in matrices if m.kind in WIDENED), default=0)
        self._wide = device.allocate(4 * wide) if wide else None

    def read(self, x: NDArray | Embedded, lengths: NDArray, into: Block | None = None) -> None:
        """Begin with vectors (B, L, D), of each of which ``lengths`` (B) count."""
        into, rows = into or self.residual, x.shape[0] * x.shape[1]
        if isinstance(x, Embedded):
            self.device.upload(self._ids, x.ids.reshape(-1).astype(np.int32))
            table, D_pad = self.params.embeddings, self.params.sizes.D_pad
            kernel = sequence.embed(table.kind, table.group)
            self._each(kernel, rows, self._ids, *weights(table), into, D_pad)
        else:
            wide = np.zeros((rows, self.params.sizes.D_pad), np.float32)
            wide[:, : x.shape[2]] = x.reshape(rows, -1)
            self.device.upload(into, wide)
        self.device.upload(self._lengths, lengths.astype(np.int32))

    def norm(self, scale: Block, eps: float, rows: int, kind: str = "float32") -> Rows:
        """Norm the residual (T, D_pad): into ``normed``, or rounded for a product in bfloat16."""
        s, to = self.params.sizes, self._made_for(kind, self.normed)
        self._each(sequence.rms_norm(to.kind), rows, self.residual, scale, eps, s.D, s.D_pad,
                   to.address)  # fmt: skip
        return to._replace(width=s.D_pad)

    def mix(
        self, u: Rows, layer: DeviceLayer, window: int, h: int, texts: int, length: int,
        look: Callable[[Seen], None] | None = None,
    ) -> None:  # fmt: skip
        """Add what a mixer makes of u (T, D_pad) to the residual; its states, addresses, move.

        ``look`` is called before the scan.
        """
        s, T, (in_bias, out_bias) = self.params.sizes, texts * length, self.params.biases
        wide = 2 * s.E_pad
        if in_bias:
            self._each(sequence.fill_rows(), T, self._xz, layer.in_proj_bias, wide)
        self.product(u, layer.in_proj, (self._xz, wide), T, add=in_bias)
        self._convolve(layer, window, texts, length)
        self.product(Rows(self._x.address, s.E_pad), layer.x_proj, (self._selected, s.M), T)
        self.step_sizes(self._selected, layer, T)
        if look is not None:
            look(Seen(self._x, (self._xz, s.E_pad), self._selected, self.raw, h))
        y = self._scan(layer, h, texts, length)
        if out_bias:
            self._each(sequence.add_rows(), T, self.residual, layer.out_proj_bias, s.D_pad)
        self.product(y, layer.out_proj, (self.residual, s.D_pad), T, add=True)

    def step_sizes(self, selected: Block, layer: DeviceLayer, rows: int) -> None:
        """Make ``raw`` (T, E_pad), step sizes before bias and softplus, of what x_proj made."""
        s = self.params.sizes
        steps = Rows(selected.address + 4 * 2 * s.N4, s.M)
        self.product(steps, layer.dt_proj, (self.raw, s.E_pad), rows)

    def block(
        self, i: int, states: DeviceStates, length: int, eps: float, observer: Any = None
    ) -> None:
        """Go through one block of the model: the residual (B L D_pad) in place."""
        layer, texts, look = self.params.layers[i], states.texts, None
        u = self.norm(layer.norm, eps, texts * length, layer.in_proj.kind)
        if observer is not None and observer.wants(i):
            look = partial(observer.mixing, i, layer)
        self.mix(u, layer, *states.places(i), texts, length, look)
        if observer is not None and look is not None:
            observer.mixed(i, self.residual)

    def _made_for(self, kind: str, wide: Block) -> Rows:
        """Return where to put rows that meet a matrix of a kind; their width is still to be set."""
        if kind == "bfloat16" and self._narrow is not None:
            return Rows(self._narrow.address, 0, "bfloat16")
        return Rows(wide.address, 0)

    def _convolve(self, layer: DeviceLayer, window: int, texts: int, length: int) -> None:
        s = self.params.sizes
        self.device.launch(
            sequence.causal_conv(s.K), (s.E_pad // CHANNELS, -(-length // sequence.PIECE), texts),
            self._xz, layer.conv, layer.conv_bias, window, self._lengths, self._x, length, s.E_pad,
        )  # fmt: skip

    def _scan(self, layer: DeviceLayer, h: int, texts: int, length: int) -> Rows:
        """Scan, and return y; the states at address ``h`` move on."""
        s, y = self.params.sizes, self._made_for(layer.out_proj.kind, self._y)
        given = Inputs(
            self._x, self.raw, self._xz, self._selected, layer.A_per_octave, layer.D, layer.dt_bias,
            self._lengths,
        )  # fmt: skip
        extent = Extent(texts, length, s.E_pad, s.M, s.N)
        self._scanner(given, h, y.address, extent, y.kind)
        return y._replace(width=s.E_pad)

    # --- products -------------------------------------------------------------------------------

    def product(
        self, x: Rows, matrix: Matrix, y: tuple[Block, int], rows: int, *, add: bool = False
    ) -> None:
        """Compute y (T, O) = x (T, I) W^T, or add that to y, given with the width of its rows."""
        place = matrix.values
        if matrix.kind == "bfloat16" and x.kind == "float32":
            columns, to = matrix.width, self._made_for("bfloat16", place)
            self._each(sequence.narrow(), rows, x.address, to.address, columns, x.width, columns)
            x = to._replace(width=columns)
        elif matrix.kind in WIDENED:
            assert self._wide is not None
            widen = sequence.widen(matrix.kind, matrix.group)
            self._each(widen, matrix.rows, *weights(matrix), self._wide, matrix.width)
            place = self._wide
        sizes = rows, matrix.rows, matrix.width
        W, to_rows = (place.address, matrix.width), (y[0].address, y[1])
        self.device.multiply(Product((x.address, x.width), W, to_rows, sizes, add=add), x.kind)

    def _each(self, kernel: Any, rows: int, *arguments: Any) -> None:
        """Launch a kernel with a block for each row."""
        self.device.launch(kernel, (rows,), *arguments)
