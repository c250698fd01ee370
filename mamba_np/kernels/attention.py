"""The hidden attention of many channels at once, for its mean: one layer, float32.

What a token writes is followed by itself, as an impulse through the scan: 16 channels at a time,
some tokens' steps while they are in the first cache.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..threads import Member, run_team
from . import vectorised  # noqa: F401  # equations, compiled for Lanes
from .lanes import WIDTH, largest, spread, total
from .linear import ZERO
from .memory import at, first_aligned, load, put, store
from .options import inline, kernel
from .packing import aligned, groups_of_channels, padded

STEPS = 32
"""Steps whose A_bar exist at once: 16 states of 16 channels take 32 KB."""

TINY = np.float32(1e-30)
"""What is left of an impulse once it is this small can be seen nowhere, and slows arithmetic."""


def absolute_attention(delta: NDArray, A: NDArray, B: NDArray, C: NDArray) -> NDArray:
    """Return the sum over channels of |alpha|: (L c), (c N), (L N), (L N) -> (L L).

    See ``analysis.hidden_attention``, and ``equations.discretise`` for A_bar and B_bar.
    """
    L = len(B)
    steps = aligned((L, padded(len(A))))
    steps[:, : len(A)] = delta
    per_octave = groups_of_channels(eq.per_octave(A))
    B, C = np.ascontiguousarray(B), np.ascontiguousarray(C)
    sums: list[Any] = []

    def work(member: Member) -> None:
        own = np.zeros((L, L), np.float32)
        sums.append(own)
        sum_of_groups(steps, per_octave, B, C, own, member.share(len(per_octave)))

    run_team(work)
    return np.add.reduce(sums)


@kernel
def sum_of_groups(delta, A_per_octave, B, C, found, groups):
    """Add the |alpha| of ``groups`` = (first, last) of 16 channels to ``found`` (L, L).

    ``delta`` (L, E_pad) is 0 where there is no channel, which then writes nothing.
    """
    L, N = B.shape
    room = np.empty((STEPS * N + L * N + STEPS + 1) * WIDTH, np.float32)
    decays = first_aligned(room)
    impulses = decays + STEPS * N * WIDTH
    sums = impulses + L * N * WIDTH
    scratch = (room, decays, impulses, sums)
    for group in range(groups[0], groups[1]):
        A, e = group * N * WIDTH, group * WIDTH
        for first in range(0, L, STEPS):
            last = min(first + STEPS, L)
            _decays(delta, A_per_octave, scratch, A, e, (first, last, N))
            for s in range(last):
                if s < first:
                    _follow(C, scratch, found, s, (first, first, last, N))
                else:
                    _begin(delta, B, scratch, e, s, N)
                    _follow(C, scratch, found, s, (first, s, last, N))


@inline
def _decays(delta, A_per_octave, scratch, A, e, sizes):
    """Write A_bar of some steps: N Lanes for each."""
    room, decays, _, _ = scratch
    first, last, N = sizes
    stride = delta.shape[1]
    for t in range(first, last):
        step = load(delta, t * stride + e)
        for n in range(N):
            A_bar = eq.decay(step, load(A_per_octave, A + n * WIDTH))
            store(room, decays + ((t - first) * N + n) * WIDTH, A_bar)


@inline
def _begin(delta, B, scratch, e, s, N):
    """Write B_bar of token s: the impulse."""
    room, _, impulses, _ = scratch
    step = load(delta, s * delta.shape[1] + e)
    for n in range(N):
        store(room, impulses + (s * N + n) * WIDTH, step * at(B, s * N + n))


@inline
def _follow(C, scratch, found, s, sizes):
    """Take the impulse of token s from step ``begin`` to ``last``, and add what is read of it.

    The step s itself does not decay it. Nothing is done once next to nothing is left.
    """
    room, decays, impulses, sums = scratch
    first, begin, last, N = sizes
    place, L = impulses + s * N * WIDTH, found.shape[1]
    left = spread(ZERO)
    for n in range(N):
        left = np.maximum(left, abs(load(room, place + n * WIDTH)))
    if not largest(left) > TINY:
        return
    for t in range(begin, last):
        store(room, sums + (t - first) * WIDTH, spread(ZERO))
    for n in range(N):
        impulse = load(room, place + n * WIDTH)
        for t in range(begin, last):
            if t > s:
                impulse = impulse * load(room, decays + ((t - first) * N + n) * WIDTH)
            sum_at = sums + (t - first) * WIDTH
            store(room, sum_at, load(room, sum_at) + impulse * at(C, t * N + n))
        store(room, place + n * WIDTH, impulse)
    for t in range(begin, last):
        i = t * L + s
        put(found, i, at(found, i) + total(abs(load(room, sums + (t - first) * WIDTH))))
