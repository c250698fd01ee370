"""Races: who touched each grain of memory last, and whether anything came in between.

Two accesses of one address race if at least one writes, different threads make them, and no
barrier lies between them. That threads of a warp often run in lock step is no excuse: nothing
promises it. Between blocks of a launch nothing lies ever, but the grid's own barrier.

Each thread has a code, an integer of three fields, and leaves it on what it touches:

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
ATOMIC = THREAD - 2  # in place of warp and lane: whoever, atomically; atomics do not race
MANY_BLOCKS = np.int64(1 << 62)
ATOMIC_BLOCKS = np.int64(1 << 61)  # several blocks, atomically
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
    """The codes of a region's last writers and readers, by grains.

    A grain is as large as the narrowest access so far: whole vectors, until something smaller
    comes.
    """

    def __init__(self, size: int):
        self.size, self.grain = size, 0
        self.writers = self.readers = np.empty(0, np.int64)
        self.written = False  # by anyone: what nobody writes needs no look at its writers

    def _grains(self, offsets: np.ndarray, width: int, codes: np.ndarray):
        if not self.grain:
            self.grain = width
            count = -(-self.size // width)
            self.writers, self.readers = np.full((2, count), NOBODY)
        elif width < self.grain:
            parts, self.grain = self.grain // width, width
            self.writers = np.repeat(self.writers, parts)
            self.readers = np.repeat(self.readers, parts)
        grains = offsets // self.grain
        if width > self.grain:
            parts = np.arange(width // self.grain)
            grains = (grains[:, None] + parts).ravel()
            codes = np.repeat(codes, len(parts))
        return grains, codes

    def read(self, offsets: np.ndarray, width: int, codes: np.ndarray) -> np.ndarray | None:
        """Note a read; return where it races with a write, by access, or None for nowhere."""
        grains, codes = self._grains(offsets, width, codes)
        races = None
        if self.written:
            left = self.writers[grains]
            races = _races(left, codes)
        self._note_readers(grains, codes)
        return _by_access(races, len(offsets))

    def _note_readers(self, grains, codes) -> None:
        before = self.readers[grains]
        if ((before == codes) | (before == MANY_BLOCKS)).all():
            return
        self.readers[grains] = codes
        last = self.readers[grains]
        several = last != codes
        if several.any():  # in this very instruction
            merged = _together(last[several], codes[several])
            _write_largest(self.readers, grains[several], merged)
        earlier = (before >= 0) & (before != codes)
        earlier &= (before >> EPOCH == codes >> EPOCH) | (before >> BLOCK != codes >> BLOCK)
        earlier &= (before >> WARP != codes >> WARP) | (before & 63 != SYNCED_LANES)
        if earlier.any():
            grains = grains[earlier]
            merged = _together(before[earlier], codes[earlier])
            _write_largest(self.readers, grains, np.maximum(merged, self.readers[grains]))

    def write(self, offsets, width: int, codes, atomic: bool = False) -> np.ndarray | None:
        """Note a write; return where it races with a read or a write, by access."""
        grains, codes = self._grains(offsets, width, codes)
        self.written = True
        left = self.writers[grains]
        if atomic:
            others = (left & THREAD == ATOMIC) | (left == ATOMIC_BLOCKS)
            races = _races(left, codes) & ~others
            self.writers[grains] = (codes & ~THREAD) | ATOMIC
            elsewhere = others & (left >> BLOCK != codes >> BLOCK)
            elsewhere |= self.writers[grains] >> BLOCK != codes >> BLOCK
            self.writers[grains[elsewhere]] = ATOMIC_BLOCKS
        else:
            races = _races(left, codes)
            self.writers[grains] = codes
            races |= self.writers[grains] != codes  # two threads in this very instruction
        races |= _races(self.readers[grains], codes)
        return _by_access(races, len(offsets))

    def warp_barrier(self, codes: np.ndarray) -> None:
        """Note that these threads' warps have met, each: what they did lies before."""
        if not self.grain:
            return
        warps = codes >> WARP
        for left in (self.writers, self.readers):
            met = np.isin(left >> WARP, warps)
            left[met] |= 63
            left[met] &= ~np.int64(63 - SYNCED_LANES)


def _by_access(races, count: int):
    if races is None or not races.any():
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
