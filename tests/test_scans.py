"""All scans give the states of plain loops in float64, whatever the length and the chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq
from mamba_np import reference, scans
from mamba_np.errors import InputError

NAMES = sorted(scans.SCANS)


def problem(seed, L, shape=(2, 3, 2), dtype="float64"):
    """Return A_bar, drive and h of a sequence; some decays are 0 and some are 1."""
    rng = np.random.default_rng(seed)
    B, E, N = shape
    A_bar = np.clip(rng.uniform(-0.2, 1.2, size=(B, L, E, N)), 0, 1).astype(dtype)
    drive = rng.normal(size=(B, L, E, N)).astype(dtype)
    return A_bar, drive, rng.normal(size=(B, E, N)).astype(dtype)


def loops(A_bar, drive, h):
    """Return the states by the definition, number by number."""
    states = np.empty(drive.shape)
    for b, e, n in np.ndindex(h.shape):
        state = float(h[b, e, n])
        for t in range(drive.shape[1]):
            state = float(A_bar[b, t, e, n]) * state + float(drive[b, t, e, n])
            states[b, t, e, n] = state
    return states


@given(
    seed=st.integers(0, 2**32 - 1),
    L=st.integers(1, 70),
    dtype=st.sampled_from(["float64", "float32"]),
)
def test_all_scans_agree_at_every_length(seed, L, dtype):
    arguments = problem(seed, L, dtype=dtype)
    expected = loops(*arguments)
    for name, scan in scans.SCANS.items():
        states = scan(*arguments)
        assert states.dtype == dtype, name
        assert_close_to_scale(states, expected, tolerance("scan", dtype), f"{name}, L={L}")


@given(seed=st.integers(0, 2**32 - 1), L=st.integers(1, 40), chunk=st.integers(1, 45))
def test_chunks_of_any_size_change_nothing(seed, L, chunk):
    arguments = problem(seed, L)
    found = scans.chunked(*arguments, chunk=chunk)
    assert_close_to_scale(found, loops(*arguments), tolerance("scan", "float64"), f"chunk={chunk}")


@pytest.mark.parametrize("name", NAMES)
def test_long_sequences_whose_products_underflow(name):
    """The composed decays reach 0 long before the end; the states are none the worse."""
    A_bar, drive, h = problem(0, 3000, (1, 1, 2), "float32")
    A_bar = np.minimum(A_bar, np.float32(0.9))
    expected = loops(A_bar, drive, h)
    found = scans.SCANS[name](A_bar, drive, h)
    assert_close_to_scale(found, expected, tolerance("scan", "float32"), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_changes_no_argument(name):
    arguments = problem(1, 37)
    before = [a.copy() for a in arguments]
    scans.SCANS[name](*arguments)
    assert all(map(np.array_equal, arguments, before))


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_knows_no_future(name):
    A_bar, drive, h = problem(2, 45)
    whole = scans.SCANS[name](A_bar, drive, h)
    drive[:, 40:] = np.nan
    A_bar[:, 40:] = np.nan
    changed = scans.SCANS[name](A_bar, drive, h)
    assert np.array_equal(changed[:, :40], whole[:, :40])


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_can_be_that_of_a_selective_scan(name, rng):
    x, delta = rng.normal(size=(2, 21, 3)), rng.random((2, 21, 3))
    A, h = -rng.random((3, 4)), rng.normal(size=(2, 3, 4))
    B, C = rng.normal(size=(2, 2, 21, 4))
    found = reference.selective_scan(x, delta, A, B, C, h, scan=scans.SCANS[name])
    expected = reference.selective_scan(x, delta, A, B, C, h)
    for what, a, b in zip(("y", "h"), found, expected, strict=True):
        assert_close_to_scale(a, b, tolerance("scan", "float64"), f"{name}: {what}")


def merges(monkeypatch, name, L):
    """Return how many elements each call of the equations merged, in order."""
    counts = []

    def counting(function):
        def call(*arguments):
            result = function(*arguments)
            counts.append(np.size(arguments[-1]))  # the drive: one for each merge
            return result

        return call

    update = eq.state_update
    monkeypatch.setattr(eq, "state_update", counting(update))
    scans.SCANS[name](*problem(0, L, (1, 1, 1)))
    monkeypatch.undo()
    return [count for count in counts if count]


@pytest.mark.parametrize(
    ("name", "L", "rounds", "work"),
    [
        ("recurrence", 64, 64, 64),
        # the first state, then rounds over L - 1, L - 2, L - 4, ... positions
        ("kogge_stone", 64, 1 + 6, 1 + 6 * 64 - 63),
        # the first state, then up and down: 2 L - 2 - log2 L merges in 2 log2 L - 1 rounds
        ("associative_scan", 64, 1 + 11, 1 + 2 * 64 - 2 - 6),
        # 31 rounds over two chunks, then each chunk of 32
        ("chunked", 64, 31 + 2, 31 * 2 + 64),
    ],
)
def test_work_and_depth_are_as_described(monkeypatch, name, L, rounds, work):
    found = merges(monkeypatch, name, L)
    assert (len(found), sum(found)) == (rounds, work)


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, None])
def test_a_chunk_is_a_positive_integer(chunk):
    with pytest.raises(InputError, match="chunk: expected an integer"):
        scans.chunked(*problem(0, 3), chunk=chunk)
