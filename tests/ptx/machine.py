"""The machine: kernels ready to run, and the schedule of their threads.

Threads that stand at the same instruction run it together. Of those that have parted at a branch,
the ones whose instruction comes first in the text run first, until they stand where others wait:
so they meet again where the branches do (Collange's "minimum PC" rule). Barriers let threads go
once everyone else has stopped.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

# Each family of instructions registers itself when it is imported.
from . import access, arithmetic, bits, control, functions, moves, warps  # noqa: F401
from .build import Control, build, guard_of
from .counters import Counters
from .errors import PTXError
from .memory import Apart, Fault, Memory
from .parser import Body, bodies
from .shadow import EPOCH
from .threads import Threads
from .warps import present

MOST_STEPS = 20_000_000
THREADS_TOGETHER = 4096  # enough that NumPy's loops outweigh Python's, few enough for caches


class Kernel:
    """A kernel of a module, each instruction made a function."""

    def __init__(self, body: Body):
        self.body, self.name = body, body.name
        self.slots: dict = {}  # (register, dtype) -> place among the views of registers
        self.code = [build(statement, body, self.slots) for statement in body.statements]
        self.guards = [
            guard_of(s, body, self.slots) if s.guard and isinstance(run, Control) else None
            for s, run in zip(body.statements, self.code, strict=True)
        ]
        self.register_names = list(body.registers)
        self.register_types = [register.type for register in body.registers.values()]
        self.meetings = set(body.labels.values())  # where threads may join others

    @cached_property
    def stretches(self) -> list[list[tuple]]:
        """For each place, the instructions from there up to a control or a label: (place, run)."""
        found: list[list[tuple]] = [[] for _ in self.code]
        for place in reversed(range(len(self.code))):
            if isinstance(self.code[place], Control):
                continue
            after = [] if place + 1 in self.meetings else found[place + 1]
            found[place] = [(place, self.code[place]), *after]
        return found


class Module:
    """All kernels of a text of PTX."""

    def __init__(self, text: str):
        self.kernels = {body.name: Kernel(body) for body in bodies(text)}

    @property
    def kernel(self) -> Kernel:
        """The only kernel."""
        if len(self.kernels) != 1:
            raise PTXError(f"expected one kernel, found {', '.join(self.kernels)}")
        return next(iter(self.kernels.values()))


class Launch:
    """What is the same for all threads of one launch."""

    def __init__(self, grid, block, memory: Memory, dynamic_shared: int):
        self.grid, self.block = _three(grid, "grid"), _three(block, "block")
        self.memory, self.dynamic_shared = memory, dynamic_shared
        self.arguments: list[bytes] = []
        self.checks = self.approximate = True
        self.counters = Counters()
        self.limit = MOST_STEPS


def _three(size, name: str) -> tuple[int, int, int]:
    size = (size,) if isinstance(size, int | np.integer) else tuple(size)
    if not 1 <= len(size) <= 3 or min(size) < 1:
        raise PTXError(f"{name}: expected one to three positive numbers, found {size}")
    return tuple(int(n) for n in (*size, 1, 1)[:3])


def launch(
    kernel: Kernel | Module,
    grid,
    block,
    args: Sequence,
    memory: Memory,
    dynamic_shared: int = 0,
    checks: bool = True,
    *,
    approximate: bool = False,
    limit: int = MOST_STEPS,
) -> Counters:
    """Run a kernel on a grid of blocks of threads; arrays in ``memory`` are changed in place.

    ``args`` are Python numbers: addresses from ``memory.alloc``, sizes, floats. ``checks`` looks
    for races and for reads of what nobody wrote; bounds and alignment are always checked.
    ``approximate`` lets the hardware's quick functions err as they may.
    """
    kernel = kernel.kernel if isinstance(kernel, Module) else kernel
    run = Launch(grid, block, memory, dynamic_shared)
    run.checks, run.approximate, run.limit = checks, approximate, limit
    run.arguments = _arguments(kernel, args)
    threads, blocks = int(np.prod(run.block)), int(np.prod(run.grid))
    most = kernel.body.most_threads or 1024
    if threads > most:
        raise PTXError(f"block: expected at most {most} threads, found {threads}")
    memory.start_launch(checks)
    whole_grid = any(isinstance(one, Control) and one.kind == "grid" for one in kernel.code)
    together = blocks if whole_grid else max(1, THREADS_TOGETHER // threads)
    with np.errstate(all="ignore"):
        for first in range(0, blocks, together):
            numbers = np.arange(first, min(first + together, blocks))
            _Schedule(kernel, Threads(kernel, numbers, run)).run()
    return run.counters


def _arguments(kernel: Kernel, args: Sequence) -> list[bytes]:
    parameters = kernel.body.parameters
    if len(args) != len(parameters):
        raise PTXError(f"args: {kernel.name} takes {len(parameters)}, found {len(args)}")
    found = []
    for value, (name, (kind, _)) in zip(args, parameters.items(), strict=True):
        if isinstance(value, float | np.floating) or kind.is_float:
            if kind.bytes < 2 or not isinstance(value, int | float | np.number):
                raise PTXError(f"args: {name} is .{kind.name}, found {value!r}")
            found.append(np.array(value, f"f{kind.bytes}").tobytes())
            continue
        if not isinstance(value, int | np.integer):
            raise PTXError(f"args: {name} is .{kind.name}, found {value!r}")
        width = 8 * kind.bytes
        if not -(1 << width - 1) <= value < 1 << width:
            raise PTXError(f"args: {name} is .{kind.name}, found {value}, which does not fit")
        found.append((int(value) & (1 << width) - 1).to_bytes(kind.bytes, "little"))
    return found


class _Schedule:
    """Who stands where: groups of threads by instruction, and those who wait at a barrier."""

    def __init__(self, kernel: Kernel, threads: Threads):
        self.kernel, self.t = kernel, threads
        self.groups: dict[int, np.ndarray] = {0: np.arange(threads.count)}
        self.waits = np.full(threads.count, -1)  # the barrier's place in the code
        self.barrier = np.zeros(threads.count, np.int64)  # its number
        self.expected = np.zeros(threads.count, np.int64)  # how many wait for each other
        self.named = np.zeros(threads.count, np.uint32)  # lanes that a shuffle waits for
        self.alive = np.ones(threads.count, bool)
        self.executed = np.zeros(len(kernel.code), np.int64)
        self.place = 0

    def run(self) -> None:
        counters = self.t.launch.counters
        try:
            while self.groups or self._release():
                place = min(self.groups)
                lanes = self.groups.pop(place)
                self.t.take(None if len(lanes) == self.t.count else lanes)
                self._go(place, lanes)
        except Fault as fault:
            where = self.t.place_of(fault.threads)
            self._fail(self.place, f"{where}: {fault}")
        for place in np.flatnonzero(self.executed):
            opcode = self.kernel.body.statements[place].opcode
            counters.opcodes[opcode] += int(self.executed[place])

    def _fail(self, place: int, message: str):
        s, name = self.kernel.body.statements[place], self.kernel.name
        name = name if len(name) < 60 else f"{name[:40]}..."
        raise PTXError(f"{name}, line {s.line}, `{s.text}`, {message}") from None

    def _go(self, place: int, lanes: np.ndarray) -> None:
        """Run a group from an instruction on, up to a branch, a barrier or a meeting."""
        t, counters = self.t, self.t.launch.counters
        stretch = self.kernel.stretches[place]
        try:
            for self.place, run in stretch:
                run(t)
        except Apart as apart:
            self.executed[place : self.place] += len(lanes)
            self._gather(self.place, lanes, apart)
            return
        after = place + len(stretch)
        self.executed[place:after] += len(lanes)
        counters.steps += len(stretch) + 1
        if counters.steps > t.launch.limit:
            self._fail(after, f"still running after {t.launch.limit} instructions: an endless loop")
        step = self.kernel.code[after]
        if isinstance(step, Control) and (not stretch or after not in self.kernel.meetings):
            self.place = after
            self.executed[after] += len(lanes)
            self._control(step, after, lanes)
        else:
            self._join(after, lanes)

    def _join(self, place: int, lanes: np.ndarray) -> None:
        if not len(lanes):
            return
        others = self.groups.get(place)
        if others is not None:
            lanes = np.sort(np.concatenate([others, lanes]))
        self.groups[place] = lanes

    def _control(self, step: Control, place: int, lanes: np.ndarray) -> None:
        guard = self.kernel.guards[place]
        going = lanes
        if guard is not None:
            chosen = self.t.spread(guard(self.t))
            going = lanes[chosen]
            self._join(place + 1, lanes[~chosen])
        if step.kind == "branch":
            self._join(self.kernel.body.labels[step.target], going)
        elif step.kind == "exit":
            self.alive[going] = False
        else:
            self.waits[lanes] = place
            if step.kind == "block":
                self.barrier[lanes] = step.barrier(self.t)
                size = self.t.block_size if step.threads is None else step.threads(self.t)
                self.expected[lanes] = size

    def _gather(self, place: int, lanes: np.ndarray, apart: Apart) -> None:
        """Let lanes of incomplete warps wait at an instruction until their companions come."""
        self._join(place + 1, np.setdiff1d(lanes, apart.threads))  # those whom its guard excludes
        self._join(place, apart.threads[~apart.absent])
        self.waits[apart.threads[apart.absent]] = place
        self.named[apart.threads] = apart.named
        waiting = np.flatnonzero(self.waits == place)
        self.t.take(waiting)
        complete = self.named[waiting] & ~present(self.t) == 0
        self.waits[waiting[complete]] = -1
        self._join(place, waiting[complete])

    # --- barriers -------------------------------------------------------------------------------

    def _release(self) -> bool:
        """Let threads go whose barrier is complete; return whether any were."""
        waiting = np.flatnonzero(self.waits >= 0)
        if not len(waiting):
            return False
        places = np.unique(self.waits[waiting])
        kinds = {place: getattr(self.kernel.code[place], "kind", "warp") for place in places}
        if set(kinds.values()) == {"grid"} and len(waiting) == self.t.count:
            self._pass(waiting, whole=True)
            for region in self.t.memory.regions:
                region.forget()
            return True
        blocks = np.array([kinds[place] == "block" for place in self.waits[waiting]])
        complete = self._complete(waiting[blocks])
        if not len(complete):
            self._explain(waiting)
        self._pass(complete, whole=False)
        return True

    def _complete(self, lanes: np.ndarray) -> np.ndarray:
        """Return the threads whose barrier all others have reached that it waits for."""
        keys = self.t.slot[lanes] * 16 + self.barrier[lanes]
        counts = np.bincount(keys, minlength=(self.t.slot[-1] + 1) * 16)
        return lanes[counts[keys] == self.expected[lanes]]

    def _pass(self, lanes: np.ndarray, whole: bool) -> None:
        t = self.t
        keys = np.zeros(len(lanes), int) if whole else t.slot[lanes] * 16 + self.barrier[lanes]
        first = np.full(keys.max() + 1, -1)
        first[keys[::-1]] = self.waits[lanes][::-1]
        if (other := self.waits[lanes] != first[keys]).any():
            a, b = (self.kernel.body.statements[place].line for place in
                    (first[keys[other]][0], self.waits[lanes][other][0]))  # fmt: skip
            message = f"divergent barrier: some threads wait at line {a}, others at line {b}"
            self._fail(int(self.waits[lanes][other][0]), message)
        full = whole | (self.expected[lanes] == t.block_size)
        t.codes[lanes[full]] += 1 << EPOCH  # the next one; a part of a block orders nothing
        for place in np.unique(self.waits[lanes]):
            here = lanes[self.waits[lanes] == place]
            if (finish := self.kernel.code[place].finish) is not None:
                t.take(here)
                finish(t)
            self._join(int(place) + 1, here)
        self.waits[lanes] = -1

    def _explain(self, waiting: np.ndarray) -> None:
        """Say why nobody can go on."""
        code, places = self.kernel.code, self.waits[waiting]
        shuffles = [one for one in waiting if not isinstance(code[self.waits[one]], Control)]
        first = shuffles[0] if shuffles else waiting[0]
        slot, place = self.t.slot[first], int(self.waits[first])
        here = waiting[self.t.slot[waiting] == slot]
        gone = int((~self.alive[self.t.slot == slot]).sum())
        self.t.take(np.array([first]))
        where = self.t.place_of(None)
        lines = sorted({self.kernel.body.statements[p].line for p in places})
        if shuffles:
            message = "lanes that the mask names are not converged: they do not come here"
        elif gone:
            message = f"divergent barrier: {len(here)} threads wait, {gone} have returned"
        else:
            message = f"deadlock: the threads of a block wait at different barriers, lines {lines}"
        self._fail(place, f"{where}: {message}")
