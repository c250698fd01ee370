"""Backends: who computes the steps of the model.

A backend is a module with the functions of ``reference``:

- ``numpy``: the reference itself;
- ``cpu``: compiled kernels, several times faster, for models that compute in float32.

It is chosen by name, once, when a model is made; asking for one that cannot compute the model is
an error, never a silent substitute. "auto" takes the first of ``available`` that can.
"""

from importlib import import_module
from types import ModuleType

import numpy as np

from .config import SELECTIVE, MambaConfig
from .errors import BackendError
from .params import DTYPES

_MODULES = {"cpu": ".kernels.cpu", "numpy": ".reference"}


def available() -> tuple[str, ...]:
    """Return the names that ``get`` accepts on this machine, fastest first."""
    return tuple(_MODULES)


def resolve(
    name: str | None = "auto",
    config: MambaConfig | None = None,
    dtype: np.dtype = DTYPES["float32"],
    *,
    training: bool = False,
) -> str:
    """Return the name of a backend for a model that computes in ``dtype``, or for its training.

    "auto" or None is the fastest one that can compute it. Raises BackendError for a name that is
    unknown, or a backend that cannot compute such a model.
    """
    if name in (None, "auto"):
        return next(one for one in available() if _obstacle(one, config, dtype, training) is None)
    if name not in available():
        raise BackendError(
            f"backend: expected 'auto' or one of {', '.join(available())}, found {name!r}"
        )
    obstacle = _obstacle(name, config, dtype, training)
    if obstacle is not None:
        raise BackendError(
            f"backend: {name!r} has no kernels for {obstacle}; 'auto' finds one that can"
        )
    return name


def get(name: str | None = "auto") -> ModuleType:
    """Return the module that computes for the backend ``name`` (see ``resolve``)."""
    return import_module(_MODULES[resolve(name)], __package__)


def _obstacle(name: str, config: MambaConfig | None, dtype: np.dtype, training: bool) -> str | None:
    """Return what of a model a backend cannot compute, or None. Loads no kernels."""
    if name != "cpu":
        return None
    if dtype != np.float32:
        return f"computing in {dtype}"
    if config is not None and config.hidden_act not in ("silu", "swish"):
        return f"hidden_act={config.hidden_act!r}"
    if config is not None and config.discretisation != "mamba":
        return f"discretisation={config.discretisation!r}"
    if config is not None and config.selective != SELECTIVE and not training:
        return f"selective={config.selective!r}"
    return None
