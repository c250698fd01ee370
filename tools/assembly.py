"""Look at the kernels' machine code: do their loops use the widest vectors, and nothing slower?

    python tools/assembly.py [host avx2 avx512 aarch64]

"host" is what Numba makes here. The others are made for another processor, of the same kernels'
LLVM code as it is before optimisation, by the passes that Numba runs; nothing of it is executed.

A loop is looked at if it has no loop inside and computes with floating-point numbers. It has to
use vectors of the processor's full width (narrower ones may only add: the end of a sum), to
multiply and add in one instruction, and to call nothing. No kernel may call anything but the
system's and Numba's own memory and thread functions, nor compute in double precision. Vectors
that a loop has no register for cost little when they are few: such "spills" are counted.
"""

import os
import pickle
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DTYPES = ("float32", "bfloat16", "float16", "int8")
ALLOWED = r"(NRT_\w+|sched_yield|SwitchToThread|mem(set|cpy|move))(@PLT)?$"
"""What a kernel may call."""

# --- processors -----------------------------------------------------------------------------------


class Dialect(NamedTuple):
    """How an architecture writes what is looked for: patterns of an instruction's beginning."""

    vectors: str  # arithmetic of float32 vectors
    sums: str  # additions among them
    products: str
    fused: str  # both in one
    scalars: str  # arithmetic of single float32 numbers, additions left out
    doubles: str
    calls: str  # group 1 is what is called
    spills: str


_X86 = "(add|sub|mul|div|max|min|sqrt|fn?m(add|sub)\\w*)"
X86 = Dialect(
    vectors=rf"v?{_X86}ps\b",
    sums=r"v?addps\b",
    products=r"v?mulps\b",
    fused=r"vfn?m\w+ps\b",
    scalars=r"v?(sub|mul|div|max|min|sqrt|fn?m(add|sub)\w*)ss\b",
    doubles=rf"v?{_X86}[ps]d\b",
    calls=r"callq?\s+(\S+)",
    spills=r"v?mov\w+\s.*\(%rsp\)",
)
_ARM = "f(add|sub|mul|div|mla|mls|maxn?m?|minn?m?|sqrt|n?madd|n?msub|nmul)"
_FOUR = r"(\.4s\b|\s+v\d+\.4s)"
ARM = Dialect(
    vectors=rf"{_ARM}(\.[24]s\b|\s+v\d+\.[24]s)",
    sums=r"faddp?(\.[24]s\b|\s+v\d+\.[24]s)",
    products=rf"fmul{_FOUR}",
    fused=rf"fml[as]{_FOUR}",
    scalars=r"f(sub|mul|div|max\w*|min\w*|sqrt|n?madd|n?msub|nmul)\s+s\d",
    doubles=rf"{_ARM}(\.2d\b|\s+(d\d|v\d+\.2d))",
    calls=r"bl\s+(\S+)",
    spills=r"(ld|st)[rp]\s+q\d.*\[sp",
)


class Target(NamedTuple):
    """A processor that code can be made for."""

    triple: str | None  # None: this machine, as Numba sees it
    cpu: str
    features: str
    register: str  # how a register of full width is written
    dialect: Dialect
    fuses: bool = True  # has instructions that multiply and add


_LINUX = "unknown-linux-gnu"
TARGETS = {
    "avx2": Target(f"x86_64-{_LINUX}", "haswell", "", "%ymm", X86),
    "avx512": Target(f"x86_64-{_LINUX}", "x86-64-v4", "", "%zmm", X86),
    "aarch64": Target(f"aarch64-{_LINUX}", "neoverse-n1", "", ".4s", ARM),
}


def target_named(name: str) -> Target:
    """Return a target; "host" is this machine. Raises KeyError for an unknown name."""
    return host() if name == "host" else TARGETS[name]


def host() -> Target:
    """Return what Numba compiles for here."""
    import llvmlite.binding as llvm

    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    if platform.machine() in ("aarch64", "arm64"):
        return Target(None, cpu, features.flatten(), ".4s", ARM)
    wide = (features.get("avx512f") and "%zmm") or (features.get("avx2") and "%ymm") or "%xmm"
    return Target(None, cpu, features.flatten(), wide, X86, bool(features.get("fma")))


# --- from kernels to assembly -----------------------------------------------------------------


def kernels_llvm(optimised: bool, dtypes: tuple[str, ...] = DTYPES) -> dict[str, str]:
    """Return the LLVM code of each kernel, by name, compiled afresh in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"NUMBA_CACHE_DIR": folder, "PYTHONWARNINGS": "ignore"}
        if not optimised:
            settings["NUMBA_OPT"] = "0"
        command = [sys.executable, __file__, "--llvm", *dtypes]
        process = subprocess.run(
            command, env=os.environ | settings, stdout=subprocess.PIPE, check=True
        )
    return pickle.loads(process.stdout)


def _print_llvm(dtypes: list[str]) -> None:
    """Compile the kernels by using them; write their LLVM code to the standard output."""
    from mamba_np.kernels import (
        attention,
        barrier,
        linear,
        observing,
        rows,
        rows_backward,
        scan,
        scan_backward,
        step,
    )
    from mamba_np.warmup import warmup

    for _ in warmup(dtypes):
        pass
    _train_and_trace()
    forward, backward = (barrier, linear, rows, scan, step), (rows_backward, scan_backward)
    found = {}
    for module in (*forward, *backward, observing, attention):
        for name, kernel in vars(module).items():
            for signature in _own_signatures(module, kernel):
                found[f"{name}({_dtype_in(signature)})"] = kernel.inspect_llvm(signature)
    sys.stdout.buffer.write(pickle.dumps(found))


def _train_and_trace() -> None:
    """Use the kernels of the backward pass, and those that look on at a prompt and at a token."""
    from mamba_np import MambaConfig, MambaForCausalLM, analysis
    from mamba_np.gradients import loss_and_gradients

    model = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1), rng=0)
    loss_and_gradients(model, [[1, 2, 3]], [[1, 2, 3]])
    model.trace([1], capture=("delta",))
    analysis.mean_hidden_attention(model.trace([1, 2, 3], capture=("delta", "B", "C")), layer=0)


def _own_signatures(module: Any, kernel: Any) -> list:
    """Return what a kernel of this module was compiled for; nothing for anything else."""
    options = getattr(kernel, "targetoptions", None)
    if options is None or options.get("forceinline") or kernel.__module__ != module.__name__:
        return []
    return kernel.signatures


def _dtype_in(signature: Any) -> str:
    """Return the storage that a kernel was compiled for."""
    text = str(signature)
    names = {"uint16": "bfloat16", "int16": "float16", "int8": "int8"}
    kinds = [name for numba_name, name in names.items() if re.search(rf"\b{numba_name}\b", text)]
    return kinds[0] if kinds else "float32"


def assembly(llvm_code: str, target: Target) -> str:
    """Return machine code as text, with LLVM's remarks on which block is in which loop.

    Code for this machine is taken as optimised. Raises RuntimeError if LLVM has no such target.
    """
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(target.triple or llvm.get_process_triple())
    machine = machine.create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, codemodel="small"
    )
    machine.set_asm_verbosity(True)
    module = llvm.parse_assembly(llvm_code if target.triple is None else _moved(llvm_code, target))
    if target.triple is not None:
        module.data_layout = str(machine.target_data)
        for _ in range(2):  # as Numba does: once for inlining and references, once for the rest
            builder = llvm.create_pass_builder(
                machine, llvm.create_pipeline_tuning_options(speed_level=3)
            )
            passes = builder.getModulePassManager()
            passes.add_refprune_pass()
            passes.run(module, builder)
    return machine.emit_assembly(module)


_WAITING = {X86: "llvm.x86.sse2.pause()", ARM: "llvm.aarch64.hint(i32 1)"}
"""What the barrier's loops call between looks."""


def _moved(llvm_code: str, target: Target) -> str:
    """Return LLVM code said to be for another processor."""
    code = re.sub(r"^target (triple|datalayout) = .*$", "", llvm_code, flags=re.MULTILINE)
    waiting = _WAITING[target.dialect]
    name, argument = waiting.rstrip(")").split("(")
    for other in _WAITING.values():
        code = re.sub(rf"^declare void @{other.split('(')[0]}\(.*$", "", code, flags=re.MULTILINE)
        code = code.replace(f"@{other}", f"@{waiting}")
    declared = f"declare void @{name}({argument.split(' ')[0]})"
    return f'target triple = "{target.triple}"\n{code}\n{declared}\n'


# --- reading assembly -------------------------------------------------------------------------


@dataclass
class Loop:
    """An innermost loop: the block it begins with, its instructions in the order of the text."""

    header: str
    instructions: list[str] = field(default_factory=list)

    def matching(self, pattern: str) -> list[str]:
        """Return the instructions that begin like the pattern."""
        return [one for one in self.instructions if re.match(pattern, one)]


def functions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, lines) of compiled functions, without the entries that Python calls."""
    name, lines = "", []
    for line in [*text.splitlines(), "_ZEnd:"]:
        label = re.match(r'^"?((_Z|cfunc|\.Lfunc_end)[^:"]*)"?:', line)
        if label is None:
            lines.append(line)
            continue
        if name.startswith("_ZN") and not name.startswith("_ZN7cpython"):
            yield name, lines
        name, lines = label[1], []


def inner_loops(lines: list[str]) -> list[Loop]:
    """Return a function's loops that have no loop inside, by LLVM's remarks on its blocks."""
    loops: dict[str, Loop] = {}
    outer: set[str] = set()
    block, inside = "", ""
    for line in lines:
        label = re.match(r"\.?L?(BB\d+_\d+):|[#/]+ %bb", line)
        if label:
            block, inside = label[1] or "", ""
        header = re.search(r"(Inner )?Loop Header|in Loop: Header=(BB\d+_\d+)", line)
        if header:
            inside = header[2] or block
            if header[2] is None and header[1] is None:
                outer.add(block)
        code = re.split(r"\s+#|//", line)[0].strip()
        if inside and code and line[0].isspace() and code[0] not in ".#":
            loops.setdefault(inside, Loop(inside)).instructions.append(code)
    return [loop for header, loop in loops.items() if header not in outer]


# --- judging ----------------------------------------------------------------------------------


class Report(NamedTuple):
    """What was found in a kernel."""

    loops: int  # that compute
    vectors: int  # instructions in them that compute with vectors
    fused: int
    spills: int
    problems: list[str]


def examine(text: str, target: Target) -> Report:
    """Judge the functions of an assembly text."""
    dialect, found, problems = target.dialect, [], []
    for _, lines in functions(text):
        stripped = [line.strip() for line in lines]
        called = {m[1] for line in stripped if (m := re.match(dialect.calls, line))}
        problems += [f"calls {name}" for name in sorted(called) if not re.match(ALLOWED, name)]
        found += inner_loops(lines)
    busy = [loop for loop in found if _computes(loop, dialect)]
    problems += [f"loop {loop.header}: {p}" for loop in busy for p in _problems(loop, target)]
    if not any(loop.matching(dialect.vectors) for loop in busy):
        problems.append("no loop computes with vectors")
    vectors, fused, spills = (
        sum(len(loop.matching(pattern)) for loop in busy)
        for pattern in (dialect.vectors, dialect.fused, dialect.spills)
    )
    return Report(len(busy), vectors, fused, spills, problems)


def _computes(loop: Loop, dialect: Dialect) -> bool:
    return any(loop.matching(p) for p in (dialect.vectors, dialect.scalars, dialect.doubles))


def _problems(loop: Loop, target: Target) -> Iterator[str]:
    dialect = target.dialect
    for what in ("calls", "doubles", "scalars"):
        found = loop.matching(getattr(dialect, what))
        if found:
            yield f"{len(found)} {what}: {found[0]}"
    sums = set(loop.matching(dialect.sums))
    vectors = [one for one in loop.matching(dialect.vectors) if one not in sums]
    narrow = [one for one in vectors if target.register not in one]
    if narrow:
        yield f"{len(narrow)} narrow vectors: {narrow[0]}"
    separate = loop.matching(dialect.products) and sums and not loop.matching(dialect.fused)
    if separate and target.fuses:
        yield "multiplies and adds apart"


def main(names: list[str]) -> int:
    """Print a table for each target; return how many kernels have problems."""
    bad = 0
    for name in names or ["host", *TARGETS]:
        target = target_named(name)
        print(f"{name:30}loops  vectors  fused  spills")
        for kernel, code in kernels_llvm(optimised=target.triple is None).items():
            if kernel.startswith(NO_ARITHMETIC):
                continue
            report = examine(assembly(code, target), target)
            loops, vectors, fused, spills, problems = report
            print(f"  {kernel:28}{loops:5}{vectors:9}{fused:7}{spills:8}")
            print(*(f"      {problem}\n" for problem in problems), sep="", end="")
            bad += bool(problems)
    return bad


NO_ARITHMETIC = ("meet", "widen(bfloat16)", "widen(float16)")
"""Kernels that compute nothing: a barrier; changes of dtype."""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--llvm"]:
        _print_llvm(sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]) > 0)
