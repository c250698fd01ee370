"""The emulator finds faults: in kernels of a few lines, and in our own once they are spoilt."""

import re

import numpy as np
import pytest
from ptx import Memory, PTXError, launch, parse

HEAD = """.version 8.0
.target sm_75
.address_size 64
.visible .entry f(.param .u64 x, .param .u64 y)
{
    .reg .pred %p<4>;
    .reg .b32 %r<8>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<8>;
    .shared .align 16 .b8 s[256];
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    mov.u32 %r2, s;
    shl.b32 %r3, %r1, 2;
    add.s32 %r4, %r2, %r3;
    xor.b32 %r5, %r3, 4;
    add.s32 %r6, %r2, %r5;
    setp.lt.u32 %p1, %r1, 7;
"""
THREADS = 64


def executed(*lines, arrays=None):
    x = np.arange(THREADS, dtype=np.float32)
    y = np.empty(THREADS, np.float32)
    memory = Memory()
    given = [memory.alloc(x), memory.alloc_uninitialised(y)] if arrays is None else arrays(memory)
    launch(parse(HEAD + "\n".join([*lines, "ret;", "}"])), (1,), (THREADS,), given, memory)
    return y, memory


STORE = "ld.global.f32 %f1, [%rd4];", "st.shared.f32 [%r4], %f1;"
FETCH = "ld.shared.f32 %f2, [%r6];", "st.global.f32 [%rd5], %f2;"


def test_a_good_kernel_runs():
    y, memory = executed(*STORE, "bar.sync 0;", *FETCH)
    np.testing.assert_array_equal(y, np.arange(THREADS) ^ 1)
    assert memory.unwritten() == 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((*STORE, *FETCH), "race"),
        ((*STORE, "bar.sync 0;", *FETCH, "st.shared.f32 [%r4], %f2;"), "race"),
        (("bar.sync 0;", *FETCH), "nobody wrote|uninitialised|written"),
        (("ld.global.f32 %f1, [%rd4+256];", *STORE), "bounds"),
        (("st.shared.f32 [%r4+256], %f1;",), "bounds|set"),
        (("ld.global.f32 %f1, [%rd4+2];",), "align"),
        (("@%p1 bra L;", "bar.sync 0;", "L:", "mov.u32 %r7, 0;", "bar.sync 0;"), "barrier"),
        (("@%p1 bra L;", "shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;", "L:"), "lanes|converge|shfl"),
        (("st.global.f32 [%rd2], %f1;",), "set|race"),
        (("cvt.rn.f32.u32 %f1, %r1;", "st.global.f32 [%rd2], %f1;"), "race"),
    ],
)  # fmt: skip
def test_a_fault_is_found(lines, said):
    with pytest.raises(PTXError, match=f"(?i){said}"):
        executed(*lines)


def test_what_was_not_written_is_counted():
    _, memory = executed(*STORE, "bar.sync 0;", "@%p1 st.global.f32 [%rd5], %f1;")
    assert memory.unwritten() == THREADS - 7


# --- our own kernels, spoilt ----------------------------------------------------------------------


@pytest.fixture
def scan_text():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")
    from mamba_np.cuda import compiler, scan

    return compiler.ptx(scan.channel_scan(16), 90)


def scanned(text, monkeypatch):
    """Scan 40 steps by a kernel whose text was changed; return what differs from the oracle."""
    import running
    import test_scan

    monkeypatch.setattr(running, "_code", lambda kernel, arch: parse(text))
    inputs = test_scan.inputs(np.random.default_rng(1), 70)
    test_scan.assert_scan(inputs, *test_scan.scanned(inputs))


def test_the_scan_itself_is_sound(scan_text, monkeypatch):
    scanned(scan_text, monkeypatch)


def test_each_barrier_of_the_scan_is_needed(scan_text, monkeypatch):
    barriers = [m.span() for m in re.finditer(r"\n[^\n]*\bbar(rier)?\.[^\n;]*;", scan_text)]
    assert barriers
    for start, stop in barriers:
        with pytest.raises(PTXError, match=r"(?i)race|nobody wrote|uninitialised|written"):
            scanned(scan_text[:start] + scan_text[stop:], monkeypatch)


def test_a_result_one_place_off_is_found(scan_text, monkeypatch):
    stores = list(re.finditer(r"st\.global\.(f32|b32)\s+\[(%rd\d+)(\+\d+)?\]", scan_text))
    assert stores
    one = stores[0]
    moved = f"st.global.{one[1]} [{one[2]}+{int(one[3] or 0) + 4}]"
    with pytest.raises((PTXError, AssertionError)):
        scanned(scan_text[: one.start()] + moved + scan_text[one.end() :], monkeypatch)
