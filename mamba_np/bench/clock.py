"""Processor time: how much of the machine was used by others than us, on Linux."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 0.15
"""Seconds below which nothing is said of others: systems count processor time in hundredths."""


@dataclass(frozen=True)
class Clock:
    """Seconds at one moment: on the wall, of all processors, and of our own processes."""

    wall: float
    machine: float | None  # None: not known on this system
    own: float

    @classmethod
    def now(cls, workers: Sequence[int] = ()) -> "Clock":
        """Read the clocks; ``workers`` are the ids of living processes that are ours.

        Processes that have ended since are counted as children of this one.
        """
        own = sum(os.times()[:4]) + sum(_process_seconds(pid) for pid in workers)
        return cls(time.perf_counter(), _machine_seconds(), own)


def foreign_share(before: Clock, after: Clock, cores: int) -> float | None:
    """Return the part of the machine that others used between two moments; None: not known."""
    wall = after.wall - before.wall
    if before.machine is None or after.machine is None or wall < SHORTEST:
        return None
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
