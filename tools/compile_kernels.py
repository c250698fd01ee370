"""Compile the GPU kernels for every architecture and look at the code. No GPU is needed.

    python tools/compile_kernels.py [--page docs/gpu-kernels.md] [part of a kernel's name ...]

Each kernel of the catalogue goes through the run time's own compiler to PTX and to machine code,
which NVIDIA's nvdisasm turns into text (pip install 'mamba-np[cuda-test]'). A kernel has to keep
its budget of registers and shared memory, to hold everything in registers (no stack, no spills, no
local memory), to load 16 bytes at a time where it reads much, to call nothing, and to compute
nothing in double precision. The main loop of a kernel with a budget for it (LOOPS) may not grow.

``--page`` writes the tables into a page of the documentation, between its markers.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from machine_code import Instruction, functions, inner_loops, successors

from mamba_np.cuda.catalogue import kernels
from mamba_np.cuda.compiler import ARCHITECTURES, Code, link, ptx
from mamba_np.cuda.registry import Kernel

TABLES_FOR = 90
"""The architecture whose loops are printed: the others' differ by a few instructions."""

COMPILERS = ("numba-cuda", "numba", "nvidia-nvvm", "nvidia-nvjitlink")
"""Packages whose versions decide what the machine code is."""


class LoopBudget(NamedTuple):
    """What the main loop of a kernel may cost."""

    steps: int  # of a text, in one turn of the loop
    instructions: int  # a step, at most


LOOPS: dict[str, LoopBudget] = {"channel_scan": LoopBudget(4, 150)}
"""By the first word of a kernel's name."""

# --- from kernels to machine code -----------------------------------------------------------------

FAMILIES = {75: 90, 80: 90, 86: 90, 89: 90, 90: 90, 100: 100, 120: 120}
"""Architectures whose PTX is the same but for the target's name, which one stands for.

For Blackwell's, the compiler is a newer one, which tells them apart."""


def texts(kernel: Kernel) -> dict[int, str]:
    """Return a kernel's PTX by architecture; it is compiled once for each family."""
    return {
        architecture: retargeted(ptx(kernel, FAMILIES[architecture]), architecture)
        for architecture in ARCHITECTURES
    }


def retargeted(text: str, architecture: int) -> str:
    """Return PTX for another architecture of the same family."""
    return re.sub(r"^\.target sm_\d+", f".target sm_{architecture}", text, flags=re.MULTILINE)


def disassembled(texts: Iterable[str], architecture: int) -> str:
    """Return the machine code of several kernels as text: nvdisasm starts slowly.

    Raises RuntimeError where nvdisasm is not installed.
    """
    core = import_module("cuda.core")
    program = import_module("cuda.pathfinder").find_nvidia_binary_utility("nvdisasm")
    if program is None:
        raise RuntimeError("expected nvdisasm, found none: pip install 'mamba-np[cuda-test]'")
    parts = [core.ObjectCode.from_ptx(text.encode()) for text in texts]
    options = core.LinkerOptions(arch=f"sm_{architecture}")
    binary = core.Linker(*parts, options=options).link("cubin").code
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(bytes(binary))
        command = [program, "-c", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- judging --------------------------------------------------------------------------------------

WIDE = r"LDG\S*\.(128|256)"
SPECIAL = r"MUFU"
FLOAT = r"F(FMA|MUL|ADD|SETP|SEL|MNMX|SET)\d?\b"
NOT_ALLOWED = {
    "local memory": r"(LDL|STL)\b",
    "double precision": r"D(ADD|MUL|FMA|SETP|MNMX)\b|\w+\S*\.F64|MUFU\.\w+64H",
    "a call": r"CALL\b",
}

RESERVED = {90: 1024}
"""Bytes of shared memory that the linker counts besides the kernel's own: the system's."""


class Report(NamedTuple):
    """What became of a kernel on an architecture."""

    code: Code
    size: int  # instructions that can be reached
    wide: int  # loads of 16 bytes or more from the device's memory
    loop: list[Instruction]  # of the innermost loops the one that computes most
    problems: list[str]

    def in_loop(self, pattern: str) -> int:
        """Count the instructions of the main loop whose names begin like a pattern."""
        return _count(self.loop, pattern)


def _count(code: Iterable[Instruction], pattern: str) -> int:
    return sum(one.matches(pattern) for one in code)


def examined(linked: dict[Kernel, tuple[str, Code]], architecture: int) -> dict[str, Report]:
    """Judge kernels, each with its PTX and what that was linked to: {name: report}."""
    found = functions(disassembled([text for text, _ in linked.values()], architecture))
    reports = {}
    for kernel, (text, code) in linked.items():
        reserved = RESERVED.get(architecture, 0) if code.shared else 0
        code = code._replace(shared=code.shared - reserved)
        reports[kernel.name] = _judged(kernel, text, code, found[code.symbol])
    return reports


def _judged(kernel: Kernel, text: str, code: Code, function: list[Instruction]) -> Report:
    used = [function[i] for i in sorted(successors(function))]
    loops = inner_loops(function)
    main = max(loops, key=lambda loop: (_count(loop, SPECIAL), len(loop)), default=[])
    wide = _count(used, WIDE)
    problems = list(_over_budget(kernel, code))
    if re.search(r"\.f64\b", text):
        problems.append("double precision in the PTX")
    if kernel.budget.wide_loads and not wide:
        problems.append("no load of 16 bytes")
    for what, pattern in NOT_ALLOWED.items():
        slow = [one for one in used if one.matches(pattern) and one.target is None]
        if slow:
            problems.append(f"{what}: {len(slow)} times, {slow[0].name} {slow[0].operands}")
    budget = LOOPS.get(kernel.name.split()[0])
    if budget and not 0 < len(main) <= budget.steps * budget.instructions:
        found = f"{len(main)} instructions for {budget.steps} steps in the main loop"
        problems.append(f"{found}, at most {budget.steps * budget.instructions}")
    return Report(code, len(used), wide, main, problems)


def _over_budget(kernel: Kernel, code: Code) -> Iterator[str]:
    budget = kernel.budget
    if code.registers > budget.registers:
        yield f"{code.registers} registers, at most {budget.registers}"
    if code.shared > budget.shared:
        yield f"{code.shared} bytes of shared memory, at most {budget.shared}"
    if code.stack:
        yield f"{code.stack} bytes of stack"
    if code.spilled:
        yield f"{code.spilled} bytes spilled"


def examine_all(
    chosen: Iterable[Kernel], architectures: Iterable[int] = ARCHITECTURES
) -> dict[int, dict[str, Report]]:
    """Examine kernels on every architecture: {architecture: {name: report}}."""
    waiting: dict[int, dict[Kernel, tuple[str, Future[Code]]]] = {a: {} for a in architectures}
    with ThreadPoolExecutor() as pool:  # the linker and nvdisasm leave Python to others
        for kernel in chosen:
            compiled = texts(kernel)
            for architecture, row in waiting.items():
                text = compiled[architecture]
                row[kernel] = text, pool.submit(link, text, architecture)

        def on(architecture: int) -> dict[str, Report]:
            linked = {k: (text, code.result()) for k, (text, code) in waiting[architecture].items()}
            return examined(linked, architecture)

        return dict(zip(waiting, pool.map(on, waiting), strict=True))


# --- tables ---------------------------------------------------------------------------------------


def table(found: dict[int, dict[str, Report]]) -> Iterator[str]:
    """Yield the lines of a table of all kernels: {architecture: {name: report}}."""
    threads = {kernel.name: kernel.threads for kernel in kernels()}
    names = [f"sm_{architecture}" for architecture in found]
    head = ["kernel", "threads", *names, "shared", "wide loads", "loop", "special"]
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'--:|' * (len(head) - 1)}"
    for name, report in found[TABLES_FOR].items():
        registers = [row[name].code.registers for row in found.values()]
        special = report.in_loop(SPECIAL)
        cells = (report.code.shared, report.wide, len(report.loop), special)
        yield f"| {' | '.join(map(str, (name, threads[name], *registers, *cells)))} |"


class Gpu(NamedTuple):
    """What NVIDIA says of a GPU."""

    architecture: int
    processors: int
    gigahertz: float  # at most
    gigabytes: int  # a second, of its memory
    floats: int  # float32 operations of a processor in a clock

    SPECIALS, ISSUED = 16, 128  # of a processor in a clock: MUFU, instructions of any kind


GPUS = {
    "T4": Gpu(75, 40, 1.59, 320, 64),
    "A100 80GB": Gpu(80, 108, 1.41, 2039, 64),
    "RTX 3090": Gpu(86, 82, 1.70, 936, 128),
    "RTX 4090": Gpu(89, 128, 2.52, 1008, 128),
    "H200": Gpu(90, 132, 1.98, 4800, 128),
    "RTX 5090": Gpu(120, 170, 2.41, 1792, 128),
}
FLOORS_FOR, TEXTS, STEPS, CHANNELS = "channel_scan N=16 float32", 8, 4096, 4096
BYTES = 16
"""Of x, raw step size, z and y, of one channel in one step; B and C are shared by all."""


def floors(found: dict[int, dict[str, Report]]) -> Iterator[str]:
    """Yield the lines of a table: milliseconds that no such scan can be faster than."""
    yield "| GPU | special | float32 | all instructions | memory | floor, ms |"
    yield "|---|--:|--:|--:|--:|--:|"
    steps, work = LOOPS[FLOORS_FOR.split()[0]].steps, TEXTS * STEPS * CHANNELS
    for name, gpu in GPUS.items():
        report = found[gpu.architecture][FLOORS_FOR]
        clocks = (
            report.in_loop(SPECIAL) / gpu.SPECIALS,
            report.in_loop(FLOAT) / gpu.floats,
            len(report.loop) / gpu.ISSUED,
        )
        rate = gpu.processors * gpu.gigahertz * 1e6  # clocks of all processors in a millisecond
        times = [work / steps * each / rate for each in clocks]
        times.append(work * BYTES / gpu.gigabytes / 1e6)
        yield f"| {name} | {' | '.join(f'{time:.2f}' for time in (*times, max(times)))} |"


def written(page: str, name: str, lines: Iterable[str]) -> str:
    """Return a page with lines between its markers of a name. Raises ValueError without them."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(start)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise ValueError(f"expected the markers {start.strip()} and {end}, found no such pair")
    return before + start + "\n".join(["", *lines, "", end]) + after


def compilers() -> str:
    """Return the versions of what makes the code."""
    return ", ".join(f"{name} {version(name)}" for name in COMPILERS)


def main(arguments: list[str]) -> int:
    """Print the tables, or write them into a page; return how many kernels have problems."""
    page = None
    if arguments[:1] == ["--page"]:
        page, arguments = Path(arguments[1]), arguments[2:]
    chosen = [k for k in kernels() if all(part in k.name for part in arguments)]
    found = examine_all(chosen)
    parts = {"kernels": table(found), "compilers": [f"Compilers: {compilers()}."]}
    if FLOORS_FOR in found[TABLES_FOR]:
        parts["floors"] = floors(found)
    text = page.read_text("utf-8") if page else ""
    for name, lines in parts.items():
        if page:
            text = written(text, name, lines)
        else:
            print(*lines, "", sep="\n")
    if page:
        page.write_text(text, "utf-8")
    problems = grouped(found)
    for (name, problem), where in problems.items():
        print(f"{name}: {problem} ({', '.join(f'sm_{architecture}' for architecture in where)})")
    return len({name for name, _ in problems})


def grouped(found: dict[int, dict[str, Report]]) -> dict[tuple[str, str], list[int]]:
    """Return where each kernel has which problem: {(name, problem): architectures}."""
    problems: dict[tuple[str, str], list[int]] = {}
    for architecture, row in found.items():
        for name, report in row.items():
            for problem in report.problems:
                problems.setdefault((name, problem), []).append(architecture)
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
