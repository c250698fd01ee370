"""One tensor in a file: where it lies, and how it becomes an array.

Whatever the container, a tensor is a run of little-endian numbers at some offset. Wanted as it is
stored, it is mapped: nothing is copied, and pages come from the disk as they are used. Wanted in
another dtype, it is read and converted block by block, so that a model never takes more memory
than its arrays and one block. Every array is read-only: a model that was loaded stays what its
files say.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, FileMissingError, NonFiniteError
from ..params import DTYPES

STORED = {
    "F64": DTYPES["float64"],
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
}
"""The dtypes that weights can have, by safetensors' names."""

BLOCK = 8 * 2**20
"""Bytes that are read from a file at a time."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's table of contents says about one tensor."""

    name: str  # the key in the file
    dtype: str  # safetensors' name: "F32", "BF16", "I64" ...
    shape: tuple[int, ...]
    file: Path
    offset: int  # of the first number, in bytes from the start of the file

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name!r:.80}"


class TensorReader:
    """Makes read-only arrays of tensors; maps each file once."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, tensor: TensorInfo, dtype: np.dtype) -> NDArray:
        """Return the tensor as an array of ``dtype``, mapped if it is stored so.

        The tensor's dtype must be one of ``STORED``. Raises CheckpointError if the file has
        become shorter, NonFiniteError for a number too large for ``dtype``.
        """
        if STORED[tensor.dtype] == dtype and tensor.offset % dtype.itemsize == 0:
            return self._map(tensor, dtype)
        return _convert(tensor, dtype)

    def _map(self, tensor: TensorInfo, dtype: np.dtype) -> NDArray:
        if tensor.file not in self._maps:
            try:
                with open(tensor.file, "rb") as file:
                    self._maps[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise _unreadable(tensor, error) from error
        mapped, count = self._maps[tensor.file], math.prod(tensor.shape)
        if len(mapped) < tensor.offset + count * dtype.itemsize:
            raise _shrunk(tensor)
        return np.frombuffer(mapped, dtype, count, tensor.offset).reshape(tensor.shape)


def same_numbers(a: TensorInfo, b: TensorInfo) -> bool:
    """Tell whether two tensors of one shape hold the same numbers, without loading them."""
    if (a.file, a.offset, a.dtype) == (b.file, b.offset, b.dtype):
        return True
    count = BLOCK // 8  # equal numbers of both, whatever their dtypes
    pairs = zip(_blocks(a, count), _blocks(b, count), strict=True)
    return all(np.array_equal(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs)


def _convert(tensor: TensorInfo, dtype: np.dtype) -> NDArray:
    stored = STORED[tensor.dtype]
    narrows = ml_dtypes.finfo(dtype).max < ml_dtypes.finfo(stored).max
    array = np.empty(tensor.shape, dtype)
    flat, start = array.reshape(-1), 0
    for block in _blocks(tensor, BLOCK // stored.itemsize):
        part = flat[start : start + len(block)]
        with np.errstate(over="ignore", invalid="ignore"):
            part[...] = block
        if narrows and not np.isfinite(part).all():
            raise NonFiniteError(
                f"{tensor}: expected finite numbers that {dtype} can hold, found others"
            )
        start += len(block)
    array.flags.writeable = False
    return array


def _blocks(tensor: TensorInfo, count: int) -> Iterator[NDArray]:
    """Yield the tensor's numbers as stored, ``count`` at a time, in one buffer used again."""
    stored, left = STORED[tensor.dtype], math.prod(tensor.shape)
    buffer = np.empty(min(count, left), stored)
    try:
        # Plain reads: the pages of a mapping would count as memory of this process.
        with open(tensor.file, "rb") as file:
            file.seek(tensor.offset)
            while left:
                block = buffer[: min(count, left)]
                if file.readinto(block.view(np.uint8).data) != block.nbytes:
                    raise _shrunk(tensor)
                yield block
                left -= len(block)
    except OSError as error:
        raise _unreadable(tensor, error) from error


def _shrunk(tensor: TensorInfo) -> CheckpointError:
    return CheckpointError(f"{tensor}: expected its numbers, found the end of the file")


def _unreadable(tensor: TensorInfo, error: OSError) -> FileMissingError:
    return FileMissingError(f"{tensor}: cannot be read: {error.strerror}")
