"""A device without a GPU: the engine's own compiled kernels, executed by the emulator of tests/ptx.

Products of matrices, which a GPU leaves to cuBLAS, are NumPy's here, on the same memory.
"""

import threading
from contextlib import contextmanager

import ml_dtypes
import numpy as np
from ptx import Memory, launch, parse

from mamba_np.cuda import compiler

FREE = 2**30


class EmulatedBlock:
    """A piece of memory, and its address as kernels see it."""

    def __init__(self, memory, nbytes):
        self.array = np.zeros(max(nbytes, 1), np.uint8)
        self.address, self.nbytes = memory.alloc(self.array), nbytes


class Replayed:
    """Recorded work."""

    def __init__(self):
        self.work = []

    def replay(self):
        for do in self.work:
            do()


class EmulatedDevice:
    """See ``mamba_np.cuda.device.Device``; ``launches`` counts kernels by name."""

    name, processors = "an emulated GPU", 4

    def __init__(self, architecture=90):
        self.architecture, self.lock = architecture, threading.RLock()
        self.memory, self.blocks = Memory(), []
        self.launches, self.kernels, self._recording = {}, {}, None

    def free_bytes(self):
        return FREE

    def allocate(self, nbytes):
        assert self._recording is None, "memory while recording"
        block = EmulatedBlock(self.memory, nbytes)
        self.blocks.append(block)
        return block

    def upload(self, block, array, offset=0):
        assert self._recording is None, "a copy while recording"
        assert array.flags.c_contiguous
        assert offset + array.nbytes <= block.nbytes
        block.array[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, block, array, offset=0):
        assert self._recording is None, "a copy while recording"
        assert offset + array.nbytes <= block.nbytes
        array.reshape(-1).view(np.uint8)[:] = block.array[offset : offset + array.nbytes]

    def copy(self, to, source, nbytes):
        to, source = (self._rows(a, nbytes, 1, nbytes, np.uint8) for a in (to, source))
        self._do(lambda: to.__setitem__(..., source))

    def launch(self, kernel, grid, *arguments):
        assert len(arguments) == len(kernel.arguments), kernel.name
        if kernel not in self.kernels:
            self.kernels[kernel] = parse(compiler.ptx(kernel, self.architecture))
        code = self.kernels[kernel]
        values = [getattr(a, "address", a) for a in arguments]

        def work():
            self.launches[kernel.name] = self.launches.get(kernel.name, 0) + 1
            launch(code, grid, (kernel.threads,), values, self.memory)

        self._do(work)

    def multiply(self, product, kind):
        self._do(lambda: self._multiply(product, kind))

    @contextmanager
    def recording(self):
        self._recording = recorded = Replayed()
        try:
            yield recorded
        finally:
            self._recording = None

    def wait(self):
        pass

    def _do(self, work):
        if self._recording is not None:
            self._recording.work.append(work)
        else:
            work()

    def _multiply(self, p, kind):
        T, O, I = p.sizes  # noqa: E741
        dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[kind]
        x, W = (self._rows(*place, n, I, dtype) for place, n in ((p.x, T), (p.weights, O)))
        y = self._rows(*p.y, T, O, np.float32)
        found = x.astype(np.float32) @ W.astype(np.float32).T
        y[:] = y + found if p.add else found

    def _rows(self, address, width, count, columns, dtype):
        """Return a view of rows that lie ``width`` elements apart."""
        size = np.dtype(dtype).itemsize
        block = next(b for b in self.blocks if b.address <= address < b.address + max(b.nbytes, 1))
        start = address - block.address
        nbytes = size * (width * (count - 1) + columns)
        flat = block.array[start : start + nbytes].view(dtype)
        assert flat.nbytes == nbytes, "a matrix that leaves its block"
        return np.lib.stride_tricks.as_strided(flat, (count, columns), (width * size, size))


class Counting:
    """A real GPU, whose launches are counted by name as the emulated one's are."""

    def __init__(self, device):
        self.device, self.processors = device, device.processors
        self.launches, self.blocks = {}, []

    def __getattr__(self, name):
        return getattr(self.device, name)

    def launch(self, kernel, grid, *arguments):
        self.launches[kernel.name] = self.launches.get(kernel.name, 0) + 1
        self.device.launch(kernel, grid, *arguments)
