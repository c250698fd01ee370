"""What model calls return: dataclasses that can also be read like a tuple or a dictionary."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from numpy.typing import NDArray

from .cache import MambaCache


@dataclass(eq=False)
class ModelOutput:
    """Base of all outputs: fields that are None are left out of the tuple and dictionary views.

    ``output.logits``, ``output["logits"]``, ``output[0]`` and ``logits, *rest = output`` all work.
    """

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields that are not None, in order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Return (name, value) of the fields that are not None, in order."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or ``default`` where it is None or unknown."""
        return getattr(self, key) if key in self else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass(eq=False)
class MambaOutput(ModelOutput):
    """What MambaModel returns.

    ``hidden_states`` follows transformers' convention: the output of each block, then the normed
    output of the last one, num_hidden_layers + 1 arrays in all; the embeddings are not among them.
    """

    last_hidden_state: NDArray  # (B, L, D)
    cache_params: MambaCache | None = None
    hidden_states: tuple[NDArray, ...] | None = None  # each (B, L, D)


@dataclass(eq=False)
class MambaCausalLMOutput(ModelOutput):
    """What MambaForCausalLM returns; the loss comes first where labels were given."""

    loss: Any = None  # (): mean over the predicted labels, in nats
    logits: NDArray = None  # type: ignore[assignment] # (B, L, V), or (B, k, V) with logits_to_keep
    cache_params: MambaCache | None = None
    hidden_states: tuple[NDArray, ...] | None = None  # as in MambaOutput
