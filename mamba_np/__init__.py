# ruff: noqa: F401
"""Mamba, the selective state space model (Gu & Dao 2023), in NumPy.

Start reading in ``equations`` and ``reference``. Importing this package imports NumPy alone; each
name below loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "MambaConfig": "config",
    "MambaModel": "model",
    "MambaForCausalLM": "model",
    "MambaBlock": "model",
    "MambaMixer": "model",
    "MambaCache": "cache",
    "MambaOutput": "outputs",
    "MambaCausalLMOutput": "outputs",
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoTokenizer": "tokenizer",
    "Tokenizer": "tokenizer",
    "GenerationConfig": "generation",
    "TextStreamer": "streamers",
    "TextIteratorStreamer": "streamers",
    "MambaError": "errors",
}
_SUBMODULES = ("backend", "equations", "errors", "ops", "reference")

__all__ = ["__version__", *_MODULE_OF, *_SUBMODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:  # the same names for editors and type checkers
    from . import backend, equations, errors, ops, reference
    from .auto import AutoConfig, AutoModel, AutoModelForCausalLM
    from .cache import MambaCache
    from .config import MambaConfig
    from .errors import MambaError
    from .generation import GenerationConfig
    from .model import MambaBlock, MambaForCausalLM, MambaMixer, MambaModel
    from .outputs import MambaCausalLMOutput, MambaOutput
    from .streamers import TextIteratorStreamer, TextStreamer
    from .tokenizer import AutoTokenizer, Tokenizer


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
