"""Memory: NumPy arrays at addresses, each access checked.

A region is a run of bytes: an array in global memory, or the shared or local memory of all threads
that run. Addresses of one instruction come as an array and are looked up together.
"""

import numpy as np

from .errors import PTXError
from .shadow import Shadow

FIRST_ADDRESS = 1 << 20
ALIGNMENT = 256
RED_ZONE = 4096
"""Bytes between two arrays, which no kernel may touch."""


class Fault(Exception):
    """An access that is wrong, and in which of the threads that made it."""

    def __init__(self, message: str, threads: np.ndarray | None = None):
        super().__init__(message)
        self.threads = threads  # bool, one for each thread that runs the instruction


class Apart(Exception):
    """An instruction for several lanes of a warp, of which not all are here yet.

    ``threads`` are those here, with the ``named`` lanes that each wants; ``absent`` tells whose are
    not complete.
    """

    def __init__(self, threads: np.ndarray, named: np.ndarray, absent: np.ndarray):
        super().__init__()
        self.threads, self.named, self.absent = threads, named, absent


class Region:
    """Bytes, and what is known of them: which were ever written, and by whom last."""

    def __init__(self, name: str, data: np.ndarray, known: np.ndarray | None = None):
        self.name, self.data, self.known = name, data, known
        self.shadow: Shadow | None = None
        self._views: dict[tuple[int, np.dtype, int], np.ndarray] = {}

    def _rows(self, data: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
        """Return the bytes as vectors: (how many fit, count), one for each aligned offset."""
        key = id(data), dtype, count
        view = self._views.get(key)
        if view is None:
            width = dtype.itemsize * count
            whole = data[: len(data) // width * width]
            view = self._views[key] = whole.view(dtype).reshape(-1, count)
        return view

    def load(self, offsets: np.ndarray, dtype: np.dtype, count: int, codes=None) -> np.ndarray:
        """Return what lies at aligned offsets: (len(offsets), count)."""
        width = dtype.itemsize * count
        rows = offsets // width
        if self.known is not None:
            known = self._rows(self.known, dtype_of_bytes(dtype.itemsize), count)[rows]
            unknown = ~known != 0
            if unknown.any():
                raise Fault(f"reads {self.name} where nothing was written", unknown.any(axis=1))
        if codes is not None and self.shadow is not None:
            races = self.shadow.read(offsets, width, codes)
            if races is not None:
                raise Fault(f"race: reads {self.name} where another thread wrote", races)
        return self._rows(self.data, dtype, count)[rows]

    def note_write(self, offsets, dtype: np.dtype, count: int, codes=None, atomic=False) -> None:
        """Check a write and note that it was made."""
        if not self.data.flags.writeable:
            raise Fault(f"writes to {self.name}, which is read-only")
        if self.known is not None:
            bits = dtype_of_bytes(dtype.itemsize)
            rows = offsets // (dtype.itemsize * count)
            self._rows(self.known, bits, count)[rows] = ~bits.type(0)
        if codes is not None and self.shadow is not None:
            note = self.shadow.change if atomic else self.shadow.write
            races = note(offsets, dtype.itemsize * count, codes)
            if races is not None:
                message = f"race: writes to {self.name} where another thread wrote or read"
                raise Fault(message, races)

    def store(self, offsets, values: np.ndarray, codes=None) -> None:
        """Write vectors, (len(offsets), count), to aligned offsets."""
        count = values.shape[1]
        self.note_write(offsets, values.dtype, count, codes)
        rows = self._rows(self.data, values.dtype, count)
        rows[offsets // (values.dtype.itemsize * count)] = values

    def forget(self) -> None:
        """Forget who touched what: everybody has met."""
        if self.shadow is not None:
            self.shadow = Shadow(len(self.data))

    def words(self, dtype: np.dtype) -> np.ndarray:
        """Return the bytes as one array of this dtype: (how many fit,)."""
        return self._rows(self.data, dtype, 1)[:, 0]


def dtype_of_bytes(size: int) -> np.dtype:
    return np.dtype(f"uint{8 * size}")


def check_aligned(addresses: np.ndarray, width: int) -> None:
    if np.bitwise_or.reduce(addresses) & (width - 1):
        bad = addresses & (width - 1) != 0
        where = int(addresses[bad][0])
        raise Fault(f"misaligned access of {width} bytes at address {where:#x}", bad)


class Memory:
    """Global memory: arrays that kernels read and write in place, apart from each other."""

    def __init__(self):
        self.regions: list[Region] = []
        self._bases = np.empty(0, np.int64)
        self._end = FIRST_ADDRESS
        self._arrays: list[np.ndarray] = []

    def alloc(self, array: np.ndarray, name: str | None = None) -> int:
        """Give an array an address, a multiple of 256; kernels write into this very array."""
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise PTXError(
                "alloc: expected a C-contiguous NumPy array, which a kernel can write to"
            )
        base = -(-(self._end + RED_ZONE) // ALIGNMENT) * ALIGNMENT
        data = array.reshape(-1).view(np.uint8)
        name = name or f"array {len(self.regions)}, {array.dtype}{list(array.shape)}"
        self.regions.append(Region(name, data))
        self._bases = np.append(self._bases, base)
        self._arrays.append(array)
        self._end = base + array.nbytes
        return base

    def alloc_uninitialised(self, array: np.ndarray, name: str | None = None) -> int:
        """As ``alloc``, for an array that kernels fill: it is poisoned, and early reads found."""
        address = self.alloc(array, name)
        region = self.regions[-1]
        region.data[...] = 0xFF  # NaN in every float
        region.known = np.zeros_like(region.data)
        return address

    def written(self, array: np.ndarray) -> np.ndarray:
        """Return which elements of an uninitialised array kernels have written: bool, its shape."""
        for mine, region in zip(self._arrays, self.regions, strict=True):
            if mine is array and region.known is not None:
                return region.known.reshape(*array.shape, array.itemsize).all(axis=-1)
        raise PTXError("expected an array given to alloc_uninitialised")

    def unwritten(self, *arrays: np.ndarray) -> int:
        """Return how many elements no kernel has written: of these arrays or all uninitialised."""
        chosen = arrays or [
            array
            for array, region in zip(self._arrays, self.regions, strict=True)
            if region.known is not None
        ]
        return sum(int((~self.written(array)).sum()) for array in chosen)

    def find(self, addresses: np.ndarray, width: int) -> list[tuple[Region, np.ndarray, object]]:
        """Return (region, offsets, which of the addresses) for each array that is touched."""
        if not len(self._bases):
            raise Fault(f"out of bounds: no array at address {int(addresses[0]):#x}")
        place = int(np.searchsorted(self._bases, addresses[0], side="right")) - 1
        offsets = addresses - self._bases[place]
        size = len(self.regions[place].data)
        if place >= 0 and offsets.view(np.uint64).max() <= size - width:  # below 0: very large
            return [(self.regions[place], offsets, slice(None))]
        places = np.searchsorted(self._bases, addresses, side="right") - 1
        sizes = np.array([len(region.data) for region in self.regions])
        offsets = addresses - self._bases[places]
        bad = (places < 0) | (offsets > sizes[places] - width)
        if bad.any():
            raise Fault(self._outside(int(addresses[bad][0]), width), bad)
        return [
            (self.regions[one], offsets[places == one], places == one) for one in np.unique(places)
        ]

    def _outside(self, address: int, width: int) -> str:
        def distance(place):
            start = int(self._bases[place])
            end = start + len(self.regions[place].data)
            return max(start - address, address + width - end)

        near = min(range(len(self.regions)), key=distance)
        offset, size = address - int(self._bases[near]), len(self.regions[near].data)
        return (
            f"out of bounds: {width} bytes at byte {offset} of {self.regions[near].name}, "
            f"which has {size}"
        )

    def start_launch(self, races: bool) -> None:
        """Forget who touched what: launches come one after the other."""
        for region in self.regions:
            region.shadow = Shadow(len(region.data)) if races else None
