"""Measuring several programs side by side: blocks in turn, and what disturbed them.

A shared machine changes its speed from minute to minute, so programs are compared in blocks of a
second or two that take turns: ours, a peer, ours with other weights, the next peer, and again.
Processor time that neither they nor we used is foreign; a block with too much of it is dropped
and repeated.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .clock import Clock, foreign_share
from .timing import Job

FOREIGN_LIMIT = 0.08
"""Largest share of the machine's processor time that others may have used during a block."""

PATIENCE = 3
"""Rounds at most, as a multiple of the blocks that are wanted."""


class Absent(Exception):
    """A program that is not installed here, or that cannot do what is asked; says why."""


class Program(Protocol):
    """Something that can be measured."""

    def prepare(self) -> None:
        """Load what it needs, outside of any block; raises Absent."""
        ...

    def ask(self, job: Job) -> dict[str, Any]:
        """Do a job; return {"value": number, ...}. Raises Absent.

        ``also`` in the answer is what else the block measured: {name: number}.
        """
        ...

    def processes(self) -> list[int]:
        """Return the ids of its living processes."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


def key(what: str, threads: int, name: str) -> str:
    """Return the key of a result: what is done, with how many threads, by whom."""
    return f"{what} | {many(threads)} | {name}"


def many(threads: int) -> str:
    """Return "1 thread", "2 threads" ..."""
    return f"{threads} thread{'s' * (threads != 1)}"


@dataclass
class Entry:
    """One program doing one kind of job: a line of the results."""

    key: str  # such as "decode 1 | 2 threads | ours float32"; the last part is a program
    unit: str
    program: Program | None = None  # None: its values are there already
    job: Job = field(default_factory=dict)
    most: int | None = None  # blocks that are enough for it, if fewer than for others
    values: list[float] = field(default_factory=list)  # of the blocks that count
    dropped: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)  # share of each block, dropped ones too
    absent: str | None = None
    also: dict[str, list[float]] = field(default_factory=dict)  # of the blocks that count
    details: dict[str, Any] = field(default_factory=dict)

    def wants(self, blocks: int) -> bool:
        """Return whether further blocks are needed."""
        enough = blocks if self.most is None else min(self.most, blocks)
        tried = len(self.values) + len(self.dropped)
        return self.absent is None and len(self.values) < enough and tried < PATIENCE * enough

    def add(self, answer: dict[str, Any], share: float | None) -> None:
        """Keep a block's answer; ``share`` of the machine was used by others (None: not known)."""
        disturbed = share is not None and share > FOREIGN_LIMIT
        (self.dropped if disturbed else self.values).append(float(answer["value"]))
        if share is not None:
            self.foreign.append(share)
        if not disturbed:
            for name, number in answer.get("also", {}).items():
                self.also.setdefault(name, []).append(float(number))
        self.details.update({k: v for k, v in answer.items() if k not in ("value", "also")})

    def result(self) -> dict[str, Any]:
        """Return what is reported of it: the median of the blocks that count.

        If all were disturbed, their median, with ``disturbed`` set.
        """
        common = {"key": self.key, "unit": self.unit, **self.details}
        used = self.values or self.dropped
        if not used:
            return {**common, "median": None, "absent": self.absent or "not measured"}
        return {
            **common,
            "median": statistics.median(used),
            "values": self.values,
            "dropped": self.dropped,
            "foreign": [round(share, 4) for share in self.foreign],
            "disturbed": not self.values,
        }

    def line(self) -> str:
        """Return its latest block as a line to follow."""
        numbers = self.values + self.dropped
        if self.absent is not None or not numbers:
            return f"{self.key}: {self.absent or 'not measured'}"
        latest = self.dropped[-1] if self.was_dropped() else self.values[-1]
        share = f", foreign {self.foreign[-1]:.0%}" if self.foreign else ""
        return f"{self.key}: {latest:.4g} {self.unit}{share}{self.was_dropped() * ', dropped'}"

    def was_dropped(self) -> bool:
        """Return whether the latest block was."""
        return bool(self.foreign) and self.foreign[-1] > FOREIGN_LIMIT


def interleave(
    entries: Sequence[Entry],
    blocks: int,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[Sequence[int]], Clock] = Clock.now,
) -> None:
    """Give each entry ``blocks`` undisturbed blocks, all entries in turn.

    Disturbed blocks are repeated in further rounds, as long as patience lasts.
    """
    for _ in range(PATIENCE * blocks):
        waiting = [entry for entry in entries if entry.wants(blocks)]
        if not waiting:
            return
        for entry in waiting:
            one_block(entry, clock)
            say(entry.line())


def one_block(entry: Entry, clock: Callable[[Sequence[int]], Clock]) -> None:
    """Measure an entry once. A program that is absent is not asked again."""
    program = entry.program
    assert program is not None, entry.key
    try:
        program.prepare()
        before = clock(program.processes())
        answer = program.ask(entry.job)
    except Absent as reason:
        entry.absent = str(reason)
        return
    after = clock(program.processes())
    entry.add(answer, foreign_share(before, after, os.cpu_count() or 1))
