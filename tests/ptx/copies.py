"""Copies under way: what cp.async has begun and no wait has ended."""

from typing import NamedTuple

import numpy as np


class Copy(NamedTuple):
    """What some threads began at once: (count) each, the values (count, words)."""

    threads: np.ndarray
    group: np.ndarray  # the group of each thread
    offsets: np.ndarray
    values: np.ndarray


class Copies:
    """All copies of the threads that run together. Until they end, their targets are unknown."""

    def __init__(self, count: int):
        self.group = np.zeros(count, np.int64)  # the group that a thread's next copy belongs to
        self.running: list[Copy] = []

    def start(self, t, offsets: np.ndarray, values: np.ndarray) -> None:
        threads = t.numbers()
        self.running.append(Copy(threads, self.group[threads], offsets, values))
        if t.shared.known is not None:
            self._mark(t, offsets, values, 0)

    def commit(self, t) -> None:
        self.group[t.numbers()] += 1

    def wait(self, t, left: int, commit: bool = False) -> None:
        """End the present threads' copies but those of their last ``left`` groups."""
        if commit:
            self.commit(t)
        waits = np.zeros(t.count, bool)
        waits[t.numbers()] = True
        going = []
        for copy in self.running:
            ends = waits[copy.threads] & (copy.group < self.group[copy.threads] - left)
            t.shared.store(copy.offsets[ends], copy.values[ends])
            if not ends.all():
                going.append(Copy(*(part[~ends] for part in copy)))
        self.running = going

    def _mark(self, t, offsets, values, known: int) -> None:
        for place in range(values.shape[1] * values.itemsize):
            t.shared.known[offsets + place] = known
