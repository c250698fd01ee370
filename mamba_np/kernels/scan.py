"""The selective scan over a sequence, in one pass: step sizes, states, outputs and gate.

Sixteen channels go through a block of steps at a time. What the states need of each step is made
first; then four states at a time stay in registers while the steps pass; then the outputs are
gated. No array of (L, E, N) exists, and a channel's states never leave the first-level cache.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import equations as eq
from . import vectorised  # noqa: F401
from .lanes import WIDTH, four, one_of, spread
from .linear import ZERO
from .memory import at, data, fetch, first_aligned, get, load, set_, store
from .options import inline, kernel

STEPS = 64
NO_STARTS = np.empty((0, 0, 0, 0), np.float32)
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

    A_per_octave: Any  # (stride / 16, N, 16)
    D: Any  # (stride)
    delta_bias: Any  # (stride)
    stride: int
    N: int
    gated: bool  # softplus of the step size, D and the gate; else the recurrence alone


@inline
def _advance(h, delta, A, drive, B):
    return eq.state_update(h, eq.decay(delta, A), drive * B)


@inline
def four_states(s, c, n, first, steps, e, place, scratch, later):
    """Take the states n to n + 3 of 16 channels through a block of steps.

    ``scratch`` is the room and where delta, delta * x and the sums C h of the steps lie in it;
    ``place`` is where the first of the states lies. ``later`` says what to ask the memory for
    meanwhile: a pointer, an index and how far apart the rows are.
    """
    room, deltas, drives, sums = scratch
    ahead, i, stride = later
    A = _four_rows(c.A_per_octave, e * c.N + n * WIDTH, WIDTH)
    h = _four_rows(room, place, WIDTH)
    k = first * s.weights_stride + n
    for t in range(steps):
        fetch(ahead, i + t * stride)
        delta, drive = load(room, deltas + t * WIDTH), load(room, drives + t * WIDTH)
        B = four(at(s.B, k), at(s.B, k + 1), at(s.B, k + 2), at(s.B, k + 3))
        h = _advance(h, four(delta, delta, delta, delta), A, four(drive, drive, drive, drive), B)
        y = one_of(h, 0) * at(s.C, k) + one_of(h, 1) * at(s.C, k + 1)
        y = y + (one_of(h, 2) * at(s.C, k + 2) + one_of(h, 3) * at(s.C, k + 3))  # fewer roundings
        store(room, sums + t * WIDTH, load(room, sums + t * WIDTH) + y)
        k += s.weights_stride
    for j, state in enumerate((one_of(h, 0), one_of(h, 1), one_of(h, 2), one_of(h, 3))):
        store(room, place + j * WIDTH, state)


@inline
def _four_rows(array, i, stride):
    j = i + 2 * stride
    return four(load(array, i), load(array, i + stride), load(array, j), load(array, j + stride))


@inline
def _later(s, y, quarter, row, e):
    """Return what ``four_states`` fetches: the rows of x, delta, z and y, one after the other.

    The memory is idle while the states are computed, and a block begins with all of its rows.
    """
    i = row * s.stride + e
    if quarter == 0:
        return data(s.x), i, s.stride
    if quarter == 1:
        return data(s.delta), i, s.stride
    if quarter == 2:
        return data(s.z), row * s.z_stride + e, s.z_stride
    return data(y), i, s.stride


@inline
def one_state(s, c, n, first, steps, e, place, scratch):
    """Take state n of 16 channels through a block of steps."""
    room, deltas, drives, sums = scratch
    A = load(c.A_per_octave, e * c.N + n * WIDTH)
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


@inline
def _keep(room, states, starts, place, N, E, count):
    """Write the states of 16 channels to ``starts``, from a flat index on."""
    for n in range(N):
        set_(starts, place + n * E, load(room, states + n * WIDTH), count)


@kernel
def selective_scan(s, c, h, y, starts, length, row_steps, items):
    """Run the scan for some groups of 16 channels of some texts.

    ``h`` (B, N, E) holds the states and is advanced in place. Text b has its rows from
    b * ``length`` on, of which ``row_steps[b]`` count. ``items`` = (first, last): the groups to
    do, numbered through all texts. ``starts`` (B, blocks, N, E) gets the states before each block
    of STEPS steps, for a backward pass; it may have no blocks.
    """
    E, blocks = h.shape[2], starts.shape[1]
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
            if blocks > 0:
                place = (b * blocks + begin // STEPS) * c.N * E + e
                _keep(room, states, starts, place, c.N, E, count)
            _prepare(s, c, first, steps, e, scratch)
            row, channel = first + STEPS, e
            if begin + STEPS >= row_steps[b]:  # the next channels' first block
                row, channel = b * length, e + WIDTH
            for n in range(0, c.N - 3, 4):
                later = _later(s, y, n // 4, row, channel)
                four_states(s, c, n, first, steps, e, states + n * WIDTH, scratch, later)
            for n in range(c.N - c.N % 4, c.N):
                one_state(s, c, n, first, steps, e, states + n * WIDTH, scratch)
            _finish(s, c, first, steps, e, scratch, y)
        _keep(room, states, h, b * c.N * E + e, c.N, E, count)
