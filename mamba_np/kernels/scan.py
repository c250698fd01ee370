"""The selective scan over a sequence, in one pass: step sizes, states, outputs and gate.

Sixteen channels go through a block of steps at a time. What the states need of each step is made
first; then four states at a time stay in registers while the steps pass; then the outputs are
gated. No array of (L, E, N) exists, and a channel's states never leave the first-level cache.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import equations as eq
from . import vectorised  # noqa: F401
from .lanes import WIDTH, spread
from .linear import ZERO
from .memory import at, first_aligned, get, load, set_, store
from .options import inline, kernel

STEPS = 64
"""Steps of one block: three arrays of 64 x 16 numbers are 12 KB, which a first-level cache has."""


class Sequence(NamedTuple):
    """What a scan reads of each step: flat float32 arrays, and how far apart rows are in them."""

    x: Any  # (rows, stride): channels first in each row
    delta: Any  # (rows, stride); before softplus where there is ``delta_bias``
    stride: int  # of x, delta and the result
    B: Any  # N numbers of each row, from 0 on
    C: Any
    weights_stride: int  # of B and C
    z: Any  # the gate, if ``gated``
    z_stride: int


class Channels(NamedTuple):
    """What belongs to each channel: float32 arrays whose rows are padded to whole Lanes."""

    A_per_octave: Any  # (N, stride)
    D: Any  # (stride)
    delta_bias: Any  # (stride)
    stride: int
    N: int
    gated: bool  # softplus of the step size, D and the gate; else the recurrence alone


@inline
def _advance(h, delta, A, drive, B):
    return eq.state_update(h, eq.decay(delta, A), drive * B)


@inline
def four_states(s, c, n, first, steps, e, place, scratch):
    """Take the states n to n + 3 of 16 channels through a block of steps.

    ``scratch`` is the room and where delta, delta * x and the sums C h of the steps lie in it;
    ``place`` is where the first of the states lies.
    """
    room, deltas, drives, sums = scratch
    a = n * c.stride + e
    A0, A1 = load(c.A_per_octave, a), load(c.A_per_octave, a + c.stride)
    A2, A3 = load(c.A_per_octave, a + 2 * c.stride), load(c.A_per_octave, a + 3 * c.stride)
    h0, h1 = load(room, place), load(room, place + WIDTH)
    h2, h3 = load(room, place + 2 * WIDTH), load(room, place + 3 * WIDTH)
    k = first * s.weights_stride + n
    for t in range(steps):
        delta, drive = load(room, deltas + t * WIDTH), load(room, drives + t * WIDTH)
        h0 = _advance(h0, delta, A0, drive, at(s.B, k))
        h1 = _advance(h1, delta, A1, drive, at(s.B, k + 1))
        h2 = _advance(h2, delta, A2, drive, at(s.B, k + 2))
        h3 = _advance(h3, delta, A3, drive, at(s.B, k + 3))
        y = h0 * at(s.C, k) + h1 * at(s.C, k + 1)
        y = y + (h2 * at(s.C, k + 2) + h3 * at(s.C, k + 3))  # in pairs: fewer roundings
        store(room, sums + t * WIDTH, load(room, sums + t * WIDTH) + y)
        k += s.weights_stride
    store(room, place, h0)
    store(room, place + WIDTH, h1)
    store(room, place + 2 * WIDTH, h2)
    store(room, place + 3 * WIDTH, h3)


@inline
def one_state(s, c, n, first, steps, e, place, scratch):
    """Take state n of 16 channels through a block of steps."""
    room, deltas, drives, sums = scratch
    A = load(c.A_per_octave, n * c.stride + e)
    state = load(room, place)
    k = first * s.weights_stride + n
    for t in range(steps):
        delta, drive = load(room, deltas + t * WIDTH), load(room, drives + t * WIDTH)
        state = _advance(state, delta, A, drive, at(s.B, k))
        store(room, sums + t * WIDTH, load(room, sums + t * WIDTH) + state * at(s.C, k))
        k += s.weights_stride
    store(room, place, state)


@inline
def _prepare(s, c, first, steps, e, scratch):
    """Write delta, delta * x and zero sums of each step."""
    room, deltas, drives, sums = scratch
    bias = load(c.delta_bias, e)
    for t in range(steps):
        i = (first + t) * s.stride + e
        delta = load(s.delta, i)
        if c.gated:
            delta = eq.softplus(delta + bias)
        store(room, deltas + t * WIDTH, delta)
        store(room, drives + t * WIDTH, delta * load(s.x, i))
        store(room, sums + t * WIDTH, spread(ZERO))


@inline
def _finish(s, c, first, steps, e, scratch, y):
    """Write the outputs of a block; ``y`` may be ``x`` itself."""
    room, _, _, sums = scratch
    D = load(c.D, e)
    for t in range(steps):
        i = (first + t) * s.stride + e
        result = load(room, sums + t * WIDTH)
        if c.gated:
            z = load(s.z, (first + t) * s.z_stride + e)
            result = eq.output(result, load(s.x, i), D, z)
        store(y, i, result)


@kernel
def selective_scan(s, c, h, y, length, row_steps, items):
    """Run the scan for some groups of 16 channels of some texts.

    ``h`` (B, N, E) holds the states and is advanced in place. Text b has its rows from
    b * ``length`` on, of which ``row_steps[b]`` count. ``items`` = (first, last): the groups to
    do, numbered through all texts.
    """
    E = h.shape[2]
    groups = (E + WIDTH - 1) // WIDTH
    room = np.empty((3 * STEPS + c.N + 1) * WIDTH, np.float32)
    deltas = first_aligned(room)
    drives, sums = deltas + STEPS * WIDTH, deltas + 2 * STEPS * WIDTH
    states = sums + STEPS * WIDTH
    scratch = (room, deltas, drives, sums)
    for item in range(items[0], items[1]):
        b, e = item // groups, item % groups * WIDTH
        count = min(WIDTH, E - e)
        for n in range(c.N):
            store(room, states + n * WIDTH, get(h, (b * c.N + n) * E + e, count))
        for begin in range(0, row_steps[b], STEPS):
            first, steps = b * length + begin, min(STEPS, row_steps[b] - begin)
            _prepare(s, c, first, steps, e, scratch)
            for n in range(0, c.N - 3, 4):
                four_states(s, c, n, first, steps, e, states + n * WIDTH, scratch)
            for n in range(c.N - c.N % 4, c.N):
                one_state(s, c, n, first, steps, e, states + n * WIDTH, scratch)
            _finish(s, c, first, steps, e, scratch, y)
        for n in range(c.N):
            set_(h, (b * c.N + n) * E + e, load(room, states + n * WIDTH), count)
