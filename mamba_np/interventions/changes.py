"""The changes that can be made to what goes on inside a model: plain values, checked when used."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..cache import MambaCache
from ..checks import integer, number, shown
from ..errors import InputError
from ..params import Layer


@dataclass(frozen=True, kw_only=True)
class Change:
    """What every change has: where it acts."""

    layers: Any = None
    channels: Any = None

    def neutral(self) -> bool:
        """Whether it changes nothing whatever the text."""
        return False

    def check(self) -> None:
        """Raise InputError naming a value that no change can have."""


@dataclass(frozen=True, kw_only=True)
class DeltaChange(Change):
    """A change of step sizes, at some ``tokens``."""

    tokens: Any = None

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return what some step sizes (B, l, c) become."""
        raise NotImplementedError


@dataclass(frozen=True)
class ScaleDelta(DeltaChange):
    """Multiply step sizes: above 1 a token writes more and the state forgets faster."""

    factor: float

    def neutral(self) -> bool:
        """Whether the factor is 1."""
        return self.factor == 1

    def check(self) -> None:
        """Raise InputError for a factor that is no number of at least 0."""
        number("factor", self.factor, low=0, error=InputError)

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return the scaled step sizes (B, l, c)."""
        return delta * delta.dtype.type(self.factor)


@dataclass(frozen=True)
class ClampDelta(DeltaChange):
    """Keep step sizes between two bounds."""

    low: float = 0.0
    high: float = np.inf

    def neutral(self) -> bool:
        """Whether no step size is outside."""
        return self.low <= 0 and self.high == np.inf

    def check(self) -> None:
        """Raise InputError for bounds that are not 0 <= low <= high."""
        if not 0 <= self.low <= self.high:
            raise InputError(
                f"low: expected 0 <= low <= high, found {shown(self.low)} and {shown(self.high)}"
            )

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return the bounded step sizes (B, l, c)."""
        return np.clip(delta, self.low, self.high)


@dataclass(frozen=True)
class FreezeDelta(DeltaChange):
    """Give each channel the same step size at every token.

    ``value`` is a number, or one for each chosen channel (c); None: what its bias alone makes,
    softplus(dt_bias), as if no input were seen.
    """

    value: Any = None

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return the frozen step sizes (B, l, c); raises InputError for other shapes and dtypes."""
        if self.value is None:
            steady = eq.softplus(layer.dt_bias[channels].astype(delta.dtype))
        else:
            steady = np.asarray(self.value)
        if steady.dtype.kind not in "fiu" or steady.shape not in ((), (len(channels),)):
            raise InputError(
                f"value: expected a number, or {len(channels)} of them, found {shown(self.value)}"
            )
        return np.broadcast_to(steady.astype(delta.dtype), delta.shape)


@dataclass(frozen=True)
class CutPath(Change):
    """Hide from later tokens, ``target`` or all of them, what token ``source`` wrote to the state.

    Its way through the convolution and the residual stays (after arXiv:2404.03646).
    """

    source: int
    target: Any = None

    def check(self) -> None:
        """Raise InputError for a source that is no position."""
        integer("source", self.source, low=0, error=InputError)


@dataclass(frozen=True)
class SetState(Change):
    """Before token ``at`` is read, put something else in the place of the state h.

    ``state`` is 0, an array (E, N) or (layers, E, N), or the MambaCache of another text, for a
    swap; of a cache the convolution's window is taken, too, unless ``window`` is false.
    """

    state: Any
    at: int
    window: bool = True

    def check(self) -> None:
        """Raise InputError for ``at`` that is no position."""
        integer("at", self.at, low=0, error=InputError)

    def parts(
        self, i: int, shape: tuple[int, ...]
    ) -> tuple[NDArray | None, NDArray]:  # (B E K) or None, (B E N), where B may be 1
        """Return the new window of layer i, if any, and its new state for a ``shape`` (B, E, N).

        Raises InputError for what does not fit.
        """
        if isinstance(self.state, MambaCache):
            cache = self.state
            fits = i < len(cache.ssm_states) and cache.ssm_states[i].shape[1:] == shape[1:]
            if cache.batch_size not in (1, shape[0]) or not fits:
                raise InputError(
                    f"state: expected a cache of 1 or {shape[0]} texts with states {shape[1:]}, "
                    f"found {cache}"
                )
            return (cache.conv_states[i] if self.window else None), cache.ssm_states[i]
        array = np.asarray(self.state)
        array = array[i] if array.ndim == 3 and i < len(array) else array
        if array.dtype.kind not in "fiu" or array.shape not in ((), shape[1:]):
            raise InputError(
                f"state: expected 0 or an array {shape[1:]}, found {shown(self.state)}"
            )
        return None, np.broadcast_to(array, shape)


@dataclass(frozen=True)
class Ablate(Change):
    """Take the ``channels`` out of what a mixer gives at some ``tokens``; all: the whole mixer."""

    tokens: Any = None
