"""The formulas, one by one, against the oracle's scalars and against algebra."""

import math

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import TOLERANCES, assert_close_to_scale, tolerance

from mamba_np import equations as eq

DTYPES = [np.float32, np.float64]
# Down to where e**x is still a normal float32: below, no relative error can be promised.
GRID = np.concatenate([np.linspace(-30, 30, 241), [-87.0, -17.3, 19.99, 20.0, 20.01, 88.8]])
small = st.floats(-30, 30, width=32)


def assert_close_each(actual, expected, dtype, name):
    """Compare value by value, not to the scale of all; tiny values to the smallest normal one."""
    rtol, tiny = TOLERANCES["equation", np.dtype(dtype).name], np.finfo(dtype).tiny
    error = np.abs(np.asarray(actual, np.float64) - expected) / np.maximum(np.abs(expected), tiny)
    worst = int(error.argmax())
    assert error[worst] <= rtol, f"{name}({GRID[worst]}): error {error[worst]:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["silu", "softplus", "relu", "relu2", "sigmoid", "tanh", "identity"]
)
def test_activations_are_right_for_each_value(name, dtype):
    x = GRID.astype(dtype)
    y = eq.ACTIVATIONS[name](x)
    assert y.dtype == dtype
    assert_close_each(y, naive.each(naive.ACTIVATIONS[name], x), dtype, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(eq.ACTIVATIONS))
def test_activations_are_right_to_scale(name, dtype):
    # GELU and its kin lose relative accuracy where they vanish (x < -5), as torch's do.
    x = np.linspace(-8, 8, 321).astype(dtype)
    y = eq.ACTIVATIONS[name](x)
    assert y.dtype == dtype
    expected = naive.each(naive.ACTIVATIONS[name], x)
    assert_close_to_scale(y, expected, tolerance("equation", dtype), name)


def test_the_oracle_knows_every_activation():
    assert set(naive.ACTIVATIONS) == set(eq.ACTIVATIONS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(eq.ACTIVATIONS))
def test_activations_warn_of_nothing_and_keep_shapes(name, dtype):
    x = np.array([[-1e4, -200.0, -0.0], [0.0, 200.0, 1e4]], dtype)  # warnings are errors here
    y = eq.ACTIVATIONS[name](x)
    assert y.shape == x.shape
    assert np.isfinite(y).all()


def test_softplus_is_torchs_above_and_below_the_threshold():
    x = np.float32([-17, -20, 20, 21, 1000])
    y = eq.softplus(x)
    assert y[0] == pytest.approx(4.139937e-8, rel=1e-6)  # log(1 + exp(x)) would give 0
    assert y[1] == pytest.approx(2.061154e-9, rel=1e-6)
    assert list(y[2:]) == [20, 21, 1000]


def test_erf_is_the_c_librarys():
    x = np.linspace(-4, 4, 33)
    assert list(eq.erf(x)) == [math.erf(v) for v in x]
    assert eq.erf(np.float32(0.5)).dtype == np.float32
    assert eq.erf(np.ones((2, 0, 3))).shape == (2, 0, 3)


@given(small)
def test_softplus_and_sigmoid_are_symmetric(x):
    x = np.float64(x)
    assert eq.sigmoid(x) + eq.sigmoid(-x) == pytest.approx(1, rel=1e-15)
    if abs(x) < 20:
        assert eq.softplus(x) - eq.softplus(-x) == pytest.approx(x, rel=1e-14, abs=1e-14)


# --- the state space model -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", sorted(eq.DISCRETISATIONS))
def test_discretisations_equal_the_oracles(rule, dtype, rng):
    delta = (rng.random((7, 1)) * 0.5 + 1e-4).astype(dtype)
    A, B = -np.exp(rng.normal(size=(7, 5))).astype(dtype), rng.normal(size=(7, 5)).astype(dtype)
    expected = naive.discretise(rule, *(a.astype(np.float64) for a in (delta, A, B)))
    found = eq.DISCRETISATIONS[rule](delta, A, B)
    for name, a, b in zip(("A_bar", "B_bar"), found, expected, strict=True):
        assert a.dtype == dtype
        assert_close_to_scale(a, b, tolerance("equation", dtype), name)


@pytest.mark.parametrize("rule", sorted(eq.DISCRETISATIONS))
def test_discretisations_agree_in_the_limit_of_small_steps(rule):
    delta, A, B = 1e-6, -2.0, 3.0
    A_bar, B_bar = eq.DISCRETISATIONS[rule](np.float64(delta), np.float64(A), np.float64(B))
    assert (1 - A_bar) / delta == pytest.approx(2, rel=1e-5)
    assert B_bar / delta == pytest.approx(3, rel=1e-5)


def test_a_step_of_size_zero_is_the_identity():
    A, B = np.float64([[-1.0, -4.0]]), np.float64([[2.0, 3.0]])
    for rule, discretise in eq.DISCRETISATIONS.items():
        A_bar, B_bar = discretise(np.float64([[0.0]]), A, B)
        assert (A_bar == 1).all(), rule
        assert (B_bar == 0).all(), rule


def test_exact_hold_composes():
    # Two half steps of the exact hold with the same input are one whole step.
    A, B = np.float64(-0.8), np.float64(1.5)
    half, whole = eq.discretise_zoh(np.float64(0.2), A, B), eq.discretise_zoh(np.float64(0.4), A, B)
    assert eq.compose(*half, *half) == pytest.approx(whole, rel=1e-14)


@given(*[small] * 7)
def test_compose_is_two_updates_and_associative(h, a1, b1, a2, b2, a3, b3):
    h, *steps = (np.float64(v) for v in (h, a1, b1, a2, b2, a3, b3))
    first, second, third = steps[:2], steps[2:4], steps[4:]
    close = {"rel": 1e-12, "abs": 1e-9}
    by_two = eq.state_update(eq.state_update(h, *first), *second)
    assert eq.state_update(h, *eq.compose(*first, *second)) == pytest.approx(by_two, **close)
    left = eq.compose(*eq.compose(*first, *second), *third)
    right = eq.compose(*first, *eq.compose(*second, *third))
    assert left == pytest.approx(right, **close)


@pytest.mark.parametrize("dtype", DTYPES)
def test_continuous_A_is_negative_and_output_gates(dtype, rng):
    A_log = rng.normal(size=(3, 4)).astype(dtype)
    A = eq.continuous_A(A_log)
    assert A.dtype == dtype
    assert (A < 0).all()
    assert np.log(-A) == pytest.approx(A_log, abs=1e-6)
    y, x, D, z = rng.normal(size=(4, 6)).astype(dtype)
    found = eq.output(y, x, D, z)
    expected = (y.astype(float) + D.astype(float) * x) * naive.each(naive.silu, z)
    assert found.dtype == dtype
    assert_close_to_scale(found, expected, tolerance("equation", dtype), "output")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_inverse_of_softplus(dtype):
    x = np.logspace(-4, 1, 50).astype(dtype)
    np.testing.assert_allclose(
        eq.softplus(eq.inverse_softplus(x)), x, rtol=tolerance("equation", dtype) * 4
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_A_is_finite_for_any_parameter(dtype):
    A = eq.continuous_A(np.array([-1e4, 0, 79, 81, 1e30], dtype))
    assert A.dtype == dtype
    assert np.isfinite(A).all()
    assert (np.diff(A) <= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gumbel_is_right_for_each_value(dtype):
    v = np.array([2.0**-33, 1e-8, 1e-3, 0.3, 0.5, 0.50001, 0.632, 0.9, 1 - 2.0**-24], dtype)
    found, expected = eq.gumbel(v), [-math.log(-math.log1p(-float(x))) for x in v]
    assert found.dtype == dtype
    assert_close_to_scale(found, expected, tolerance("equation", dtype), "gumbel")
    assert found[0] == pytest.approx(33 * math.log(2), rel=1e-6)


def test_gumbel_noise_has_its_mean_and_variance():
    noise = eq.gumbel((np.arange(10**6) + 0.5) / 10**6)  # as even as uniform numbers can be
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=1e-4)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=1e-3)
