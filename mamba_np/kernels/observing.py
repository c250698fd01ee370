"""The CPU engine, observed: the same kernels in the same order, and copies of what they leave.

What no kernel writes down is made beside it, from the same float32 numbers: step sizes after
softplus, the scan's ungated sums and its states. The scan's own kernel makes the latter two.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..config import MambaConfig
from ..params import Params
from ..threads import Member
from . import cpu, vectorised  # noqa: F401
from .decode import decode
from .lanes import WIDTH, spread
from .linear import ZERO
from .memory import at, data, load, set_, store
from .options import kernel
from .packing import Packed, PackedLayer, aligned, groups_of_channels, padded
from .scan import NO_STARTS, Channels, Sequence, selective_scan
from .step import Work


class _Scratch:
    """Arrays for the chosen channels of one chunk, float32; rows of whole Lanes."""

    def __init__(self, length: int, count: int, states: int):
        width = padded(count)
        self.raw, self.delta, self.x, self.y = (aligned((length, width)) for _ in range(4))
        self.zeros = aligned((width,))
        self.h = np.zeros((1, states, count), np.float32)


class Observer:
    """Runs one text through the blocks as ``cpu.run`` does, and writes into a ``trace.Record``."""

    def __init__(self, record: Any):
        self.record = record
        chosen = record.request.channels
        self.count = len(chosen)
        whole = record.request.all_channels
        self.channels: Any = slice(0, self.count) if whole else chosen
        self.scans = record.wants("y", "h")
        self.steps = record.wants("delta", "delta_mean", "delta_geometric_mean") or self.scans
        self.scratch: Any = None

    def run(
        self, x: NDArray, params: Params, config: MambaConfig, memory: tuple[NDArray, NDArray]
    ) -> list[NDArray]:
        """Do what ``reference.run`` does: (1 L D) -> [(1 L D)]; ``memory`` is advanced."""
        return cpu.run(x, params, config, memory, observer=self)

    def begin(self, length: int, states: int) -> None:
        """Get ready for a chunk of ``length`` tokens and N ``states`` a channel."""
        self.record.begin(length)
        if self.scratch is None or len(self.scratch.raw) < length:
            self.scratch = _Scratch(length if self.steps else 0, self.count, states)

    def mixing(self, member: Member, i: int, layer: PackedLayer, chunk: Any, states: NDArray):
        """Look at block i before its scan: ``states`` (1, N, E) are those before the chunk.

        Each rank copies some of the rows. A barrier has to follow, since the scan writes over x.
        """
        record, s = self.record, chunk.sizes
        if i not in record.rows:
            return
        low, high = member.share(chunk.length)
        mixed = chunk.mixed[low:high]
        record.put("B", i, mixed[:, s.R : s.R + s.N], low)
        record.put("C", i, mixed[:, s.R + s.N : s.R + 2 * s.N], low)
        for name, rows in (("x", chunk.x), ("z", chunk.inputs[:, s.E_pad :])):
            if record.wants(name):
                record.put(name, i, rows[low:high][:, self.channels], low)
        if self.steps:
            self._step_sizes(i, layer, chunk, (low, high))
        if self.scans:
            member.barrier()
            self._scan(member, i, layer, chunk, states)

    def mixed(self, member: Member, i: int, chunk: Any) -> None:
        """Look at the residual after block i, in the rows that this rank has just added up."""
        low, high = member.share(chunk.length)
        self.record.put_residual(i, chunk.residual[low:high, : chunk.sizes.D], low)

    def _step_sizes(self, i: int, layer: PackedLayer, chunk: Any, rows: tuple[int, int]) -> None:
        """Make the step sizes of some rows: straight into the record where no scan needs them."""
        low, high = rows
        raw, bias = chunk.delta, layer.dt_bias
        if not isinstance(self.channels, slice):
            raw, bias = self.scratch.raw, aligned(self.scratch.zeros.shape)
            raw[low:high, : self.count] = chunk.delta[low:high][:, self.channels]
            bias[: self.count] = layer.dt_bias[self.channels]
        direct = self.record.wants("delta") and not self.scans
        delta = self.record.of("delta", i) if direct else self.scratch.delta
        soften(raw, bias, delta, self.count, rows)
        if not direct:
            self.record.put("delta", i, delta[low:high, : self.count], low)
        self.record.put_means(i, delta[low:high, : self.count], low)

    def _scan(
        self, member: Member, i: int, layer: PackedLayer, chunk: Any, states: NDArray
    ) -> None:
        """Run the scan of some of the channels from kept state to kept state."""
        s, own, count = chunk.sizes, self.scratch, self.count
        groups = member.share(padded(count) // WIDTH)
        first, last = groups[0] * WIDTH, min(groups[1] * WIDTH, count)
        if isinstance(self.channels, slice):
            x, A, channels = chunk.x, layer.A_per_octave, slice(first, last)
        else:
            x, channels = own.x, self.channels[first:last]
            x[: chunk.length, first:last] = chunk.x[:, channels]
            A = groups_of_channels(_by_channel(layer.A_per_octave)[self.channels])
        own.h[0, :, first:last] = states[0][:, channels]
        c = Channels(A, own.zeros, own.zeros, padded(count), s.N, False)
        flat, begin = chunk.mixed.reshape(-1), 0
        kept = self.record.kept()
        for place, stop in enumerate([*(kept + 1), chunk.length]):
            if begin < stop:
                here, row = slice(begin, stop), flat[begin * s.M_pad :]
                sequence = Sequence(
                    x[here], own.delta[here], padded(count), row[s.R :], row[s.R + s.N :],
                    s.M_pad, own.zeros, 0,
                )  # fmt: skip
                steps = np.array([stop - begin])
                selective_scan(
                    sequence, c, own.h, own.y[here], NO_STARTS, stop - begin, steps, groups
                )
            if place < len(kept):
                self.record.states(i)[place, first:last] = own.h[0, :, first:last].T
            begin = stop
        if self.record.wants("y"):
            self.record.of("y", i)[:, first:last] = own.y[: chunk.length, first:last]

    # --- one token ------------------------------------------------------------------------------

    def decode(self, x: NDArray, p: Packed, config: MambaConfig, memory: tuple[NDArray, NDArray]):
        """Do what ``decode.decode`` does, and look on: (1 1 D) -> (1 1 D)."""
        s, alone = p.sizes, Member(0, 1, np.zeros(1, np.int64), None)
        self.begin(1, s.N)

        def look(i: int, work: Work, _: NDArray, before: NDArray) -> None:
            raw = aligned((1, s.E_pad))
            raw_steps(p.layers[i].dt_groups, work.mixed, s.R, raw)
            seen = SimpleNamespace(
                sizes=s, length=1, x=work.x, inputs=work.inputs, mixed=work.mixed, delta=raw,
                residual=work.residual[0],
            )  # fmt: skip
            self.mixing(alone, i, p.layers[i], seen, before)
            self.mixed(alone, i, seen)

        return decode(x, p, config, memory, None, look)


def _by_channel(groups: NDArray) -> NDArray:  # (E_pad / 16, n, 16) -> (E_pad, n)
    """Undo ``groups_of_channels``."""
    return groups.swapaxes(1, 2).reshape(-1, groups.shape[1])


@kernel
def soften(raw, bias, delta, size, rows):
    """Write softplus(raw + bias), the step sizes, for some ``rows`` = (first, last).

    ``raw`` (rows, stride) and ``bias`` have whole Lanes; ``delta`` has ``size`` numbers a row.
    """
    stride, width = raw.shape[1], delta.shape[1]
    source, to = data(raw), data(delta)
    for r in range(rows[0], rows[1]):
        for e in range(0, size, WIDTH):
            v = eq.softplus(load(source, r * stride + e) + load(bias, e))
            set_(to, r * width + e, v, min(WIDTH, size - e))


@kernel
def raw_steps(dt_groups, mixed, R, raw):
    """Write the step sizes of one token before bias and softplus, in the order of ``step``."""
    low_rank, E = data(mixed), raw.size
    for e in range(0, E, WIDTH):
        delta = spread(ZERO)
        for r in range(R):
            delta = delta + load(dt_groups, e * R + r * WIDTH) * at(low_rank, r)
        store(raw, e, delta)
