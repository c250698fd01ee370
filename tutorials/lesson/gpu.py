"""Kernels that are watched: which thread reads and writes what, and between which barriers.

``launch`` runs a kernel as Python (see ``gpu_watch``), keeps a log of every access to memory, and
raises NotYet where a GPU would go wrong in silence: past an array's end, a number that one thread
writes while another reads it, a barrier that not every thread reaches. Where there is a GPU, it
runs the kernel there, too, and compares the results.
"""

import ast
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numpy as np

from mamba_np import equations

from .checking import NotYet
from .gpu_choice import gpu_name
from .gpu_watch import Access, Machine, Run, Watched, poisoned

GPU = gpu_name()
cuda: Any = import_module("numba.cuda")
float32: Any = import_module("numba").float32

# What kernels call is the package's: its device functions, or the functions those are made of.
formulas: Any = import_module("mamba_np.cuda.formulas") if GPU else equations
softplus, decay, state_update = formulas.softplus, formulas.decay, formulas.state_update


def empty(*shape: int) -> np.ndarray:
    """Return an array for results: NaN wherever no thread writes."""
    return poisoned(shape, float32)


def package_source(module: str, name: str) -> str:
    """Return the source of a function in mamba_np/cuda; importing it would need numba-cuda."""
    path = Path(equations.__file__).parent / "cuda" / f"{module}.py"
    text = path.read_text("utf-8")
    node = next(n for n in ast.parse(text).body if getattr(n, "name", None) == name)
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _with(machine: Machine, function: Any) -> Any:
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
    machine = Machine(*sizes)
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
