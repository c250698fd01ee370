"""The GPU engine, observed: the same kernels in the same order, and copies of what they leave.

Step sizes after softplus, the scan's ungated sums and its states are written down by no kernel of
the engine: ``tracing_scan`` makes them for the chosen channels, from the same numbers, and advances
nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import MambaConfig
from ..params import Params
from . import engine
from .arena import DeviceLayer, Seen, Sizes
from .device import Block, Device
from .scan_trace import THREADS, tracing_scan

NEVER = 2**31 - 1
"""After so many steps a state is kept, where none is wanted."""


class Observer:
    """Runs one text through the blocks as ``engine.run`` does, and writes a ``trace.Record``."""

    def __init__(self, record: Any):
        self.record, self.channels = record, record.request.channels
        self.scans = record.wants("delta", "delta_mean", "delta_geometric_mean", "y", "h")
        self._blocks: dict[str, Block] = {}
        self.device: Any = None
        self.sizes: Any = None

    def run(
        self, x: Any, params: Params, config: MambaConfig, memory: tuple[NDArray, NDArray]
    ) -> list[Any]:
        """Do what ``reference.run`` does: (1 L D) -> [(1 L D)]; ``memory`` is advanced."""
        return engine.run(x, params, config, memory, observer=self)

    def begin(self, device: Device, sizes: Sizes, length: int) -> None:
        """Get ready for the next ``length`` tokens of a model on a device."""
        self.device, self.sizes = device, sizes
        self.record.begin(length)
        for name, array in (("lengths", np.array([length])), ("channels", self.channels)):
            device.upload(self._room(name, len(array)), array.astype(np.int32))

    def wants(self, i: int) -> bool:
        """Return whether anything of a block is wanted."""
        return i in self.record.rows

    def mixing(self, i: int, layer: DeviceLayer, seen: Seen) -> None:
        """Look at block i before its scan."""
        record, s = self.record, self.sizes
        if record.wants("B", "C"):
            selected = self._rows(seen.selected, s.M)
            record.put("B", i, selected[:, : s.N])
            record.put("C", i, selected[:, s.N4 : s.N4 + s.N])
        if record.wants("x"):
            record.put("x", i, self._rows(seen.x, s.E_pad)[:, self.channels])
        if record.wants("z"):
            block, first = seen.gate
            record.put("z", i, self._rows(block, first + s.E_pad)[:, first + self.channels])
        if self.scans:
            self._scan(i, layer, seen)

    def mixed(self, i: int, residual: Block) -> None:
        """Look at the residual after block i."""
        if self.record.wants("residual", "residual_norm"):
            self.record.put_residual(i, self._rows(residual, self.sizes.D_pad)[:, : self.sizes.D])

    def _scan(self, i: int, layer: DeviceLayer, seen: Seen) -> None:
        """Run the scan of the chosen channels and write down what it makes."""
        record, device, s = self.record, self.device, self.sizes
        L, c, kept = self._length, len(self.channels), len(record.kept())
        every, before = record.request.every, record.before + record.now.start
        if not record.wants("h"):
            every, before = NEVER, 0
        delta, y = (self._room(name, L * c) for name in ("delta", "y"))
        states = self._room("states", max(1, kept * c * s.N4))
        lengths, channels = self._blocks["lengths"], self._blocks["channels"]
        device.launch(
            tracing_scan(s.N), (-(-c // THREADS), 1),
            seen.x, seen.raw, seen.selected, layer.A_per_octave, layer.dt_bias, lengths, seen.h,
            channels, delta, y, states, L, s.E_pad, s.M, c, before % every, every,
        )  # fmt: skip
        steps = self._rows(delta, c)
        record.put("delta", i, steps)
        record.put_means(i, steps)
        if record.wants("y"):
            record.put("y", i, self._rows(y, c))
        if kept:
            found = self._fetched(states, kept, c, s.N4)
            record.states(i)[:] = found[..., : s.N]

    @property
    def _length(self) -> int:
        return self.record.now.stop - self.record.now.start

    def _room(self, name: str, numbers: int) -> Block:
        """Return memory for numbers of four bytes: that of the layer before, if it is enough."""
        if name not in self._blocks or self._blocks[name].nbytes < 4 * numbers:
            self._blocks[name] = self.device.allocate(4 * numbers)
        return self._blocks[name]

    def _rows(self, block: Block, width: int) -> NDArray:
        return self._fetched(block, self._length, width)

    def _fetched(self, block: Block, *shape: int) -> NDArray:
        array = np.empty(shape, np.float32)
        self.device.download(block, array)
        return array
