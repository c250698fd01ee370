"""What looks like an array of vectors, and becomes one only where somebody reads it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from .device import Block, Device


class Embedded:
    """The embeddings (B, L, D) of ids (B, L), not looked up yet: a device does that itself."""

    def __init__(self, ids: NDArray, embeddings: Any):
        self.ids, self.embeddings = ids, embeddings
        self.shape = (*ids.shape, embeddings.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return reference.embed(self.ids, self.embeddings, np.float32 if dtype is None else dtype)

    def __getitem__(self, index: Any) -> "Embedded":
        """Return some of the texts or positions: ``index`` is of ids."""
        return Embedded(self.ids[index], self.embeddings)


class DeviceRows:
    """Vectors (B, L, D) of float32 on a device, in rows of ``width``; to be read, not written.

    ``np.asarray`` fetches them. A slice of positions, ``rows[:, -k:]``, stays on the device where
    its vectors lie one after another.
    """

    ndim, dtype = 3, np.dtype(np.float32)

    def __init__(
        self, device: Device, block: Block, shape: tuple[int, int, int], width: int, first: int = 0
    ):
        self.device, self.block = device, block
        self.shape, self.width, self.first = shape, width, first

    @property
    def address(self) -> int:
        """Where the first vector begins."""
        return self.block.address + 4 * self.width * self.first

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        texts, L, D = self.shape
        wide = np.empty((texts * L, self.width), np.float32)
        if wide.size:
            self.device.download(self.block, wide, 4 * self.width * self.first)
        found = np.ascontiguousarray(wide[:, :D]).reshape(texts, L, D)
        return found if dtype is None else found.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        rows, positions = index if isinstance(index, tuple) and len(index) == 2 else (index, None)
        every, one_text = slice(None), self.shape[0] == 1
        if isinstance(rows, slice) and isinstance(positions, slice) and rows == every:
            start, stop, step = positions.indices(self.shape[1])
            if step == 1 and (one_text or positions == every):
                shape = self.shape[0], max(0, stop - start), self.shape[2]
                return DeviceRows(self.device, self.block, shape, self.width, self.first + start)
        return np.asarray(self)[index]
