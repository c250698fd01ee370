"""Every kernel for every architecture, to machine code: no GPU is needed for that.

What a kernel may cost is in its budget; tools/compile_kernels.py judges, and prints the table.
"""

import math
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from mamba_np.cuda import catalogue, scan_steps
from mamba_np.cuda.catalogue import kernels
from mamba_np.cuda.compiler import ARCHITECTURES, Code, ptx, symbol_of
from mamba_np.cuda.dialect import cuda, types
from mamba_np.cuda.formulas import device
from mamba_np.cuda.registry import F32_POINTER, INT, Budget, Kernel

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import compile_kernels as tool
import machine_code

has_nvdisasm = pytest.mark.skipif(
    pytest.importorskip("cuda.pathfinder").find_nvidia_binary_utility("nvdisasm") is None,
    reason="needs nvdisasm: pip install 'mamba-np[cuda-test]'",
)
pytestmark = [has_nvdisasm, pytest.mark.timeout(900)]  # whichever test needs all kernels first
PAGE = Path(__file__).parents[2] / "docs" / "gpu-kernels.md"


@cache
def found():
    return tool.examine_all(kernels())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_keeps_its_budget(architecture, capsys):
    reports = found()[architecture]
    assert set(reports) == {kernel.name for kernel in kernels()}
    for name, report in reports.items():
        assert not report.problems, name
        assert 0 < report.code.registers <= 255
        assert report.code.stack == report.code.spilled == 0
    with capsys.disabled():  # so that whoever tests sees it: registers, shared bytes, spilled bytes
        for name, (code, *_) in reports.items():
            spilled = f"{code.spilled} bytes spilled"
            print(f"\nsm_{architecture} {name}: {code.registers} registers, {spilled}", end="")


def lines_of(page, name):
    """Return the lines between a page's markers of a name."""
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- end of {name} -->", page, re.DOTALL)
    return found[1].splitlines()


@pytest.mark.slow
def test_the_page_lists_every_kernel_with_its_costs():
    page = PAGE.read_text("utf-8")
    for kernel in kernels():
        assert f"| {kernel.name} | {kernel.threads} |" in page
    assert sum(line.startswith("|") for line in lines_of(page, "kernels")) == 2 + len(kernels())
    if lines_of(page, "compilers") != [f"Compilers: {tool.compilers()}."]:
        return  # others make other code
    again = "python tools/compile_kernels.py --page docs/gpu-kernels.md"
    for name, lines in (("kernels", tool.table(found())), ("floors", tool.floors(found()))):
        assert lines_of(page, name) == list(lines), f"the page is old: {again}"


@pytest.mark.slow
def test_a_scan_goes_to_the_special_functions_once_a_power_and_twice_a_quotient():
    """16 decays; softplus and silu are a power and a quotient each: no wasted power or root."""
    for architecture in ARCHITECTURES:
        (report,) = (found()[architecture][n] for n in ["channel_scan N=16 float32"])
        steps = tool.LOOPS["channel_scan"].steps
        assert report.in_loop(tool.SPECIAL) <= steps * (16 + 2 * 2)
        assert report.in_loop(r"MUFU\.EX2") == steps * (16 + 2)
        (bare,) = (found()[architecture][n] for n in ["channel_scan N=16 float32 bare"])
        assert bare.in_loop(tool.SPECIAL) == steps * 16


def test_names_are_unique():
    names = [kernel.name for kernel in kernels()]
    assert len(set(names)) == len(names) > 40


def test_every_factory_is_in_the_catalogue(monkeypatch):
    """A function that returns a Kernel is asked for one, in the catalogue."""
    asked, factories = set(), set()

    def recorded(name, factory):
        def make(*arguments, **options):
            asked.add(name)
            return factory(*arguments, **options)

        return make

    folder = Path(catalogue.__file__).parent
    for path in sorted(folder.glob("*.py")):
        module = import_module(f"mamba_np.cuda.{path.stem}")
        for name, value in list(vars(module).items()):
            own = getattr(value, "__module__", None) == module.__name__
            cached = own and hasattr(value, "cache_info") and not name.startswith("_")
            if cached and value.__wrapped__.__annotations__.get("return") is Kernel:
                factories.add(f"{path.stem}.{name}")
                monkeypatch.setattr(module, name, recorded(f"{path.stem}.{name}", value))
    assert len(factories) > 15
    assert {kernel.name for kernel in catalogue.kernels.__wrapped__()} == {
        kernel.name for kernel in kernels()
    }
    assert asked == factories


def plain(text):
    """Return PTX without the names that tell compilations apart."""
    text = text.replace(symbol_of(text), "kernel")
    text = re.sub(r"_ZN08NumbaEnv\w+", "environment", text)
    return re.sub(r"(_smem_)\d+", r"\1", text)


@pytest.mark.parametrize("word", ["rms_norm float32", "lane_scan N=16 float32 bare", "pick int8"])
def test_architectures_of_a_family_have_the_same_ptx(word):
    kernel = next(kernel for kernel in kernels() if kernel.name.startswith(word))
    for architecture, text in tool.texts(kernel).items():
        assert plain(text) == plain(ptx(kernel, architecture))
        assert f".target sm_{architecture}\n" in text


def test_kernels_linked_together_are_the_same_code():
    some = [kernel for kernel in kernels() if kernel.name in ("rms_norm float32", "narrow")]
    compiled = [ptx(kernel, 90) for kernel in some]
    together = machine_code.functions(tool.disassembled(compiled, 90))
    assert set(together) == {symbol_of(text) for text in compiled}
    for text in compiled:
        ((_, alone),) = machine_code.functions(tool.disassembled([text], 90)).items()
        assert named(alone) == named(together[symbol_of(text)])


def named(code):
    """Return instructions without their labels, which are numbered through a file."""
    jumps = re.compile(r"`\(\.L\S+\)")
    return [(one.condition, one.name, jumps.sub("place", one.operands)) for one in code]


# --- the judge finds what is wrong ----------------------------------------------------------------

ARGUMENTS = F32_POINTER, F32_POINTER, INT
F32, U32 = types.float32, types.uint32


NARROW = Budget(255, wide_loads=False)


def judged(function, budget=NARROW, least_blocks=0, architecture=90):
    kernel = Kernel(function.__name__, function, ARGUMENTS, 128, budget, least_blocks)
    return tool.examine_all([kernel], [architecture])[architecture][kernel.name].problems


def good(x, y, n):
    i = U32(cuda.grid(1))
    if i < U32(n):
        y[i] = x[i] * F32(2)


def indexed_at_run_time(x, y, n):
    own = cuda.local.array(32, types.float32)
    i = U32(cuda.grid(1))
    for k in range(n):
        own[k] = x[i + U32(k)]
    y[i] = own[n - 3] + own[n - 5]


def doubled(x, y, n):
    i = U32(cuda.grid(1))
    y[i] = x[i] * 0.1


def doubled_power(x, y, n):
    i = U32(cuda.grid(1))
    y[i] = math.exp(types.float64(x[i]))


def shared(x, y, n):
    numbers = cuda.shared.array(256, types.float32)
    i = U32(cuda.threadIdx.x)
    numbers[i] = x[i]
    cuda.syncthreads()
    y[i] = numbers[U32(127) - i]


def divided(x, y, n):
    i = cuda.grid(1)
    y[i % n] = x[i // n]


@device
def _many(x, i, own):
    for k in range(120):
        own[k] = x[i + U32(128 * k)]


def too_many_numbers(x, y, n):
    i = U32(cuda.grid(1))
    own = cuda.local.array(120, types.float32)
    _many(x, i, own)
    total = F32(0)
    for turn in range(n):
        for k in range(120):
            own[k] = own[k] * own[119 - k] + F32(turn)
            total += own[k]
    y[i] = total


def test_a_good_kernel_passes():
    assert judged(good) == []


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (indexed_at_run_time, ["bytes of stack", "local memory: "]),
        (doubled, ["double precision in the PTX", "double precision: "]),
        (doubled_power, ["double precision in the PTX", "double precision: "]),
        (divided, ["a call: "]),
    ],
)
def test_a_bad_kernel_is_found(function, said):
    problems = judged(function)
    for words in said:
        assert any(words in problem for problem in problems), (words, problems)


def test_too_many_registers_are_found():
    (problem,) = judged(too_many_numbers, Budget(40, wide_loads=False))
    assert re.fullmatch(r"\d+ registers, at most 40", problem)


def test_spilled_registers_are_found():
    problems = judged(too_many_numbers, least_blocks=8)  # of 128 threads: 64 registers for each
    assert any(re.match(r"[1-9]\d* bytes spilled", problem) for problem in problems)
    assert any(problem.startswith("local memory: ") for problem in problems)


@pytest.mark.parametrize("architecture", [75, 90])
def test_too_much_shared_memory_is_found(architecture):
    found = judged(shared, Budget(255, 1023, wide_loads=False), architecture=architecture)
    assert found == ["1024 bytes of shared memory, at most 1023"]
    fits = Budget(255, 1024, wide_loads=False)
    assert judged(shared, fits, architecture=architecture) == []


@pytest.mark.parametrize("instructions", [10, 1000])
def test_a_loop_that_grew_is_found(monkeypatch, instructions):
    name = too_many_numbers.__name__
    monkeypatch.setitem(tool.LOOPS, name, tool.LoopBudget(1, instructions))
    problems = judged(too_many_numbers)
    assert any("in the main loop, at most 10" in p for p in problems) == (instructions == 10)
    monkeypatch.setitem(tool.LOOPS, good.__name__, tool.LoopBudget(1, instructions))
    assert judged(good)[0].startswith("0 instructions for 1 steps in the main loop")


def test_budgets_of_loops_are_of_kernels():
    assert set(tool.LOOPS) <= {kernel.name.split()[0] for kernel in kernels()}
    assert tool.LOOPS["channel_scan"].steps == scan_steps.GROUP


@pytest.mark.parametrize(
    ("what", "name", "yes"),
    [
        *(("double precision", name, True) for name in ("DADD", "DFMA.RM", "F2F.F64.F32")),
        *(("double precision", name, True) for name in ("I2F.F64.S32", "MUFU.RCP64H")),
        *(
            ("double precision", name, False)
            for name in ("FADD", "I2F.S64", "DEPBAR.LE", "MUFU.EX2")
        ),
        *(("local memory", name, True) for name in ("LDL", "STL.128")),
        *(("local memory", name, False) for name in ("LDG.E", "STS", "LDC.64")),
        *(("a call", name, True) for name in ("CALL.REL.NOINC", "CALL.ABS.NOINC")),
    ],
)
def test_names_of_instructions(what, name, yes):
    one = machine_code.Instruction((), "", name, "")
    assert one.matches(tool.NOT_ALLOWED[what]) == yes


@pytest.mark.parametrize(
    ("name", "wide"),
    [("LDG.E.128", 1), ("LDG.E.NA.128.CONSTANT", 1), ("LDG.E.64", 0), ("LDS.128", 0), ("LDG.E", 0)],
)
def test_wide_loads(name, wide):
    assert machine_code.Instruction((), "", name, "").matches(tool.WIDE) == wide


def test_narrow_loads_are_found():
    assert "no load of 16 bytes" in judged(good, Budget(255))


# --- the tables -----------------------------------------------------------------------------------


def report_of(names, problems=(), **code):
    numbers = {"binary": b"", "symbol": "", "registers": 40, "shared": 0, "stack": 0, "spilled": 0}
    loop = [machine_code.Instruction((), "", name, "") for name in names]
    return tool.Report(Code(**(numbers | code)), 99, 3, loop, list(problems))


def test_floors_by_hand(monkeypatch):
    loop = ["MUFU.EX2"] * 80 + ["FFMA"] * 160 + ["LDS.128"] * 160
    row = {tool.FLOORS_FOR: report_of(loop)}
    gpu = tool.Gpu(90, processors=100, gigahertz=1.0, gigabytes=1000, floats=64)
    monkeypatch.setattr(tool, "GPUS", {"one": gpu})
    *_, line = tool.floors({90: row})
    steps = 8 * 4096 * 4096
    clocks = [20 / 16, 40 / 64, 100 / 128]  # a step, of one processor
    times = [steps * each / (100 * 1e9) * 1e3 for each in clocks] + [steps * 16 / 1e12 * 1e3]
    assert line == "| one | " + " | ".join(f"{ms:.2f}" for ms in (*times, times[-1])) + " |"
    assert max(times) == times[-1] == pytest.approx(2.147, abs=1e-3)


def test_tables_go_between_their_markers():
    page = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n"
    new = tool.written(page, "a", ["| x |"])
    assert new == "before\n<!-- a -->\n\n| x |\n\n<!-- end of a -->\nafter\n"
    assert tool.written(new, "a", ["| x |"]) == new
    with pytest.raises(ValueError, match="expected the markers <!-- b -->"):
        tool.written(page, "b", [])
    with pytest.raises(ValueError, match="end of a"):
        tool.written("<!-- a -->\n", "a", [])


def test_main_names_what_is_wrong_and_where(monkeypatch, tmp_path, capsys):
    name, kept = kernels()[0].name, kernels()[1].name
    monkeypatch.setattr(
        tool,
        "examine_all",
        lambda chosen: {
            75: {name: report_of([], ["slow"], registers=11), kept: report_of([])},
            90: {name: report_of(["MUFU.EX2"], ["slow"], registers=22), kept: report_of([])},
        },
    )
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- {n} -->\n<!-- end of {n} -->\n" for n in ("kernels", "compilers"))
    )
    assert tool.main(["--page", str(page)]) == 1
    assert capsys.readouterr().out == f"{name}: slow (sm_75, sm_90)\n"
    assert f"| {name} | 128 | 11 | 22 | 0 | 3 | 1 | 1 |" in page.read_text()
    assert f"Compilers: numba-cuda {tool.version('numba-cuda')}, " in page.read_text()
    assert tool.main([]) == 1
    assert f"| {kept} | 128 | 40 | 40 | 0 | 3 | 0 | 0 |" in capsys.readouterr().out
