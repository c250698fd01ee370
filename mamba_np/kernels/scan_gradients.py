"""The gradients of a scan alone, of arrays as ``backward`` has them: what ``scan_backward`` takes.

Channels are laid out so that those which share B and C fill whole Lanes. No array of (L, E, N)
exists: besides arrays like the arguments there are the states before each block of steps.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..threads import Member, run_team
from .cpu import team_size
from .lanes import WIDTH
from .packing import aligned, groups_of_channels, padded
from .scan import STEPS, Channels, Sequence
from .scan_backward import ALL, Form, ScanGradients, scan_backward, scan_starts


class Layout(NamedTuple):
    """E channels in ``parts`` equal parts, each padded with zeros to whole Lanes."""

    E: int
    parts: int

    @property
    def size(self) -> int:
        """The channels of a padded part."""
        return padded(self.E // self.parts)

    @property
    def stride(self) -> int:
        """All channels with their padding."""
        return self.parts * self.size

    def wide(self, array: NDArray) -> NDArray:  # (..., E) -> (..., stride)
        """Return an array with padding, which kernels may write to: a copy."""
        result = aligned((*array.shape[:-1], self.stride))
        self._parts_of(result)[:] = array.reshape(*array.shape[:-1], self.parts, -1)
        return result

    def narrow(self, array: NDArray) -> NDArray:  # (..., stride) -> (..., E)
        """Return an array without its padding."""
        return self._parts_of(array).reshape(*array.shape[:-1], self.E)

    def _parts_of(self, array: NDArray) -> NDArray:
        parts = array.reshape(*array.shape[:-1], self.parts, self.size)
        return parts[..., : self.E // self.parts]

    def of_channels(self, array: NDArray) -> NDArray:  # (E, N) -> (stride / 16, N, 16)
        """Return what belongs to each channel as kernels read it."""
        return groups_of_channels(self.wide(array.T).T)

    def to_channels(self, array: NDArray) -> NDArray:  # (stride / 16, N, 16) -> (E, N)
        """Undo ``of_channels``."""
        return self.narrow(array.swapaxes(0, 1).reshape(array.shape[1], -1)).T


class Selection:
    """B and C as kernels read them, and their gradients, of which each rank has its own.

    B and C are (B, L, N), (B, L, G, N) for G groups of channels, or (E, N). What differs from step
    to step lies side by side in one row of numbers for each step.
    """

    def __init__(self, B: NDArray, C: NDArray, layout: Layout, tokens: int, ranks: int):
        self.both, self.layout = (B, C), layout
        rows = [M.reshape(tokens, -1) for M in (B, C) if M.ndim > 2]
        self.rows = np.concatenate([*rows, np.empty((tokens, 0), np.float32)], axis=1)
        self.d_rows = np.zeros((ranks, *self.rows.shape), np.float32)
        self.fixed = [layout.of_channels(M) if M.ndim == 2 else None for M in (B, C)]
        self.d_fixed = [
            None if M is None else np.zeros((ranks, *M.shape), np.float32) for M in self.fixed
        ]
        self.first = (0, rows[0].shape[1] if B.ndim > 2 else 0)  # columns of B and C

    @property
    def stride(self) -> int:
        """How far apart two steps are."""
        return self.rows.shape[1]

    def spans(self) -> list[int | None]:
        """Return how many channels share the numbers of B, and of C; None for (E, N)."""
        spans = {2: None, 3: ALL}
        wide = self.layout.stride
        return [wide // M.shape[2] if M.ndim == 4 else spans[M.ndim] for M in self.both]

    def arrays(self) -> list[NDArray]:
        """Return B and C."""
        return self._found(self.rows, self.fixed)

    def gradients(self, rank: int) -> list[NDArray]:
        """Return the arrays that a rank adds the gradients of B and C to."""
        return self._found(
            self.d_rows[rank], [None if M is None else M[rank] for M in self.d_fixed]
        )

    def _found(self, rows: NDArray, fixed: list[Any]) -> list[NDArray]:
        flat = rows.reshape(-1)
        pairs = zip(fixed, self.first, strict=True)
        return [flat[first:] if M is None else M for M, first in pairs]

    def total(self) -> list[NDArray]:
        """Return the gradients of B and C, in their shapes."""
        rows, found = np.add.reduce(self.d_rows), []
        for M, d_fixed, first in zip(self.both, self.d_fixed, self.first, strict=True):
            if d_fixed is not None:
                found.append(self.layout.to_channels(np.add.reduce(d_fixed)))
            else:
                columns = M.shape[2] * (M.shape[3] if M.ndim == 4 else 1)
                found.append(rows[:, first : first + columns].reshape(M.shape))
        return found


def selective_scan_backward(
    d_out, x, raw, A, B, C, D, z, h, d_h, softplus
) -> dict[str, NDArray]:  # fmt: skip
    """Return the gradients of x, raw, A, B, C, D, z and h, by name; float32.

    ``d_out``, ``x``, ``raw`` and ``z`` are (B, L, E), ``A`` is (E, N) and not positive, ``B`` and
    ``C`` are (B, L, N), (B, L, G, N) or (E, N), ``D`` is (E); ``z`` and ``D`` may be None. ``raw``
    are the step sizes, before a softplus if ``softplus``, else not negative. ``h`` and ``d_h``
    (B, E, N) are the first state and the gradient of the last. L, E and N are above 0.
    """
    (texts, L, E), N = x.shape, A.shape[1]
    layout = Layout(E, math.lcm(*(M.shape[2] for M in (B, C) if M.ndim == 4)))
    tokens, wide, size = texts * L, layout.stride, team_size(texts * L)
    selection = Selection(B, C, layout, tokens, size)
    flat, steps, dy = (layout.wide(a).reshape(tokens, wide) for a in (x, raw, d_out))
    gate = np.zeros(1, np.float32) if z is None else layout.wide(z).reshape(-1)
    gate_stride = 0 if z is None else wide
    B_wide, C_wide = selection.arrays()
    s = Sequence(flat, steps, wide, B_wide, C_wide, selection.stride, gate, gate_stride)
    zeros = np.zeros(wide, np.float32)
    skip = zeros if D is None else layout.wide(D)
    c = Channels(layout.of_channels(eq.per_octave(A)), skip, zeros, wide, N, False)
    form = Form(bool(softplus), z is not None, *selection.spans())
    states, d_states = (layout.wide(a.swapaxes(1, 2)) for a in (h, d_h))
    starts = np.empty((texts, -(-L // STEPS), N, wide), np.float32)
    d_x, d_raw, d_gate = (np.empty_like(a) for a in (flat, steps, gate))
    d_A, d_D = np.zeros((size, wide // WIDTH, N, WIDTH), np.float32), aligned((size, wide))

    def back(member: Member) -> None:
        items, rank = member.share(texts * (wide // WIDTH)), member.rank
        scan_starts(s, c, form, states, starts, L, items)
        d_B, d_C = selection.gradients(rank)
        g = ScanGradients(d_x, d_raw, d_gate, d_B, d_C, d_A[rank], d_D[rank], d_states)
        scan_backward(s, c, form, starts, dy, g, L, items)

    run_team(back, size)
    d_B, d_C = selection.total()
    found = {"x": d_x, "raw": d_raw} | ({} if z is None else {"z": d_gate})
    found = {name: layout.narrow(a.reshape(texts, L, wide)) for name, a in found.items()}
    if D is not None:
        found["D"] = layout.narrow(np.add.reduce(d_D))
    d_first = layout.narrow(d_states).swapaxes(1, 2)
    return found | {"A": layout.to_channels(np.add.reduce(d_A)), "B": d_B, "C": d_C, "h": d_first}
