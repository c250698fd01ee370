"""Linear time-invariant systems: three routes to one y, each against plain loops, all as a law."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq
from mamba_np import lti, reference
from mamba_np.errors import InputError

DTYPES = [np.float64, np.float32]


def system(rng, shape, dtype=np.float64):
    """Return (A_bar, B_bar, C) of a stable system; A_bar has both signs, as Euler's rule may."""
    A_bar = rng.uniform(-0.95, 1, shape)
    return tuple(a.astype(dtype) for a in (A_bar, *rng.standard_normal((2, *shape))))


def loop(x, A_bar, B_bar, C, h=None):
    """One channel with plain numbers: x (L), A_bar (N) ... -> y (L), the last state (N)."""
    h = [0.0] * len(A_bar) if h is None else [float(one) for one in h]
    y = []
    for x_t in x:
        h = [float(a) * n + float(b) * float(x_t) for a, b, n in zip(A_bar, B_bar, h, strict=True)]
        y.append(math.fsum(float(c) * n for c, n in zip(C, h, strict=True)))
    return np.array(y), np.array(h)


def loops(x, A_bar, B_bar, C):
    """Every channel of every row by itself: x (B L E), A_bar (E N) ... -> y (B L E)."""
    y = np.zeros(x.shape)
    for b in range(x.shape[0]):
        for e in range(x.shape[2]):
            y[b, :, e] = loop(x[b, :, e], A_bar[e], B_bar[e], C[e])[0]
    return y


def close(found, expected, name="y", step="step"):
    assert_close_to_scale(found, expected, tolerance(step, found.dtype), name)


# --- each route against loops --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 2, 3, 33, 64])
def test_recurrence_is_the_loop(dtype, L):
    rng = np.random.default_rng(L)
    A_bar, B_bar, C = system(rng, (3, 2), dtype)
    x = rng.standard_normal((2, L, 3)).astype(dtype)
    y, states = lti.recurrence(x, A_bar, B_bar, C)
    assert y.dtype == states.dtype == dtype
    assert states.shape == (2, L, 3, 2)
    close(y, loops(x, A_bar, B_bar, C))
    close(states[1, -1, 2], loop(x[1, :, 2], A_bar[2], B_bar[2], C[2])[1], "h")


def test_recurrence_goes_on_from_a_state():
    rng = np.random.default_rng(0)
    parts, x = system(rng, (3, 2)), rng.standard_normal((2, 20, 3))
    whole, states = lti.recurrence(x, *parts)
    first, before = lti.recurrence(x[:, :7], *parts)
    rest, _ = lti.recurrence(x[:, 7:], *parts, before[:, -1])
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), whole)
    np.testing.assert_array_equal(before, states[:, :7])
    h = rng.standard_normal((3, 2))  # the same for every row
    y, _ = lti.recurrence(x, *parts, h)
    close(y[1, :, 2], loop(x[1, :, 2], *(part[2] for part in parts), h[2])[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 2, 50])
def test_kernel_is_the_answer_to_an_impulse(dtype, L):
    rng = np.random.default_rng(L)
    A_bar, B_bar, C = system(rng, (3, 2), dtype)
    K = lti.kernel(A_bar, B_bar, C, L)
    assert K.dtype == dtype
    impulse = np.zeros((1, L, 3))
    impulse[:, 0] = 1
    close(K, loops(impulse, A_bar, B_bar, C)[0], "K")


def test_kernel_has_the_closed_form():
    K = lti.kernel([0.5, -0.25], [2.0, 1.0], [1.0, 4.0], 4)
    np.testing.assert_array_equal(K, [6.0, 0.0, 0.75, 0.1875])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 2, 3, 4, 5, 31, 32, 33])
def test_convolve_is_the_double_loop(dtype, L):
    rng = np.random.default_rng(L)
    x, K = (rng.standard_normal((L, 3)).astype(dtype) for _ in range(2))
    y = lti.convolve(x, K)
    assert y.dtype == dtype
    expected = np.zeros((L, 3))
    for t in range(L):
        for s in range(t + 1):
            expected[t] += K[t - s].astype(np.float64) * x[s]
    close(y, expected)


def test_convolve_lets_nothing_come_round():
    """What is put in at the end echoes after the end, not at the beginning."""
    x, K = np.zeros(8), np.ones(8)
    x[-1] = 1
    np.testing.assert_allclose(lti.convolve(x, K), x, atol=1e-15)


def test_matrix_is_constant_along_diagonals_and_zero_above():
    M = lti.matrix(np.array([[1, 10], [2, 20], [3, 30]]))
    assert M.dtype == int
    assert M.tolist() == [
        [[1, 0, 0], [2, 1, 0], [3, 2, 1]],
        [[10, 0, 0], [20, 10, 0], [30, 20, 10]],
    ]
    assert lti.matrix(np.float32([5, 6])).tolist() == [[5, 0], [6, 5]]
    assert lti.matrix(np.float32([5, 6])).dtype == np.float32


# --- the law -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    L=st.integers(1, 70),
    channels=st.one_of(st.none(), st.integers(1, 4)),
    N=st.integers(1, 5),
    batch=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from(DTYPES),
    rule=st.sampled_from(sorted(eq.DISCRETISATIONS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_three_routes_lead_to_one_y(L, channels, N, batch, dtype, rule, seed):
    """And so does the selective scan, given the same delta, B and C at every step.

    The scale is that of y without signs: terms may cancel in a sum, their roundings do not.
    """
    rng = np.random.default_rng(seed)
    shape = (N,) if channels is None else (channels, N)
    A, B, C = (
        a.astype(dtype) for a in (-rng.uniform(0.01, 3, shape), *rng.normal(size=(2, *shape)))
    )
    delta = rng.uniform(0.01, 0.6, (*shape[:-1], 1)).astype(dtype)
    A_bar, B_bar = (a.astype(dtype) for a in eq.DISCRETISATIONS[rule](delta, A, B))
    x = rng.standard_normal((*batch, L, *shape[:-1])).astype(dtype)

    y, states = lti.recurrence(x, A_bar, B_bar, C)
    K = lti.kernel(A_bar, B_bar, C, L)
    ways = {"convolution": lti.convolve(x, K), "matrix": by_matrix(lti.matrix(K), x, channels)}
    if channels is not None and len(batch) == 1:
        every = [np.broadcast_to(a, (*x.shape, N)) for a in (B, C)]
        step, h = np.broadcast_to(delta[:, 0], x.shape), np.zeros((*batch, *shape), dtype)
        ways["scan"], last = reference.selective_scan(
            x, step, A, *every, h, discretise=eq.DISCRETISATIONS[rule]
        )
        assert_close_to_scale(states[:, -1], last, tolerance("law", dtype), "h")
    sizes, _ = lti.recurrence(*map(np.abs, (x, A_bar, B_bar, C)))
    for name, other in ways.items():
        assert other.dtype == dtype
        assert other.shape == y.shape
        wrong = np.abs(other.astype(np.float64) - y).max() / sizes.max()
        assert wrong <= tolerance("law", dtype), f"{name}: {wrong:.3g} of the scale"


def by_matrix(M, x, channels):  # (L L) or (E L L), (... L E) -> (... L E)
    if channels is None:
        return np.einsum("ts,...s->...t", M, x)
    return np.einsum("ets,...se->...te", M, x)


# --- errors --------------------------------------------------------------------------------------

GOOD = np.ones((3, 2))


@pytest.mark.parametrize(
    ("x", "parts", "words"),
    [
        (np.ones((9, 4)), [GOOD] * 3, "x: expected the shape (..., L, 3), found (9, 4)"),
        (np.ones(3), [GOOD] * 3, "x: expected the shape (..., L, 3), found (3,)"),
        (1.0, [GOOD[0]] * 3, "x: expected the shape (..., L), found ()"),
        (np.ones((9, 3)), [GOOD, GOOD[0], GOOD], "B_bar: expected A_bar's shape, (3, 2), found"),
        (np.ones((9, 3)), [GOOD] * 3 + [0], "h: expected the shape (3, 2), found ()"),
    ],
)
def test_recurrence_names_the_shape_that_does_not_fit(x, parts, words):
    with pytest.raises(InputError, match=f"^{re.escape(words)}"):
        lti.recurrence(x, *parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((GOOD, GOOD, GOOD.T, 4), "C: expected A_bar's shape, (3, 2), found (2, 3)"),
        ((0.5, 1.0, 1.0, 4), "A_bar: expected the shape (N) or (E, N), found ()"),
        ((GOOD, GOOD, GOOD, 0), "L: expected an integer from 1 "),
        ((GOOD, GOOD, GOOD, 2.5), "L: expected an integer from 1 "),
    ],
)
def test_kernel_names_what_does_not_fit(parts, words):
    with pytest.raises(InputError, match=f"^{re.escape(words)}"):
        lti.kernel(*parts)


@pytest.mark.parametrize(("x", "K"), [((9,), (8,)), ((9, 3), (9,)), ((9, 3), (9, 1)), ((), ())])
def test_convolve_names_a_kernel_that_does_not_fit(x, K):
    words = f"K: expected the last axes of x, of shape {x}, found {K}"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        lti.convolve(np.ones(x), np.ones(K))
