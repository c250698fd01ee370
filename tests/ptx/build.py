"""From statements to functions: one for each instruction, made once, run many times.

Each family of instructions registers builders by name. A builder gets a statement and its operands
and returns what runs it for all present threads, or a ``Control`` where the next instruction may
be another one. Whatever a builder does not know, a name or a modifier, is an error here, before
anything runs.
"""

from collections.abc import Callable
from typing import NamedTuple

from .errors import PTXError
from .operands import Operands, Read
from .parser import Body, Statement
from .threads import Threads
from .types import TYPES, Type

Run = Callable[[Threads], None]


class Control(NamedTuple):
    """An instruction after which threads may go on elsewhere, later or never."""

    kind: str  # "branch", "exit", "block" (a barrier), "grid" (the grid's barrier)
    target: str = ""
    barrier: Read | None = None  # its number
    threads: Read | None = None  # how many wait for each other; None for the whole block
    finish: Callable | None = None  # called with those whom a barrier lets go


_builders: dict[str, tuple[Callable[[Statement, Operands], Run | Control], frozenset[str]]] = {}


def instruction(names: str, allow: str = ""):
    """Register a builder for these names, with the modifiers that it understands."""

    def register(builder):
        for name in names.split():
            _builders[name] = builder, frozenset(allow.split())
        return builder

    return register


def build(statement: Statement, body: Body, slots: dict) -> Run | Control:
    """Return what runs a statement."""
    try:
        if statement.name not in _builders:
            raise PTXError("unknown instruction")
        builder, allowed = _builders[statement.name]
        for modifier in statement.modifiers:
            if modifier not in allowed:
                raise PTXError(f"unknown modifier .{modifier}")
        operands = Operands(statement, body, slots)
        run = builder(statement, operands)
        if statement.guard is None or isinstance(run, Control):
            return run
        return _guarded(run, guard_of(statement, body, slots))
    except (PTXError, IndexError) as error:
        raise PTXError(
            f"kernel {body.name}, line {statement.line}, `{statement.text}`: {error}"
        ) from None


def guard_of(statement: Statement, body: Body, slots: dict) -> Read:
    """Return what tells which present threads run a guarded statement."""
    name, wanted = statement.guard
    read = Operands(statement, body, slots).reader(name, TYPES["pred"])
    return read if wanted else lambda t: ~read(t)


def _guarded(run: Run, guard: Read) -> Run:
    def run_some(t: Threads) -> None:
        chosen = t.spread(guard(t))
        if chosen.all():
            run(t)
        elif chosen.any():
            before = t.lanes
            t.take(t.numbers()[chosen])
            run(t)
            t.take(before)

    return run_some


def type_of(statement: Statement) -> Type:
    """Return the last type that an instruction names."""
    if not statement.types:
        raise PTXError("expected a type")
    return statement.types[-1]
