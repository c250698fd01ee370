"""Machine code of GPUs as nvdisasm prints it: functions, jumps, loops."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction: what jumps here, its condition, its name with suffixes, its operands."""

    labels: tuple[str, ...]
    condition: str
    name: str
    operands: str

    def matches(self, pattern: str) -> bool:
        """Whether its name begins like a pattern."""
        return re.match(pattern, self.name) is not None

    @property
    def target(self) -> str | None:
        """A place in this function that may come next; a call of such a place is a jump.

        The ways of a warp whose lanes went apart (BRA.DIV, @!PT) are not taken: ours do not.
        """
        if not self.matches(r"(BRA|JMP|CALL)\b") or self._is_never_taken:
            return None
        found = re.search(r"`\((\.L\S+)\)", self.operands)
        return found[1] if found else None

    @property
    def _is_never_taken(self) -> bool:
        return ".DIV" in self.name or self.condition == "@!PT"

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may come next."""
        if not self.matches(r"(BRA|BRX|JMP|EXIT|RET)\b") or self._is_never_taken:
            return True
        return bool(self.condition) or bool(re.match(r"!?U?P\d", self.operands))


def functions(sass: str) -> dict[str, list[Instruction]]:
    """Return the functions of nvdisasm's text by name: the kernel, and what it calls."""
    found: dict[str, list[Instruction]] = {}
    labels: list[str] = []
    for line in sass.splitlines():
        section = re.match(r"\s+\.section\s+\.text\.([\w$]+)", line)
        label = re.match(r"(\.L\w+):", line)
        code = re.match(r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", line)
        if section:
            labels = []
            current = found.setdefault(section[1], [])
        elif label:
            labels.append(label[1])
        elif code:
            condition, name = (code[1] or "").strip(), code[2]
            operands = code[3].partition("(*")[0].strip()  # remarks follow
            current.append(Instruction(tuple(labels), condition, name, operands))
            labels = []
    return found


def inner_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Return the loops that have no loop inside, each as its instructions.

    A loop is what can reach a jump back to an instruction that every way to the jump goes through.
    """
    after = successors(code)
    through = _dominators(after)
    before: dict[int, set[int]] = {i: set() for i in after}
    for i, following in after.items():
        for j in following:
            before[j].add(i)
    bodies: dict[int, set[int]] = {}
    for i, following in after.items():
        for header in (j for j in following if through[i] >> j & 1):
            body, waiting = bodies.setdefault(header, {header}), [i]
            while waiting:
                j = waiting.pop()
                if j not in body:
                    body.add(j)
                    waiting += before[j]
    inner = (body for header, body in bodies.items() if not _has_other(body, header, bodies))
    return [[code[i] for i in sorted(body)] for body in inner]


def _has_other(body: set[int], header: int, headers: Iterable[int]) -> bool:
    return any(other in body for other in headers if other != header)


def successors(code: list[Instruction]) -> dict[int, set[int]]:
    """Return which instructions may follow each one that can be reached, by their numbers."""
    places = {label: i for i, one in enumerate(code) for label in one.labels}
    after: dict[int, set[int]] = {}
    waiting = [0] if code else []
    while waiting:
        i = waiting.pop()
        if i in after:
            continue
        target = code[i].target
        targets = {places[target]} if target is not None and target in places else set()
        after[i] = targets | ({i + 1} if code[i].falls_through and i + 1 < len(code) else set())
        waiting += after[i]
    return after


def _dominators(after: dict[int, set[int]]) -> dict[int, int]:
    """Return for each instruction those that every way to it goes through: bit i for number i."""
    through = {0: 1}
    changed = True
    while changed:
        changed = False
        for i in sorted(after):
            for j in after[i] if i in through else ():
                new = through.get(j, -1) & through[i] | 1 << j
                if through.get(j) != new:
                    through[j], changed = new, True
    return through
