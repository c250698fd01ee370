"""Threads of the CPU engine: how many, and the team that runs one function on all of them.

``run_team(work)`` calls ``work(member)`` on each thread at once; ``member`` tells a rank which
share is its own, and where to meet the others. The threads are Python's, and stay for the next
region; kernels release the GIL. Meanwhile BLAS computes with one thread a call: pools of threads
that wait for one another cost more than they bring.
"""

import contextvars
import math
import os
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any

import numpy as np

from .blas import limit, single_threaded_blas
from .checks import integer
from .errors import BackendError, InputError

LIMIT = 1024
"""Largest number of threads that can be asked for."""

# --- how many ----------------------------------------------------------------------------------

_number: int | None = None


def set_num_threads(n: int) -> None:
    """Set the number of threads of the cpu backend, for the whole process.

    It may exceed the number of cores. Raises InputError unless 1 <= n <= 1024.
    """
    global _number
    _number = integer("n", n, high=LIMIT, error=InputError)


def get_num_threads() -> int:
    """Return the number of threads of the cpu backend.

    Unless it was set: NUMBA_NUM_THREADS or OMP_NUM_THREADS if one is a number, else the number of
    cores this process may use. They are looked at once, when the number is first needed.
    """
    global _number
    if _number is None:
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
        chosen = (_first_number(os.environ.get(name, "")) for name in names)
        _number = min(next((n for n in chosen if n), None) or _cores(), LIMIT)
    return _number


def _first_number(text: str) -> int:
    """Return the first number of a comma list such as "4,2"; 0 if it is none."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*(,.*)?", text, re.ASCII | re.DOTALL)
    return int(found[1]) if found else 0


def _cores() -> int:
    """Return the number of cores this process may use, a quota of CPU time rounded up."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, quota(_text_of))))


def _text_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


_GROUPS = "/sys/fs/cgroup"


def quota(text_of: Callable[[str], str | None]) -> float:
    """Return how many cores' time Linux' control groups grant this process; inf: all.

    ``text_of`` returns the text of a file, or None. A group's quota binds the groups below it.
    """
    granted = math.inf
    for line in (text_of("/proc/self/cgroup") or "").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if not controllers:  # version 2
            roots, files = (_GROUPS, f"{_GROUPS}/unified"), ("cpu.max",)
        elif "cpu" in controllers.split(","):
            roots = (f"{_GROUPS}/cpu", f"{_GROUPS}/{controllers}")
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # A container sees its own group as the root, whatever its path is called outside.
        steps = [step for step in path.split("/") if step]
        for count in range(len(steps) + 1):
            for root in roots:
                folder = "/".join([root, *steps[:count]])
                texts = [text_of(f"{folder}/{file}") or "" for file in files]
                granted = min(granted, _granted(" ".join(texts)))
    return granted


def _granted(text: str) -> float:
    """Return quota / period of "quota period"; inf for no quota ("max" or -1) or other text."""
    found = re.fullmatch(r"\s*(\d{1,18})\s+(\d{1,18})\s*", text, re.ASCII)
    return int(found[1]) / int(found[2]) if found and int(found[2]) else math.inf


# --- the team ------------------------------------------------------------------------------------


class Aborted(Exception):
    """Another rank has left the region: this one has nobody to meet. Never leaves a region."""


class Member:
    """One rank of a team, as the function that it runs sees it."""

    __slots__ = ("_meet", "meeting", "rank", "size")

    def __init__(self, rank: int, size: int, meeting: np.ndarray, meet: Callable | None):
        self.rank, self.size = rank, size
        self.meeting = meeting  # memory of the barrier, for kernels.barrier.wait
        self._meet = meet

    def barrier(self) -> None:
        """Wait for all ranks: then each reads what the others wrote. Raises Aborted."""
        if self._meet is not None and not self._meet(self.meeting, self.size):
            raise Aborted

    def share(self, n: int, unit: int = 1) -> tuple[int, int]:
        """Return (low, high), this rank's part of range(n): the ranks' parts tile it in order.

        ``low`` is a multiple of ``unit``, or n; parts differ by at most one unit.
        """
        units = -(-n // unit)
        low, high = units * self.rank // self.size, units * (self.rank + 1) // self.size
        return min(low * unit, n), min(high * unit, n)


class _Region:
    """One run of a function on all ranks."""

    def __init__(self, work: Callable[[Member], Any], size: int):
        from .kernels import barrier  # Numba: only where there is somebody to meet

        self.work, self.size = work, size
        self.meeting, self.ending = barrier.memory(), barrier.memory()
        self.flag, self.meet = barrier.LEFT, barrier.meet
        self.meet(self.meeting, 1)  # compiled before anybody waits
        self.thread = threading.get_ident()
        self.running = set(range(size))
        self.whole = False  # whether all have come to the end
        self.left = SimpleQueue()  # wakes the caller
        self.errors: list[BaseException] = []

    def run(self, rank: int) -> None:
        """Run one rank's part. What it raises is kept."""
        try:
            self.work(Member(rank, self.size, self.meeting, self.meet))
            self.abort()
            # All end at about the same time: waiting for that is shorter than being woken up.
            self.whole = self.meet(self.ending, self.size)
        except BaseException as error:
            self.fail(error)
        finally:
            self.leave(rank)

    def fail(self, error: BaseException) -> None:
        """Keep an error, and stop all at their next barrier."""
        self.errors.append(error)
        self.ending[self.flag] = 1
        self.abort()

    def abort(self) -> None:
        """Stop the ranks that wait at a barrier: a rank that has ended cannot be met any more."""
        self.meeting[self.flag] = 1

    def leave(self, rank: int) -> None:
        """Say that a rank has ended."""
        self.abort()
        self.running.discard(rank)
        self.left.put(rank)

    def wait(self) -> None:
        """Wait until all ranks have ended, whatever interrupts."""
        while self.running and not self.whole:
            try:
                self.left.get()
            except BaseException as error:  # Ctrl-C
                self.fail(error)

    def first_error(self) -> BaseException | None:
        """Return the first error that is a cause, not a consequence; forget all."""
        errors, self.errors = self.errors, []  # an error's frames hold this region
        causes = [error for error in errors if not isinstance(error, Aborted)]
        if errors and not causes:
            return BackendError("run_team: expected ranks that meet equally often, found not so")
        return causes[0] if causes else None


class _Worker:
    """A thread that runs a rank of one region after another."""

    def __init__(self):
        self.tasks: SimpleQueue = SimpleQueue()
        threading.Thread(target=self._run, name="mamba_np", daemon=True).start()

    def _run(self) -> None:
        limit.of_worker()
        while True:
            region, rank, context = self.tasks.get()
            context.run(region.run, rank)
            del region, context  # an idle worker holds no arrays


class _Team:
    """The worker threads of this process."""

    def __init__(self):
        self.lock = threading.Lock()
        self.workers: list[_Worker] = []
        self.region: _Region | None = None

    def run(self, work: Callable[[Member], Any], size: int) -> None:
        """Run a region; the lock is held."""
        while len(self.workers) < size - 1:
            self.workers.append(_Worker())
        region = self.region = _Region(work, size)
        try:
            for rank, worker in enumerate(self.workers[: size - 1], 1):
                worker.tasks.put((region, rank, contextvars.copy_context()))
            region.run(0)
            region.wait()
        finally:
            self.region = None
            if region.running and not region.whole:  # interrupted: these are not to be waited for
                region.abort()
                self.workers = []
        error = region.first_error()
        if error is not None:
            try:
                raise error
            finally:
                del error


_team = _Team()


def run_team(work: Callable[[Member], Any], size: int | None = None, *, blas: bool = True) -> None:
    """Call ``work(member)`` on ``size`` threads at once, and return when all have ended.

    The caller's thread is rank 0. ``size`` is get_num_threads() unless given, and 1 while the
    threads are busy: in a region of another Python thread, or in one that this is called from;
    ``member.size`` tells. All ranks must meet at the barrier equally often. Inside, BLAS uses one
    thread a call, unless ``blas`` says that there are none; NumPy's error state and other context
    variables are the caller's.

    If ranks raise, the others stop at their next barrier, and the first error is raised here.
    """
    size = get_num_threads() if size is None else integer("size", size, 1, LIMIT, InputError)
    with single_threaded_blas() if blas else nullcontext():
        # Asked before it is taken, since a failed try could be interrupted half way. If another
        # thread takes it in between, this one waits for the end of one region.
        if size == 1 or _team.lock.locked():
            work(Member(0, 1, np.zeros(1, np.int64), None))
            return
        with _team.lock:
            _team.run(work, size)


def _after_fork() -> None:
    """In the child of a fork there are no workers, whatever ran when it was made."""
    global _team
    before, _team = _team.region, _Team()
    limit.after_fork()
    if before is not None and before.thread == threading.get_ident():  # forked inside a region
        before.fail(BackendError("run_team: the process was forked inside the region"))
        for rank in range(1, before.size):
            before.leave(rank)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
