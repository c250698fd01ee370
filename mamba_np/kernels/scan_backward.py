"""The backward pass of the scan: the gradients of step sizes, inputs, gate, A, B, C and D at once.

Blocks of steps go from the last to the first. In each block four states at a time of sixteen
channels are first taken through its steps again, from the state that the forward pass kept at its
beginning, then back. So the states of one block alone exist, in the first-level cache. ``states``
says which forms B and C may have.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import derivatives as d
from .. import equations as eq
from . import vectorised  # noqa: F401
from .lanes import WIDTH, spread
from .linear import ZERO
from .memory import data, first_aligned, get, load, set_, store
from .options import inline, kernel
from .scan import STEPS
from .states import (
    ROW,
    add_weights,
    added,
    in_fours,
    load_four,
    place_of,
    same,
    store_four,
    stride_of,
    weights_of,
)

NO_STATES = np.empty((0, 0, 0), np.float32)


class Form(NamedTuple):
    """What a scan has besides the recurrence."""

    softplus: bool  # of the step sizes, which then have a bias
    gated: bool  # by z
    B_span: Any  # channels that share N numbers of a row of B, in sixteens; None: see ``states``
    C_span: Any


ALL = 2**62
GATED = Form(True, True, ALL, ALL)
"""The scan of a model, in which all channels share B and C."""


class ScanGradients(NamedTuple):
    """What the backward pass of a scan writes: float32 arrays in the layouts of ``Sequence``."""

    x: Any  # (rows, stride)
    delta: Any  # (rows, stride): of the step size before softplus
    z: Any  # N numbers of each row, ``z_stride`` apart; if ``gated``
    B: Any  # as B itself, added to: each rank has its own
    C: Any
    A: Any  # (stride / 16, N, 16), added to: each rank has its own
    D: Any  # (stride), added to: each rank has its own
    h: Any = NO_STATES  # (B, N, E): of the last state, then of the first; zeros if it has no texts


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
    d_h: int  # (N in fours, 16): carried from block to block
    d_A: int  # (N in fours, 16)


@inline
def _scratch(N):
    states = in_fours(N) * WIDTH
    room = np.empty((6 * STEPS + 4 * (2 * STEPS + 1) + 1) * WIDTH + 2 * states, np.float32)
    first, block = first_aligned(room), STEPS * WIDTH
    h = first + 6 * block
    A_bar = h + block * 4 + ROW
    d_h = A_bar + block * 4
    rest = (first, first + block, first + 2 * block, first + 3 * block)
    more = (first + 4 * block, first + 5 * block)
    return Scratch(room, *rest, *more, h, A_bar, d_h, d_h + states)


# --- a block ----------------------------------------------------------------------------------


@inline
def _drives(s, c, form, first, steps, e, r):
    """Write delta and delta * x of each step."""
    bias = load(c.delta_bias, e)
    for t in range(steps):
        i, place = (first + t) * s.stride + e, t * WIDTH
        delta = load(s.delta, i)
        if form.softplus:
            delta = eq.softplus(delta + bias)
        store(r.room, r.delta + place, delta)
        store(r.room, r.drive + place, delta * load(s.x, i))


@inline
def _prepare(s, form, d_out, first, steps, e, r):
    """Write the gradient of y of each step; zero what is summed."""
    for t in range(steps):
        place = t * WIDTH
        dy = load(d_out, (first + t) * s.stride + e)
        if form.gated:
            dy = d.d_ungated(dy, load(s.z, (first + t) * s.z_stride + e))
        store(r.room, r.dy + place, dy)
        store(r.room, r.y + place, spread(ZERO))
        store(r.room, r.d_drive + place, spread(ZERO))
        store(r.room, r.d_delta + place, spread(ZERO))


@inline
def _through(s, c, form, n, count, first, e, r):
    """Take four states of ``d_h`` through a whole block."""
    A = load_four(c.A_per_octave, e * c.N + n * WIDTH, count)
    h, B, span = load_four(r.room, r.d_h + n * WIDTH), data(s.B), form.B_span
    k = place_of(s, span, c.N, first, e, n)
    for t in range(STEPS):
        delta, drive = load(r.room, r.delta + t * WIDTH), load(r.room, r.drive + t * WIDTH)
        drive = same(drive) * weights_of(B, k, span, count)
        h = eq.state_update(h, eq.decay(same(delta), A), drive)
        k += stride_of(s, span)
    store_four(r.room, r.d_h + n * WIDTH, h)


@inline
def _forward(s, form, A, places, count, steps, r):
    """Take four states through a block again; keep them, their decays and what they add to y."""
    h, B, C, (i, k) = load_four(r.room, r.h), data(s.B), data(s.C), places
    for t in range(steps):
        place = t * WIDTH
        delta, drive = load(r.room, r.delta + place), load(r.room, r.drive + place)
        A_bar = eq.decay(same(delta), A)
        h = eq.state_update(h, A_bar, same(drive) * weights_of(B, i, form.B_span, count))
        store_four(r.room, r.A_bar + t * ROW, A_bar)
        store_four(r.room, r.h + (t + 1) * ROW, h)
        y = added(h * weights_of(C, k, form.C_span, count))
        store(r.room, r.y + place, load(r.room, r.y + place) + y)
        i += stride_of(s, form.B_span)
        k += stride_of(s, form.C_span)


@inline
def _backward(s, form, g, A, places, n, count, steps, r):
    """Take the gradient of four states back through a block."""
    natural, B, C, d_B, d_C = A * eq.LN_2, data(s.B), data(s.C), data(g.B), data(g.C)
    d_h, d_A = load_four(r.room, r.d_h + n * WIDTH), load_four(r.room, r.d_A + n * WIDTH)
    h = load_four(r.room, r.h + steps * ROW)
    i, k = (
        places[0] + steps * stride_of(s, form.B_span),
        places[1] + steps * stride_of(s, form.C_span),
    )
    for back in range(steps):
        t = steps - 1 - back
        place = t * WIDTH
        i, k = i - stride_of(s, form.B_span), k - stride_of(s, form.C_span)
        dy, delta = load(r.room, r.dy + place), load(r.room, r.delta + place)
        drive = load(r.room, r.drive + place)
        add_weights(d_C, k, same(dy) * h, form.C_span, count)
        d_h = d_h + same(dy) * weights_of(C, k, form.C_span, count)
        add_weights(d_B, i, d_h * same(drive), form.B_span, count)
        d_drive = added(d_h * weights_of(B, i, form.B_span, count))
        h = load_four(r.room, r.h + t * ROW)
        A_bar = load_four(r.room, r.A_bar + t * ROW)
        d_h, d_exponent, _ = d.d_state_update(d_h, h, A_bar)
        d_A = d_A + d_exponent * same(delta)
        store(r.room, r.d_drive + place, load(r.room, r.d_drive + place) + d_drive)
        d_delta = added(d_exponent * natural)
        store(r.room, r.d_delta + place, load(r.room, r.d_delta + place) + d_delta)
    store_four(r.room, r.d_h + n * WIDTH, d_h)
    store_four(r.room, r.d_A + n * WIDTH, d_A)


@inline
def _four_states(s, c, form, g, n, count, block, e, r):
    """Take four states through a block, whose first row is ``block[0]``, and back."""
    first, steps = block
    A = load_four(c.A_per_octave, e * c.N + n * WIDTH, count)
    B = place_of(s, form.B_span, c.N, first, e, n)
    C = place_of(s, form.C_span, c.N, first, e, n)
    _forward(s, form, A, (B, C), count, steps, r)
    _backward(s, form, g, A, (B, C), n, count, steps, r)


@inline
def _finish(s, c, form, d_out, g, block, e, r):
    """Write the gradients of x, of the step size and of the gate of each step; add that of D."""
    first, steps = block
    D, bias, d_D = load(c.D, e), load(c.delta_bias, e), load(g.D, e)
    for t in range(steps):
        i, place, gate = (first + t) * s.stride + e, t * WIDTH, (first + t) * s.z_stride + e
        x = load(s.x, i)
        y, dy = load(r.room, r.y + place), load(r.room, r.dy + place)
        d_drive = load(r.room, r.d_drive + place)
        d_delta = load(r.room, r.d_delta + place) + d_drive * x
        store(g.x, i, d_drive * load(r.room, r.delta + place) + dy * D)
        if form.softplus:
            d_delta = d_delta * d.d_softplus(load(s.delta, i) + bias)
        store(g.delta, i, d_delta)
        if form.gated:
            store(g.z, gate, d.d_gate(load(d_out, i), y, x, D, load(s.z, gate)))
        d_D = d_D + dy * x
    store(g.D, e, d_D)


# --- a sequence -------------------------------------------------------------------------------


@kernel
def scan_starts(s, c, form, h, starts, length, items):
    """Write the states before each block of STEPS steps to ``starts`` (B, blocks, N, E).

    ``h`` (B, N, E) holds the states before the first step. ``items`` as in ``selective_scan``.
    """
    blocks, E = starts.shape[1], starts.shape[3]
    groups, whole = (E + WIDTH - 1) // WIDTH, c.N - c.N % 4
    r = _scratch(c.N)
    for item in range(items[0], items[1]):
        b, e = item // groups, item % groups * WIDTH
        count = min(WIDTH, E - e)
        for n in range(in_fours(c.N)):
            store(r.room, r.d_h + n * WIDTH, spread(ZERO))
        for n in range(c.N):
            store(r.room, r.d_h + n * WIDTH, get(h, (b * c.N + n) * E + e, count))
        for block in range(blocks):
            place = (b * blocks + block) * c.N * E + e
            for n in range(c.N):
                set_(starts, place + n * E, load(r.room, r.d_h + n * WIDTH), count)
            if block < blocks - 1:
                first = b * length + block * STEPS
                _drives(s, c, form, first, STEPS, e, r)
                for n in range(0, whole, 4):
                    _through(s, c, form, n, 4, first, e, r)
                if whole < c.N:
                    _through(s, c, form, whole, c.N - whole, first, e, r)


@inline
def _load_starts(starts, place, E, rows, count, r):
    """Read four states before a block, of which ``rows`` there are; zeros stand for the others."""
    for j in range(4):
        state = get(starts, place + j * E, count) if j < rows else spread(ZERO)
        store(r.room, r.h + j * WIDTH, state)


@inline
def _load_last(g, N, b, e, E, count, r):
    """Begin with the gradient of the last state, and with none of A."""
    for n in range(2 * in_fours(N)):  # d_h, then d_A
        store(r.room, r.d_h + n * WIDTH, spread(ZERO))
    if g.h.shape[0] > 0:
        for n in range(N):
            store(r.room, r.d_h + n * WIDTH, get(g.h, (b * N + n) * E + e, count))


@inline
def _store_first(g, N, b, e, E, count, r):
    """Add the gradient of A; write that of the first state."""
    for n in range(N):
        i = e * N + n * WIDTH
        store(g.A, i, load(g.A, i) + load(r.room, r.d_A + n * WIDTH))
    if g.h.shape[0] > 0:
        for n in range(N):
            set_(g.h, (b * N + n) * E + e, load(r.room, r.d_h + n * WIDTH), count)


@kernel
def scan_backward(s, c, form, starts, d_out, g, length, items):
    """Run the backward pass of a ``selective_scan`` for groups of channels of some texts.

    ``starts`` (B, blocks, N, E) has the states before each block of STEPS steps; ``d_out`` (rows,
    stride) is the gradient of the result. All steps count. ``items`` as in ``selective_scan``.
    """
    blocks, E = starts.shape[1], starts.shape[3]
    groups, whole = (E + WIDTH - 1) // WIDTH, c.N - c.N % 4
    r = _scratch(c.N)
    for item in range(items[0], items[1]):
        b, e = item // groups, item % groups * WIDTH
        count = min(WIDTH, E - e)
        _load_last(g, c.N, b, e, E, count, r)
        for back in range(blocks):
            block = blocks - 1 - back
            rows = (b * length + block * STEPS, min(STEPS, length - block * STEPS))
            _drives(s, c, form, rows[0], rows[1], e, r)
            _prepare(s, form, d_out, rows[0], rows[1], e, r)
            place = (b * blocks + block) * c.N * E + e
            for n in range(0, whole, 4):
                _load_starts(starts, place + n * E, E, 4, count, r)
                _four_states(s, c, form, g, n, 4, rows, e, r)
            if whole < c.N:
                _load_starts(starts, place + whole * E, E, c.N - whole, count, r)
                _four_states(s, c, form, g, whole, c.N - whole, rows, e, r)
            _finish(s, c, form, d_out, g, rows, e, r)
        _store_first(g, c.N, b, e, E, count, r)
