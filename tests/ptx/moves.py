"""Moves and conversions: between registers, and between types."""

import numpy as np

from .build import Run, instruction, type_of
from .errors import PTXError
from .operands import Operands
from .parser import Statement
from .threads import LOCAL_WINDOW, SHARED_WINDOW
from .types import Type, bits_type
from .ufuncs import flush

_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("mov")
def _move(s: Statement, operands: Operands) -> Run:
    kind = type_of(s)
    if operands[1].startswith("{"):
        return _pack(operands, kind)
    if operands[0].startswith("{"):
        return _unpack(operands, kind)
    write = operands.write(0, kind)
    if operands[1] not in operands.body.registers:
        read = operands.read(1, kind)
        return lambda t: write(t, read(t))
    # A value that is not set may be moved, only not used: compilers do so.
    read = operands.read(1, kind)
    source = operands.register(operands[1]).index
    result = operands.register(operands[0]).index

    def run(t):
        if t.defined[source] is True:
            write(t, read(t))
            return
        known = t.defined[source]
        known = np.zeros(t.active, bool) if known is None else t.of(known).copy()
        before, lanes = t.lanes, t.numbers()
        if t.defined[result] is None or t.defined[result] is True:
            t.defined[result] = np.full(t.count, t.defined[result] is True)
        t.defined[result][lanes] = False
        if known.any():
            t.take(lanes[known])
            write(t, read(t))
            t.take(before)

    return run


def _pack(operands: Operands, kind: Type) -> Run:
    """Put several registers into one, the first into the lowest bits."""
    parts = operands.parts(1)
    part = bits_type(kind.bytes // len(parts))
    reads = [operands.reader(one, part) for one in parts]
    result = bits_type(kind.bytes)
    write = operands.write(0, result)

    def run(t):
        whole = result.dtype.type(0)
        for place, read in enumerate(reads):
            shift = result.dtype.type(8 * part.bytes * place)
            whole = whole | read(t).astype(result.dtype) << shift
        write(t, whole)

    return run


def _unpack(operands: Operands, kind: Type) -> Run:
    parts = operands.parts(0)
    part = bits_type(kind.bytes // len(parts))
    writes = [operands.writer(one, part) for one in parts]
    source = bits_type(kind.bytes)
    read = operands.read(1, source)

    def run(t):
        whole = np.array(read(t))
        for place, write in enumerate(writes):
            shift = source.dtype.type(8 * part.bytes * place)
            write(t, (whole >> shift).astype(part.dtype))

    return run


@instruction("cvta", allow="to global shared local const param")
def _convert_address(s: Statement, operands: Operands) -> Run:
    """Between generic addresses and those of one space."""
    kind = type_of(s)
    space = s.modifiers[-1]
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    window = np.int64(-window if "to" in s.modifiers else window).astype(kind.dtype)
    write, read = operands.write(0, kind), operands.read(1, kind)
    return lambda t: write(t, read(t) + window)


# --- conversions ----------------------------------------------------------------------------------


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return float32 rounded to bfloat16, to the nearest, ties to even, as bits: uint16."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded = bits + (np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def _integer_of(x: np.ndarray, kind: Type) -> np.ndarray:
    """Return rounded floats as integers, those out of range as the nearest, NaN as 0."""
    range_ = np.iinfo(kind.dtype)
    inside = (x >= float(range_.min)) & (x < float(range_.max) + 1)
    result = np.where(inside, x, 0).astype(kind.dtype)
    result = np.where(x < float(range_.min), kind.dtype.type(range_.min), result)
    return np.where(x >= float(range_.max) + 1, kind.dtype.type(range_.max), result)


def _clamped(x: np.ndarray, kind: Type) -> np.ndarray:
    """Return integers as another type, those out of range as the nearest."""
    source, target = np.iinfo(x.dtype), np.iinfo(kind.dtype)
    low, high = max(source.min, target.min), min(source.max, target.max)
    return np.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(kind.dtype)


@instruction("cvt", allow="rn rz rni rzi rmi rpi ftz sat pack")
def _convert(s: Statement, operands: Operands) -> Run:
    if len(s.types) != 2:
        raise PTXError("expected two types")
    to, source = s.types
    if to.name in ("bf16x2", "f16x2"):
        return _convert_pair(s, operands, to, source)
    if "bf16" in (to.name, source.name):
        return _convert_bfloat16(s, operands, to, source)
    write, read = operands.write(0, to), operands.read(1, source)
    function = _conversion(s, to, source)
    return lambda t: write(t, function(read(t)))


def _conversion(s: Statement, to: Type, source: Type):
    rounding = next((_ROUNDING[one] for one in s.modifiers if one in _ROUNDING), None)
    saturating = "sat" in s.modifiers
    if "rz" in s.modifiers:
        raise PTXError("rounding to zero is not known here")

    def flushing(x):
        return flush(x) if "ftz" in s.modifiers and x.dtype == np.float32 else x

    if source.is_float and to.is_float:

        def between_floats(x):
            x = flushing(x)
            x = (x if rounding is None else rounding(x)).astype(to.dtype)
            x = np.where(x > 0, np.minimum(x, 1), to.dtype.type(0)) if saturating else x
            return flushing(x)

        return between_floats
    if source.is_float:
        if rounding is None:
            raise PTXError("expected a rounding to integers")
        return lambda x: _integer_of(rounding(flushing(x)), to)
    if saturating and not to.is_float:
        return lambda x: _clamped(x, to)
    return lambda x: x.astype(to.dtype)


def _convert_bfloat16(s: Statement, operands: Operands, to: Type, source: Type) -> Run:
    write, read = operands.write(0, to), operands.read(1, source)
    if "rz" in s.modifiers or {to.name, source.name} != {"bf16", "f32"}:
        raise PTXError("only .rn to and from .f32 is known here")
    if to.name == "bf16":
        return lambda t: write(t, to_bfloat16(read(t)))
    shift = np.uint32(16)
    return lambda t: write(t, (read(t).astype(np.uint32) << shift).view(np.float32))


def _convert_pair(s: Statement, operands: Operands, to: Type, source: Type) -> Run:
    """Two float32 into one word: the first operand is the upper half."""
    if source.name != "f32" or "rz" in s.modifiers:
        raise PTXError("only .rn from .f32 is known here")
    if to.name == "bf16x2":
        narrow = to_bfloat16
    else:
        narrow = lambda x: np.asarray(x.astype(np.float16)).view(np.uint16)  # noqa: E731
    write = operands.write(0, to)
    upper, lower = operands.read(1, source), operands.read(2, source)

    def run(t):
        high, low = (np.asarray(narrow(x(t))).astype(np.uint32) for x in (upper, lower))
        write(t, high << np.uint32(16) | low)

    return run
