"""The emulator of tests/ptx: each instruction by itself, against Python's own arithmetic."""

import itertools
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptx import Memory, PTXError, launch, parse

WORDS = (0, 1, 2, 7, 8, 31, 32, 33, 64, 255, 256, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xDEADBEEF,
         0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
LONGS = (0, 1, 3, 63, 64, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1)
TINY = 2.0**-126
FLOATS = (0.0, -0.0, 1.0, -1.0, 1.5, 0.1, -3.25e5, 1 + 2.0**-23, -1 + 2.0**-24, 2.0**-149, -1e-40,
          TINY, -TINY, 1.5 * TINY, 2.0**-75, 3e38, -3e38,
          math.inf, -math.inf, math.nan)  # fmt: skip
HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


def kernel_of(body, parameters=8, outside=""):
    """Return a kernel of 64-bit parameters p0, p1, ... with registers %p, %h, %r, %d, %f, %g."""
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    registers = "".join(
        f".reg .{kind} %{name}<30>;\n"
        for kind, name in (
            ("pred", "p"), ("b16", "h"), ("b32", "r"), ("b64", "d"), ("f32", "f"), ("f64", "g"),
        )
    )  # fmt: skip
    text = f"{HEAD}{outside}\n.visible .entry one({names})\n{{\n{registers}{body}\n}}\n"
    return parse(text).kernel


REGISTER = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}


def calculate(instruction, *arrays, out, **options):
    """Run one instruction for all elements: operands are {a}, {b}, {c}, the result is {d}."""
    arrays = [np.ascontiguousarray(one) for one in np.broadcast_arrays(*arrays)]
    result = np.zeros(len(arrays[0]), out)
    lines, names = (
        ["mov.u32 %r20, %tid.x; mov.u32 %r21, %ctaid.x; mad.lo.u32 %r20, %r21, 64, %r20;"],
        {},
    )
    lines += [f"setp.ge.u32 %p20, %r20, {len(result)}; @%p20 ret;"]
    for k, array in enumerate([*arrays, result]):
        size, place = array.itemsize, f"%d{20 + k}"
        names["abcdef"[k] if k < len(arrays) else "d"] = f"{REGISTER[size]}{10 + k}"
        lines += [
            f"ld.param.u64 {place}, [p{k}]; mad.wide.u32 {place}, %r20, {size}, {place};",
            f"ld.global.b{8 * size} {REGISTER[size]}{10 + k}, [{place}];",
        ]
    lines += [instruction.format(**names) + ";"]
    lines += [f"st.global.b{8 * result.itemsize} [{place}], {names['d']};"]
    memory = Memory()
    args = [memory.alloc(array) for array in [*arrays, result]]
    kernel = kernel_of("\n".join(lines), len(args))
    launch(kernel, -(-len(result) // 64), 64, args, memory, **options)
    return result


def signed(x, bits=32):
    return x - (1 << bits) if x >> bits - 1 else x


def quotient(a, b):
    return int(Fraction(a, b))  # towards zero


def bits_of(x, count=32):
    return [x >> k & 1 for k in range(count)]


def number(bits):
    return sum(bit << k for k, bit in enumerate(bits))


def extract(a, start, length, is_signed):
    """Return bfe as PTX's manual defines it, bit by bit."""
    start, length, bits = start & 255, length & 255, bits_of(a)
    fill = bits[min(start + length - 1, 31)] if is_signed and length else 0
    return number(bits[start + k] if k < length and start + k <= 31 else fill for k in range(32))


def insert(a, b, start, length):
    start, length, result = start & 255, length & 255, bits_of(b)
    for k in range(min(length, 32)):
        if start + k <= 31:
            result[start + k] = a >> k & 1
    return number(result)


def permute(a, b, selector):
    parts, result = (a | b << 32).to_bytes(8, "little"), 0
    for k in range(4):
        digit = selector >> 4 * k & 15
        byte = parts[digit & 7]
        result |= (255 * (byte >> 7) if digit & 8 else byte) << 8 * k
    return result


def dot(a, b, c, form):
    sides = [struct.unpack(f"<4{form}", x.to_bytes(4, "little")) for x in (a, b)]
    return sum(x * y for x, y in zip(*sides, strict=True)) + c


def highest(x):
    return x.bit_length() - 1 if x else 0xFFFFFFFF


def unsign(x):
    return ~signed(x) if signed(x) < 0 else x


def both(a, b):
    return b << 32 | a


INTEGERS = {  # {instruction: function of unsigned Python integers}, all results are wrapped around
    "add.s32 {d}, {a}, {b}": lambda a, b: a + b,
    "sub.u32 {d}, {a}, {b}": lambda a, b: a - b,
    "mul.lo.s32 {d}, {a}, {b}": lambda a, b: a * b,
    "mul.hi.u32 {d}, {a}, {b}": lambda a, b: a * b >> 32,
    "mul.hi.s32 {d}, {a}, {b}": lambda a, b: signed(a) * signed(b) >> 32,
    "mad.lo.u32 {d}, {a}, {b}, {c}": lambda a, b, c: a * b + c,
    "mad.hi.s32 {d}, {a}, {b}, {c}": lambda a, b, c: (signed(a) * signed(b) >> 32) + c,
    "mul24.lo.u32 {d}, {a}, {b}": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "div.u32 {d}, {a}, {b}": lambda a, b: a // b if b else None,
    "div.s32 {d}, {a}, {b}": lambda a, b: quotient(signed(a), signed(b)) if b else None,
    "rem.s32 {d}, {a}, {b}": lambda a, b: math.fmod(signed(a), signed(b)) if b else None,
    "rem.u32 {d}, {a}, {b}": lambda a, b: a % b if b else None,
    "sad.s32 {d}, {a}, {b}, {c}": lambda a, b, c: abs(signed(a) - signed(b)) + c,
    "min.s32 {d}, {a}, {b}": lambda a, b: min(signed(a), signed(b)),
    "max.u32 {d}, {a}, {b}": max,
    "neg.s32 {d}, {a}": lambda a: -a,
    "abs.s32 {d}, {a}": lambda a: abs(signed(a)),
    "and.b32 {d}, {a}, {b}": lambda a, b: a & b,
    "or.b32 {d}, {a}, {b}": lambda a, b: a | b,
    "xor.b32 {d}, {a}, {b}": lambda a, b: a ^ b,
    "not.b32 {d}, {a}": lambda a: ~a,
    "cnot.b32 {d}, {a}": lambda a: int(a == 0),
    "lop3.b32 {d}, {a}, {b}, {c}, 0xE8": lambda a, b, c: a & b | b & c | a & c,
    "lop3.b32 {d}, {a}, {b}, {c}, 0x2D": lambda a, b, c: a ^ (b | ~c),
    "shl.b32 {d}, {a}, {b}": lambda a, n: a << n if n < 32 else 0,
    "shr.u32 {d}, {a}, {b}": lambda a, n: a >> min(n, 32),
    "shr.s32 {d}, {a}, {b}": lambda a, n: signed(a) >> min(n, 32),
    "shf.l.wrap.b32 {d}, {a}, {b}, {c}": lambda a, b, n: both(a, b) << (n & 31) >> 32,
    "shf.r.wrap.b32 {d}, {a}, {b}, {c}": lambda a, b, n: both(a, b) >> (n & 31),
    "shf.l.clamp.b32 {d}, {a}, {b}, {c}": lambda a, b, n: both(a, b) << min(n, 32) >> 32,
    "shf.r.clamp.b32 {d}, {a}, {b}, {c}": lambda a, b, n: both(a, b) >> min(n, 32),
    "bfe.u32 {d}, {a}, {b}, {c}": lambda a, b, c: extract(a, b, c, False),
    "bfe.s32 {d}, {a}, {b}, {c}": lambda a, b, c: extract(a, b, c, True),
    "bfe.u32 {d}, {a}, 8, 5": lambda a: a >> 8 & 31,
    "bfi.b32 {d}, {a}, {b}, {c}, 5": lambda a, b, c: insert(a, b, c, 5),
    "bfi.b32 {d}, {a}, {b}, 3, {c}": lambda a, b, c: insert(a, b, 3, c),
    "prmt.b32 {d}, {a}, {b}, {c}": permute,
    "popc.b32 {d}, {a}": lambda a: a.bit_count(),
    "clz.b32 {d}, {a}": lambda a: 32 - a.bit_length(),
    "brev.b32 {d}, {a}": lambda a: int(f"{a:032b}"[::-1], 2),
    "bfind.u32 {d}, {a}": highest,
    "bfind.s32 {d}, {a}": lambda a: highest(unsign(a)),
    "bfind.shiftamt.u32 {d}, {a}": lambda a: 31 - highest(a) if a else 0xFFFFFFFF,
    "dp4a.s32.s32 {d}, {a}, {b}, {c}": lambda a, b, c: dot(a, b, c, "b"),
    "dp4a.u32.u32 {d}, {a}, {b}, {c}": lambda a, b, c: dot(a, b, c, "B"),
    "slct.b32.s32 {d}, {a}, {b}, {c}": lambda a, b, c: a if signed(c) >= 0 else b,
    "{{.reg .b32 t; add.u32 t, {a}, 1; xor.b32 {d}, t, {a};}}": lambda a: a + 1 & 2**32 - 1 ^ a,
    "setp.lt.s32 %p1, {a}, {b}; selp.b32 {d}, {a}, {b}, %p1": lambda a, b: min(a, b, key=signed),
    "setp.hi.u32 %p1|%p2, {a}, {b}; selp.b32 {d}, 5, 9, %p2": lambda a, b: 9 if a > b else 5,
    "setp.eq.u32 %p1, {a}, 7; setp.ne.and.u32 %p2, {a}, {b}, %p1; selp.u32 {d}, 1, 0, %p2": (
        lambda a, b: int(a == 7 != b)
    ),
    "setp.ge.u32 %p1, {a}, {b}; mov.u32 {d}, 3; @!%p1 mov.u32 {d}, {a}": (
        lambda a, b: 3 if a >= b else a
    ),
    "set.le.u32.s32 {d}, {a}, {b}": lambda a, b: -(signed(a) <= signed(b)),
    "cvt.s32.s8 {d}, {a}": lambda a: signed(a & 255, 8),
    "cvt.u32.u16 {d}, {a}": lambda a: a & 0xFFFF,
    "cvt.u8.u32 {d}, {a}": lambda a: a & 255,
    "cvt.sat.s8.s32 {d}, {a}": lambda a: max(-128, min(signed(a), 127)),
    "cvt.sat.u16.s32 {d}, {a}": lambda a: max(0, min(signed(a), 65535)),
    "mov.b32 {{%h1, %h2}}, {a}; mov.b32 {d}, {{%h2, %h1}}": lambda a: a >> 16 | a << 16,
}  # fmt: skip


def check_integers(instruction, function, values, bits):
    count = sum(f"{{{letter}}}" in instruction for letter in "abc")
    rows = [row for row in itertools.product(values, repeat=count) if function(*row) is not None]
    columns = np.array(rows, f"u{bits // 8}").T
    found = calculate(instruction, *columns, out=columns.dtype)
    for row, value in zip(rows, found.tolist(), strict=True):
        assert value == int(function(*row)) % (1 << bits), row


@pytest.mark.parametrize("instruction", INTEGERS)
def test_integers(instruction):
    check_integers(instruction, INTEGERS[instruction], WORDS, 32)


@pytest.mark.parametrize(
    ("instruction", "function"),
    [
        ("add.u64", lambda a, b: a + b),
        ("mul.lo.s64", lambda a, b: a * b),
        ("mul.hi.u64", lambda a, b: a * b >> 64),
        ("mul.hi.s64", lambda a, b: signed(a, 64) * signed(b, 64) >> 64),
        ("div.s64", lambda a, b: quotient(signed(a, 64), signed(b, 64)) if b else None),
        ("max.s64", lambda a, b: max(signed(a, 64), signed(b, 64))),
    ],
)
def test_long_integers(instruction, function):
    check_integers(instruction + " {d}, {a}, {b}", function, LONGS, 64)


def test_between_widths():
    words = np.array(WORDS, np.uint32)
    wide = calculate("mul.wide.s32 {d}, {a}, {b}", words[:, None].repeat(17, 1).ravel(),
                     np.tile(words, 17), out=np.int64)  # fmt: skip
    assert wide.tolist() == [signed(a) * signed(b) for a in WORDS for b in WORDS]
    found = calculate("mad.wide.u32 {d}, {a}, {a}, 7", words, out=np.uint64)
    assert found.tolist() == [(a * a + 7) % 2**64 for a in WORDS]
    assert calculate("cvt.s64.s32 {d}, {a}", words, out=np.int64).tolist() == [
        signed(a) for a in WORDS
    ]
    longs = np.array(LONGS, np.uint64)
    found = calculate("shr.s64 {d}, {a}, 70", longs, out=np.int64)
    assert found.tolist() == [signed(a, 64) >> 63 for a in LONGS]
    found = calculate("clz.b64 %r1, {a}; popc.b64 %r2, {a}; shl.b32 %r2, %r2, 8; "
                      "or.b32 {d}, %r1, %r2", longs, out=np.uint32)  # fmt: skip
    assert found.tolist() == [64 - a.bit_length() | a.bit_count() << 8 for a in LONGS]


# --- floats ---------------------------------------------------------------------------------------


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
    """Sums whose float64 lies between two float32: rounding it again would go the wrong way."""
    a, b, c = np.float32(1 + 2**-23), np.float32(1 + 2**-12), np.float32(2.0**-60)
    tie = Fraction(1, 2**24)
    rows = [
        (np.float32(1), np.float32(float(1 + 2**-23)), np.float32(float(tie) * s)) for s in (1, -1)
    ]
    rows += [(a, b, c), (a, b, -c), (b, b, -c), (b, b, c)]
    columns = np.array(rows).T
    found = calculate("fma.rn.f32 {d}, {a}, {b}, {c}", *columns.view(np.uint32), out=np.uint32)
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


@pytest.mark.parametrize("text", ["foo.b32 %r1, %r2;", "add.rz.f32 %f1, %f2, %f3;",
    "add.u32 %r1, %x2, 3;", "bra nowhere;", "mov.b64 %r1, %d1;",
    "mul.u32 %r1, %r2, %r3;"])  # fmt: skip
def test_what_is_not_understood_is_named(text):
    with pytest.raises(PTXError) as caught:
        kernel_of(f"\n{text}\nret;")
    assert text.rstrip(";") in str(caught.value)
    assert "line 14" in str(caught.value)
