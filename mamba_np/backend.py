"""Backends: who computes the steps of the model.

A backend is a module with the functions of ``reference``:

- ``numpy``: the reference itself;
- ``cpu``: compiled kernels, several times faster, for models that compute in float32;
- ``cuda``: kernels for NVIDIA GPUs, with numba-cuda and a driver, for the same models.

It is chosen by name, once, when a model is made; asking for one that cannot compute the model is
an error, never a silent substitute. "auto" takes the first of ``AUTOMATIC`` that can: a GPU is
used where it is asked for.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np

from .config import SELECTIVE, MambaConfig
from .errors import BackendError
from .params import DTYPES

_MODULES = {"cuda": ".cuda.engine", "cpu": ".kernels.cpu", "numpy": ".reference"}

AUTOMATIC = ("cpu", "numpy")
"""What "auto" chooses from, fastest first."""


LARGEST_ON_GPU = {"state_size": 64, "hidden_size": 8192, "conv_kernel": 16}
"""What fits into the registers and the shared memory of its kernels."""


def available() -> tuple[str, ...]:
    """Return the names that ``get`` accepts on this machine, fastest first."""
    try:
        require_gpu()
    except BackendError:
        return AUTOMATIC
    return tuple(_MODULES)


def require_gpu() -> None:
    """Raise BackendError saying what is missing unless this machine can use backend "cuda"."""
    if not _installed():
        raise BackendError(
            "backend: 'cuda' needs numba-cuda, which is not installed: pip install 'mamba-np[cuda]'"
        )
    get("cuda").device()


@cache
def _installed() -> bool:
    return find_spec("numba_cuda") is not None


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
        return next(one for one in AUTOMATIC if _obstacle(one, config, dtype, training) is None)
    if name not in _MODULES:
        raise BackendError(
            f"backend: expected 'auto' or one of {', '.join(_MODULES)}, found {name!r}"
        )
    obstacle = _obstacle(name, config, dtype, training)
    if obstacle is not None:
        raise BackendError(
            f"backend: {name!r} has no kernels for {obstacle}; 'auto' finds one that can"
        )
    if name == "cuda":
        require_gpu()
    return name


def for_device(device: str | None, backend: str = "auto") -> str:
    """Return the backend to ask for where a device is named as elsewhere: "cpu", "cuda", "cuda:0".

    None leaves the choice to ``backend``. Raises BackendError for another device, or where the
    two contradict each other.
    """
    if device is None:
        return backend
    if device not in ("cpu", "cuda", "cuda:0"):
        raise BackendError(
            f"device: expected 'cpu', 'cuda' or 'cuda:0', found {device!r}; the environment "
            "variable CUDA_VISIBLE_DEVICES says which GPU is the first"
        )
    on_gpu = device != "cpu"
    if backend not in (None, "auto") and on_gpu != (backend == "cuda"):
        raise BackendError(f"device: {device!r} contradicts backend {backend!r}")
    return "cuda" if on_gpu else backend


def get(name: str | None = "auto") -> ModuleType:
    """Return the module that computes for the backend ``name``, which ``resolve`` returned."""
    name = name if name in _MODULES else resolve(name)
    return import_module(_MODULES[name], __package__)


def _obstacle(name: str, config: MambaConfig | None, dtype: np.dtype, training: bool) -> str | None:
    """Return what of a model a backend cannot compute, or None. Loads no kernels."""
    if name == "numpy":
        return None
    if name == "cuda" and training:
        return "training"
    if dtype != np.float32:
        return f"computing in {dtype}"
    if config is not None and config.hidden_act not in ("silu", "swish"):
        return f"hidden_act={config.hidden_act!r}"
    if config is not None and config.discretisation != "mamba":
        return f"discretisation={config.discretisation!r}"
    if config is not None and config.selective != SELECTIVE and not training:
        return f"selective={config.selective!r}"
    if name == "cuda" and config is not None:
        for field, most in LARGEST_ON_GPU.items():
            if getattr(config, field) > most:
                return f"{field}={getattr(config, field)} above {most}"
    return None
