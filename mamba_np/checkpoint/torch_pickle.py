"""Reads the pickle inside a PyTorch checkpoint without running it.

A pickle is a program for a small stack machine, and Python's own machine will call whatever the
program names. The one here knows the instructions that ``torch.save`` writes for a dictionary of
tensors and nothing else: it imports nothing, calls nothing, and a name in the program is only ever
compared with a list. Its result says where each tensor's numbers lie.
"""

import pickletools
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ..errors import CheckpointError, UnsafeFileError


class Storage(NamedTuple):
    """A run of numbers, kept in a file of its own."""

    dtype: str  # safetensors' name
    key: str  # digits: the name of the file
    count: int


class View(NamedTuple):
    """A tensor: a part of a storage, seen with a shape."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """A name that the program asks for; it stands for itself and is never looked up."""

    text: str


ORDERED_DICT = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
STORAGES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
}
NAMES = {ORDERED_DICT, TENSOR, PARAMETER, *STORAGES}


def read_pickle(data: bytes, where: str) -> dict[str, View]:
    """Return {tensor name: where its numbers are}; errors start with ``where``.

    Raises UnsafeFileError for any instruction or name that no dictionary of tensors needs, and
    CheckpointError for a program that is damaged or yields something else.
    """
    machine = _Machine(where)
    try:
        with warnings.catch_warnings():
            # pickletools decodes arguments of instructions that are then refused, and warns.
            warnings.simplefilter("ignore", DeprecationWarning)
            result = machine.run(data)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError) as error:  # cut short, an empty stack, no such slot
        raise CheckpointError(
            f"{where}: expected a pickled dictionary, found a damaged one: {error!s:.120}"
        ) from None
    if not isinstance(result, dict):
        raise CheckpointError(f"{where}: expected a dictionary, found {_kind(result)}")
    for name, value in result.items():
        if not isinstance(value, View):
            raise CheckpointError(f"{where}: {name!r:.80}: expected a tensor, found {_kind(value)}")
    return result


class _Machine:
    """The stack machine: a stack, the places marked on it, and a memo of earlier values."""

    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                self.refuse(f"the instruction {opcode.name}")
            instruction(self, argument)
        raise ValueError("no STOP")

    def refuse(self, what: str) -> NoReturn:
        raise UnsafeFileError(
            f"{self.where}: expected a dictionary of tensors, which needs no {what:.120}"
        )

    def fail(self, expected: str, found: Any) -> NoReturn:
        raise CheckpointError(f"{self.where}: expected {expected}, found {_kind(found)}")

    # --- instructions --------------------------------------------------------------------------

    def protocol(self, version: int) -> None:
        if version != 2:
            raise CheckpointError(f"{self.where}: expected pickle protocol 2, found {version}")

    def name(self, text: str) -> None:
        if text not in NAMES:
            self.refuse(f"{text!r}")
        self.stack.append(Name(text))

    def store(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def recall(self, slot: int) -> None:
        self.stack.append(self.memo[slot])

    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        if len(values) != count:
            raise IndexError("empty stack")
        self.stack[-count:] = [values]

    def set_items(self, _: None) -> None:
        values = self.since_mark()
        self.update(list(zip(values[::2], values[1::2], strict=True)))

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([(key, value)])

    def update(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            self.fail("a dictionary to fill", target)
        for key, value in pairs:
            if type(key) is not str:  # a nested tuple could take for ever to hash
                self.fail("text as a key", key)
            if key in target:
                raise CheckpointError(f"{self.where}: {key!r:.80}: expected once, found twice")
            target[key] = value

    def storage(self, _: None) -> None:
        found = self.stack.pop()
        parts = found if isinstance(found, tuple) and len(found) == 5 else (None,) * 5
        tag, kind, key, _, count = parts
        if tag != "storage" or not isinstance(kind, Name) or kind.text not in STORAGES:
            self.fail("('storage', type, key, device, count)", found)
        if not isinstance(key, str) or not re.fullmatch("[0-9]{1,19}", key):
            self.refuse(f"storage named {key!r}" if isinstance(key, str) else _kind(key))
        if type(count) is not int or count < 0:
            self.fail("a number of elements", count)
        self.stack.append(Storage(STORAGES[kind.text], key, count))

    def call(self, _: None) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            self.refuse(f"call of {_kind(called)}")
        elif called.text == ORDERED_DICT and arguments == ():
            self.stack.append({})
        elif called.text == TENSOR and len(arguments) in (6, 7):
            self.stack.append(self.view(*arguments[:4]))
        elif called.text == PARAMETER and arguments and isinstance(arguments[0], View):
            self.stack.append(arguments[0])
        else:
            self.fail(f"the usual arguments of {called.text!r}", arguments)

    def view(self, storage: Any, start: Any, shape: Any, strides: Any) -> View:
        if not isinstance(storage, Storage):
            self.fail("a tensor's storage", storage)
        for what, numbers in (("start", (start,)), ("shape", shape), ("strides", strides)):
            whole = type(numbers) is tuple and len(numbers) <= 8
            if not whole or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
                self.fail(f"whole numbers from 0 as a tensor's {what}", numbers)
        return View(storage, start, shape, strides)

    def set_state(self, _: None) -> None:
        # The versions of modules, which torch attaches to a state_dict: of no use here.
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            self.refuse(f"state of {_kind(self.stack[-1])}")


def _kind(value: Any) -> str:
    """Describe a value without printing it: nested ones can be endless."""
    if isinstance(value, (int, Name)) or value is None:
        return f"{value!r:.80}"
    return {"str": "text", "tuple": "a tuple", "dict": "a dictionary"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "MARK": _Machine.mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.store),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"), _push),
}
