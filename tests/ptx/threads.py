"""The threads that run together: their registers, and which of them run right now.

This is the SIMT idea in NumPy: one instruction at a time, for many threads at once. A register is
an array with one element a thread. ``lanes`` holds the numbers of the threads that take part in
the present instruction, or None where all do, which needs no indexing.
"""

import numpy as np

from .copies import Copies
from .memory import Fault, Memory, Region
from .shadow import Shadow, codes_of

WARP = 32
SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 1 << 57
"""Where generic addresses find shared and local memory."""


class Threads:
    """Whole blocks of a grid, as many as run together."""

    def __init__(self, kernel, blocks: np.ndarray, launch):
        """Start the blocks with these numbers (counted x first), of a ``Launch``."""
        self.kernel, self.launch, self.blocks = kernel, launch, blocks
        self.memory: Memory = launch.memory
        self.block_size = int(np.prod(launch.block))
        self.count = len(blocks) * self.block_size
        self.slot = np.repeat(np.arange(len(blocks)), self.block_size)  # which of these blocks
        self.block = np.repeat(blocks, self.block_size)
        self.thread = np.tile(np.arange(self.block_size), len(blocks))
        self.lane = self.thread % WARP
        warps = -(-self.block_size // WARP)
        self.warp = self.slot * warps + self.thread // WARP
        self.special = self._special()
        self.lanes: np.ndarray | None = None
        self._registers(kernel)
        self._spaces(kernel)
        self.codes = codes_of(self.block, self.thread)
        self.mine = self.codes if launch.checks else None  # codes of the present threads
        self.copies = Copies(self.count)

    def _special(self) -> dict[str, np.ndarray]:
        found = {}
        size = self.launch.block
        for axis, step in zip("xyz", (1, size[0], size[0] * size[1]), strict=True):
            k = "xyz".index(axis)
            found[f"%tid.{axis}"] = self.thread // step % size[k]
            found[f"%ntid.{axis}"] = np.full(self.count, size[k])
            grid = self.launch.grid
            before = int(np.prod(grid[:k]))
            found[f"%ctaid.{axis}"] = self.block // before % grid[k]
            found[f"%nctaid.{axis}"] = np.full(self.count, grid[k])
        found["%laneid"] = self.lane
        found["%warpid"] = self.thread // WARP
        found["%nwarpid"] = np.full(self.count, -(-self.block_size // WARP))
        bit = np.uint64(1) << self.lane.astype(np.uint64)
        found["%lanemask_eq"], found["%lanemask_lt"] = bit, bit - np.uint64(1)
        found["%lanemask_le"] = bit * np.uint64(2) - np.uint64(1)
        found["%lanemask_gt"], found["%lanemask_ge"] = ~found["%lanemask_le"], ~(bit - np.uint64(1))
        return {name: values.astype(np.uint32) for name, values in found.items()}

    def _registers(self, kernel) -> None:
        storage = [
            np.zeros(self.count, bool if kind.name == "pred" else f"uint{8 * kind.bytes}")
            for kind in kernel.register_types
        ]
        self.defined: list = [None] * len(storage)  # None: in no thread, True: in all, or an array
        self.views = [
            storage[register][:, None].view(dtype)[:, 0]
            if dtype.itemsize < storage[register].itemsize
            else storage[register].view(dtype)
            for register, dtype in kernel.slots
        ]

    def _spaces(self, kernel) -> None:
        """Lay out shared memory, a row for each block, and local memory, a row for each thread."""

        def region(name, size, rows):
            self.row = -(-max(size, 1) // 16) * 16
            data = np.zeros(rows * self.row, np.uint8)
            return Region(name, data, np.zeros_like(data) if self.launch.checks else None), self.row

        shared = kernel.body.size_of("shared") + self.launch.dynamic_shared
        self.shared, self.shared_row = region("shared memory", shared, len(self.blocks))
        if self.launch.checks:
            self.shared.shadow = Shadow(len(self.shared.data))
        self.local, self.local_row = region(
            "local memory", kernel.body.size_of("local"), self.count
        )
        extents = np.zeros((2, max(self.shared_row, self.local_row)), bool)
        for variable in kernel.body.variables.values():
            size = variable.bytes
            if variable.space == "shared" and size == 0:
                size = self.launch.dynamic_shared
            row = extents[0 if variable.space == "shared" else 1]
            row[variable.offset : variable.offset + size] = True
        self.inside = {"shared": extents[0], "local": extents[1]}

    # --- the present threads --------------------------------------------------------------------

    def take(self, lanes: np.ndarray | None) -> None:
        """Let these threads run."""
        self.lanes = lanes
        if self.launch.checks:
            self.mine = self.codes if lanes is None else self.codes[lanes]

    @property
    def active(self) -> int:
        return self.count if self.lanes is None else len(self.lanes)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the elements that belong to the present threads."""
        return values if self.lanes is None else values[self.lanes]

    def numbers(self) -> np.ndarray:
        """Return the numbers of the present threads."""
        return np.arange(self.count) if self.lanes is None else self.lanes

    def spread(self, value) -> np.ndarray:
        """Return a value that may be the same for all as one for each present thread."""
        return np.broadcast_to(value, (self.active,))

    def require(self, register: int) -> None:
        """Check that the present threads have set a register."""
        defined = self.defined[register]
        if defined is None:
            raise Fault(f"reads register {self.kernel.register_names[register]}, which is not set")
        if not (ok := self.of(defined)).all():
            name = self.kernel.register_names[register]
            raise Fault(f"reads register {name}, which is not set", ~ok)

    def define(self, register: int) -> None:
        """Note that the present threads set a register."""
        if self.lanes is None:
            self.defined[register] = True
        elif self.defined[register] is not True:
            if self.defined[register] is None:
                self.defined[register] = np.zeros(self.count, bool)
            self.defined[register][self.lanes] = True

    def place_of(self, bad: np.ndarray | None) -> str:
        """Return where a fault is, in words: the first of the threads it is in."""
        index = 0 if bad is None else int(np.argmax(bad))
        number = int(self.numbers()[index])
        block, thread = int(self.block[number]), int(self.thread[number])

        def xyz(flat, size):
            return f"({flat % size[0]}, {flat // size[0] % size[1]}, {flat // size[0] // size[1]})"

        return f"block {xyz(block, self.launch.grid)}, thread {xyz(thread, self.launch.block)}"
