"""Products of large matrices by NVIDIA's cuBLAS, from its shared library.

Why not by kernels of our own: its products run at the speed of the tensor cores, and a page of
kernel does not. Why not through CuPy or nvmath: one function is all we need.
"""

import ctypes
from importlib import import_module
from typing import Any, ClassVar

from ..errors import BackendError
from .device import Block, Product

PLAIN, TRANSPOSED = 0, 1  # cublasOperation_t
KINDS = {"float32": 0, "bfloat16": 14}  # cudaDataType_t
SUMS_IN_FLOAT32 = 68  # CUBLAS_COMPUTE_32F: no TensorFloat-32
ANY_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT


class CuBlas:
    """A handle of the library, on one stream, with memory of its own to work in."""

    WORKSPACE: ClassVar[int] = 32 * 2**20
    """What the library recommends for the largest GPUs; a fixed one lets graphs record it."""

    def __init__(self, stream: int, workspace: Block):
        self._library = _load()
        self._handle, self._workspace = ctypes.c_void_p(), workspace
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        room = ctypes.c_void_p(workspace.address), ctypes.c_size_t(workspace.nbytes)
        self._call("cublasSetWorkspace_v2", self._handle, *room)

    def multiply(self, product: Product, kind: str) -> None:
        """Compute a product.

        The library counts columns first, where our rows are columns: it is asked for
        y^T = W x^T.
        """
        (T, O, I), p = product.sizes, product  # noqa: E741
        one, beta = ctypes.c_float(1), ctypes.c_float(1 if p.add else 0)
        number = KINDS[kind]
        matrices = []
        for address, width in (p.weights, p.x):
            matrices += [ctypes.c_void_p(address), number, width]
        self._call(
            "cublasGemmEx", self._handle, TRANSPOSED, PLAIN, O, T, I, ctypes.byref(one),
            *matrices, ctypes.byref(beta), ctypes.c_void_p(p.y[0]), KINDS["float32"], p.y[1],
            SUMS_IN_FLOAT32, ANY_ALGORITHM,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise BackendError(f"backend: cuBLAS refused {name}: status {status}")


def _load() -> Any:
    """Return the library; raises BackendError saying what to install."""
    try:
        pathfinder = import_module("cuda.pathfinder")
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:
        raise BackendError(
            "backend: 'cuda' needs cuBLAS for prompts, which was not found: "
            f"pip install 'mamba-np[cuda]' ({str(error).splitlines()[0]})"
        ) from None
