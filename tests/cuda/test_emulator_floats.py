"""The emulator of tests/ptx: floats, against exact fractions and NumPy's scalars."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from handwritten import calculate, signed
from hypothesis import given
from hypothesis import strategies as st

WORDS = (0, 1, 255, 2**24 + 1, 2**24 + 3, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xDEADBEEF, 2**32 - 1)
TINY = 2.0**-126
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.5,
    0.1,
    -3.25e5,
    1 + 2.0**-23,
    -1 + 2.0**-24,
    2.0**-149,
    -1e-40,
    TINY,
    -TINY,
    1.5 * TINY,
    2.0**-75,
    3e38,
    -3e38,
    math.inf,
    -math.inf,
    math.nan,
)


def nearest(exact, dtype=np.float32):
    """Return the float nearest to a Fraction, ties to even, by exact comparison."""
    near = dtype(min(max(float(exact), -3.5e38), 3.5e38))
    if np.isinf(near):
        return near
    candidates = [near, *(np.nextafter(near, dtype(side)) for side in (-np.inf, np.inf))]
    candidates = [x for x in candidates if np.isfinite(x)]

    def distance(x):
        return abs(Fraction(float(x)) - exact), int(x.view(f"u{x.itemsize}")) & 1

    return min(candidates, key=distance)


def flushed(x):
    return np.copysign(np.float32(0), x) if abs(x) < TINY else x


def fused(a, b, c):
    with np.errstate(all="ignore"):
        rough = np.float64(a) * np.float64(b) + np.float64(c)
        if not np.isfinite(rough) or np.isinf(np.float32(rough)) or rough == 0:
            return np.float32(rough)  # signs of zeros are exact here: no product underflows
        return nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def smaller(a, b):
    return min((a, b), key=lambda x: (x, not np.signbit(x))) if a == b else np.fmin(a, b)


FLOATING = {
    "add.rn": (2, np.add), "sub": (2, np.subtract), "mul": (2, np.multiply),
    "div.rn": (2, np.divide),
    "fma.rn": (3, fused), "min": (2, smaller), "neg": (1, np.negative), "abs": (1, np.abs),
    "sqrt.rn": (1, np.sqrt), "rcp.rn": (1, lambda x: np.float32(1) / x),
}  # fmt: skip


def same_floats(found, expected):
    found, expected = found.view(np.float32), np.array(expected, np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("ftz", [False, True])
def test_floats(name, ftz):
    count, function = FLOATING[name]
    rows = list(itertools.product(np.array(FLOATS, np.float32), repeat=count))
    instruction = f"{name}{'.ftz' * ftz}.f32 {{d}}, " + ", ".join(["{a}", "{b}", "{c}"][:count])
    columns = np.array(rows).T
    found = calculate(instruction, *columns.view(np.uint32), out=np.uint32)
    change = flushed if ftz else (lambda x: x)
    with np.errstate(all="ignore"):
        same_floats(found, [change(function(*map(change, row))) for row in rows])


def test_fma_rounds_once():
    """A sum whose float64 lies between two float32: rounding it again would go the wrong way."""
    a, c = 1 + 2.0**-12, 2.0**-60
    rows = np.array([(a, a, c), (a, a, -c), (-a, a, -c), (-a, a, c)], np.float32)
    columns = rows.T.copy().view(np.uint32)
    found = calculate("fma.rn.f32 {d}, {a}, {b}, {c}", *columns, out=np.uint32)
    same_floats(found, [fused(*row) for row in rows])
    twice = [np.float32(np.float64(x) * y + z) for x, y, z in rows]
    assert not np.array_equal(found.view(np.float32), np.array(twice)), "no such row"


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=20))
def test_any_fma(rows):
    columns = np.array(rows, np.float32).T.copy()
    found = calculate("fma.rn.f32 {d}, {a}, {b}, {c}", *columns.view(np.uint32), out=np.uint32)
    same_floats(found, [fused(*row) for row in columns.T])


COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a < b or a > b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "equ": lambda a, b: not (a < b or a > b), "neu": lambda a, b: a != b,
    "ltu": lambda a, b: not a >= b, "leu": lambda a, b: not a > b,
    "gtu": lambda a, b: not a <= b, "geu": lambda a, b: not a < b,
    "num": lambda a, b: a == a and b == b, "nan": lambda a, b: a != a or b != b,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_of_floats(name):
    rows = list(itertools.product(map(float, np.array(FLOATS, np.float32)), repeat=2))
    columns = np.array(rows, np.float32).T.copy()
    text = f"setp.{name}.f32 %p1, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p1"
    found = calculate(text, *columns.view(np.uint32), out=np.uint32)
    assert found.tolist() == [int(COMPARISONS[name](a, b)) for a, b in rows]


@pytest.mark.parametrize(
    ("name", "function", "low", "high"),
    [
        ("ex2", np.exp2, -100, 100), ("lg2", np.log2, 0.01, 100), ("rcp", lambda x: 1 / x, 0.1, 9),
        ("rsqrt", lambda x: x**-0.5, 0.1, 9), ("sqrt", np.sqrt, 0.1, 9), ("tanh", np.tanh, -4, 4),
        ("sin", np.sin, -3, 3), ("cos", np.cos, -3, 3),
    ],
)  # fmt: skip
def test_quick_functions(rng, name, function, low, high):
    x = rng.uniform(low, high, 500).astype(np.float32)
    exact = function(x.astype(np.float64))
    text = f"{name}.approx.ftz.f32 {{d}}, {{a}}".replace(".ftz", "" if name == "tanh" else ".ftz")
    found = calculate(text, x.view(np.uint32), out=np.uint32).view(np.float32)
    same_floats(found, exact)
    rough = calculate(text, x.view(np.uint32), out=np.uint32, approximate=True).view(np.float32)
    units = np.abs(rough - exact) / np.maximum(np.abs(exact), 0.5) * 2**23
    rougher = {"tanh": (500, 4200), "sin": (3, 13), "cos": (3, 13), "lg2": (1, 6)}
    least, most = rougher.get(name, (1, 3))
    assert least < units.max() < most
    assert (rough < exact).mean() == pytest.approx(0.5, abs=0.1)


def test_quick_functions_at_their_ends():
    x = np.array([0, -0.0, 2.0**-149, -np.inf, np.inf, np.nan, -126, -126.5, 128], np.float32)
    found = calculate("ex2.approx.ftz.f32 {d}, {a}", x.view(np.uint32), out=np.uint32)
    same_floats(found, [1, 1, 1, 0, np.inf, np.nan, TINY, 0, np.inf])
    found = calculate("lg2.approx.ftz.f32 {d}, {a}", x[:6].view(np.uint32), out=np.uint32)
    same_floats(found, [-np.inf, -np.inf, -np.inf, np.nan, np.inf, np.nan])
    found = calculate("rcp.approx.ftz.f32 {d}, {a}", x[:6].view(np.uint32), out=np.uint32)
    same_floats(found, [np.inf, -np.inf, np.inf, -0.0, 0, np.nan])
    found = calculate("div.full.f32 {d}, {a}, 0f40000000", x[6:].view(np.uint32), out=np.uint32)
    same_floats(found, [-63, -63.25, 64])


def test_conversions_of_floats():
    x = np.array([0.5, 1.5, -0.5, -1.5, 2.5, 3e9, -3e9, 1e20, -np.inf, np.nan, 65504, 1e-8], "f4")
    bits = x.view(np.uint32)
    near = calculate("cvt.rni.s32.f32 {d}, {a}", bits, out=np.int32)
    assert near[:5].tolist() == [0, 2, 0, -2, 2]
    assert near[5:10].tolist() == [2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0]
    down = calculate("cvt.rzi.u32.f32 {d}, {a}", bits, out=np.uint32)
    assert down[:10].tolist() == [0, 1, 0, 0, 2, 3000000000, 0, 2**32 - 1, 0, 0]
    floor = calculate("cvt.rmi.f32.f32 {d}, {a}", bits, out=np.uint32)
    same_floats(floor, np.floor(x))
    words = np.array(WORDS, np.uint32)
    found = calculate("cvt.rn.f32.u32 {d}, {a}", words, out=np.uint32)
    same_floats(found, [nearest(Fraction(a)) for a in WORDS])
    found = calculate("cvt.rn.f32.s32 {d}, {a}", words, out=np.uint32)
    same_floats(found, [nearest(Fraction(signed(a))) for a in WORDS])
    with np.errstate(over="ignore"):
        halves = x.astype(np.float16)
    text = "{{.reg .b16 t; cvt.rn.f16.f32 t, {a}; mov.b32 {d}, {{t, t}};}}"
    found = calculate(text, bits, out=np.uint32)
    assert np.array_equal(found.view(np.float16)[::2], halves, equal_nan=True)
    found = calculate("cvt.f32.f16 {d}, {a}", halves.view(np.uint16), out=np.uint32)
    same_floats(found, halves)
    found = calculate("cvt.sat.f32.f32 {d}, {a}", bits, out=np.uint32)
    same_floats(found, [0.5, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, x[-1]])


def test_bfloat16():
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.1, 3.4e38, np.nan], "f4")
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xC046, 0x7F80, 0x7FFF]
    bits = x.view(np.uint32)
    found = calculate("cvt.rn.bf16.f32 %h1, {a}; cvt.u32.u16 {d}, %h1", bits, out=np.uint32)
    assert found.tolist() == expected
    pair = calculate("cvt.rn.bf16x2.f32 {d}, {a}, {b}", bits, bits[::-1], out=np.uint32)
    assert pair.tolist() == [a << 16 | b for a, b in zip(expected, expected[::-1], strict=True)]
    back = calculate("cvt.f32.bf16 {d}, {a}", np.array(expected, np.uint16), out=np.uint32)
    assert back.tolist() == [a << 16 for a in expected]
