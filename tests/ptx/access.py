"""Loads, stores and atomics, in every space.

Global addresses are those of ``Memory``. Shared addresses begin at 0 for each block and local ones
for each thread; generic ones are global unless they lie in the windows of the two.
"""

import numpy as np

from .build import Run, instruction, type_of
from .errors import PTXError
from .memory import Fault, check_aligned
from .operands import Operands
from .parser import Statement
from .shadow import THREAD
from .threads import LOCAL_WINDOW, SHARED_WINDOW, Threads
from .types import TYPES, Type

SPACES = ("global", "shared", "local", "param", "const")
_HINTS = (
    "nc ca cg cs lu cv wb wt volatile relaxed weak acquire release cta gpu sys cluster v2 v4 "
    "L1::no_allocate L1::evict_first L1::evict_last L1::evict_normal L1::evict_unchanged "
    "L2::64B L2::128B L2::256B shared::cta"
)


def places(t: Threads, space: str, addresses: np.ndarray, width: int):
    """Return (region, offsets, which of the present threads) for each region that is touched."""
    check_aligned(addresses, width)
    if space == "global":
        return t.memory.find(addresses, width)
    if space == "generic":
        return _generic_places(t, addresses, width)
    region, row = (t.shared, t.shared_row) if space == "shared" else (t.local, t.local_row)
    inside = t.inside[space]
    within = addresses.view(np.uint64) <= row - width
    near = np.where(within, addresses, 0)
    good = within & inside[near] & inside[near + (width - 1 if row >= width else 0)]
    if not good.all():
        where = int(addresses[~good][0])
        raise Fault(f"out of bounds: {width} bytes at byte {where} of {region.name}", ~good)
    rows = t.of(t.slot) if space == "shared" else t.numbers()
    return [(region, rows * row + addresses, slice(None))]


def _generic_places(t: Threads, addresses: np.ndarray, width: int):
    found = []
    which = np.digitize(addresses, (SHARED_WINDOW, LOCAL_WINDOW))
    before = t.lanes
    for number in np.unique(which):
        space = ("global", "shared", "local")[number]
        start = (0, SHARED_WINDOW, LOCAL_WINDOW)[number]
        chosen = which == number
        t.take(t.numbers()[chosen])
        for region, offsets, some in places(t, space, addresses[chosen] - start, width):
            indices = np.flatnonzero(chosen)[some]
            found.append((region, offsets, indices))
        t.take(before)
    return found


def load(t: Threads, space: str, addresses: np.ndarray, kind: Type, count: int) -> np.ndarray:
    """Return vectors from memory: (present threads, count)."""
    width = kind.bytes * count
    if space == "shared" and (same := _of_whole_blocks(t, addresses)) is not None:
        return _load_for_blocks(t, same, kind, count)
    found = places(t, space, addresses, width)
    t.launch.counters.loaded(space, width * len(addresses))
    if len(found) == 1:
        region, offsets, _ = found[0]
        return region.load(offsets, kind.dtype, count, t.mine)
    values = np.empty((len(addresses), count), kind.dtype)
    for region, offsets, which in found:
        codes = None if t.mine is None else t.mine[which]
        values[which] = _placing(t, which, region.load, offsets, kind.dtype, count, codes)
    return values


def store(t: Threads, space: str, addresses: np.ndarray, values: np.ndarray) -> None:
    """Write vectors, (present threads, count)."""
    width = values.dtype.itemsize * values.shape[1]
    t.launch.counters.stored(space, width * len(addresses))
    for region, offsets, which in places(t, space, addresses, width):
        codes = None if t.mine is None else t.mine[which]
        _placing(t, which, region.store, offsets, values[which], codes)


def _placing(t: Threads, which, function, *arguments):
    """Call a function of a region; tell its faults by present thread, not by access."""
    try:
        return function(*arguments)
    except Fault as fault:
        if fault.threads is not None:
            everyone = np.zeros(t.active, bool)
            everyone[which] = fault.threads
            fault.threads = everyone
        raise


def _of_whole_blocks(t: Threads, addresses: np.ndarray) -> np.ndarray | None:
    """Return one address for each block where all threads of it read the same one."""
    if t.lanes is not None or t.block_size == 1:
        return None
    rows = addresses.reshape(-1, t.block_size)
    return rows[:, 0] if (rows == rows[:, :1]).all() else None


def _load_for_blocks(t: Threads, addresses, kind: Type, count: int) -> np.ndarray:
    """As ``load``, with one look at memory for each block: a broadcast, as in hardware."""
    firsts = np.arange(0, t.count, t.block_size)
    codes = None if t.mine is None else t.codes[firsts] | THREAD  # read by many threads
    t.take(firsts)
    ((region, offsets, _),) = places(t, "shared", addresses, kind.bytes * count)
    values = region.load(offsets, kind.dtype, count, codes)
    t.take(None)
    t.launch.counters.loaded("shared", kind.bytes * count * t.count)
    return np.repeat(values, t.block_size, axis=0)


# --- the instructions -----------------------------------------------------------------------------


def _space_of(s: Statement) -> str:
    spaces = [one.split("::")[0] for one in s.modifiers]
    return next((one for one in spaces if one in SPACES), "generic")


def _vector(s: Statement) -> int:
    return 4 if "v4" in s.modifiers else 2 if "v2" in s.modifiers else 1


@instruction("ld ldu", allow=" ".join(SPACES) + " " + _HINTS)
def _load(s: Statement, operands: Operands) -> Run:
    space, kind, count = _space_of(s), type_of(s), _vector(s)
    if space == "param":
        return _load_parameter(operands, kind)
    writes = [operands.writer(one, kind) for one in operands.parts(0)]
    if len(writes) != count:
        raise PTXError(f"expected {count} registers, found {len(writes)}")
    address = operands.address(1)

    def run(t: Threads) -> None:
        values = load(t, space, address(t), kind, count)
        for place, write in enumerate(writes):
            write(t, values[:, place])

    return run


def _load_parameter(operands: Operands, kind: Type) -> Run:
    name, offset = operands.named_in_brackets(1)
    write = operands.write(0, kind)
    if name in operands.body.registers:  # what a call gave
        read = operands.reader(name, kind)
        return lambda t: write(t, read(t))
    if name not in operands.body.parameters or offset:
        raise PTXError(f"expected a parameter, found {operands[1]}")
    declared, place = operands.body.parameters[name]
    if declared.bytes < kind.bytes:
        raise PTXError(f"expected a parameter of {kind.bytes} bytes, found .{declared.name}")

    def run(t: Threads) -> None:
        write(t, np.frombuffer(t.launch.arguments[place], kind.dtype, 1)[0])

    return run


@instruction("st", allow=" ".join(SPACES) + " " + _HINTS)
def _store(s: Statement, operands: Operands) -> Run:
    space, kind, count = _space_of(s), type_of(s), _vector(s)
    reads = [operands.reader(one, kind) for one in operands.parts(1)]
    if len(reads) != count:
        raise PTXError(f"expected {count} values, found {len(reads)}")
    if space == "param":  # what a call takes
        write = operands.writer(operands.named_in_brackets(0)[0], kind)
        return lambda t: write(t, reads[0](t))
    address = operands.address(0)

    def run(t: Threads) -> None:
        values = np.empty((t.active, count), kind.dtype)
        for place, read in enumerate(reads):
            values[:, place] = read(t)
        store(t, space, address(t), values)

    return run


@instruction("prefetch prefetchu", allow="global local L1 L2 L2::evict_last L2::evict_normal")
def _prefetch(s: Statement, operands: Operands) -> Run:
    return lambda t: None


# --- atomics --------------------------------------------------------------------------------------


def _inc(old, limit, _):
    return old.dtype.type(0) if old >= limit else old + old.dtype.type(1)


def _dec(old, limit, _):
    return limit if old == 0 or old > limit else old - old.dtype.type(1)


_ATOMIC = {
    "add": lambda old, value, _: old + value,
    "min": lambda old, value, _: np.minimum(old, value),
    "max": lambda old, value, _: np.maximum(old, value),
    "and": lambda old, value, _: old & value,
    "or": lambda old, value, _: old | value,
    "xor": lambda old, value, _: old ^ value,
    "exch": lambda old, value, _: value,
    "cas": lambda old, value, other: other if old == value else old,
    "inc": _inc,
    "dec": _dec,
}


@instruction("atom red", allow=" ".join([*SPACES, *_ATOMIC, _HINTS, "acq_rel noftz"]))
def _atomic(s: Statement, operands: Operands) -> Run:
    """Change memory, one thread after the other in the order of their numbers."""
    space, kind = _space_of(s), type_of(s)
    (name,) = [one for one in s.modifiers if one in _ATOMIC]
    function, returns = _ATOMIC[name], s.name == "atom"
    address = operands.address(int(returns))
    sources = [operands.read(k, kind) for k in range(int(returns) + 1, len(operands))]
    write = operands.write(0, kind) if returns else None

    def run(t: Threads) -> None:
        values = [t.spread(read(t)) for read in sources]
        old = np.empty(t.active, kind.dtype)
        t.launch.counters.loaded(space, kind.bytes * t.active)
        t.launch.counters.stored(space, kind.bytes * t.active)
        for region, offsets, which in places(t, space, address(t), kind.bytes):
            codes = None if t.mine is None else t.mine[which]
            if region.known is not None:
                _placing(t, which, region.load, offsets, kind.dtype, 1)
            _placing(t, which, region.note_write, offsets, kind.dtype, 1, codes, True)
            words, mine = region.words(kind.dtype), [one[which] for one in values]
            old[which] = _one_by_one(words, offsets // kind.bytes, function, mine)
        if write:
            write(t, old)

    return run


def _one_by_one(words: np.ndarray, indices: np.ndarray, function, values) -> np.ndarray:
    old = np.empty(len(indices), words.dtype)
    first, other = values[0], values[-1]
    for k, index in enumerate(indices.tolist()):
        old[k] = words[index]
        words[index] = function(words[index], first[k], other[k])
    return old


# --- copies that go on by themselves -------------------------------------------------------------


@instruction("cp", allow="async ca cg shared global commit_group wait_group wait_all L2::128B "
    "L2::256B L2::64B shared::cta")  # fmt: skip
def _copy(s: Statement, operands: Operands) -> Run:
    """From global to shared memory: there only after a wait for the group of copies."""
    if "commit_group" in s.modifiers:
        return lambda t: t.copies.commit(t)
    if "wait_all" in s.modifiers:
        return lambda t: t.copies.wait(t, 0, commit=True)
    if "wait_group" in s.modifiers:
        left = int(operands[0])
        return lambda t: t.copies.wait(t, left)
    target, source, size = operands.address(0), operands.address(1), int(operands[2])
    if size not in (4, 8, 16):
        raise PTXError(f"expected 4, 8 or 16 bytes, found {size}")
    word = TYPES["b64" if size > 4 else "b32"]
    count = size // word.bytes
    some = operands.read(3, TYPES["u32"]) if len(operands) > 3 else None

    def run(t: Threads) -> None:
        if some is not None and (t.spread(some(t)) != size).any():
            raise Fault("copies a part of its bytes, which is not known here")
        values = load(t, "global", source(t), word, count)
        ((region, offsets, _),) = places(t, "shared", target(t), size)
        t.launch.counters.stored("shared", size * t.active)
        region.note_write(offsets, word.dtype, count, t.mine)
        t.copies.start(t, offsets, values)

    return run
