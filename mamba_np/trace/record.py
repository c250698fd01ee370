"""Where a run writes what is wanted of it: the arrays, and which part of them comes next."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..config import MambaConfig
from ..params import Params
from .request import Request


class Record:
    """The arrays of one run over ``length`` tokens, after ``before`` others of the same trace.

    An engine says how many tokens come next by ``begin``, and then writes, for each layer that has
    a row, what it sees of these tokens.
    """

    def __init__(self, request: Request, length: int, before: int = 0):
        self.request, self.before = request, before
        names = [name for name in request.capture if name != "logits"]  # made by the head, later
        shapes = {name: request.shape(name, length, before) for name in names}
        self.arrays = {name: np.empty(shape, request.dtype) for name, shape in shapes.items()}
        self.rows = {int(layer): row for row, layer in enumerate(request.layers)}
        self.now = slice(0, 0)

    def begin(self, length: int) -> None:
        """Go on to the next ``length`` tokens."""
        self.now = slice(self.now.stop, self.now.stop + length)

    def wants(self, *names: str) -> bool:
        """Return whether any of the quantities is wanted."""
        return any(name in self.arrays for name in names)

    def of(self, name: str, layer: int) -> NDArray:
        """Return the part of a quantity that the present tokens have in a layer: (L, ...)."""
        return self.arrays[name][self.rows[layer], self.now]

    def put(self, name: str, layer: int, values: NDArray, first: int = 0) -> None:
        """Write a quantity, if it is wanted, for some of the present tokens: (l, ...)."""
        if name in self.arrays:
            self.of(name, layer)[first : first + len(values)] = values

    def put_means(self, layer: int, delta: NDArray, first: int = 0) -> None:
        """Write the means over the chosen channels of some of the tokens: delta (l, c)."""
        if self.wants("delta_mean"):
            self.put("delta_mean", layer, delta.mean(axis=-1), first)
        if self.wants("delta_geometric_mean"):
            self.put("delta_geometric_mean", layer, eq.geometric_mean(delta), first)

    def put_residual(self, layer: int, residual: NDArray, first: int = 0) -> None:
        """Write what a block made of some of the tokens: residual (l, D)."""
        if layer in self.rows:
            self.put("residual", layer, residual, first)
            if self.wants("residual_norm"):
                self.put("residual_norm", layer, np.linalg.norm(residual, axis=-1), first)

    def kept(self) -> NDArray:
        """Return the places (P'), among the present tokens, whose states are kept."""
        if not self.wants("h"):
            return np.arange(0)
        read = self.before + np.arange(self.now.start, self.now.stop) + 1  # tokens by then
        return np.flatnonzero(read % self.request.every == 0)

    def states(self, layer: int) -> NDArray:
        """Return the part of h that the present tokens have in a layer: (P' c N)."""
        every, first = self.request.every, self.before // self.request.every
        ends = (self.before + self.now.start) // every, (self.before + self.now.stop) // every
        return self.arrays["h"][self.rows[layer], ends[0] - first : ends[1] - first]


class Observer(Protocol):
    """What runs a model in a backend's way, the very same numbers, and keeps a record of it."""

    def run(
        self, x: NDArray, params: Params, config: MambaConfig, memory: tuple[NDArray, NDArray]
    ) -> list[NDArray]:
        """Do what ``reference.run`` does with one text: (1 L D) -> [(1 L D)]."""
        ...


def observer(backend: str, record: Record) -> Any:
    """Return the Observer of a backend given by its name."""
    if backend == "cuda":
        from ..cuda.observing import Observer as OnDevice

        return OnDevice(record)
    if backend == "cpu":
        from ..kernels.observing import Observer as Compiled

        return Compiled(record)
    from .reading import Reading

    return Reading(record)
