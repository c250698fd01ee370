"""Runs the scan of many texts in the form that suits their sizes."""

from typing import Any, NamedTuple

from . import scan, scan_chunks
from .arena import CHANNELS, padded
from .device import Block, Device
from .scan_lanes import lane_scan


class Inputs(NamedTuple):
    """What a scan reads, as its kernels take it: see ``scan.channel_scan``."""

    x: Block
    raw: Block
    xz: Block
    selected: Block
    A_per_octave: Block
    D: Block
    dt_bias: Block
    lengths: Block


class Extent(NamedTuple):
    """How many texts of how many steps, and how wide their rows are."""

    texts: int
    L: int
    E_pad: int
    M: int
    N: int


class Scanner:
    """Scans on one device, and keeps the memory that chunks of a text need between them."""

    def __init__(self, device: Device):
        self.device = device
        self._scratch: Block | None = None

    def __call__(
        self, given: Inputs, h: int, y: int, size: Extent, kind: str = "float32", gated: bool = True
    ) -> None:
        """Write y, rows of a kind at an address; the states at address ``h`` move on."""
        plan = scan.choose(size.texts, size.L, size.E_pad, self.device.processors, size.N)
        if plan.form == "chunks":
            h = self._carried(plan, given, h, size, gated)
        form: Any = lane_scan if plan.form == "lanes" else scan.channel_scan
        self.device.launch(
            form(size.N, kind, gated),
            (scan.blocks_of(plan.form, size.E_pad), size.texts, plan.count),
            *given, h, y, size.L, size.E_pad, size.M, plan.length,
        )  # fmt: skip

    def _carried(self, plan: scan.Plan, given: Inputs, h: int, size: Extent, gated: bool) -> int:
        """Return where the states lie that each chunk begins with; those at ``h`` move on."""
        N4 = padded(size.N, 4)
        states, sums = scan_chunks.scratch(plan, size.texts, size.E_pad, N4)
        if self._scratch is None or self._scratch.nbytes < 4 * (states + sums):
            self._scratch = self.device.allocate(4 * (states + sums))
        ends, deltas = self._scratch.address, self._scratch.address + 4 * states
        self.device.launch(
            scan_chunks.chunk_states(size.N, gated),
            (size.E_pad // CHANNELS, size.texts, plan.count),
            given.x, given.raw, given.selected, given.A_per_octave, given.dt_bias, given.lengths,
            ends, deltas, size.L, size.E_pad, size.M, plan.length,
        )  # fmt: skip
        self.device.launch(
            scan_chunks.carry(size.N), (size.E_pad * N4 // CHANNELS, size.texts),
            ends, deltas, given.A_per_octave, h, size.E_pad, plan.count,
        )  # fmt: skip
        return ends
