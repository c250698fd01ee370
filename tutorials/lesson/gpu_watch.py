"""What a kernel does, written down: arrays that are watched, and threads that take turns.

The threads of a block run one at a time, each up to the next barrier, in the order of their
numbers: always the same, so that what goes wrong is always found.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from .checking import NotYet

LIMIT = 200_000
"""Accesses, after which a kernel is taken for one that never ends."""


class Access(NamedTuple):
    """One number that a thread read or wrote."""

    array: str
    place: tuple[int, ...]
    shared: bool
    write: bool
    block: int
    thread: int
    moment: int  # how many barriers the block has passed
    order: int  # how many accesses the thread has made before


class Score(NamedTuple):
    """Accesses for each number of the result."""

    global_reads: float
    global_writes: float
    shared_reads: float
    shared_writes: float


@dataclass(frozen=True)
class Run:
    """What a kernel did: ``run["y"]`` is the array y afterwards, ``run.log`` all accesses."""

    arrays: dict[str, np.ndarray]
    log: list[Access]
    threads: int  # of a block

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def reads(self, array: str) -> list[Access]:
        """Return the reads of one array, such as "x", or "shared" for the block's own memory."""
        return [a for a in self.log if a.array == array and not a.write]

    def score(self, outputs: int, *others: "Run") -> Score:
        """Return the accesses for each of so many results, of this run and others after it."""
        kinds = ((False, False), (False, True), (True, False), (True, True))
        log = [a for run in (self, *others) for a in run.log]
        return Score(*(sum((a.shared, a.write) == k for a in log) / outputs for k in kinds))


class Watched:
    """An array in a kernel's hands; a row of it is one, too."""

    def __init__(self, machine: "Machine", name: str, values, shared=False, row=()):
        self._machine, self._name, self._values = machine, name, values
        self._shared, self._row = shared, row
        self.shape, self.dtype = values.shape[len(row) :], values.dtype
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, place):
        place = self._whole(place, "reads")
        if len(place) < self._values.ndim:
            return Watched(self._machine, self._name, self._values, self._shared, place)
        self._machine.note(self._name, place, self._shared, write=False)
        if self._shared and np.isnan(self._values[place]):
            self._machine.unwritten.append(f"{self._name}{list(place)}")
        return self._values[place]

    def __setitem__(self, place, value):
        place = self._whole(place, "writes")
        if value is None:
            what = f"{self._name}{list(place)}"
            raise NotYet(f"{what} becomes None: replace the dots, and return it.")
        self._machine.note(self._name, place, self._shared, write=True)
        self._values[place] = value

    def _whole(self, place, does: str) -> tuple[int, ...]:
        place = self._row + tuple(int(i) for i in np.atleast_1d(np.asarray(place)))
        if any(not 0 <= i < size for i, size in zip(place, self._values.shape, strict=False)):
            hint = "" if self._shared else " Which threads have nothing to do?"
            raise NotYet(
                f"{self._machine.who()} {does} {self._name}{list(place)}, which has the shape "
                f"{self._values.shape}.{hint}"
            )
        return place


# --- one thread at a time -------------------------------------------------------------------------


class _Stopped(BaseException):
    """Ends a thread whose block has failed."""


class _Turn:
    """A thread of a block, which runs when it is told to, and up to the next barrier."""

    def __init__(self, body: Callable[[], None], number: int):
        self.number, self.accesses, self.arrays = number, 0, 0
        self.ended, self.error, self._unwanted = False, None, False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(body,), daemon=True).start()

    def _run(self, body) -> None:
        self._go.acquire()
        try:
            if not self._unwanted:
                body()
        except _Stopped:
            pass
        except Exception as error:  # of the reader's code: it may be any
            self.error = error
        self.ended = True
        self._back.release()

    def proceed(self) -> None:
        """Let the thread run, and return when it has stopped or waits at a barrier."""
        self._go.release()
        self._back.acquire()

    def wait(self) -> None:
        """Called by the thread itself, at a barrier."""
        self._back.release()
        self._go.acquire()
        if self._unwanted:
            raise _Stopped

    def end(self) -> None:
        """Make the thread stop where it waits."""
        if not self.ended:
            self._unwanted = True
            self.proceed()


class Machine:
    """What a kernel knows as ``cuda``: its own place, barriers and memory."""

    def __init__(self, blocks: tuple[int, ...], threads: tuple[int, ...]):
        self.gridDim, self.blockDim = _three(*blocks), _three(*threads)
        self.shared = SimpleNamespace(array=self._shared_array)
        self.local = SimpleNamespace(array=poisoned)
        self.log: list[Access] = []
        self.unwritten: list[str] = []

    def run(self, body: Callable[[], None]) -> None:
        """Run all blocks, one after another."""
        for block, place in enumerate(_places(self.gridDim)):
            self.block, self.blockIdx = block, place
            self.moment, self._arrays = 0, []
            places = list(_places(self.blockDim))
            turns = [_Turn(body, number) for number in range(len(places))]
            try:
                while not self._all_ended(turns, places):
                    self.moment += 1
            finally:
                for turn in turns:
                    turn.end()

    def _all_ended(self, turns: list[_Turn], places: list[SimpleNamespace]) -> bool:
        """Take every thread to the next barrier."""
        for turn, place in zip(turns, places, strict=True):
            self._turn, self.threadIdx = turn, place
            turn.proceed()
            if turn.error is not None:
                raise turn.error
        ended = [turn.number for turn in turns if turn.ended]
        if ended and len(ended) < len(turns):
            waits = next(turn.number for turn in turns if not turn.ended)
            raise NotYet(
                f"Thread {waits} waits at a barrier that thread {ended[0]} never reaches: all "
                "threads of a block have to, those without work, too."
            )
        return bool(ended)

    def who(self) -> str:
        """Return the name of the thread that runs now."""
        return f"Thread {self._turn.number} of block {self.block}"

    def note(self, array: str, place: tuple[int, ...], shared: bool, write: bool) -> None:
        """Write down an access of the thread that runs now."""
        turn = self._turn
        if len(self.log) == LIMIT:
            raise NotYet(f"{self.who()} goes on and on: does its loop end?")
        what = (array, place, shared, write)
        self.log.append(Access(*what, self.block, turn.number, self.moment, turn.accesses))
        turn.accesses += 1

    def _shared_array(self, shape, dtype) -> Watched:
        """The first thread that asks makes the array, the others get the same one."""
        if self._turn.arrays == len(self._arrays):
            self._arrays.append(Watched(self, "shared", poisoned(shape, dtype), shared=True))
        self._turn.arrays += 1
        return self._arrays[self._turn.arrays - 1]

    def syncthreads(self) -> None:
        """Let the other threads come here, too."""
        self._turn.wait()

    def grid(self, dimensions: int):
        """Return the number of the thread among all, or its numbers along two or three axes."""
        at = zip(self.blockIdx.xyz, self.blockDim.xyz, self.threadIdx.xyz, strict=True)
        place = tuple(block * size + thread for block, size, thread in at)
        return place[0] if dimensions == 1 else place[:dimensions]


def _three(x: int, y: int = 1, z: int = 1) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z, xyz=(x, y, z))


def _places(size: SimpleNamespace) -> Iterator[SimpleNamespace]:
    for z, y, x in np.ndindex(*size.xyz[::-1]):
        yield _three(x, y, z)


def poisoned(shape, dtype) -> np.ndarray:
    """Return an array of NaN; the dtype may be Numba's."""
    return np.full(shape, np.nan, np.dtype(str(dtype)))
