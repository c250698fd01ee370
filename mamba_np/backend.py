"""Backends: who computes the steps of the model.

A backend is a module with the functions of ``reference``. It is chosen by name, once, when a
model is made; asking for one that is not there is an error, never a silent substitute.
"""

from types import ModuleType

from . import reference
from .errors import BackendError

_BACKENDS: dict[str, ModuleType] = {"numpy": reference}


def available() -> tuple[str, ...]:
    """Return the names that ``get`` accepts on this machine, fastest first."""
    return tuple(_BACKENDS)


def resolve(name: str | None = "auto") -> str:
    """Return the name of an available backend; "auto" or None is the fastest one.

    Raises BackendError for any other name.
    """
    if name in (None, "auto"):
        return available()[0]
    if name not in available():
        raise BackendError(
            f"backend: expected 'auto' or one of {', '.join(available())}, found {name!r}"
        )
    return name


def get(name: str | None = "auto") -> ModuleType:
    """Return the module that computes for the backend ``name`` (see ``resolve``)."""
    return _BACKENDS[resolve(name)]
