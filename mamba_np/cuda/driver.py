"""The GPU itself, through NVIDIA's driver: memory, kernels, recorded graphs.

Every call of the driver is checked; what it refuses becomes a BackendError with its own words.
"""

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from ..errors import BackendError
from .compiler import code_for
from .device import Block, Product
from .dialect import types
from .registry import Kernel

INSTALL = "pip install 'mamba-np[cuda]'"
OLDEST = 75
"""Turing: what the compilers of CUDA 13 can still make code for."""


@cache
def gpu(number: int = 0) -> "Gpu":
    """Return a GPU, the same object each time; raises BackendError saying what is missing."""
    return Gpu(number)


class Memory:
    """A block of a GPU's memory."""

    def __init__(self, owner: "Gpu", address: int, nbytes: int):
        self.address, self.nbytes = address, nbytes
        weakref.finalize(self, owner.release, address).atexit = False


class Gpu:
    """One NVIDIA GPU; see ``device.Device`` for what its methods do."""

    def __init__(self, number: int = 0):
        self._driver, self.lock = _library(), threading.RLock()
        self._recording, self._unwanted = False, []
        version = self._call("cuDriverGetVersion")
        count = self._call("cuDeviceGetCount")
        if not 0 <= number < count:
            raise BackendError(f"backend: expected GPU {number}, found {count} GPUs")
        handle = self._call("cuDeviceGet", number)
        self.name = self._call("cuDeviceGetName", 256, handle).split(b"\0")[0].decode()
        self.architecture = 10 * self._attribute(handle, "COMPUTE_CAPABILITY_MAJOR")
        self.architecture += self._attribute(handle, "COMPUTE_CAPABILITY_MINOR")
        self.processors = self._attribute(handle, "MULTIPROCESSOR_COUNT")
        if self.architecture < OLDEST:
            raise BackendError(
                f"backend: expected a GPU of compute capability {OLDEST / 10} or newer, found "
                f"{self.name} with {self.architecture / 10}"
            )
        _check_version(version)
        self._context = self._call("cuDevicePrimaryCtxRetain", handle)
        self._local = threading.local()
        self._enter()
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._call("cuStreamCreate", int(flags))
        self._functions: dict[Kernel, Any] = {}
        self._products: Any = None

    def _attribute(self, handle: Any, name: str) -> int:
        kind = self._driver.CUdevice_attribute
        return self._call(
            "cuDeviceGetAttribute", getattr(kind, f"CU_DEVICE_ATTRIBUTE_{name}"), handle
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; return what it returns besides the error."""
        with self.lock:  # not while another thread records: its work would be recorded, too
            error, *results = getattr(self._driver, name)(*arguments)
        if int(error):
            raise BackendError(f"backend: the GPU's driver refused {name}: {_text(error)}")
        return results[0] if len(results) == 1 else results

    def _enter(self) -> None:
        """Make this GPU the calling thread's."""
        if not getattr(self._local, "entered", False):
            self._call("cuCtxSetCurrent", self._context)
            self._local.entered = True

    # --- memory ---------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Return how much memory is free."""
        self._enter()
        return self._call("cuMemGetInfo")[0]

    def allocate(self, nbytes: int) -> Memory:
        """Return memory of zeros; raises BackendError if there is not enough."""
        self._enter()
        free = self.free_bytes()
        if nbytes > free:
            raise BackendError(
                f"backend: expected {nbytes:,} bytes of free memory on {self.name}, found {free:,}"
            )
        address = int(self._call("cuMemAlloc", max(nbytes, 1)))
        block = Memory(self, address, nbytes)
        self._call("cuMemsetD8Async", address, 0, nbytes, self._stream)
        return block

    def release(self, address: int) -> None:
        """Give memory back, which waits for all work; after a recording, if there is one."""
        with self.lock:
            if self._recording:
                self._unwanted.append(address)
                return
            with suppress(BackendError):  # the driver is gone, at the end of the process
                self._enter()
                self._call("cuMemFree", address)

    def upload(self, block: Block, array: NDArray, offset: int = 0) -> None:
        """Copy an array into a block."""
        self._enter()
        _require_room(block, array, offset)
        self._call(
            "cuMemcpyHtoDAsync", block.address + offset, array.ctypes.data, array.nbytes,
            self._stream,
        )  # fmt: skip
        self.wait()  # the array may change, or go, as soon as this returns

    def download(self, block: Block, array: NDArray, offset: int = 0) -> None:
        """Wait for all work, then copy a part of a block into an array."""
        self._enter()
        _require_room(block, array, offset)
        self._call(
            "cuMemcpyDtoHAsync", array.ctypes.data, block.address + offset, array.nbytes,
            self._stream,
        )  # fmt: skip
        self.wait()

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy from one address to another."""
        self._enter()
        self._call("cuMemcpyDtoDAsync", to, source, nbytes, self._stream)

    # --- work -----------------------------------------------------------------------------------

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: Any) -> None:
        """Run a kernel on a grid of blocks."""
        self._enter()
        function = self._functions.get(kernel)
        if function is None:
            code = code_for(kernel, self.architecture)
            module = self._call("cuModuleLoadData", code.binary)
            function = self._call("cuModuleGetFunction", module, code.symbol.encode())
            self._functions[kernel] = function
        values = tuple(getattr(a, "address", a) for a in arguments)
        kinds = tuple(_c_type(kind) for kind in kernel.arguments)
        x, y, z = (*grid, 1, 1)[:3]
        self._call(
            "cuLaunchKernel", function, x, y, z, kernel.threads, 1, 1, 0, self._stream,
            (values, kinds), 0,
        )  # fmt: skip

    def multiply(self, product: Product, kind: str) -> None:
        """Compute a product of matrices by cuBLAS."""
        self._enter()
        if self._products is None:
            from .cublas import CuBlas

            workspace = self.allocate(CuBlas.WORKSPACE)
            self._products = CuBlas(int(self._stream), workspace)
        self._products.multiply(product, kind)

    @contextmanager
    def recording(self) -> Iterator["Graph"]:
        """Record what is asked for meanwhile instead of doing it."""
        self._enter()
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        graph = Graph(self)
        with self.lock:
            self._call("cuStreamBeginCapture", self._stream, mode)
            self._recording = True
            try:
                yield graph
            finally:
                self._recording = False
                recorded = self._call("cuStreamEndCapture", self._stream)
            graph.complete(recorded)
            while self._unwanted:
                self.release(self._unwanted.pop())

    def wait(self) -> None:
        """Wait for all work."""
        self._enter()
        self._call("cuStreamSynchronize", self._stream)


class Graph:
    """Recorded work."""

    def __init__(self, owner: Gpu):
        self._owner = owner
        self._work: Any = None

    def complete(self, recorded: Any) -> None:
        """Make what was recorded ready to be done."""
        self._work = self._owner._call("cuGraphInstantiate", recorded, 0)
        self._owner._call("cuGraphDestroy", recorded)
        destroy = self._owner._driver.cuGraphExecDestroy
        weakref.finalize(self, destroy, self._work).atexit = False

    def replay(self) -> None:
        """Do all of it again."""
        self._owner._enter()
        self._owner._call("cuGraphLaunch", self._work, self._owner._stream)


# --- what is there --------------------------------------------------------------------------------


def _library() -> Any:
    """Return the driver, ready; raises BackendError saying what to install."""
    try:
        driver = import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendError(
            f"backend: 'cuda' needs numba-cuda, which is not installed: {INSTALL} ({error})"
        ) from None
    try:
        (error,) = driver.cuInit(0)
    except (RuntimeError, OSError) as missing:  # the driver's library cannot be loaded
        raise BackendError(
            "backend: 'cuda' needs a GPU with NVIDIA's driver, which was not found: "
            f"{str(missing).splitlines()[0]}"
        ) from None
    if int(error):
        raise BackendError(f"backend: 'cuda' found no usable GPU: {_text(error)}")
    return driver


def _check_version(driver: int) -> None:
    """Refuse a driver older than the compilers: it could not load what they make."""
    major, _ = import_module("cuda.bindings.nvjitlink").version()
    if driver // 1000 < major:
        older = ", or pip install 'mamba-np[cuda12]'" if driver // 1000 == 12 else ""
        raise BackendError(
            f"backend: expected a driver for CUDA {major} as numba-cuda has it, found one for "
            f"CUDA {driver // 1000}.{driver % 1000 // 10}; update the driver{older}"
        )


def _text(error: Any) -> str:
    _, text = import_module("cuda.bindings.driver").cuGetErrorString(error)
    return text.decode() if text else repr(error)


def _c_type(kind: Any) -> Any:
    if isinstance(kind, types.CPointer):
        return ctypes.c_void_p
    return {types.int32: ctypes.c_int32, types.float32: ctypes.c_float}[kind]


def _require_room(block: Block, array: NDArray, offset: int) -> None:
    """Refuse a copy that would leave the block, or an array that lies in pieces."""
    if offset + array.nbytes > block.nbytes or not array.flags.c_contiguous:
        raise ValueError(f"a copy of {array.nbytes} bytes at {offset} of {block.nbytes}")
