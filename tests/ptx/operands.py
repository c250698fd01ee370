"""Operands: each becomes a function that reads it for, or writes it to, the present threads."""

import re
import struct
from collections.abc import Callable

import numpy as np

from .errors import PTXError
from .parser import Body, Register, Statement, split
from .threads import Threads
from .types import TYPES, Type

Read = Callable[[Threads], np.ndarray]
Write = Callable[[Threads, np.ndarray], None]
_ADDRESS = re.compile(r"\[\s*([%\w$@]+)\s*(?:([+-])\s*(-?\w+))?\s*\]")
_SPECIAL = re.compile(r"%(n?(tid|ctaid)\.[xyz]|laneid|n?warpid|lanemask_(eq|lt|le|gt|ge))")


class Operands:
    """The operands of one statement, of a kernel whose registers get numbered slots.

    A slot is a register seen as a dtype: the registers are plain bits.
    """

    def __init__(self, statement: Statement, body: Body, slots: dict):
        self.statement, self.body, self.slots = statement, body, slots

    def __len__(self) -> int:
        return len(self.statement.operands)

    def __getitem__(self, place: int) -> str:
        try:
            return self.statement.operands[place]
        except IndexError:
            raise PTXError(f"expected an operand {place + 1}") from None

    def slot(self, register: Register, dtype: np.dtype) -> int:
        return self.slots.setdefault((register.index, np.dtype(dtype)), len(self.slots))

    def register(self, name: str) -> Register:
        try:
            return self.body.registers[name]
        except KeyError:
            raise PTXError(f"unknown operand {name!r}") from None

    # --- reading --------------------------------------------------------------------------------

    def read(self, place: int, kind: Type) -> Read:
        return self.reader(self[place], kind)

    def reader(self, text: str, kind: Type) -> Read:
        """Return what reads an operand as a type: one element a thread, or one for all."""
        if text in self.body.registers:
            return self._register_reader(self.body.registers[text], kind, text)
        if text.startswith("!") and kind.name == "pred":
            inner = self.reader(text[1:], kind)
            return lambda t: ~inner(t)
        if _SPECIAL.fullmatch(text):
            if kind.bytes >= 4:
                return lambda t: t.of(t.special[text]).astype(kind.dtype, copy=False)
            return lambda t: t.of(t.special[text]).astype(np.uint16).view(kind.dtype)
        value = self.constant(text, kind)
        return lambda t: value

    def _register_reader(self, register: Register, kind: Type, text: str) -> Read:
        if (register.type.name == "pred") != (kind.name == "pred"):
            raise PTXError(f"operand {text}: expected .{kind.name}, found .{register.type.name}")
        if register.type.bytes < kind.bytes:
            raise PTXError(f"operand {text}: expected .{kind.name}, found .{register.type.name}")
        slot, index = self.slot(register, kind.dtype), register.index

        def read(t: Threads):
            if t.defined[index] is not True:
                t.require(index)
            values = t.views[slot]
            return values if t.lanes is None else values[t.lanes]

        return read

    def constant(self, text: str, kind: Type):
        """Return a literal number or the address of a variable as a NumPy scalar."""
        if text in self.body.variables:
            variable = self.body.variables[text]
            return np.array(variable.offset).astype(kind.dtype)[()]
        if match := re.fullmatch(r"(-?)0([fF])([0-9a-fA-F]{8})|(-?)0([dD])([0-9a-fA-F]{16})", text):
            digits = match[3] or match[6]
            form = "<f" if match[3] else "<d"
            value = struct.unpack(form, int(digits, 16).to_bytes(len(digits) // 2, "little"))[0]
            value = -value if match[1] or match[4] else value
            if kind.is_float:
                return kind.dtype.type(value)
            return np.frombuffer(struct.pack(form, value), kind.dtype)[0]
        if text == "WARP_SZ":
            return kind.dtype.type(32)
        try:
            number = int(re.sub(r"^(-?)0(?=\d+$)", r"\g<1>0o", text.rstrip("U")), 0)
        except ValueError:
            if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text) and kind.is_float:
                return kind.dtype.type(float(text))
            raise PTXError(f"unknown operand {text!r}") from None
        if kind.name == "pred":
            return np.bool_(number)
        bits = 8 * kind.bytes
        raw = (number & ((1 << bits) - 1)).to_bytes(kind.bytes, "little")
        return np.frombuffer(raw, kind.dtype)[0]

    # --- writing --------------------------------------------------------------------------------

    def write(self, place: int, kind: Type) -> Write:
        return self.writer(self[place], kind)

    def writer(self, text: str, kind: Type) -> Write:
        """Return what writes values of a type; a wider register gets them extended."""
        if text == "_":
            return lambda t, values: None
        register = self.register(text)
        if (register.type.name == "pred") != (kind.name == "pred"):
            raise PTXError(f"result {text}: expected .{kind.name}, found .{register.type.name}")
        if register.type.bytes < kind.bytes:
            raise PTXError(f"result {text}: expected .{kind.name}, found .{register.type.name}")
        dtype = kind.dtype
        if register.type.bytes > kind.bytes:
            dtype = np.dtype(f"uint{8 * register.type.bytes}")  # signs are extended even so
            if kind.is_float:
                narrow = self.writer(text, Type("b", np.dtype(f"uint{8 * kind.bytes}"), kind.bytes))
                return lambda t, values: narrow(
                    t, np.asarray(values).view(np.dtype(f"uint{8 * kind.bytes}"))
                )
        slot, index = self.slot(register, dtype), register.index

        def write(t: Threads, values) -> None:
            if t.lanes is None:
                t.views[slot][...] = values
                t.defined[index] = True
            else:
                t.views[slot][t.lanes] = values
                t.define(index)

        return write

    # --- several at once, and addresses ---------------------------------------------------------

    def parts(self, place: int) -> list[str]:
        """Return the elements of {a, b, ...}, or the operand alone."""
        text = self[place]
        return split(text[1:-1]) if text.startswith("{") else [text]

    def pair(self, place: int) -> tuple[str, str | None]:
        """Return the two names of "a|b", the second None where there is only one."""
        first, _, second = self[place].partition("|")
        return first.strip(), second.strip() or None

    def named_in_brackets(self, place: int) -> tuple[str, int]:
        """Return the name and the number in [name+number]."""
        match = _ADDRESS.fullmatch(self[place])
        if match is None:
            raise PTXError(f"expected an address, found {self[place]!r}")
        offset = int(match[3], 0) if match[3] else 0
        return match[1], -offset if match[2] == "-" else offset

    def address(self, place: int) -> Read:
        """Return what computes an address in brackets: int64, one for each present thread."""
        name, offset = self.named_in_brackets(place)
        if name not in self.body.registers:
            fixed = np.int64(int(self.constant(name, TYPES["u64"])) + offset)
            return lambda t: np.full(t.active, fixed)
        wide = self.body.registers[name].type.bytes == 8
        base = self.reader(name, TYPES["s64" if wide else "u32"])

        def compute(t: Threads) -> np.ndarray:
            addresses = base(t).astype(np.int64)
            addresses += offset  # beyond 2**63 they turn negative: nothing is there
            return addresses

        return compute
