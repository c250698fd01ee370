"""What the functions of this package share: one layer of a trace, as a pure recurrence."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..checks import integer
from ..errors import InputError

BLOCK = 2**20
"""Elements of each (tokens, c, N) array that exist at once."""


class Dynamics(NamedTuple):
    """What moves the state of the traced channels of one layer."""

    delta: NDArray  # (L, c)
    A: NDArray  # (c, N)
    B: NDArray  # (L, N)
    rule: str  # a key of equations.DISCRETISATIONS

    def steps(self, tokens: Any = slice(None), channels: Any = slice(None)):
        """Return (A_bar, B_bar) of some tokens and channels, (l, c, N) each: see equation 4."""
        delta, B = self.delta[tokens][:, channels, None], self.B[tokens][:, None]
        A_bar, B_bar = eq.DISCRETISATIONS[self.rule](delta, self.A[channels], B)
        return A_bar, np.broadcast_to(B_bar, A_bar.shape)

    def blocks(self, *, backward: bool = False) -> Iterator[tuple[slice, NDArray, NDArray]]:
        """Yield (tokens, A_bar, B_bar) of some tokens at a time, which bounds the memory."""
        count = max(1, BLOCK // self.A.size)
        starts = range(0, len(self.delta), count)
        for start in reversed(starts) if backward else starts:
            now = slice(start, min(start + count, len(self.delta)))
            yield now, *self.steps(now)

    def groups(self, length: int) -> Iterator[slice]:
        """Yield the channels in groups of which (``length``, c, N) may exist at once."""
        count = max(1, BLOCK // (length * self.A.shape[1]))
        for start in range(0, len(self.A), count):
            yield slice(start, start + count)


def dynamics(trace: Any, layer: int) -> Dynamics:
    """Return the dynamics of a traced layer; raises InputError for what was not captured."""
    row = trace.row(layer)
    delta, B, A = (trace.need(name)[row] for name in ("delta", "B", "A"))
    return Dynamics(delta, A, B, trace.discretisation)


def exponential(trace: Any, layer: int) -> Dynamics:
    """Return ``dynamics`` whose A_bar is exp(delta A); raises InputError for any other rule."""
    found = dynamics(trace, layer)
    if found.rule not in ("mamba", "zoh"):
        raise InputError(
            f"trace: expected a state that decays as exp(delta A), found the rule {found.rule!r}"
        )
    return found


def position(at: Any, length: int) -> int:
    """Return the place of a token, which may be counted from the end; raises InputError."""
    return integer("at", at, low=-length, high=length - 1, error=InputError) % length


def of_layer(trace: Any, layer: int, name: str) -> NDArray:
    """Return one captured quantity of a layer, without the axis of layers."""
    return trace.need(name)[trace.row(layer)]
