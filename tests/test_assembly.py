"""The kernels' machine code, for several processors; and that its examination can fail."""

import re

import numba
import numpy as np
import pytest
from test_tools import load_tool

assembly = load_tool("assembly")
ARM, X86, TARGETS = assembly.ARM, assembly.X86, assembly.TARGETS
HOST = assembly.host()


@pytest.fixture(scope="module")
def portable():
    return assembly.kernels_llvm(optimised=False)


@pytest.fixture(scope="module")
def compiled_here():
    return assembly.kernels_llvm(optimised=True, dtypes=("float32", "int8"))


def computing(kernels):
    return {k: code for k, code in kernels.items() if not k.startswith(assembly.NO_ARITHMETIC)}


def text_for(code, target):
    try:
        return assembly.assembly(code, target)
    except RuntimeError as error:
        if "target" not in str(error):
            raise
        pytest.skip(f"this LLVM makes no code for {target.triple}: {error}")


# --- the kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_for_another_processor(portable, name):
    reports = {
        kernel: assembly.examine(text_for(code, TARGETS[name]), TARGETS[name])
        for kernel, code in computing(portable).items()
    }
    assert {kernel: report.problems for kernel, report in reports.items() if report.problems} == {}
    assert all(report.loops for report in reports.values())


def test_kernels_as_numba_compiles_them_here(compiled_here):
    reports = {
        kernel: assembly.examine(text_for(code, HOST), HOST)
        for kernel, code in computing(compiled_here).items()
    }
    assert {kernel: report.problems for kernel, report in reports.items() if report.problems} == {}


def test_all_kernels_are_looked_at(portable):
    dtypes = assembly.DTYPES
    expected = {"meet(float32)", "norm_rows(float32)", "convolve(float32)"}
    expected |= {"selective_scan(float32)", *(f"widen({dtype})" for dtype in dtypes[1:])}
    expected |= {f"{kernel}({dtype})" for kernel in ("step", "project") for dtype in dtypes}
    backward = ("norm_rows", "convolve", "scan")
    expected |= {f"{kernel}_backward(float32)" for kernel in backward}
    expected |= {"activate(float32)", "predict_rows(float32)"}
    expected |= {f"{kernel}(float32)" for kernel in ("soften", "raw_steps", "sum_of_groups")}
    assert set(portable) == expected


@pytest.mark.parametrize("name", TARGETS)
def test_the_scan_computes_more_than_it_spills(portable, name):
    text = text_for(portable["selective_scan(float32)"], TARGETS[name])
    (_, lines), *_ = assembly.functions(text)
    loops = assembly.inner_loops(lines)
    states = max(loops, key=lambda loop: len(loop.matching(TARGETS[name].dialect.vectors)))
    vectors = len(states.matching(TARGETS[name].dialect.vectors))
    assert len(states.matching(TARGETS[name].dialect.spills)) < vectors
    exponentials = 4 * 16 * 4 // {"%zmm": 64, "%ymm": 32, ".4s": 16}[TARGETS[name].register]
    assert vectors >= 13 * exponentials  # the decay of 4 states, 16 channels each, in vectors


# --- code that is not as it should be ---------------------------------------------------------


def problems_of(function, *arguments, **options):
    """Return what is wrong with a function that Numba compiles for this machine."""
    jitted = numba.njit(error_model="numpy", **options)(function)
    jitted(*arguments)
    code = jitted.inspect_llvm(jitted.signatures[0])
    return " ".join(assembly.examine(text_for(code, HOST), HOST).problems)


NUMBERS = np.linspace(0, 1, 64, dtype=np.float32)


def exponentials(x, y):
    for i in range(x.size):
        y[i] = np.exp(x[i])


def in_double(x, y):
    for i in range(x.size):
        y[i] = x[i] * 0.1


def one_after_the_other(x, y):
    last = np.float32(0)
    for i in range(x.size):
        last = last * x[i] + y[i]
        y[i] = last


def multiply_and_add(x, y):
    for i in range(x.size):
        y[i] = x[i] * x[i] + y[i]


def test_a_call_is_a_problem():
    found = problems_of(exponentials, NUMBERS, NUMBERS.copy())
    assert "calls " in found
    assert "exp" in found


def test_double_precision_is_a_problem():
    assert "doubles: " in problems_of(in_double, NUMBERS, NUMBERS.copy())


def test_single_numbers_are_a_problem():
    found = problems_of(one_after_the_other, NUMBERS, NUMBERS.copy())
    assert "scalars: " in found
    assert "no loop computes with vectors" in found


def test_multiplying_and_adding_apart_is_a_problem():
    apart = problems_of(multiply_and_add, NUMBERS, NUMBERS.copy())
    together = problems_of(multiply_and_add, NUMBERS, NUMBERS.copy(), fastmath={"contract"})
    assert ("multiplies and adds apart" in apart) == HOST.fuses
    assert "multiplies and adds apart" not in together


@pytest.mark.parametrize(
    ("name", "wide", "narrow"),
    [("avx512", "%zmm", "%ymm"), ("avx2", "%ymm", "%xmm"), ("aarch64", ".4s", ".2s")],
)
def test_a_narrow_vector_is_a_problem(portable, name, wide, narrow):
    text = text_for(portable["selective_scan(float32)"], TARGETS[name])
    assert assembly.examine(text, TARGETS[name]).problems == []
    problems = assembly.examine(text.replace(wide, narrow), TARGETS[name]).problems
    assert any("narrow vectors" in problem for problem in problems)


def test_a_library_call_in_a_kernel_is_found(portable):
    text = text_for(portable["selective_scan(float32)"], TARGETS["avx2"])
    text, count = re.subn(r"NRT_MemInfo_alloc\w*", "expf", text)
    assert count
    assert "calls expf@PLT" in assembly.examine(text, TARGETS["avx2"]).problems


# --- the reader of assembly -------------------------------------------------------------------

X86_TEXT = """
_ZN8mamba_np3fooE:
	.cfi_startproc
# %bb.0:
	vaddpd	%ymm0, %ymm1, %ymm1
.LBB0_1:                                # =>This Loop Header: Depth=1
                                        #     Child Loop BB0_2 Depth 2
	vmulss	%xmm0, %xmm1, %xmm1
.LBB0_2:                                #   Parent Loop BB0_1 Depth=1
                                        # =>  This Inner Loop Header: Depth=2
	vfmadd231ps	(%rax,%rcx), %ymm0, %ymm1   # some remark
	vmovups	%ymm1, 32(%rsp)
	jne	.LBB0_2
# %bb.3:                                #   in Loop: Header=BB0_1 Depth=1
	callq	expf@PLT
	jmp	.LBB0_1
.LBB0_4:                                #   in Loop: Header=BB0_2 Depth=2
	vaddps	%xmm0, %xmm1, %xmm1
.LBB0_5:
	retq
.Lfunc_end0:
_ZN7cpython8mamba_np3fooE:
	callq	PyErr_SetString
"""


def test_reading_x86():
    ((name, lines),) = assembly.functions(X86_TEXT)
    assert name == "_ZN8mamba_np3fooE"
    (loop,) = assembly.inner_loops(lines)
    assert loop.instructions == [
        "vfmadd231ps\t(%rax,%rcx), %ymm0, %ymm1",
        "vmovups\t%ymm1, 32(%rsp)",
        "jne\t.LBB0_2",
        "vaddps\t%xmm0, %xmm1, %xmm1",
    ]
    report = assembly.examine(X86_TEXT, TARGETS["avx2"])
    assert report == (1, 2, 1, 1, ["calls expf@PLT"])


ARM_TEXT = """
_ZN8mamba_np3fooE:
// %bb.0:
.LBB0_1:                                // =>This Inner Loop Header: Depth=1
	fmla	v0.4s, v1.4s, v2.s[0]
	fadd	v0.4s, v1.4s, v0.4s
	str	q0, [sp, #32]                   // 16-byte Folded Spill
	fmadd	s0, s1, s2, s3
	b.ne	.LBB0_1
// %bb.2:
	bl	expf
"""


def test_reading_arm():
    report = assembly.examine(ARM_TEXT, TARGETS["aarch64"])
    assert report[:4] == (1, 2, 1, 1)
    assert report.problems == ["calls expf", "loop BB0_1: 1 scalars: fmadd\ts0, s1, s2, s3"]


@pytest.mark.parametrize(
    ("dialect", "kind", "yes", "no"),
    [
        (X86, "vectors", "vsubps\t%zmm0, %zmm1, %zmm2", "vmovups\t%zmm0, (%rax)"),
        (X86, "scalars", "vdivss\t%xmm0, %xmm1, %xmm2", "vaddss\t%xmm0, %xmm1, %xmm2"),
        (X86, "doubles", "vfmadd213sd\t%xmm0, %xmm1, %xmm2", "vmulss\t%xmm0, %xmm1, %xmm2"),
        (X86, "doubles", "vmulpd\t%ymm0, %ymm1, %ymm2", "vmulps\t%ymm0, %ymm1, %ymm2"),
        (X86, "calls", "callq\tmemset@PLT", "cmpq\t%rax, %rbx"),
        (ARM, "vectors", "fdiv\tv0.4s, v1.4s, v2.4s", "ldr\tq0, [x0]"),
        (ARM, "scalars", "fdiv\ts0, s1, s2", "fadd\ts0, s1, s2"),
        (ARM, "doubles", "fmul\td0, d1, d2", "fmul\ts0, s1, s2"),
        (ARM, "doubles", "fmla\tv0.2d, v1.2d, v2.2d", "fmla\tv0.4s, v1.4s, v2.4s"),
        (ARM, "spills", "ldp\tq0, q1, [sp, #16]", "ldp\tx0, x1, [sp, #16]"),
    ],
)
def test_patterns(dialect, kind, yes, no):
    assert assembly.Loop("", [yes, no]).matching(getattr(dialect, kind)) == [yes]


def test_unknown_target():
    with pytest.raises(KeyError, match="pdp11"):
        assembly.target_named("pdp11")
