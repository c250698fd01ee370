"""What a trace is asked for: which quantities, of which layers and channels, at which positions.

Sizes in shapes: n layers and c channels that were chosen, L tokens, P positions whose states are
kept (P = L where every state is), and the model's N, D and V.
"""

from dataclasses import dataclass
from sys import getsizeof
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import integer, shown
from ..config import MambaConfig
from ..errors import InputError
from ..inputs import chosen_indices

QUANTITIES: dict[str, str] = {
    "delta": "n L c",
    "B": "n L N",
    "C": "n L N",
    "x": "n L c",
    "z": "n L c",
    "y": "n L c",
    "h": "n P c N",
    "residual": "n L D",
    "residual_norm": "n L",
    "logits": "L V",
    "delta_mean": "n L",
    "delta_geometric_mean": "n L",
}
"""The names that can be captured, and the axes of their arrays."""

CONSTANTS: dict[str, str] = {"A": "n c N", "D": "n c"}
"""Parameters that come with any quantity that has channels, so that it can be made sense of."""

DEFAULT = ("delta", "B", "C")
LIMIT = 2**30
"""Bytes that a trace may have unless the caller allows more."""

SPELT = (2 * (getsizeof("Ġking") + getsizeof("·king")) + getsizeof("king") * 2) // 3
"""Bytes of a token and its label on average: of three tokens, two begin with a space."""


def kept_states(length: int, every: int, before: int = 0) -> int:
    """Return P: of how many among ``length`` tokens after ``before`` others a state is kept."""
    return (before + length) // every - before // every


@dataclass(frozen=True, eq=False)
class Request:
    """One checked request to a model of a configuration and a dtype."""

    config: MambaConfig
    dtype: np.dtype
    capture: tuple[str, ...]
    layers: NDArray  # (n) int64
    channels: NDArray  # (c) int64
    every: int
    limit: int
    spelt: bool
    """Whether a tokenizer spells the tokens; else they are digits, and labels the same tuple."""

    @classmethod
    def of(
        cls,
        model: Any,
        layers: Any = None,
        channels: Any = None,
        capture: Any = DEFAULT,
        every: Any = 1,
        limit: Any = LIMIT,
        spelt: bool = False,
    ) -> "Request":
        """Check what a caller asks for; raises InputError naming the argument."""
        config = model.config
        return cls(
            config,
            model.compute_dtype,
            _check_capture(capture),
            _check_chosen("layers", layers, config.num_hidden_layers),
            _check_chosen("channels", channels, config.intermediate_size),
            integer("every", every, error=InputError),
            integer("limit", limit, low=0, high=2**63 - 1, error=InputError),
            spelt,
        )

    @property
    def constants(self) -> tuple[str, ...]:
        """The parameters that the trace will hold."""
        by_channel = any("c" in QUANTITIES[name] for name in self.capture)
        return tuple(CONSTANTS) if by_channel else ()

    @property
    def all_channels(self) -> bool:
        """Whether every channel is wanted, in its own place."""
        E = self.config.intermediate_size
        return len(self.channels) == E and bool((self.channels == np.arange(E)).all())

    def shape(self, name: str, length: int, before: int = 0) -> tuple[int, ...]:
        """Return the shape of a quantity over ``length`` tokens that follow ``before`` others."""
        c = self.config
        sizes = {"n": len(self.layers), "L": length, "c": len(self.channels), "N": c.state_size,
                 "P": kept_states(length, self.every, before),
                 "D": c.hidden_size, "V": c.vocab_size}  # fmt: skip
        return tuple(sizes[axis] for axis in (QUANTITIES | CONSTANTS)[name].split())

    def sizes(self, length: int) -> dict[str, int]:
        """Return the bytes of each array of a trace of ``length`` tokens, and of all else.

        A text that comes again is kept once. How often that is, nobody knows beforehand: each
        token counts as another one, as far as the vocabulary goes.
        """
        names = (*self.capture, *self.constants)
        arrays = {n: int(np.prod(self.shape(n, length), dtype=object)) for n in names}
        sizes = {name: size * self.dtype.itemsize for name, size in arrays.items()}
        vocabulary = self.config.vocab_size
        tuples, text = (2, SPELT) if self.spelt else (1, getsizeof(str(vocabulary - 1)))
        texts, indices = text * min(length, vocabulary), self.layers.nbytes + self.channels.nbytes
        return sizes | {"tokens": 8 * (1 + tuples) * length + texts + indices}

    def check_size(self, length: int) -> None:
        """Raise InputError if a trace of ``length`` tokens would be larger than the limit."""
        sizes = self.sizes(length)
        total = sum(sizes.values())
        if total <= self.limit:
            return
        largest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"limit: expected a trace of at most {_readable(self.limit)}, found "
            f"{_readable(total)} for {length} tokens, of which {largest} takes "
            f"{_readable(sizes[largest])}: {_advice(largest)}, or allow it with limit={total}"
        )


def _advice(name: str) -> str:
    axes = QUANTITIES.get(name, "")
    choices = [f"leave {name!r} out of capture"] if axes else ["trace a shorter text"]
    choices += ["choose some layers"] if "n" in axes else []
    choices += ["choose some channels"] if "c" in axes else []
    choices += ["keep fewer states with a larger every="] if "P" in axes else []
    choices += ["capture 'delta_mean' instead"] if name == "delta" else []
    return ", ".join(choices)


def _readable(size: int) -> str:
    return f"{size:,} bytes" if size < 2**20 else f"{size / 2**20:,.1f} MiB"


def _check_capture(names: Any) -> tuple[str, ...]:
    listed = isinstance(names, (list, tuple, set, frozenset)) and len(names) > 0
    unknown = [n for n in names if not isinstance(n, str) or n not in QUANTITIES] if listed else []
    if not listed or unknown:
        found = unknown[0] if unknown else names
        raise InputError(
            f"capture: expected a list with some of {', '.join(QUANTITIES)}, found {shown(found)}"
        )
    return tuple(name for name in QUANTITIES if name in names)


def _check_chosen(what: str, chosen: Any, count: int) -> NDArray:
    """Return indices below ``count``, in the caller's order, each once; None means all."""
    places = chosen_indices(what, chosen, count)
    if not places.size or len(np.unique(places)) < len(places):
        raise InputError(
            f"{what}: expected some indices, each once, found {shown(places.tolist())}"
        )
    return places
