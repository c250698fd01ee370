"""Races: who touched each grain of memory last, and whether anything came in between.

Two accesses of one address race if at least one writes, different threads make them, and no
barrier lies between them. That threads of a warp often run in lock step is no excuse: nothing
promises it. Atomic changes do not race with each other, but with all else. Between blocks of a
launch nothing lies ever, but the grid's own barrier.

Each thread has a code, an integer of four fields, and leaves it on what it touches:

    block (bits 32 and up) | epoch (bits 12 to 31) | warp (bits 6 to 11) | lane (bits 0 to 5)

The epoch counts the barriers that the block has passed. So a code with an older epoch of the same
block was left before a barrier and is harmless, and nothing has to be erased at a barrier.
"""

import numpy as np

BLOCK, EPOCH, WARP = 32, 12, 6  # the lowest bit of each field
THREAD = (1 << EPOCH) - 1
MANY_LANES = 61  # in place of a lane: several of this warp
SYNCED_LANES = 62  # the same, before the warp's last bar.warp.sync: its own lanes come after
MANY_THREADS = THREAD  # in place of warp and lane: threads of several warps
MANY_BLOCKS = np.int64(1 << 62)
NOBODY = np.int64(-1)


def codes_of(block: np.ndarray, thread: np.ndarray) -> np.ndarray:
    """Return each thread's code before any barrier."""
    return block.astype(np.int64) << BLOCK | thread // 32 << WARP | thread % 32


def _races(left: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Return whether an access by ``mine`` races with the one that left its code."""
    differs = left ^ mine
    same_epoch = differs >> EPOCH == 0
    suspect = (left >= 0) & (differs != 0) & (same_epoch | (differs >> BLOCK != 0))
    if not suspect.any():
        return suspect
    return suspect & ~((differs >> WARP == 0) & (left & 63 == SYNCED_LANES))


class Shadow:
    """Who wrote a region last, who read it and who changed it atomically: codes, by grains.

    A grain is as large as the narrowest access so far: whole vectors, until something smaller
    comes.
    """

    def __init__(self, size: int):
        self.size, self.grain = size, 0
        nobody = np.empty(0, np.int64)
        self.writers, self.readers, self.atomics = nobody, nobody, nobody
        self.written = self.changed = False  # by anyone, plainly or atomically: else nothing to see

    def _grains(self, offsets: np.ndarray, width: int, codes: np.ndarray):
        """Return the grains that the accesses touch, and the code for each."""
        if not self.grain:
            self.grain = width
            count = -(-self.size // width)
            self.writers, self.readers, self.atomics = np.full((3, count), NOBODY)
        elif width < self.grain:
            parts, self.grain = self.grain // width, width
            self.writers = np.repeat(self.writers, parts)
            self.readers = np.repeat(self.readers, parts)
            self.atomics = np.repeat(self.atomics, parts)
        grains = offsets // self.grain
        if width > self.grain:
            parts = np.arange(width // self.grain)
            grains = (grains[:, None] + parts).ravel()
            codes = np.repeat(codes, len(parts))
        return grains, codes

    def read(self, offsets: np.ndarray, width: int, codes: np.ndarray) -> np.ndarray | None:
        """Note a read; return where it races, by access, or None for nowhere."""
        grains, codes = self._grains(offsets, width, codes)
        races = self._with_changes(grains, codes)
        _add(self.readers, grains, codes)
        return _by_access(races, len(offsets))

    def write(self, offsets: np.ndarray, width: int, codes: np.ndarray) -> np.ndarray | None:
        """Note a write; return where it races, by access, or None for nowhere."""
        grains, codes = self._grains(offsets, width, codes)
        races = self._with_changes(grains, codes) | _races(self.readers[grains], codes)
        self.writers[grains], self.written = codes, True
        races |= self.writers[grains] != codes  # two threads in this very instruction
        return _by_access(races, len(offsets))

    def change(self, offsets: np.ndarray, width: int, codes: np.ndarray) -> np.ndarray | None:
        """Note an atomic change, which races with all but others of its kind; as ``read``."""
        grains, codes = self._grains(offsets, width, codes)
        races = _races(self.writers[grains], codes) | _races(self.readers[grains], codes)
        self.changed = True
        _add(self.atomics, grains, codes)
        return _by_access(races, len(offsets))

    def _with_changes(self, grains, codes) -> np.ndarray:
        races = np.zeros(len(grains), bool)
        if self.written:
            races |= _races(self.writers[grains], codes)
        if self.changed:
            races |= _races(self.atomics[grains], codes)
        return races

    def warp_barrier(self, codes: np.ndarray) -> None:
        """Note that these threads' warps have met, each: what they did lies before."""
        if not self.grain:
            return
        warps = codes >> WARP
        for left in (self.writers, self.readers, self.atomics):
            met = np.isin(left >> WARP, warps)
            left[met] |= 63
            left[met] &= ~np.int64(63 - SYNCED_LANES)


def _add(target: np.ndarray, grains: np.ndarray, codes: np.ndarray) -> None:
    """Add threads to those that have touched grains and do not race with each other."""
    before = target[grains]
    if ((before == codes) | (before == MANY_BLOCKS)).all():
        return
    target[grains] = codes
    last = target[grains]
    several = last != codes
    if several.any():  # in this very instruction
        merged = _together(last[several], codes[several])
        _write_largest(target, grains[several], merged)
    earlier = (before >= 0) & (before != codes)
    earlier &= (before >> EPOCH == codes >> EPOCH) | (before >> BLOCK != codes >> BLOCK)
    earlier &= (before >> WARP != codes >> WARP) | (before & 63 != SYNCED_LANES)
    if earlier.any():
        grains = grains[earlier]
        merged = _together(before[earlier], codes[earlier])
        _write_largest(target, grains, merged)


def _by_access(races: np.ndarray, count: int) -> np.ndarray | None:
    if not races.any():
        return None
    return races.reshape(count, -1).any(axis=1)


def _together(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the codes that stand for two different readers. More readers, larger codes."""
    differs = one ^ other
    lanes = other >> WARP << WARP | MANY_LANES
    threads = other | MANY_THREADS
    merged = np.where(differs >> WARP == 0, lanes, threads)
    return np.where(differs >> BLOCK == 0, merged, MANY_BLOCKS)


def _write_largest(target, grains, codes) -> None:
    """Assign codes; where several go to one grain, the largest stays."""
    order = np.argsort(codes, kind="stable")
    target[grains[order]] = codes[order]
