"""A small model of a cache: how many bytes a function moves, and in what order it reads."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

NUMBER, LINE = 4, 64  # bytes of a float32, and of what a memory hands over at once


class Cache:
    """Some lines of memory, of which the one that was used longest ago is given up."""

    def __init__(self, lines: int):
        self.lines, self.held, self.moved = lines, OrderedDict(), 0

    def use(self, address: int) -> None:
        """Bring the line of an address, unless it is held."""
        line = address // LINE
        if line not in self.held:
            self.moved += LINE
            self.held[line] = True
            if len(self.held) > self.lines:
                self.held.popitem(last=False)
        self.held.move_to_end(line)


class Watched:
    """An array that tells a cache which number is used. Indices are single numbers."""

    def __init__(self, array: np.ndarray, cache: Cache, start: int):
        self.array, self.shape, self.ndim = array, array.shape, array.ndim
        self.cache, self.start, self.addresses = cache, start, []

    def _place(self, index: tuple[int, ...]) -> tuple[int, ...]:
        place = tuple(int(i) % size for i, size in zip(index, self.shape, strict=True))
        address = NUMBER * int(np.ravel_multi_index(place, self.shape))
        self.addresses.append(address)
        self.cache.use(self.start + address)
        return place

    def __getitem__(self, index):
        return self.array[self._place(index)]

    def __setitem__(self, index, value):
        self.array[self._place(index)] = value


def watch(function: Callable, *arrays: np.ndarray, lines: int = 64) -> tuple[int, list[list[int]]]:
    """Call ``function(*arrays)`` with a cache of some lines of 64 bytes.

    Returns how many bytes were moved, and for each array the addresses that were used, in order,
    counted in bytes from its beginning. A compiled function is run as Python.
    """
    cache, starts = Cache(lines), np.cumsum([0, *(NUMBER * a.size for a in arrays)])
    watched = [Watched(a, cache, int(s)) for a, s in zip(arrays, starts[:-1], strict=True)]
    getattr(function, "py_func", function)(*watched)
    return cache.moved, [one.addresses for one in watched]
