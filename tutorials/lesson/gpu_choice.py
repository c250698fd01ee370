"""A GPU, if there is one that Numba can use; else Numba's simulator. Numba is not loaded here."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec


def gpu_name() -> str | None:
    """Return the name of the GPU, asked of its driver, or None."""
    if find_spec("numba_cuda") is None or os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return None
    try:
        driver = import_module("cuda.bindings.driver")
        if driver.cuInit(0)[0] or driver.cuDeviceGetCount()[1] == 0:
            return None
        return driver.cuDeviceGetName(256, driver.cuDeviceGet(0)[1])[1].split(b"\0")[0].decode()
    except (ImportError, RuntimeError):
        return None


def use_gpu_or_simulator() -> str:
    """Make `kernel[blocks, threads](...)` work, and return where; to be called before Numba loads.

    Without a GPU this sets NUMBA_ENABLE_CUDASIM: kernels are then Python, and nothing is compiled.
    """
    for name in ("CUDA_LOW_OCCUPANCY_WARNINGS", "CUDA_WARN_ON_IMPLICIT_COPY"):
        os.environ[f"NUMBA_{name}"] = "0"  # a dozen threads are few, and are meant to be
    name = gpu_name()
    if name is None and "numba.cuda" not in sys.modules:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        import_module("numba").config.ENABLE_CUDASIM = 1  # if Numba was imported all the same
    return name or "no GPU: Python plays one"
