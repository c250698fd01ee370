"""Measuring several programs side by side: workers, blocks in turn, and what disturbed them.

A shared machine changes its speed from minute to minute, so programs are compared in blocks of a
second or two that take turns: ours, a peer, ours with other weights, the next peer, and again.
Every program lives in a process of its own, so that no pool of threads disturbs another one.
Processor time that neither they nor we used is foreign; a block with too much of it is dropped.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

FOREIGN_LIMIT = 0.08
"""Largest share of the machine's processor time that others may have used during a block."""

FOLDER = Path(__file__).resolve().parent


class Absent(Exception):
    """A program that is not installed here, or that cannot do what is asked; says why."""


class Program(Protocol):
    """Something that can be measured."""

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job and return {"value": number, ...}; raises Absent."""
        ...

    def close(self) -> None:
        """End its process, if it has one."""
        ...


class Worker:
    """A Python process (``bench_worker.py``) that is asked for one block after another.

    It starts with the first job. ``setup`` is what it has to load.
    """

    def __init__(self, kind: str, setup: dict[str, Any]):
        self.kind, self.setup = kind, setup
        self.process: subprocess.Popen[str] | None = None
        self.absent: str | None = None
        self.info: dict[str, Any] = {}

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job in the worker's process."""
        if self.absent is not None:
            raise Absent(self.absent)
        if self.process is None:
            command = [sys.executable, str(FOLDER / "bench_worker.py"), self.kind]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen([*command, json.dumps(self.setup)], **pipes)
            self.info = self._answer()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"absent": "its process ended (see stderr)"}
        if "absent" in answer:
            if not line or answer.get("final"):
                self.absent = answer["absent"]
                self.close()
            raise Absent(answer["absent"])
        return answer

    def close(self) -> None:
        """End the process: it stops when its input does."""
        if self.process is None:
            return
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


# --- processor time --------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """Seconds at one moment: on the wall, of all processors, and of our own processes."""

    wall: float
    machine: float | None  # None: not known on this system
    own: float

    @classmethod
    def now(cls, workers: Sequence[int] = ()) -> "Clock":
        """Read the clocks; ``workers`` are the ids of living processes that are ours."""
        own = sum(os.times()[:4]) + sum(_process_seconds(pid) for pid in workers)
        return cls(time.perf_counter(), _machine_seconds(), own)


def foreign_share(before: Clock, after: Clock, cores: int) -> float | None:
    """Return the part of the machine that others used between two moments; None: not known."""
    if before.machine is None or after.machine is None:
        return None
    wall = max(after.wall - before.wall, 1e-9)
    others = (after.machine - before.machine) - (after.own - before.own)
    return max(0.0, others / (wall * cores))


def _machine_seconds() -> float | None:
    try:
        first = Path("/proc/stat").read_text("ascii").partition("\n")[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, stolen = (int(n) for n in first[:8])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _process_seconds(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return 0.0
    numbers = text.rpartition(")")[2].split()
    return sum(int(n) for n in numbers[11:15]) / os.sysconf("SC_CLK_TCK")


# --- taking turns ----------------------------------------------------------------------------


@dataclass
class Entry:
    """One program doing one kind of job: a line of the results."""

    key: str
    program: Program
    job: dict[str, Any]
    unit: str
    values: list[float] = field(default_factory=list)  # of the blocks that count
    dropped: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)  # share of each block, dropped ones too
    absent: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """Return what is reported of it: the median of the blocks that count.

        If all were disturbed, their median, with ``disturbed`` set.
        """
        common = {"key": self.key, "unit": self.unit, **self.details}
        if self.absent is not None and not (self.values or self.dropped):
            return {**common, "median": None, "absent": self.absent}
        used = self.values or self.dropped
        return {
            **common,
            "median": statistics.median(used),
            "values": self.values,
            "dropped": self.dropped,
            "foreign": [round(share, 4) for share in self.foreign],
            "disturbed": not self.values,
        }


def interleave(
    entries: Sequence[Entry],
    blocks: int,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[Sequence[int]], Clock] = Clock.now,
    patience: int = 3,
) -> None:
    """Give each entry ``blocks`` undisturbed blocks, all entries in turn.

    Disturbed blocks are repeated in further rounds, of which there are ``patience * blocks`` at
    most.
    """
    cores = os.cpu_count() or 1
    for _ in range(patience * blocks):
        waiting = [e for e in entries if e.absent is None and len(e.values) < blocks]
        if not waiting:
            return
        for entry in waiting:
            _block(entry, clock, cores)
            state = entry.absent or f"{(entry.values + entry.dropped)[-1]:.4g} {entry.unit}"
            note = f", foreign {entry.foreign[-1]:.0%}" if entry.foreign else ""
            say(f"{entry.key}: {state}{note}")


def _block(entry: Entry, clock: Callable[[Sequence[int]], Clock], cores: int) -> None:
    process = getattr(entry.program, "process", None)
    if process is None and isinstance(entry.program, Worker):  # loading is not part of a block
        try:
            entry.program.ask({"do": "nothing"})
        except Absent as reason:
            entry.absent = str(reason)
            return
        process = entry.program.process
    pids = [] if process is None else [process.pid]
    before = clock(pids)
    try:
        answer = entry.program.ask(entry.job)
    except Absent as reason:
        entry.absent = str(reason)
        return
    share = foreign_share(before, clock(pids), cores)
    entry.details.update({k: v for k, v in answer.items() if k != "value"})
    disturbed = share is not None and share > FOREIGN_LIMIT
    (entry.dropped if disturbed else entry.values).append(float(answer["value"]))
    if share is not None:
        entry.foreign.append(share)
