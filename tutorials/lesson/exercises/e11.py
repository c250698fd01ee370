"""The exercises of "Write the GPU kernel in Python"."""

import numpy as np

from mamba_np import equations as eq
from mamba_np import reference

from ..checking import NotYet, exercise, expect, near
from ..gpu import cuda, decay, empty, float32, launch, state_update
from ..gpu_kernels import CHUNK, LANES, THREADS, WIDTH, N, lanes_scan, shared_scan, states_scan

L, E, TOLERANCE = 12, 8, 1e-5


def _numbers(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _result(name, run, expected, variants=()):
    """Judge the array of this name; ``variants`` are pairs of wrong values and their hints."""
    found = run[name]
    expect(not np.isnan(found).all(), f"Nothing is written to {name} yet: replace the dots.")
    if np.isnan(found).any():
        place = [int(i) for i in np.argwhere(np.isnan(found))[0]]
        expect(False, f"{name}{place} is not written, or made of what nobody wrote.")
    for values, hint in variants:
        expect(not np.allclose(found, values, TOLERANCE, TOLERANCE), hint)
    near(found, expected, name, TOLERANCE)


@exercise("11a")
def one_thread_for_each_element(answer):
    """delta = softplus(raw), of ten numbers by twelve threads."""
    raw = _numbers(10)
    run = launch(answer, 3, THREADS, raw, empty(10))
    _result("delta", run, eq.softplus(raw))


def _inputs():
    x, delta, A = _numbers(L, E), abs(_numbers(L, E)), -abs(_numbers(E, N))
    return x, delta, A, eq.per_octave(A).astype(np.float32), _numbers(L, WIDTH)


def _expected(x, delta, A, B, C):
    """(L E), (L E), (E N), (L N), (L N) -> (L E)."""
    h = np.zeros((1, *A.shape))
    return reference.selective_scan(x[None], delta[None], A, B[None], C[None], h)[0][0]


@exercise("11b")
def one_thread_for_each_channel(answer):
    """The scan with a single state for each of six channels, by eight threads."""
    x, delta, A, rates, selected = (a[:, :6] if len(a) == L else a[:6] for a in _inputs())
    B, C = selected[:, :1], selected[:, 1:2]
    run = launch(
        answer, 2, THREADS, *(np.array(a) for a in (x, delta, rates[:, 0], B[:, 0], C[:, 0])),
        empty(L, 6),
    )  # fmt: skip
    keep, drive = eq.decay(delta, rates[:, 0]), delta * B * x

    def scan(update, before=False):
        h, y = np.zeros(6), []
        for t in range(L):
            was, h = h, update(h, keep[t], drive[t])
            y.append(C[t] * (was if before else h))
        return y

    variants = [
        (scan(lambda h, a, d: d), "Each step begins with nothing: h has to stay."),
        (scan(lambda h, a, d: a * d + h), "state_update(h, A_bar, drive): h is what decays."),
        (scan(eq.state_update, True), "y reads the state before the step: h takes x in first."),
    ]
    no_size = _expected(x / delta, delta, A[:, :1], B, C)
    variants.append((no_size, "x drives the state by delta * B, not by B alone."))
    _result("y", run, _expected(x, delta, A[:, :1], B, C), variants)


@cuda.jit(device=True)
def _advance(h, rates, row, first, delta, x):
    y = float32(0)
    for n in range(h.size):
        h[n] = state_update(h[n], decay(delta, rates[n]), delta * row[first + n] * x)
        y += row[N + first + n] * h[n]
    return y


@cuda.jit(device=True)
def _sum_of_lanes(parts, i, mine):
    cuda.syncthreads()
    parts[i] = mine
    cuda.syncthreads()
    total = float32(0)
    for k in range(LANES):
        total += parts[i - i % LANES + k]
    return total


def _scan(kernel, blocks, hints=()):
    """Judge a scan of all states; ``hints`` are pairs of a wrong ``selected`` and what to say."""
    x, delta, A, rates, selected = _inputs()
    run = launch(kernel, blocks, THREADS, x, delta, rates, selected, empty(L, E))

    def expected(rows):
        return _expected(x, delta, A, rows[:, :N], rows[:, N:])

    _result("y", run, expected(selected), [(expected(rows), hint) for rows, hint in hints])


@exercise("11c")
def several_states(answer):
    """One step of some states of a channel."""
    selected = _inputs()[-1]
    B, C = selected[:, :N], selected[:, N:]
    last = np.where(np.arange(WIDTH) == WIDTH - 1, selected, selected * (np.arange(WIDTH) < N))
    hints = [
        (np.hstack([B, B]), "y reads with B: C begins N places further in the row."),
        (np.hstack([C, B]), "B and C have changed places."),
        (last, "y is the last state's part alone: add up all of them."),
    ]
    _scan(states_scan(answer), E // THREADS, hints)
    try:
        _scan(lanes_scan(answer, _sum_of_lanes), E * LANES // THREADS)
    except NotYet:
        raise NotYet("Right for all states at once. With some, B and C start at `first`.") from None


@exercise("11d")
def tiles_in_shared_memory(answer):
    """All threads of a block bring B and C of a chunk's steps."""
    selected = _inputs()[-1]
    again = np.tile(selected[:CHUNK], (L // CHUNK, 1))
    hint = "Every tile holds the first steps: where does the tile of `first` begin?"
    _scan(shared_scan(_advance, answer), E // THREADS, [(again, hint)])


@exercise("11e")
def lanes_that_share_a_channel(answer):
    """The lanes of a channel add up their parts."""
    selected = _inputs()[-1]
    one = selected * (np.arange(WIDTH) % N < N // LANES)
    hint = "That is the first lane's part alone: add the others'."
    _scan(lanes_scan(_advance, answer), E * LANES // THREADS, [(one, hint)])


@exercise("11f")
def carry_from_chunk_to_chunk(answer):
    """The states that chunks begin with, from those that they would end with after zeros."""
    ends, sums, rates = _numbers(5, E, N), abs(_numbers(5, E)), _inputs()[3]
    keep = eq.decay(sums[..., None], rates)
    after = reference.recurrence(keep[None], ends[None], np.zeros((1, E, N)))[0]

    def begun_with(states):
        return np.concatenate([np.zeros((1, E, N)), states[:-1]])

    swapped, undecayed = np.zeros((E, N)), []
    for k, e in zip(keep, ends, strict=True):
        swapped = k * e + swapped
        undecayed.append(swapped)
    variants = [
        (after, "Those are the states after each chunk. With what does the first one begin?"),
        (begun_with(np.array(undecayed)), "The earlier part is what decays, not the chunk's own."),
        (begun_with(np.cumsum(ends, axis=0)), "A chunk lets decay what was before it."),
        (begun_with(ends), "A chunk's end is only what it wrote itself: what was before it?"),
    ]
    run = launch(answer, (E // THREADS, N), THREADS, ends, sums, rates, empty(5, E, N))
    _result("starts", run, begun_with(after), variants)
