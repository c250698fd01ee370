"""Trace: what went on inside a model while it read one text."""

import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import integer, shown
from ..errors import InputError
from .labels import tokenizer_of
from .request import CONSTANTS, DEFAULT, QUANTITIES, Request


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The inner quantities of one text, in the model's float32 or float64; None: not captured.

    Sizes: n layers and c channels that were chosen, L tokens, P = L // ``every`` kept states (see
    ``h_positions``), and the model's N state_size, D hidden_size, V vocab_size. Arrays are
    read-only. ``A`` and ``D`` come with every quantity that has channels; all other parameters are
    the model's to give. Symbols are those of docs/notation.md: h = exp(delta A) h + delta B x,
    y = C h, and the block goes on with (y + D x) silu(z).
    """

    ids: NDArray
    """(L) int64."""
    tokens: tuple[str, ...]
    """(L): the tokens as the vocabulary spells them; ids in digits if no tokenizer was there."""
    labels: tuple[str, ...]
    """(L): the same for people: see ``labels``."""
    layers: NDArray
    """(n) int64: which layers the first axis of the arrays stands for."""
    channels: NDArray
    """(c) int64: which channels."""
    every: int
    """How many tokens lie from one state that is kept to the next."""
    before: int
    """How many tokens the tracer had read before these; 0 but in ``Tracer.last``."""
    model: str
    """The fingerprint of the model."""
    discretisation: str
    """The rule that makes A_bar and B_bar: a key of ``equations.DISCRETISATIONS``."""

    delta: NDArray | None = None
    """(n, L, c): the step sizes, after softplus."""
    B: NDArray | None = None
    """(n, L, N): the way into the state."""
    C: NDArray | None = None
    """(n, L, N): the way out of it."""
    x: NDArray | None = None
    """(n, L, c): what the scan reads: after the convolution and its activation."""
    z: NDArray | None = None
    """(n, L, c): the gate, before its silu."""
    y: NDArray | None = None
    """(n, L, c): what the scan gives: C h, without D x, before the gate."""
    h: NDArray | None = None
    """(n, P, c, N): the states after ``every``, 2 ``every`` ... tokens."""
    residual: NDArray | None = None
    """(n, L, D): the residual stream after each layer, not normed."""
    residual_norm: NDArray | None = None
    """(n, L): its Euclidean length."""
    logits: NDArray | None = None
    """(L, V): the scores of the next token."""
    delta_mean: NDArray | None = None
    """(n, L): the mean of delta over the chosen channels."""
    delta_geometric_mean: NDArray | None = None
    """(n, L): e to the mean of log delta over them: half of the channels do not drown it."""
    A: NDArray | None = None
    """(n, c, N): the decay rates, negative."""
    D: NDArray | None = None
    """(n, c): the skip connection."""

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    # --- what is in it ----------------------------------------------------------------------------

    @property
    def captured(self) -> tuple[str, ...]:
        """The names of the quantities that are there."""
        return tuple(name for name in QUANTITIES if getattr(self, name) is not None)

    def arrays(self) -> dict[str, NDArray]:
        """Return all quantities and parameters that are there, by name."""
        names = (*QUANTITIES, *CONSTANTS)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def need(self, name: str) -> NDArray:
        """Return a quantity; raises InputError, saying how to get it, where it was not captured."""
        found = self.arrays().get(name)
        if found is None:
            asked = name if name in QUANTITIES else "delta" if name in CONSTANTS else None
            how = f"; trace with capture=({asked!r}, ...)" if asked else ""
            raise InputError(
                f"trace: expected one that holds {shown(name)}, found {', '.join(self.captured)}"
                f"{how}"
            )
        return found

    def row(self, layer: int) -> int:
        """Return the place of a layer in the arrays; raises InputError if it was not traced."""
        return self._place("layer", self.layers, layer)

    def column(self, channel: int) -> int:
        """Return the place of a channel in the arrays; raises InputError if it was not traced."""
        return self._place("channel", self.channels, channel)

    def _place(self, what: str, chosen: NDArray, wanted: int) -> int:
        places = np.flatnonzero(chosen == integer(what, wanted, low=0, error=InputError))
        if not places.size:
            raise InputError(f"{what}: expected one of {shown(chosen.tolist())}, found {wanted}")
        return int(places[0])

    @property
    def h_positions(self) -> NDArray:
        """(P) int64: the positions of the tokens after which the states of ``h`` were kept."""
        return np.arange((-self.before - 1) % self.every, len(self), self.every)

    @property
    def nbytes(self) -> int:
        """The bytes of ids, and of all quantities and parameters that are there."""
        return self.ids.nbytes + sum(array.nbytes for array in self.arrays().values())

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Trace({len(self)} tokens, {len(self.layers)} layers, {len(self.channels)} channels, "
            f"{', '.join(self.captured)}, {self.nbytes:,} bytes)"
        )

    def _repr_html_(self) -> str:
        """Show a notebook the page that ``mamba_np.report`` makes, without what needs the model."""
        from ..report import frame_of

        return frame_of(self)

    # --- before there is one, and files -----------------------------------------------------------

    @staticmethod
    def estimate(
        model: Any,
        length: int,
        layers: Any = None,
        channels: Any = None,
        capture: Any = DEFAULT,
        *,
        every: int = 1,
        tokenizer: Any = None,
    ) -> int:
        """Return the bytes that a trace of ``length`` tokens would have; nothing is computed.

        Arguments are those of ``trace``. It is right to 10 % for a long text whose tokens all
        differ. A token that comes again has its spelling and label once, which a length does not
        tell: such a trace is smaller, by 100 to 150 bytes each time, which is seen only beside
        the smallest quantities, such as delta_mean.
        While it is made, the model needs a chunk's arrays beside them, and where logits are
        captured the last hidden states (L, D). Raises InputError naming the argument.
        """
        tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
        spelt = tokenizer is not None
        request = Request.of(model, layers, channels, capture, every, spelt=spelt)
        length = integer("length", length, low=0, error=InputError)
        return sum(request.sizes(length).values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Its tensors have the names and shapes of the arrays here; what is no array stands in the
        header, as JSON. Raises FileMissingError if it cannot be written.
        """
        from .files import save_trace

        save_trace(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """Read a file that ``save`` wrote; nothing in it is executed.

        Raises FileMissingError if there is none, CheckpointError naming the file if it is damaged
        or holds something else.
        """
        from .files import load_trace

        return load_trace(path)
