"""Bits: logic, shifts, fields, permutations of bytes, counts."""

import numpy as np

from .arithmetic import calculation
from .build import Run, instruction, type_of
from .errors import PTXError
from .operands import Operands
from .parser import Statement
from .types import TYPES

U32 = TYPES["u32"]
_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction("and or xor")
def _logic(s: Statement, operands: Operands) -> Run:
    return calculation(s, operands, _LOGIC[s.name])


@instruction("not")
def _not(s: Statement, operands: Operands) -> Run:
    return calculation(s, operands, np.invert)


@instruction("cnot")
def _logical_not(s: Statement, operands: Operands) -> Run:
    return calculation(s, operands, lambda a: (a == 0).astype(a.dtype))


@instruction("lop3")
def _logic_of_three(s: Statement, operands: Operands) -> Run:
    """Any function of three bits: bit 4a + 2b + c of the table is its value."""
    table = int(operands[4], 0)

    def function(a, b, c, _):
        result = np.uint32(0) & a & b & c
        for row in range(8):
            if table >> row & 1:
                chosen = [x if row >> k & 1 else ~x for x, k in ((a, 2), (b, 1), (c, 0))]
                result = result | (chosen[0] & chosen[1] & chosen[2])
        return result

    return calculation(s, operands, function)


def shifted(a, count, left: bool):
    """Return a shifted; by its width or more: zeros, or copies of the sign. Counts are uint32."""
    bits = 8 * a.dtype.itemsize
    within = np.minimum(count, bits - 1).astype(a.dtype)
    result = a << within if left else a >> within
    if not left and a.dtype.kind == "i":
        return result
    return np.where(count < bits, result, a.dtype.type(0))


@instruction("shl shr")
def _shift(s: Statement, operands: Operands) -> Run:
    left = s.name == "shl"
    return calculation(s, operands, lambda a, n: shifted(a, n, left), [type_of(s), U32])


@instruction("shf", allow="l r wrap clamp")
def _funnel_shift(s: Statement, operands: Operands) -> Run:
    """Shift the 64 bits (b, a), a the lower: left keeps the upper word, right the lower one."""
    most = np.uint32(32 if "clamp" in s.modifiers else 31)

    def function(a, b, count):
        count = (np.minimum(count, most) if most == 32 else count & most).astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        if "l" in s.modifiers:
            return ((both << count) >> np.uint64(32)).astype(np.uint32)
        return (both >> count).astype(np.uint32)

    return calculation(s, operands, function)


@instruction("bfe")
def _extract(s: Statement, operands: Operands) -> Run:
    """Take ``length`` bits from ``start``; signed types copy the field's highest bit upwards."""
    kind = type_of(s)
    bits = 8 * kind.bytes

    def function(a, start, length):
        a, start, length = np.broadcast_arrays(a, start & 255, length & 255)
        raw = shifted(a, start, left=False)
        mask = _ones(length, bits)
        field = raw.view(mask.dtype) & mask
        if not kind.is_signed:
            return field
        highest = np.minimum(start + length - 1, bits - 1)
        sign = shifted(a.view(f"u{kind.bytes}"), highest, left=False) & mask.dtype.type(1)
        negative = (sign != 0) & (length > 0)
        return np.where(negative, field | ~mask, field).view(kind.dtype)

    return calculation(s, operands, function, [kind, U32, U32])


def _ones(length, bits: int):
    """Return words whose lowest ``length`` bits are set."""
    dtype = np.dtype(f"uint{bits}")
    full = shifted(np.ones(np.shape(length), dtype), np.asarray(length, np.uint32), left=True)
    return full - dtype.type(1)


@instruction("bfi")
def _insert(s: Statement, operands: Operands) -> Run:
    """Put the lowest ``length`` bits of a into b, from bit ``start``."""
    kind = type_of(s)

    def function(a, b, start, length):
        a, start, length = np.broadcast_arrays(a, start & 255, length & 255)
        mask = shifted(_ones(length, 8 * kind.bytes), start, left=True)
        placed = shifted(a, start, left=True)
        return placed & mask | b & ~mask

    return calculation(s, operands, function, [kind, kind, U32, U32])


@instruction("prmt")
def _permute(s: Statement, operands: Operands) -> Run:
    """Choose four of the eight bytes of (b, a) by the four hexadecimal digits of a selector."""

    def function(a, b, selector):
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        result = np.uint32(0)
        for place in range(4):
            digit = selector >> np.uint32(4 * place) & np.uint32(15)
            shift = (digit & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = (both >> shift).astype(np.uint32) & np.uint32(255)
            sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            byte = np.where(digit & np.uint32(8), sign, byte)
            result = result | byte << np.uint32(8 * place)
        return result

    return calculation(s, operands, function)


def _bits_of(a) -> np.ndarray:
    """Return the bits, lowest first, along a new last axis."""
    raw = np.ascontiguousarray(np.atleast_1d(a))[:, None].view(np.uint8)
    return np.unpackbits(raw, axis=1, bitorder="little")


def highest_bit(a) -> np.ndarray:
    """Return the place of the highest 1, or 2**32 - 1 for none: uint32."""
    flipped = _bits_of(a)[:, ::-1]
    place = flipped.shape[1] - 1 - flipped.argmax(axis=1)
    return np.where(flipped.any(axis=1), place, 0xFFFFFFFF).astype(np.uint32)


@instruction("popc clz brev")
def _count(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    if s.name == "brev":

        def reverse(a):
            return np.packbits(_bits_of(a)[:, ::-1], axis=1, bitorder="little").view(a.dtype)[:, 0]

        return calculation(s, operands, reverse)
    bits = np.uint32(8 * kind.bytes - 1)
    count = {
        "popc": lambda a: _bits_of(a).sum(axis=1, dtype=np.uint32),
        "clz": lambda a: bits - highest_bit(a),  # of none: bits + 1, by wrapping around
    }[s.name]
    write, read = operands.write(0, U32), operands.read(1, kind)
    return lambda t: write(t, count(read(t)))


@instruction("bfind", allow="shiftamt")
def _find(s: Statement, operands: Operands) -> Run:
    """Find the highest bit that differs from the sign."""
    kind = type_of(s)
    write, read = operands.write(0, U32), operands.read(1, kind)

    def run(t):
        a = read(t)
        a = np.where(a < 0, ~a, a) if kind.is_signed else a
        place = highest_bit(a)
        if "shiftamt" in s.modifiers:
            last = np.uint32(8 * kind.bytes - 1)
            place = np.where(place == 0xFFFFFFFF, place, last - place)
        write(t, place)

    return run


@instruction("dp4a")
def _dot_of_bytes(s: Statement, operands: Operands) -> Run:
    kinds = [TYPES[f"{one.name[0]}8"].dtype for one in s.types]
    if len(kinds) != 2:
        raise PTXError("expected two types")
    result = TYPES["s32" if any(one.is_signed for one in s.types) else "u32"]
    write, c = operands.write(0, result), operands.read(3, result)
    a, b = operands.read(1, U32), operands.read(2, U32)

    def run(t):
        left, right = (
            np.ascontiguousarray(np.broadcast_to(x(t), (t.active,)))[:, None].view(kind)
            for x, kind in ((a, kinds[0]), (b, kinds[1]))
        )
        dot = (left.astype(np.int64) * right.astype(np.int64)).sum(axis=1)
        write(t, dot.astype(result.dtype) + c(t))

    return run
