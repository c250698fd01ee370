"""What tests/ptx remembers of accesses against a list of all of them: the same races are found."""

from typing import NamedTuple

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ptx.shadow import EPOCH, Shadow, codes_of

SIZE, THREADS, BLOCKS = 16, 64, 2
BLOCK = np.repeat(np.arange(BLOCKS), THREADS)
THREAD = np.tile(np.arange(THREADS), BLOCKS)


class Access(NamedTuple):
    kind: str  # "read", "write" or "atomic"
    block: int
    thread: int
    epoch: int  # barriers of its block before it
    warp_epoch: int  # and of its warp


def comes_after(later, earlier):
    """Return whether a barrier, or a thread's own order, lies between two accesses."""
    if later.block != earlier.block:
        return False
    if later.epoch > earlier.epoch:
        return True
    if later.thread == earlier.thread:
        return True
    same_warp = later.thread // 32 == earlier.thread // 32
    return same_warp and later.warp_epoch > earlier.warp_epoch


def race(later, earlier):
    if later.kind == earlier.kind and later.kind != "write":
        return False
    return not comes_after(later, earlier)


# Few threads of each warp and block, so that they meet often.
SOME = [0, 1, 32, 33, 64]
LANES = st.lists(st.sampled_from(SOME), min_size=1, max_size=5, unique=True).map(sorted)
ACCESSES = st.tuples(
    st.sampled_from(["read", "read", "read", "write", "atomic", "atomic"]),
    st.sampled_from([4, 8]),
    LANES,
    st.lists(st.sampled_from([0, 0, 0, 4, 8]), min_size=5, max_size=5),
)
BARRIERS = st.tuples(st.sampled_from(["block", "warp"]), st.sampled_from(SOME))


def at_0(kind, *lanes):
    return kind, 4, list(lanes), [0] * 5


@example([at_0("read", 0), at_0("read", 1), at_0("write", 1)])
@example([at_0("read", 0, 1), ("warp", 0), at_0("read", 0), at_0("write", 0)])
@example([at_0("read", 1), ("warp", 0), at_0("write", 0)])
@example([at_0("atomic", 1), ("warp", 0), at_0("write", 0)])
@example([at_0("read", 0, 32, 33), ("warp", 32), at_0("write", 32)])
@example([at_0("write", 0), at_0("atomic", 0), at_0("atomic", 1)])
@settings(max_examples=500)
@given(st.lists(st.one_of(ACCESSES, ACCESSES, BARRIERS), min_size=2, max_size=8))
def test_races(steps):
    shadow, codes = Shadow(SIZE), codes_of(BLOCK, THREAD)
    epochs, warp_epochs = np.zeros(BLOCKS, int), np.zeros(BLOCKS * THREADS // 32, int)
    history = [[] for _ in range(SIZE)]  # of each byte
    for step in steps:
        if step[0] == "block":
            block = BLOCK[step[1]]
            epochs[block] += 1
            codes[block == BLOCK] += 1 << EPOCH
            continue
        if step[0] == "warp":
            warp_epochs[step[1] // 32] += 1
            shadow.warp_barrier(codes[[step[1] // 32 * 32]])
            continue
        kind, width, lanes, places = step
        offsets = np.array([place // width * width for place in places[: len(lanes)]])
        expected = False
        for lane, offset in zip(lanes, offsets, strict=True):
            block, thread = int(BLOCK[lane]), int(THREAD[lane])
            mine = Access(kind, block, thread, int(epochs[block]), int(warp_epochs[lane // 32]))
            for byte in history[offset : offset + width]:
                expected |= any(race(mine, earlier) for earlier in byte)
                byte.append(mine)
        note = {"read": shadow.read, "write": shadow.write, "atomic": shadow.change}[kind]
        found = note(offsets, width, codes[lanes])
        assert (found is not None) == expected, step
        if expected:
            return
