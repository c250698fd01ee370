"""The backward pass of the scan: the gradients of step sizes, inputs, gate, A, B, C and D at once.

Blocks of steps go from the last to the first. In each block four states at a time of sixteen
channels are first taken through its steps again, from the state that the forward pass kept at its
beginning, then back. So the states of one block alone exist, in the first-level cache.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import derivatives as d
from .. import equations as eq
from . import vectorised  # noqa: F401
from .lanes import WIDTH, four, one_of, spread
from .linear import ZERO
from .memory import add_sums, at, first_aligned, get, load, store
from .options import inline, kernel
from .scan import STEPS

ROW = 4 * WIDTH
"""Numbers of four states of sixteen channels."""


class ScanGradients(NamedTuple):
    """What the backward pass of a scan writes: float32 arrays in the layouts of ``Sequence``."""

    x: Any  # (rows, stride)
    delta: Any  # (rows, stride): of the step size before softplus
    z: Any  # N numbers of each row, ``z_stride`` apart
    B: Any  # (rows, ``weights_stride``), added to: each rank has its own
    C: Any
    A: Any  # (stride / 16, N, 16), added to: each rank has its own
    D: Any  # (stride), added to: each rank has its own


class Scratch(NamedTuple):
    """Where a block's arrays lie in one room: 16 numbers for each of STEPS steps, and more."""

    room: Any
    delta: int
    drive: int
    dy: int  # of the output before the gate
    y: int
    d_drive: int
    d_delta: int
    h: int  # (STEPS + 1, 4, 16): four states before each step and after the last
    A_bar: int  # (STEPS, 4, 16)
    d_h: int  # (N, 16): carried from block to block
    d_A: int  # (N, 16)


@inline
def _scratch(N):
    room = np.empty((6 * STEPS + 4 * (2 * STEPS + 1) + 2 * N + 1) * WIDTH, np.float32)
    first, block = first_aligned(room), STEPS * WIDTH
    h = first + 6 * block
    A_bar = h + block * 4 + ROW
    d_h = A_bar + block * 4
    rest = (first, first + block, first + 2 * block, first + 3 * block)
    more = (first + 4 * block, first + 5 * block)
    return Scratch(room, *rest, *more, h, A_bar, d_h, d_h + N * WIDTH)


@inline
def _load_four(array, i):
    rows = (load(array, i), load(array, i + WIDTH))
    return four(*rows, load(array, i + 2 * WIDTH), load(array, i + 3 * WIDTH))


@inline
def _store_four(array, i, x):
    store(array, i, one_of(x, 0))
    store(array, i + WIDTH, one_of(x, 1))
    store(array, i + 2 * WIDTH, one_of(x, 2))
    store(array, i + 3 * WIDTH, one_of(x, 3))


@inline
def _same(x):
    return four(x, x, x, x)


@inline
def _weights(array, k):
    return four(at(array, k), at(array, k + 1), at(array, k + 2), at(array, k + 3))


@inline
def _added(x):
    return (one_of(x, 0) + one_of(x, 1)) + (one_of(x, 2) + one_of(x, 3))


@inline
def _prepare(s, c, d_out, first, steps, e, r):
    """Write delta, delta * x and the gradient of y of each step; zero what is summed."""
    bias = load(c.delta_bias, e)
    for t in range(steps):
        i, place = (first + t) * s.stride + e, t * WIDTH
        delta = eq.softplus(load(s.delta, i) + bias)
        z = load(s.z, (first + t) * s.z_stride + e)
        store(r.room, r.delta + place, delta)
        store(r.room, r.drive + place, delta * load(s.x, i))
        store(r.room, r.dy + place, d.d_ungated(load(d_out, i), z))
        store(r.room, r.y + place, spread(ZERO))
        store(r.room, r.d_drive + place, spread(ZERO))
        store(r.room, r.d_delta + place, spread(ZERO))


@inline
def _forward(s, A, n, first, steps, r):
    """Take four states through a block again; keep them, their decays and what they add to y."""
    h = _load_four(r.room, r.h)
    k = first * s.weights_stride + n
    for t in range(steps):
        place = t * WIDTH
        delta, drive = load(r.room, r.delta + place), load(r.room, r.drive + place)
        A_bar = eq.decay(_same(delta), A)
        h = eq.state_update(h, A_bar, _same(drive) * _weights(s.B, k))
        _store_four(r.room, r.A_bar + t * ROW, A_bar)
        _store_four(r.room, r.h + (t + 1) * ROW, h)
        y = _added(h * _weights(s.C, k))
        store(r.room, r.y + place, load(r.room, r.y + place) + y)
        k += s.weights_stride


@inline
def _backward(s, g, A, n, first, steps, r):
    """Take the gradient of four states back through a block."""
    natural = A * eq.LN_2
    d_h, d_A = _load_four(r.room, r.d_h + n * WIDTH), _load_four(r.room, r.d_A + n * WIDTH)
    h = _load_four(r.room, r.h + steps * ROW)
    for back in range(steps):
        t = steps - 1 - back
        place, k = t * WIDTH, (first + t) * s.weights_stride + n
        dy, delta = load(r.room, r.dy + place), load(r.room, r.delta + place)
        drive = load(r.room, r.drive + place)
        add_sums(g.C, k, _same(dy) * h)
        d_h = d_h + _same(dy) * _weights(s.C, k)
        add_sums(g.B, k, d_h * _same(drive))
        d_drive = _added(d_h * _weights(s.B, k))
        h = _load_four(r.room, r.h + t * ROW)
        A_bar = _load_four(r.room, r.A_bar + t * ROW)
        d_h, d_exponent, _ = d.d_state_update(d_h, h, A_bar)
        d_A = d_A + d_exponent * _same(delta)
        store(r.room, r.d_drive + place, load(r.room, r.d_drive + place) + d_drive)
        d_delta = _added(d_exponent * natural)
        store(r.room, r.d_delta + place, load(r.room, r.d_delta + place) + d_delta)
    _store_four(r.room, r.d_h + n * WIDTH, d_h)
    _store_four(r.room, r.d_A + n * WIDTH, d_A)


@inline
def _finish(s, c, d_out, g, first, steps, e, r):
    """Write the gradients of x, of the step size and of the gate of each step; add that of D."""
    D, bias, d_D = load(c.D, e), load(c.delta_bias, e), load(g.D, e)
    for t in range(steps):
        i, place, gate = (first + t) * s.stride + e, t * WIDTH, (first + t) * s.z_stride + e
        x, raw = load(s.x, i), load(s.delta, i) + bias
        y, dy = load(r.room, r.y + place), load(r.room, r.dy + place)
        d_drive = load(r.room, r.d_drive + place)
        d_delta = load(r.room, r.d_delta + place) + d_drive * x
        store(g.x, i, d_drive * load(r.room, r.delta + place) + dy * D)
        store(g.delta, i, d_delta * d.d_softplus(raw))
        store(g.z, gate, d.d_gate(load(d_out, i), y, x, D, load(s.z, gate)))
        d_D = d_D + dy * x
    store(g.D, e, d_D)


@kernel
def scan_backward(s, c, starts, d_out, g, length, items):
    """Run the backward pass of a gated ``selective_scan`` for groups of channels of some texts.

    ``starts`` (B, blocks, N, E) has the states before each block of STEPS steps; ``d_out`` (rows,
    stride) is the gradient of the result. All steps count. ``items`` as in ``selective_scan``.
    N is a multiple of four.
    """
    blocks, E = starts.shape[1], starts.shape[3]
    groups = (E + WIDTH - 1) // WIDTH
    r = _scratch(c.N)
    for item in range(items[0], items[1]):
        b, e = item // groups, item % groups * WIDTH
        count = min(WIDTH, E - e)
        for n in range(2 * c.N):  # d_h, then d_A
            store(r.room, r.d_h + n * WIDTH, spread(ZERO))
        for back in range(blocks):
            block = blocks - 1 - back
            first, steps = b * length + block * STEPS, min(STEPS, length - block * STEPS)
            _prepare(s, c, d_out, first, steps, e, r)
            for n in range(0, c.N, 4):
                for j in range(4):
                    state = get(starts, ((b * blocks + block) * c.N + n + j) * E + e, count)
                    store(r.room, r.h + j * WIDTH, state)
                A = _load_four(c.A_per_octave, e * c.N + n * WIDTH)
                _forward(s, A, n, first, steps, r)
                _backward(s, g, A, n, first, steps, r)
            _finish(s, c, d_out, g, first, steps, e, r)
        for n in range(c.N):
            i = e * c.N + n * WIDTH
            store(g.A, i, load(g.A, i) + load(r.room, r.d_A + n * WIDTH))
