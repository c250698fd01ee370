"""What the engine asks of a GPU: memory, kernels, products of matrices, recorded work.

``Device`` says what that is; ``driver.Gpu`` is the real one. The tests have another, which executes
the same compiled kernels on the processor.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .registry import Kernel


class Block(Protocol):
    """A piece of the device's memory; it is given back when the last reference is gone."""

    address: int
    nbytes: int


class Recording(Protocol):
    """Work that was recorded once and can be done again at the price of one call."""

    def replay(self) -> None:
        """Do all of it again, in the same memory."""
        ...


class Device(Protocol):
    """One GPU. Work is done in the order in which it is asked for."""

    name: str
    architecture: int  # 90 for sm_90
    processors: int  # multiprocessors
    lock: Any
    """Held by a thread whose work belongs together: all threads share one order of work."""

    def free_bytes(self) -> int:
        """Return how much memory is free."""
        ...

    def allocate(self, nbytes: int) -> Block:
        """Return memory of zeros, on a boundary of 256 bytes; BackendError if there is none."""
        ...

    def upload(self, block: Block, array: NDArray, offset: int = 0) -> None:
        """Copy a contiguous array into a block, ``offset`` bytes after its beginning."""
        ...

    def download(self, block: Block, array: NDArray, offset: int = 0) -> None:
        """Wait for all work, then copy a part of a block into a contiguous array."""
        ...

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy from one address to another; the two pieces do not overlap."""
        ...

    def launch(self, kernel: Kernel, grid: tuple[int, ...], *arguments: Any) -> None:
        """Run a kernel on a grid of blocks; pointers are Blocks or addresses."""
        ...

    def multiply(self, product: "Product", kind: str) -> None:
        """Compute a product of matrices of a ``kind``: "float32" or "bfloat16"."""
        ...

    def recording(self) -> AbstractContextManager[Recording]:
        """Record what is asked for meanwhile instead of doing it."""
        ...

    def wait(self) -> None:
        """Wait for all work."""
        ...


class Product:
    """y (T, O) = x (T, I) W^T, or y += that: addresses, and row lengths in elements.

    x and W (O, I) are of one kind, y is float32; so are the sums.
    """

    def __init__(
        self,
        x: tuple[int, int],  # address, row length
        weights: tuple[int, int],
        y: tuple[int, int],
        sizes: tuple[int, int, int],  # T, O, I
        *,
        add: bool = False,
    ):
        self.x, self.weights, self.y, self.sizes, self.add = x, weights, y, sizes, add


def upload_new(device: Device, array: NDArray) -> Block:
    """Return a new block that holds a copy of an array."""
    array = np.ascontiguousarray(array)
    block = device.allocate(array.nbytes)
    device.upload(block, array)
    return block
