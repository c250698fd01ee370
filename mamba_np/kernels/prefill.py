"""Many tokens through the blocks: what reading a prompt costs.

A chunk of tokens of all texts goes through all blocks before the next chunk begins, so memory
does not grow with the prompt. Every rank runs the same functions and does its share of each part.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lanes import WIDTH
from .packing import PackedLayer, Sizes, aligned
from .products import product
from .rows import Convolution, convolve, norm_rows
from .scan import NO_STARTS, Channels, Sequence, selective_scan


class Chunk:
    """The arrays that a chunk of ``tokens`` tokens is computed in, float32.

    Rows are tokens, text after text; ``length`` of each. Padding stays zero.
    """

    def __init__(self, s: Sizes, eps: float, texts: int, length: int):
        tokens = texts * length
        self.sizes, self.eps, self.length = s, np.float32(eps), length
        self.residual = aligned((tokens, s.D_pad))
        self.normed = aligned((tokens, s.D_pad))
        self.out = aligned((tokens, s.D_pad))
        self.inputs = aligned((tokens, 2 * s.E_pad))  # x, then the gate z
        self.x = aligned((tokens, s.E_pad))  # after the convolution; then y
        self.delta = aligned((tokens, s.E_pad))
        self.mixed = aligned((tokens, s.M_pad))  # low rank, B, C
        self.steps = np.full(texts, length, np.int64)  # of each text, how many rows count

    def read(self, x: NDArray, steps: NDArray | None, into: NDArray | None = None) -> None:
        """Begin with x (B, length, D) as the residual, of which ``steps`` (B) rows count."""
        target = self.residual if into is None else into
        target[:, : self.sizes.D] = x.reshape(len(target), -1)
        self.out[:] = 0
        if steps is not None:
            self.steps[:] = np.clip(steps, 0, self.length)

    def write(self, member: Any, rows: NDArray, to: NDArray) -> None:
        """Copy rows of this chunk to (B, length, D); each rank some of the steps."""
        member.barrier()  # others may have made these rows
        texts, length, D = to.shape
        low, high = member.share(length)
        to[:, low:high] = rows.reshape(texts, length, -1)[:, low:high, :D]

    def norm(self, member: Any, weight: NDArray) -> None:
        """Add ``out`` to the residual and norm the sum; each rank some of the tokens."""
        rows = member.share(len(self.residual))
        norm_rows(self.residual, self.out, weight, self.sizes.D, self.eps, self.normed, rows)

    def add(self, member: Any) -> None:
        """Add ``out`` to the residual; each rank some of the tokens."""
        low, high = member.share(len(self.residual))
        self.residual[low:high] += self.out[low:high]

    def mix(
        self,
        member: Any,
        layer: PackedLayer,
        windows: NDArray,
        states: NDArray,
        look: Callable[[], Any] | None = None,
    ) -> None:
        """Make ``out`` from ``normed``: a mixer. Advances (B, K, E) and (B, N, E) in place.

        Each rank calls ``look`` when all is ready for the scan, which writes over ``x``.
        """
        s = self.sizes
        groups = len(self.steps) * (s.E_pad // WIDTH)
        member.barrier()
        self._project_in(member, layer)
        member.barrier()
        conv = Convolution(layer.conv, layer.conv_bias, s.E_pad, s.K, True)
        items = member.share(groups)
        convolve(conv, self.inputs, windows, self.x, self.length, self.steps, items)
        member.barrier()
        product(member, self.x[:, : s.E], layer.x_proj, 0, self.mixed[:, : s.R + 2 * s.N])
        member.barrier()
        product(member, self.mixed[:, : s.R], layer.dt_proj, 0, self.delta[:, : s.E])
        member.barrier()
        if look is not None:
            look()
            member.barrier()
        self._scan(layer, states, items)
        member.barrier()
        low, high = product(member, self.x[:, : s.E], layer.out_proj, 0, self.out[:, : s.D])
        _add_bias(self.out[:, low:high], layer.out_proj_bias[low:high])
        member.barrier()

    def _project_in(self, member: Any, layer: PackedLayer) -> None:
        s = self.sizes
        u, bias = self.normed[:, : s.D], layer.in_proj_bias
        for first, place in ((0, 0), (s.E, s.E_pad)):  # x, then z
            columns = self.inputs[:, place : place + s.E]
            low, high = product(member, u, layer.in_proj, first, columns)
            _add_bias(columns[:, low:high], bias[first + low : first + high])

    def _scan(self, layer: PackedLayer, states: NDArray, items: tuple[int, int]) -> None:
        s = self.sizes
        flat, z = self.mixed.reshape(-1), self.inputs.reshape(-1)[s.E_pad :]
        B, C = flat[s.R :], flat[s.R + s.N :]
        sequence = Sequence(self.x, self.delta, s.E_pad, B, C, s.M_pad, z, 2 * s.E_pad)
        channels = Channels(layer.A_per_octave, layer.D, layer.dt_bias, s.E_pad, s.N, True)
        selective_scan(
            sequence, channels, states, self.x, NO_STARTS, self.length, self.steps, items
        )


def _add_bias(y: NDArray, bias: NDArray) -> None:
    """Add ``bias`` to each row; most models have none, and then the rows are not touched."""
    if bias.any():
        y += bias
