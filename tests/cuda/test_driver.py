"""The GPU's driver: what is missing is named before any work starts; every refusal is an error.

The driver here is a stand-in with the same functions, which keeps "device" memory in arrays.
"""

import ctypes
import enum
import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from numba import types

from mamba_np import MambaConfig, MambaModel, backend
from mamba_np.cuda import cublas, driver
from mamba_np.cuda.device import Product
from mamba_np.cuda.registry import F32_POINTER, INT, Budget, Kernel
from mamba_np.errors import BackendError

CONFIG = MambaConfig(vocab_size=11, hidden_size=6, num_hidden_layers=1)
ATTRIBUTES = SimpleNamespace(
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="processors",
)


class Result(enum.IntEnum):
    SUCCESS = 0
    REFUSED = 700


class FakeDriver:
    """Memory of addresses from 256 on; calls are kept by name."""

    CUdevice_attribute = ATTRIBUTES
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, *, count=1, major=9, minor=0, version=13000, total=2**20):
        self.count, self.version, self.total = count, version, total
        self.attributes = {"major": major, "minor": minor, "processors": 132}
        self.blocks, self.calls, self.refuse, self.next = {}, [], None, 256

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, arguments))
            if name == self.refuse:
                return (Result.REFUSED, *(None,) * 2)
            found = getattr(self, f"_{name}", lambda *_: "handle")(*arguments)
            return (Result.SUCCESS, *(found if isinstance(found, tuple) else (found,)))

        return call

    def named(self, name):
        return [arguments for n, arguments in self.calls if n == name]

    def _cuDriverGetVersion(self):
        return self.version

    def _cuDeviceGetCount(self):
        return self.count

    def _cuDeviceGetName(self, length, handle):
        return b"A GPU\0\0"

    def _cuDeviceGetAttribute(self, kind, handle):
        return self.attributes[kind]

    def _cuMemGetInfo(self):
        return self.total - sum(len(b) for b in self.blocks.values()), self.total

    def _cuMemAlloc(self, nbytes):
        address, self.next = self.next, self.next + nbytes + 256
        self.blocks[address] = np.full(nbytes, 77, np.uint8)
        return address

    def _cuMemFree(self, address):
        del self.blocks[address]

    def _view(self, address, nbytes):
        start = max(a for a in self.blocks if a <= address)
        offset = address - start
        assert offset + nbytes <= len(self.blocks[start])
        return self.blocks[start][offset : offset + nbytes]

    def _cuMemsetD8Async(self, address, value, nbytes, stream):
        self._view(address, nbytes)[:] = value

    def _cuMemcpyHtoDAsync(self, to, source, nbytes, stream):
        self._view(to, nbytes)[:] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * nbytes).from_address(source)
        )

    def _cuMemcpyDtoHAsync(self, to, source, nbytes, stream):
        ctypes.memmove(to, self._view(source, nbytes).ctypes.data, nbytes)

    def _cuMemcpyDtoDAsync(self, to, source, nbytes, stream):
        self._view(to, nbytes)[:] = self._view(source, nbytes)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes a Gpu of a stand-in for the driver."""

    def make(**facts):
        fake = FakeDriver(**facts)
        monkeypatch.setattr(driver, "_library", lambda: fake)
        monkeypatch.setattr(driver, "_text", lambda error: f"error {int(error)}")
        return driver.Gpu(), fake

    driver.gpu.cache_clear()
    yield make
    driver.gpu.cache_clear()


# --- what is missing ------------------------------------------------------------------------------


def test_without_a_driver_the_error_says_so(monkeypatch):
    bindings = pytest.importorskip("cuda.bindings.driver")

    def no_library(flags):
        raise RuntimeError("libcuda.so.1: cannot open\nmore")

    monkeypatch.setattr(bindings, "cuInit", no_library)
    driver.gpu.cache_clear()
    with pytest.raises(BackendError, match=r"needs a GPU with NVIDIA's driver.*libcuda.so.1"):
        MambaModel(CONFIG, backend="cuda")
    assert "cuda" not in backend.available()


def test_a_driver_that_finds_no_gpu(monkeypatch):
    bindings = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(bindings, "cuInit", lambda flags: (Result.REFUSED,))
    monkeypatch.setattr(driver, "_text", lambda error: "no CUDA-capable device is detected")
    driver.gpu.cache_clear()
    with pytest.raises(BackendError, match="no usable GPU: no CUDA-capable device"):
        MambaModel(CONFIG, backend="cuda")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"count": 0}, "expected GPU 0, found 0 GPUs"),
        ({"major": 7, "minor": 0}, r"compute capability 7.5 or newer, found A GPU with 7.0"),
        ({"version": 12080}, r"a driver for CUDA 13 .* CUDA 12.8; update .*mamba-np\[cuda12\]"),
        ({"version": 11080}, r"expected a driver for CUDA 13 .* CUDA 11.8; update the driver$"),
    ],
)  # fmt: skip
def test_a_machine_that_cannot_do_it(machine, facts, text):
    with pytest.raises(BackendError, match=text):
        machine(**facts)


def test_too_little_memory(machine):
    gpu, _ = machine(total=1000)
    kept = gpu.allocate(600)
    with pytest.raises(
        BackendError, match=r"expected 401 bytes of free memory on A GPU, found 400"
    ):
        gpu.allocate(401)
    assert kept.nbytes == 600


def test_what_the_driver_refuses_is_named(machine):
    gpu, fake = machine()
    fake.refuse = "cuStreamSynchronize"
    with pytest.raises(BackendError, match="refused cuStreamSynchronize: error 700"):
        gpu.wait()


# --- memory ---------------------------------------------------------------------------------------


def test_memory_comes_as_zeros_and_goes_back(machine):
    gpu, fake = machine()
    block = gpu.allocate(12)
    home = np.full(3, 7, np.float32)
    gpu.download(block, home)
    np.testing.assert_array_equal(home, 0)
    gpu.upload(block, np.array([5, 6], np.float32), offset=4)
    gpu.download(block, home)
    np.testing.assert_array_equal(home, [0, 5, 6])
    other = gpu.allocate(12)
    gpu.copy(other.address, block.address, 12)
    gpu.download(other, home[:1], offset=8)
    assert home[0] == 6
    address = block.address
    del block
    gc.collect()
    assert address not in fake.blocks
    assert len(fake.blocks) == 1


@pytest.mark.parametrize(("length", "offset"), [(4, 0), (1, 12), (3, 4)])
def test_copies_stay_inside_their_block(machine, length, offset):
    gpu, _ = machine()
    block = gpu.allocate(12)
    array = np.zeros(length, np.float32)
    for copy in (gpu.upload, gpu.download):
        with pytest.raises(ValueError, match="a copy of"):
            copy(block, array, offset)


def test_only_whole_arrays_are_copied(machine):
    gpu, _ = machine()
    with pytest.raises(ValueError, match="a copy of"):
        gpu.upload(gpu.allocate(64), np.zeros((4, 4), np.float32)[:, :2])


# --- work -----------------------------------------------------------------------------------------


def double(x, n):
    x[0] = x[0] + types.float32(n)


KERNEL = Kernel("double", double, (F32_POINTER, INT, types.float32), 64, Budget(16))


def test_a_launch_passes_values_with_their_types(machine, monkeypatch):
    gpu, fake = machine()
    code = SimpleNamespace(binary=b"code", symbol="double")
    asked = []
    monkeypatch.setattr(driver, "code_for", lambda k, a: asked.append((k, a)) or code)
    block = gpu.allocate(4)
    gpu.launch(KERNEL, (3, 2), block, 7, 0.5)
    gpu.launch(KERNEL, (1,), block.address, 7, 0.5)
    assert asked == [(KERNEL, 90)]  # loaded once
    first, second = fake.named("cuLaunchKernel")
    assert first[1:8] == (3, 2, 1, 64, 1, 1, 0)
    assert second[1:4] == (1, 1, 1)
    expected = (block.address, 7, 0.5), (ctypes.c_void_p, ctypes.c_int32, ctypes.c_float)
    assert first[9] == second[9] == expected


def test_recorded_work_is_replayed(machine):
    gpu, fake = machine()
    with gpu.recording() as graph:
        pass
    graph.replay()
    graph.replay()
    assert [len(fake.named(f"cuStream{n}Capture")) for n in ("Begin", "End")] == [1, 1]
    assert len(fake.named("cuGraphInstantiate")) == 1
    assert len(fake.named("cuGraphLaunch")) == 2
    del graph
    gc.collect()
    assert len(fake.named("cuGraphExecDestroy")) == 1


def test_memory_is_not_given_back_while_recording(machine):
    gpu, fake = machine()
    block = gpu.allocate(4)
    address = block.address
    with gpu.recording():
        del block
        gc.collect()
        assert address in fake.blocks
    assert address not in fake.blocks


def test_other_threads_wait_while_one_records(machine):
    gpu, _ = machine()
    block, order = gpu.allocate(4), []

    def read():
        gpu.download(block, np.empty(1, np.float32))
        order.append("read")

    other = threading.Thread(target=read)
    with gpu.recording():
        other.start()
        other.join(0.2)
        order.append("recorded")
    other.join()
    assert order == ["recorded", "read"]


def test_a_failure_while_recording_ends_it(machine):
    gpu, fake = machine()
    with pytest.raises(KeyError), gpu.recording():
        raise KeyError
    assert len(fake.named("cuStreamEndCapture")) == 1


# --- products -------------------------------------------------------------------------------------


class FakeCublas:
    """cublasGemmEx on the host's memory, by the rules of its manual: columns first."""

    def __getattr__(self, name):
        return lambda *_: 0

    def cublasGemmEx(self, handle, ta, tb, m, n, k, *more):
        alpha, A, _a, lda, B, _b, ldb, beta, C, _c, ldc, compute, _ = more
        assert (ta, tb) == (1, 0)

        def columns(pointer, rows, count, leading):
            flat = (ctypes.c_float * (leading * count)).from_address(pointer.value)
            return np.ctypeslib.as_array(flat).reshape(count, leading)[:, :rows].T

        a, b = columns(A, k, m, lda), columns(B, k, n, ldb)
        c = columns(C, m, n, ldc)
        alpha, beta = (p._obj.value for p in (alpha, beta))
        c[:] = alpha * (a.T @ b) + beta * c
        self.seen = (_a, _b, _c, compute)
        return 0


@pytest.mark.parametrize("add", [False, True])
def test_products_have_our_layout(monkeypatch, add):
    library = FakeCublas()
    monkeypatch.setattr(cublas, "_load", lambda: library)
    products = cublas.CuBlas(0, SimpleNamespace(address=0, nbytes=0))
    rng = np.random.default_rng(3)
    x, W, y = (rng.standard_normal(s).astype(np.float32) for s in ((3, 8), (5, 9), (3, 7)))
    before = y.copy()
    places = [(a.ctypes.data, a.shape[1]) for a in (x, W, y)]
    products.multiply(Product(*places, (3, 5, 6), add=add), "float32")
    expected = x[:, :6] @ W[:, :6].T + add * before[:, :5]
    np.testing.assert_allclose(y[:, :5], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[:, 5:], before[:, 5:])
    assert library.seen == (0, 0, 0, 68)  # float32 all the way, no TensorFloat-32


def test_a_refused_product_is_named(monkeypatch):
    library = SimpleNamespace(cublasCreate_v2=lambda *_: 1)
    monkeypatch.setattr(cublas, "_load", lambda: library)
    with pytest.raises(BackendError, match="cuBLAS refused cublasCreate_v2: status 1"):
        cublas.CuBlas(0, SimpleNamespace(address=0, nbytes=0))


def test_a_missing_cublas_says_what_to_install(monkeypatch):
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def missing(name):
        raise RuntimeError(f"no {name}\nmore")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(
        BackendError, match=r"needs cuBLAS.*pip install 'mamba-np\[cuda\]' \(no cublas\)"
    ):
        cublas._load()
