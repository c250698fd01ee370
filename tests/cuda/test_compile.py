"""Every kernel for every architecture, to machine code: no GPU is needed for that.

What a kernel may cost is in its budget; tools/compile_kernels.py judges, and prints the table.
"""

import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from mamba_np.cuda.catalogue import kernels
from mamba_np.cuda.compiler import ARCHITECTURES, ptx
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
pytestmark = has_nvdisasm
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


@pytest.mark.slow
def test_the_page_lists_every_kernel():
    text = PAGE.read_text("utf-8")
    for kernel in kernels():
        assert f"| {kernel.name} | {kernel.threads} |" in text


def test_names_are_unique():
    names = [kernel.name for kernel in kernels()]
    assert len(set(names)) == len(names) > 40


# --- the judge finds what is wrong ----------------------------------------------------------------

ARGUMENTS = F32_POINTER, F32_POINTER, INT
F32, U32 = types.float32, types.uint32


NARROW = Budget(255, wide_loads=False)


def judged(function, budget=NARROW):
    kernel = Kernel(function.__name__, function, ARGUMENTS, 128, budget)
    return tool.examined({kernel: ptx(kernel, 90)}, 90)[kernel.name].problems


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
    [(indexed_at_run_time, "local memory"), (doubled, "double precision"), (divided, "a call")],
)
def test_a_bad_kernel_is_found(function, said):
    assert any(said in problem for problem in judged(function))


def test_too_many_registers_are_found():
    budgeted = judged(too_many_numbers, Budget(40, wide_loads=False))
    assert any("registers, at most 40" in problem for problem in budgeted)


def test_narrow_loads_are_found():
    assert "no load of 16 bytes" in judged(good, Budget(255))


def test_loops_are_found_by_the_way_back():
    text = """
	.section	.text.f,"ax",@progbits
        /*0000*/                   MOV R1, R2 ;
.L_x_0:
        /*0010*/                   FADD R1, R1, R1 ;
        /*0020*/              @P0 BRA `(.L_x_0) ;
        /*0030*/                   EXIT ;
"""
    code = machine_code.functions(text)["f"]
    (loop,) = machine_code.inner_loops(code)
    assert [one.name for one in loop] == ["FADD", "BRA"]
