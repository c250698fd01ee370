"""From text to statements: names, registers, variables and labels are found and resolved.

A module of PTX holds variables and one or more kernels (``.entry``). A kernel's body is a list of
statements, each ended by ``;``: declarations (they begin with a dot) and instructions, with an
optional guard (``@%p1``, ``@!%p1``) before and labels (``name:``) in front. Braces open a scope,
whose declarations shadow outer ones: inline assembly and calls come in such scopes.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import PTXError
from .types import TYPES, Type, type_named

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?([^{;]*)\{", re.S)
_VARIABLE = re.compile(
    r"\.(shared|local|global|const)\s+((?:\.\w+\s+\d+\s+)?)\.(\w+)\s+([\w$%]+)\s*(?:\[(\d*)\])?"
)
_LABEL = re.compile(r"^([\w$%]+)\s*:(?!:)\s*")
_GUARD = re.compile(r"^@(!?)([\w$%]+)\s+")
RED_ZONE = 16
"""Bytes between two variables of a kernel, which nobody may touch."""


class Statement(NamedTuple):
    """One instruction as written: add.f32 has the name "add" and the types (f32,)."""

    name: str
    modifiers: tuple[str, ...]
    types: tuple[Type, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None  # register, and the value with which the instruction runs
    line: int
    text: str

    @property
    def opcode(self) -> str:
        return self.text.split()[0]


class Register(NamedTuple):
    index: int
    type: Type


class Variable(NamedTuple):
    """A variable of a kernel: its space, where it begins there, how many bytes it has."""

    space: str
    offset: int
    bytes: int


@dataclass
class Body:
    """What a kernel's text declares and says."""

    name: str
    parameters: dict[str, tuple[Type, int]] = field(default_factory=dict)  # type, place in order
    registers: dict[str, Register] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    dynamic: str | None = None  # the shared array whose size a launch gives
    most_threads: int | None = None  # .maxntid: what the compiler was promised
    calls: list[str] = field(default_factory=list)

    def declare(self, name: str, kind: Type) -> None:
        self.registers[name] = Register(len(self.registers), kind)

    def size_of(self, space: str) -> int:
        """Return the bytes that all variables of a space take, red zones included."""
        return max(
            (v.offset + v.bytes for v in self.variables.values() if v.space == space), default=0
        )


def bodies(text: str) -> list[Body]:
    """Return all kernels of a module, parsed."""
    text = _COMMENT.sub(lambda m: "\n" * m[0].count("\n") or " ", text)
    found, outside, start = [], [], 0
    for entry in _ENTRY.finditer(text):
        outside.append(text[start : entry.start()])
        start = _closing(text, entry.end())
        found.append((entry, text[entry.end() : start - 1], text.count("\n", 0, entry.end()) + 1))
    outside.append(text[start:])
    if not found:
        raise PTXError("expected a kernel (.entry), found none")
    return [_body(entry, inside, line, "\n".join(outside)) for entry, inside, line in found]


def _closing(text: str, place: int) -> int:
    depth = 1
    while depth:
        brace = re.compile(r"[{}]").search(text, place)
        if brace is None:
            raise PTXError("expected a closing brace, found the end of the text")
        depth += 1 if brace[0] == "{" else -1
        place = brace.end()
    return place


def _body(entry: re.Match, inside: str, line: int, outside: str) -> Body:
    body = Body(entry[1])
    for place, declaration in enumerate(split(entry[2] or "")):
        parts = re.findall(r"\.(\w+)", declaration)
        name = declaration.split()[-1]
        if "[" in name or parts[0] != "param":
            raise PTXError(f"parameter {declaration!r}: expected one number")
        body.parameters[name] = (type_named(parts[1]), place)
    bound = re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", entry[3])
    if bound:
        body.most_threads = 1
        for one in bound[1].split(","):
            body.most_threads *= int(one)
    used = set(re.findall(r"[\w$%]+", inside))
    for statement in outside.split(";"):
        _declare_variable(body, statement, used)
    _Reader(body, line).read(inside)
    return body


def _declare_variable(body: Body, statement: str, used: set[str] | None = None) -> bool:
    match = _VARIABLE.search(statement)
    if match is None or (used is not None and match[4] not in used):
        return False
    space, name, count = match[1], match[4], match[5]
    if space in ("global", "const"):
        raise PTXError(f"variable {name}: expected none in .{space} memory")
    if count == "" or (".extern" in statement and count is None):
        body.dynamic, size = name, 0
    else:
        size = type_named(match[3]).bytes * int(count or 1)
    align = re.search(r"\.align\s+(\d+)", statement)
    align = int(align[1]) if align else type_named(match[3]).bytes
    end = body.size_of(space)
    start = -(-(end + RED_ZONE if end else 0) // align) * align
    body.variables[name] = Variable(space, start, size)
    return True


class _Reader:
    """Walks through a body, statement by statement, with the scopes that are open."""

    def __init__(self, body: Body, line: int):
        self.body, self.line = body, line
        self.scopes: list[dict[str, str]] = []  # name as written -> name in the body
        self.scope_count = 0

    def read(self, text: str) -> None:
        start, depth = 0, 0  # depth: in braces of an operand, such as {%r1, %r2}
        for match in re.finditer(r"[{};\n]", text):
            token, before = match[0], text[start : match.start()].strip()
            if token == "\n":
                self.line += 1
            elif token == ";":
                self.statement(before)
                start = match.end()
            elif token == "{" and (not before or before.endswith(":")):
                self.labels(before)
                self.scopes.append({})
                self.scope_count += 1
                start = match.end()
            elif token == "}" and not before and not depth:
                self.scopes.pop()
                start = match.end()
            else:
                depth += 1 if token == "{" else -1
        self.labels(text[start:].strip())
        ret = Statement("ret", (), (), (), None, self.line, "ret")
        self.body.statements.append(ret)

    def labels(self, text: str) -> str:
        while match := _LABEL.match(text):
            self.body.labels[match[1]] = len(self.body.statements)
            text = text[match.end() :]
        return text

    def statement(self, text: str) -> None:
        text = self.labels(re.sub(r"\s+", " ", text))
        if not text:
            return
        if text.startswith("."):
            self.declaration(text)
            return
        guard, whole = None, text
        if match := _GUARD.match(text):
            guard, text = (self.name(match[2]), not match[1]), text[match.end() :]
        opcode, _, rest = text.partition(" ")
        name, *parts = opcode.split(".")
        operands = tuple(self.renamed(one) for one in split(rest))
        modifiers = tuple(part for part in parts if part not in TYPES)
        types = tuple(TYPES[part] for part in parts if part in TYPES)
        if guard:
            whole = whole.split(" ", 1)[1].strip() + f"  (guard {match[0].strip()})"
        self.body.statements.append(
            Statement(name, modifiers, types, operands, guard, self.line, whole)
        )

    def declaration(self, text: str) -> None:
        kind, *rest = re.findall(r"\.(\w+)", text)
        if kind == "reg":
            for name in split(text.split(f".{rest[-1]}", 1)[1]):
                numbered = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
                names = (
                    [f"{numbered[1]}{k}" for k in range(int(numbered[2]))] if numbered else [name]
                )
                for one in names:
                    self.body.declare(self.new(one), type_named(rest[-1]))
        elif kind == "param":  # what a call takes or gives: as good as a register
            name = re.sub(r"\[\d+\]$", "", text.split()[-1])
            sizes = re.search(r"\[(\d+)\]$", text)
            size = f"b{8 * int(sizes[1])}" if sizes else rest[-1]
            self.body.declare(self.new(name), type_named(size))
        elif kind in ("loc", "pragma", "file"):
            pass
        elif not _declare_variable(self.body, text):
            raise PTXError(f"line {self.line}: unknown declaration {text!r}")

    def new(self, name: str) -> str:
        if not self.scopes:
            return name
        self.scopes[-1][name] = f"{name}@{self.scope_count}"
        return self.scopes[-1][name]

    def name(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def renamed(self, operand: str) -> str:
        if not any(self.scopes):
            return operand
        return re.sub(r"[\w$%]+", lambda m: self.name(m[0]), operand)


def split(text: str) -> list[str]:
    """Split at the commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
