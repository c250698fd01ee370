"""Kernels that are watched: which thread reads and writes what, and between which barriers.

``launch`` runs a kernel as Python, one thread at a time, each up to the next barrier, in the order
of their numbers: always the same, so that what is missing is always found. It writes down every
access to memory, and raises NotYet where a GPU would go wrong in silence: past an array's end, a
number that one thread writes while another reads it, a barrier that not every thread reaches.

Where there is a GPU with numba-cuda, it runs the kernel there, too, and compares the results.
Elsewhere NUMBA_ENABLE_CUDASIM is set, so that ``kernel[blocks, threads](...)`` is Numba's own
simulator; this module has to be imported before ``numba.cuda`` for that.
"""

import ast
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CellType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from mamba_np import equations

from .checking import NotYet

LIMIT = 200_000
"""Accesses, after which a kernel is taken for one that never ends."""


def _gpu() -> str | None:
    """Return the name of a GPU that Numba can use. The driver is asked: Numba is not loaded yet."""
    if find_spec("numba_cuda") is None or os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return None
    try:
        driver = import_module("cuda.bindings.driver")
        if driver.cuInit(0)[0] or driver.cuDeviceGetCount()[1] == 0:
            return None
        return driver.cuDeviceGetName(256, driver.cuDeviceGet(0)[1])[1].split(b"\0")[0].decode()
    except (ImportError, RuntimeError):
        return None


GPU = _gpu()
for _name in ("CUDA_LOW_OCCUPANCY_WARNINGS", "CUDA_WARN_ON_IMPLICIT_COPY"):
    os.environ.setdefault(f"NUMBA_{_name}", "0")  # a dozen threads are few, and are meant to be
if GPU is None:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    import_module("numba").config.ENABLE_CUDASIM = 1  # Numba may have been imported before

cuda: Any = import_module("numba.cuda")
float32: Any = import_module("numba").float32
MACHINE = GPU or "no GPU: Python plays one"

# What kernels call is the package's: its device functions, or the functions those are made of.
formulas: Any = import_module("mamba_np.cuda.formulas") if GPU else equations
softplus, decay, state_update = formulas.softplus, formulas.decay, formulas.state_update


# --- what is written down -------------------------------------------------------------------------


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

    def score(self, outputs: int) -> Score:
        """Return the accesses for each of so many results."""
        kinds = ((False, False), (False, True), (True, False), (True, True))
        found = [sum((a.shared, a.write) == kind for a in self.log) for kind in kinds]
        return Score(*(count / outputs for count in found))


class Watched:
    """An array in a kernel's hands; a row of it is one, too."""

    def __init__(self, machine: "_Machine", name: str, values, shared=False, row=()):
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
            raise NotYet(
                f"{self._name}{list(place)} becomes None: replace the dots, and return it."
            )
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


class _Machine:
    """What a kernel knows as ``cuda``: its own place, barriers and memory."""

    def __init__(self, blocks: tuple[int, ...], threads: tuple[int, ...]):
        self.gridDim, self.blockDim = _three(*blocks), _three(*threads)
        self.shared = SimpleNamespace(array=self._shared_array)
        self.local = SimpleNamespace(array=lambda shape, dtype: _poisoned(shape, dtype))
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
        return f"Thread {self._turn.number} of block {self.block}"

    def note(self, array: str, place: tuple[int, ...], shared: bool, write: bool) -> None:
        turn = self._turn
        if len(self.log) == LIMIT:
            raise NotYet(f"{self.who()} goes on and on: does its loop end?")
        what = (array, place, shared, write)
        self.log.append(Access(*what, self.block, turn.number, self.moment, turn.accesses))
        turn.accesses += 1

    def _shared_array(self, shape, dtype) -> Watched:
        """The first thread that asks makes the array, the others get the same one."""
        if self._turn.arrays == len(self._arrays):
            self._arrays.append(Watched(self, "shared", _poisoned(shape, dtype), shared=True))
        self._turn.arrays += 1
        return self._arrays[self._turn.arrays - 1]

    def syncthreads(self) -> None:
        self._turn.wait()

    def grid(self, dimensions: int):
        at = zip(self.blockIdx.xyz, self.blockDim.xyz, self.threadIdx.xyz, strict=True)
        place = tuple(block * size + thread for block, size, thread in at)
        return place[0] if dimensions == 1 else place[:dimensions]


def _three(x: int, y: int = 1, z: int = 1) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z, xyz=(x, y, z))


def _places(size: SimpleNamespace) -> Iterator[SimpleNamespace]:
    for z, y, x in np.ndindex(*size.xyz[::-1]):
        yield _three(x, y, z)


def _poisoned(shape, dtype=float32) -> np.ndarray:
    return np.full(shape, np.nan, np.dtype(str(dtype)))


def empty(*shape: int) -> np.ndarray:
    """Return an array for results: NaN wherever no thread writes."""
    return _poisoned(shape)


def package_source(module: str, name: str) -> str:
    """Return the source of a function in mamba_np/cuda; importing it would need numba-cuda."""
    path = Path(equations.__file__).parent / "cuda" / f"{module}.py"
    text = path.read_text("utf-8")
    node = next(n for n in ast.parse(text).body if getattr(n, "name", None) == name)
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


# --- kernels --------------------------------------------------------------------------------------


def _with(machine: _Machine, function: Any) -> Any:
    """Return a kernel or device function as Python, with another ``cuda``."""
    plain = getattr(function, "py_func", function)
    if not isinstance(plain, FunctionType):
        return function
    formula = getattr(equations, plain.__name__, None)
    if formula is not None and formula.__code__ is plain.__code__:
        return formula
    names = dict(plain.__globals__, cuda=machine)
    names.update({k: _with(machine, names[k]) for k in plain.__code__.co_names if k in names})
    inner = tuple(CellType(_with(machine, c.cell_contents)) for c in plain.__closure__ or ())
    return FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, inner)


def launch(kernel: Any, blocks, threads, *arrays: np.ndarray) -> Run:
    """Run a kernel on copies of the arrays. Raises NotYet for what would go wrong on a GPU."""
    sizes = [size if isinstance(size, tuple) else (size,) for size in (blocks, threads)]
    machine = _Machine(*sizes)
    plain = _with(machine, kernel)
    names = plain.__code__.co_varnames[: plain.__code__.co_argcount]
    if len(names) != len(arrays):
        raise NotYet(f"The kernel should take {len(arrays)} arrays, and takes {', '.join(names)}.")
    found = {name: np.array(array) for name, array in zip(names, arrays, strict=True)}
    watched = [Watched(machine, name, values) for name, values in found.items()]
    try:
        machine.run(lambda: plain(*watched))
    except TypeError as error:
        if "ellipsis" in str(error):
            raise NotYet("A number is missing: replace the dots.") from None
        raise
    _require_no_race(machine.log)
    for place in machine.unwritten:
        raise NotYet(f"A thread reads {place}, which nobody has written yet.")
    if GPU:
        _compare(kernel, sizes, arrays, found)
    return Run(found, machine.log, int(np.prod(sizes[1])))


def _require_no_race(log: list[Access]) -> None:
    """Raise NotYet if a number is written while another thread has to do with it."""
    meetings = defaultdict(list)
    for access in log:
        meetings[access.array, access.place, access.block if access.shared else 0].append(access)
    for accesses in meetings.values():
        for one in (a for a in accesses if a.write):
            for other in accesses:
                same_block = one.block == other.block
                if (one.block, one.thread) != (other.block, other.thread) and (
                    one.moment == other.moment or not same_block
                ):
                    whose = "" if same_block else f" of block {other.block}"
                    raise NotYet(
                        f"Thread {one.thread} writes {one.array}{list(one.place)}, and thread "
                        f"{other.thread}{whose} {'writes' if other.write else 'reads'} it with no "
                        "barrier between: which comes first is chance."
                    )


def _compare(kernel: Any, sizes, arrays, found: dict[str, np.ndarray]) -> None:
    """Run the kernel on the GPU; raise NotYet if its results are others."""
    there = [cuda.to_device(np.ascontiguousarray(array)) for array in arrays]
    kernel[tuple(sizes)](*there)
    for (name, here), array in zip(found.items(), there, strict=True):
        if not np.allclose(array.copy_to_host(), here, 1e-4, 1e-5, equal_nan=True):
            raise NotYet(f"On the GPU, {name} is something else.")
