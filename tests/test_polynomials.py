import numpy as np
import pytest

from mamba_np import polynomials
from mamba_np.polynomials import LARGEST_EXP, SMALLEST_EXP

EVERY = 16 * 97  # of all 2**32 bit patterns one in so many: 2.8 million numbers, all exponents


@pytest.fixture(scope="module")
def numbers():
    """Finite float32 numbers of every size and both signs."""
    bits = np.arange(0, 2**32, EVERY, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return bits[np.isfinite(bits)]


def largest_relative_error(found, expected):
    return np.max(np.abs(found.astype(np.float64) / expected - 1))


def test_exp2_is_as_exact_as_it_says(numbers):
    x = numbers[(numbers >= -126) & (numbers < 128)]
    error = largest_relative_error(polynomials.exp2(x), np.exp2(x.astype(np.float64)))
    assert 1e-8 < error < 2.5e-7


def test_exp2_of_zero_is_one_and_small_powers_have_no_bias():
    x = -np.geomspace(1e-7, 1e-2, 20_000).astype(np.float32)
    error = polynomials.exp2(x).astype(np.float64) / np.exp2(x.astype(np.float64)) - 1
    assert polynomials.exp2(np.zeros(1, np.float32)) == 1
    # A state is multiplied by such a power thousands of times: a bias would add up.
    assert abs(error.mean()) < 2e-9
    assert np.abs(error).max() < 9e-8


def test_whole_powers_of_two_are_exact():
    x = np.arange(-126, 127, dtype=np.float32)
    np.testing.assert_array_equal(polynomials.exp2(x), np.exp2(x))


def test_smaller_powers_stay_at_the_smallest(numbers):
    x = numbers[numbers < -126]
    assert len(x) > 1000
    np.testing.assert_array_equal(polynomials.exp2(x), np.float32(2.0**-126))


def test_exp_is_as_exact_as_it_says(numbers):
    x = numbers[(numbers >= SMALLEST_EXP) & (numbers <= LARGEST_EXP)]
    error = largest_relative_error(polynomials.exp(x), np.exp(x.astype(np.float64)))
    assert 1e-8 < error < 2e-7


def test_exp_stops_where_float32_does(numbers):
    low, high = np.float32([SMALLEST_EXP, LARGEST_EXP])
    assert np.all(polynomials.exp(numbers[numbers < low]) == polynomials.exp(low))
    assert np.all(polynomials.exp(numbers[numbers > high]) == polynomials.exp(high))
    assert np.isfinite(polynomials.exp(high))


def test_log1p_is_as_exact_as_it_says(numbers):
    x = numbers[(numbers >= 1e-37) & (numbers <= 1)]
    error = largest_relative_error(polynomials.log1p(x), np.log1p(x.astype(np.float64)))
    assert 1e-8 < error < 2e-7
    assert polynomials.log1p(np.zeros(1, np.float32)) == 0


@pytest.mark.parametrize("name", ["exp", "exp2", "log1p"])
def test_nan_stays(name):
    assert np.isnan(getattr(polynomials, name)(np.float32([np.nan]))).all()


def test_bits_there_and_back(numbers):
    found = polynomials.from_bits(polynomials.bits_of(numbers))
    np.testing.assert_array_equal(found, numbers)
