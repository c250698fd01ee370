"""Checks of single values: what passes, what is refused, and that messages stay short."""

import numpy as np
import pytest

from mamba_np.checks import choice, flag, integer, number, shown, token_ids
from mamba_np.errors import ConfigError, InputError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_become_pythons_own(value):
    assert type(integer("n", value)) is int


@pytest.mark.parametrize("value", [0, -1, True, np.True_, 1.0, "1", None, 2**31, 10**4000, [1]])
def test_what_is_no_integer_in_range_is_refused(value):
    with pytest.raises(ConfigError, match="n: expected an integer from 1 to 2147483647, found"):
        integer("n", value)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int8(1), 1.0])
def test_numbers_in_range_pass(value):
    assert type(number("x", value, low=0, high=1)) is float


@pytest.mark.parametrize(
    "value", [-1e-9, 1.01, np.nan, np.inf, 10**400, -(10**400), True, "0", None]
)
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(ConfigError, match=r"x: expected a finite number .*0.*1, found"):
        number("x", value, low=0, high=1)


def test_a_bound_can_be_left_out():
    with pytest.raises(ConfigError, match="expected a finite number above 0, found 0"):
        number("x", 0, low=0, above=True)
    assert number("x", -1e300) == -1e300


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_only_bools_are_flags(value):
    with pytest.raises(ConfigError, match="f: expected true or false"):
        flag("f", value)


def test_numpys_bools_are_flags():
    assert flag("f", np.True_) is True


def test_the_error_can_be_chosen():
    with pytest.raises(InputError, match="c: expected one of a, b, found 'd'"):
        choice("c", "d", ("a", "b"), error=InputError)


def test_ids_may_be_one_or_several():
    assert token_ids("ids", np.int64(0)) == 0
    assert token_ids("ids", (1, np.int32(2))) == [1, 2]
    with pytest.raises(ConfigError, match=r"ids: .*found -1"):
        token_ids("ids", [1, -1])


@pytest.mark.parametrize(
    "value", ["x" * 10**6, b"x" * 10**6, [0] * 10**6, 10**4000, {"a": "b" * 10**5}, -(10**500)]
)
def test_a_value_is_shown_in_few_characters(value):
    assert len(shown(value)) < 120


@pytest.mark.parametrize("value", [1, "text", [1, 2], None, 2.5, {"a": 1}])
def test_a_short_value_is_shown_whole(value):
    assert shown(value) == repr(value)
