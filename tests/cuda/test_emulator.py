"""The emulator of tests/ptx: each instruction of integers, against Python's own arithmetic."""

import itertools
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from handwritten import calculate, kernel_of, signed
from hypothesis import given
from hypothesis import strategies as st
from ptx import PTXError

WORDS = (0, 1, 2, 7, 8, 31, 32, 33, 64, 255, 256, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xDEADBEEF,
         0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
LONGS = (0, 1, 3, 63, 64, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1)


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


STEPS = ("add.s32 %r{}, %r{}, %r{}", "mul.lo.u32 %r{}, %r{}, %r{}", "mul.hi.s32 %r{}, %r{}, %r{}",
         "xor.b32 %r{}, %r{}, %r{}", "shr.s32 %r{}, %r{}, %r{}", "max.u32 %r{}, %r{}, %r{}",
         "setp.lt.s32 %p1, %r{1}, %r{2}; @%p1 sub.u32 %r{0}, %r{1}, %r{2}")  # fmt: skip
MEANINGS = (
    lambda d, a, b: a + b,
    lambda d, a, b: a * b,
    lambda d, a, b: signed(a) * signed(b) >> 32,
    lambda d, a, b: a ^ b,
    lambda d, a, b: signed(a) >> min(b, 32),
    lambda d, a, b: max(a, b),
    lambda d, a, b: a - b if signed(a) < signed(b) else d,
)
REGISTERS = st.integers(2, 4)


@given(
    st.lists(st.tuples(st.integers(0, 6), REGISTERS, REGISTERS, REGISTERS), max_size=12),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=80),
)
def test_programs(steps, words):
    text = "add.u32 %r2, {a}, 5; mov.u32 %r3, {a}; mul.lo.u32 %r4, {a}, {a}; "
    text += "".join(STEPS[k].format(*registers) + "; " for k, *registers in steps)
    text += "xor.b32 %r2, %r2, %r3; add.u32 {d}, %r2, %r4"
    expected = []
    for word in words:
        r = {2: word + 5, 3: word, 4: word * word}
        r = {k: value % 2**32 for k, value in r.items()}
        for k, d, a, b in steps:
            r[d] = MEANINGS[k](r[d], r[a], r[b]) % 2**32
        expected.append(((r[2] ^ r[3]) + r[4]) % 2**32)
    assert calculate(text, np.array(words, np.uint32), out=np.uint32).tolist() == expected


@pytest.mark.parametrize("text", ["foo.b32 %r1, %r2;", "add.rz.f32 %f1, %f2, %f3;",
    "add.u32 %r1, %x2, 3;", "bra nowhere;", "mov.b64 %r1, %d1;",
    "mul.u32 %r1, %r2, %r3;"])  # fmt: skip
def test_what_is_not_understood_is_named(text):
    with pytest.raises(PTXError) as caught:
        kernel_of(f"\n{text}\nret;")
    assert text.rstrip(";") in str(caught.value)
    assert "line 14" in str(caught.value)
