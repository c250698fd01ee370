"""The emulator of tests/ptx finds faults: each kernel has a twin without its fault, which runs."""

import numpy as np
import pytest
from handwritten import START, kernel_of, run
from ptx import Memory, PTXError, launch

SHARED = ".shared .align 4 .b8 s[256];"
OWN = "mov.u32 %r5, s; add.u32 %r6, %r5, %r4; add.u32 %r5, %r5, %r3; "
"""%r5: the thread's own word of s, %r6: that of the thread opposite."""
READ = "ld.shared.u32 %r7, [%r6]; st.global.u32 [%d1], %r7;"
SHUFFLE = "shfl.sync.bfly.b32 %r5, %r0, {}, 31, {}; "
STORE = "st.global.u32 [%d1], %r5;"
EXCHANGE = OWN + "st.shared.u32 [%r5], %r0; {} " + READ

FAULTS = {  # {name: (body with {} for what is wrong or right, wrong, right, message, options)}
    "bounds": (
        "st.global.u32 [%d1+{}], %r0;",
        "132", "128", "out of bounds: 4 bytes at byte 256", {},
    ),
    "below": (
        "st.global.u32 [%d0+{}], %r0;",
        "-4", "0", "at byte -4 of", {"block": 1},
    ),
    "vector": (
        "setp.eq.u32 %p2, %r0, 0; {} st.global.v4.u32 [%d0+240], {{%r0, %r0, %r0, "
        "%r0}};",
        "", "@%p2", "race: writes", {},
    ),
    "overflow": (
        "mov.u64 %d5, 0x7fffffffffffffe0; {} ld.global.u32 %r5, [%d5+4000];",
        "", "add.u64 %d5, %d0, -4000;", "out of bounds", {},
    ),
    "alignment": (
        "ld.global.u32 %r5, [%d1+{}];",
        "2", "4", "misaligned access of 4 bytes", {},
    ),
    "vector alignment": (
        "@%p1 bra L; bra M; L: add.u64 %d5, %d2, %d2; sub.u64 %d5, %d5, %d0; "
        "ld.global.v2.u32 {{%r5, %r6}}, [%d5+{}]; M: ret;",
        "4", "8", "misaligned", {},
    ),
    "shared bounds": (
        OWN
        + "st.shared.u32 [%r5+{}], %r0;",
        "132", "128", "out of bounds: 4 bytes at byte 256 of shared", {},
    ),
    "red zone": (
        ".shared .b8 a[128]; .shared .b8 b[128]; mov.u32 %r5, a; add.u32 %r5, %r5, "
        "%r3; st.shared.u32 [%r5+{}], %r0;",
        "4", "0", "out of bounds: 4 bytes at byte", {},
    ),
    "shared nothing": (
        OWN
        + "{} ld.shared.u32 %r7, [%r5];",
        "", "st.shared.u32 [%r5], %r0;", "reads shared memory where nothing was written", {},
    ),
    "read after write": (
        EXCHANGE,
        "", "bar.sync 0;", "race: reads shared", {},
    ),
    "same warp": (
        EXCHANGE,
        "", "bar.warp.sync -1;", "race: reads shared", {},
    ),
    "other warp": (
        EXCHANGE.replace("ld.shared", "xor.b32 %r6, %r6, 128; {} ld.shared"),
        "", "bar.sync 0;", "race: reads shared", {"block": 64},
    ),
    "write after read": (
        EXCHANGE.format("bar.sync 0;") + "{} st.shared.u32 [%r5], %r1;",
        "", "bar.sync 0;", "race: writes to shared", {},
    ),
    "write after many reads": (
        OWN
        + "st.shared.u32 [%r5], %r0; bar.sync 0; ld.shared.u32 %r7, [s]; {} "
          "setp.eq.u32 %p2, %r0, 0; @%p2 st.shared.u32 [s], %r0;",
        "", "bar.sync 0;", "race: writes to shared", {},
    ),
    "two writes": (
        "mov.u32 %r5, s; {} st.shared.u32 [%r5], %r0;",
        "", "add.u32 %r5, %r5, %r3;", "race: writes to shared", {},
    ),
    "parts of a word": (
        OWN
        + "st.shared.u32 [%r5], %r0; {} st.shared.u8 [%r6+1], %r0;",
        "", "bar.sync 0;", "race: writes to shared", {},
    ),
    "atomics": (
        OWN
        + "st.shared.u32 [%r5], %r0; bar.sync 0; atom.shared.exch.b32 %r7, [s], %r0; "
          "atom.shared.add.u32 %r7, [s], 1; {} ld.shared.u32 %r7, [s];",
        "", "bar.sync 0;", "race: reads shared", {},
    ),
    "blocks write": (
        "st.global.u32 [{}], %r0;",
        "%d2", "%d1", "race: writes to array 0", {"grid": 2},
    ),
    "blocks read": (
        "st.global.u32 [%d1], %r0; ld.global.u32 %r5, [{}];",
        "%d2", "%d1", "race: reads", {"grid": 2},
    ),
    "blocks read before": (
        "ld.global.u32 %r5, [{}]; st.global.u32 [%d1], %r0;",
        "%d2", "%d1", "race: writes", {"grid": 2},
    ),
    "blocks with a barrier": (
        "st.global.u32 [{}], %r0; bar.sync 0; st.global.u32 [{}], %r0;",
        "%d2", "%d1", "race: writes", {"grid": 2},
    ),
    "blocks and atomics": (
        "{}.global.add.u32 [%d2], 1; ",
        "red.global.add.u32 [%d2], 1; ld.global.u32 %r5, [%d2]; red", "red",
        "race: reads", {"grid": 2},
    ),
    "within a block": (
        "st.global.u32 [%d1], %r0; {} add.u32 %r5, %r4, 0; cvt.u64.u32 %d5, %r5; "
        "add.u64 %d5, %d5, %d0; ld.global.u32 %r7, [%d5];",
        "", "bar.sync 0;", "race: reads array 0", {},
    ),
    "early return": (
        "{} bar.sync 0;",
        "@%p1 ret;", "", "divergent barrier: 16 threads wait, 16 have", {},
    ),
    "two barriers": (
        "@%p1 bra L; B: bar.sync 0; bra M; L: {} M: ret;",
        "bar.sync 0;", "bra B;", "divergent barrier: some threads wait at line", {},
    ),
    "deadlock": (
        "setp.lt.u32 %p2, %r0, 32; @%p2 bra L; bar.sync 1{}; ret; L: bar.sync 2{};",
        "", ", 32", "deadlock", {"block": 64},
    ),
    "shuffle": (
        "{} bra L; " + SHUFFLE.format(1, -1) + "L: st.global.u32 [%d1], %r0;",
        "@%p1", "mov.u32 %r5, 0; @!%p1 bra L; bra N; N: @%p1", "not converged", {},
    ),
    "unnamed lane": (
        SHUFFLE.format(1, "{}"),
        "0xFFFF", "-1", "does not name a lane", {},
    ),
    "absent source": (
        "@!%p1 ret; " + SHUFFLE.format("{}", "0xFFFF") + STORE,
        "16", "8", "reads from a lane that does not run", {},
    ),
    "unset": (
        "{}; @%p2 bra L; st.global.u32 [%d1], %r0; L: ret;",
        "@%p1 setp.eq.u32 %p2, %r0, 3", "setp.eq.u32 %p2, %r0, 3",
        "reads register %p2, which is not set", {},
    ),
    "unset number": (
        "{} mov.u32 %r6, %r5; add.u32 %r7, %r6, 1;",
        "", "mov.u32 %r5, 1;", "reads register %r6, which is not set", {},
    ),
    "set and unset": (
        "mov.u32 %r6, 1; {} mov.u32 %r6, %r5; add.u32 %r7, %r6, 1;",
        "", "mov.u32 %r5, 1;", "reads register %r6, which is not set", {},
    ),
    "before a variable": (
        ".shared .align 4 .b8 a[4]; .shared .align 4 .b8 b[12]; mov.u32 %r5, a; "
        "setp.eq.u32 %p2, %r0, 0; @%p2 st.shared.u32 [%r5], 1; "
        "@%p2 st.shared.v2.u32 [b{}], {{%r0, %r0}};",
        "-4", "+4", "out of bounds: 8 bytes", {},
    ),
    "half a variable": (
        ".shared .align 8 .b8 a[4]; .shared .align 8 .b8 b[8]; setp.eq.u32 %p2, %r0, 0; "
        "@%p2 st.shared.v2.u32 [{}], {{%r0, %r0}};",
        "a", "b", "out of bounds: 8 bytes", {},
    ),
    "division": (
        "div.u32 %r5, 7, {};",
        "%r0", "32", "divides an integer by zero", {},
    ),
    "endless": (
        "L: add.u32 %r0, %r0, 1; setp.ne.u32 %p2, %r0, {}; @%p2 bra L;",
        "-1", "100", "an endless loop", {"block": 1, "limit": 2000},
    ),
    "local": (
        ".local .align 8 .b8 l[16]; mov.u64 %d5, l; {} ld.local.u32 %r5, [%d5+12];",
        "st.local.u32 [%d5+16], 1;", "st.local.u32 [%d5+12], 1;", "byte 16 of local memory", {},
    ),
    "local nothing": (
        ".local .align 8 .b8 l[16]; {} ld.local.u32 %r5, [l];",
        "", "st.local.u32 [l], 1;", "reads local memory where nothing", {},
    ),
    "copy unwaited": (
        "mov.u32 %r5, s; add.u32 %r5, %r5, %r3; cp.async.ca.shared.global [%r5], "
        "[%d1], 4; cp.async.commit_group; {} ld.shared.u32 %r7, [%r5];",
        "cp.async.wait_group 1;", "cp.async.wait_group 0;", "where nothing was written", {},
    ),
    "copy without a barrier": (
        OWN
        + "cp.async.ca.shared.global [%r5], [%d1], 4; cp.async.wait_all; "
          "{}ld.shared.u32 %r7, [%r6];",
        "", "bar.sync 0;", "race: reads", {},
    ),
    "dynamic": (
        "mov.u32 %r5, dyn; add.u32 %r5, %r5, %r3; st.shared.u32 [%r5+{}], %r0;",
        "4", "0", "out of bounds", {"dynamic_shared": 128},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    body, wrong, right, message, options = FAULTS[name]
    outside = f"{SHARED}\n.extern .shared .align 4 .b8 dyn[];"

    def twin(text):
        count = body.count("{}")
        return run(
            body.format(*[text] * count), np.zeros(64, np.uint32), outside=outside, **options
        )

    twin(right)
    with pytest.raises(PTXError) as caught:
        twin(wrong)
    assert message in str(caught.value)
    assert "line " in str(caught.value)


def test_a_fault_names_the_thread():
    with pytest.raises(PTXError, match=r"block \(1, 0, 0\), thread \(5, 0, 0\)"):
        run("st.global.u32 [%d1], %r0;", np.zeros(37, np.uint32), grid=2)
    with pytest.raises(PTXError, match=r"block \(0, 1, 1\), thread \(3, 2, 1\)"):
        run(
            "mov.u32 %r5, %ctaid.y; mov.u32 %r6, %ctaid.z; and.b32 %r5, %r5, %r6; "
            "mov.u32 %r6, %tid.x; mov.u32 %r7, %tid.y; mov.u32 %r8, %tid.z; shl.b32 %r7, %r7, 4; "
            "shl.b32 %r8, %r8, 8; or.b32 %r6, %r6, %r7; or.b32 %r6, %r6, %r8; "
            "setp.eq.u32 %p2, %r6, 0x123; setp.ne.and.u32 %p2, %r5, 0, %p2; @%p2 st.u32 [8], %r0;",
            np.zeros(1, np.uint32), grid=(1, 2, 2), block=(4, 3, 2),
        )  # fmt: skip


def test_a_warp_barrier_orders_one_warp_only():
    """Threads of the other warp still race with what was written before it."""
    body = OWN + "st.shared.u32 [%r5], %r0; bar.warp.sync -1; xor.b32 %r6, %r6, {}; " + READ
    run(body.format(0), np.zeros(64, np.uint32), block=64, outside=SHARED)
    with pytest.raises(PTXError, match="race: reads shared"):
        run(body.format(128), np.zeros(64, np.uint32), block=64, outside=SHARED)


def test_an_array_that_kernels_fill():
    memory, array = Memory(), np.zeros((4, 16), np.float32)
    address = memory.alloc_uninitialised(array, "y")
    assert np.isnan(array).all()
    assert memory.unwritten(array) == memory.unwritten() == 64
    kernel = kernel_of(START + "@%p1 st.global.f32 [%d1], 0f3F800000;", 1)
    launch(kernel, 2, 32, [address], memory)
    assert memory.unwritten() == 32
    assert memory.written(array)[[0, 2]].all()
    assert not memory.written(array)[[1, 3]].any()
    assert (array[[0, 2]] == 1).all()
    reader = kernel_of(START + "@{}%p1 ld.global.f32 %f1, [%d1];".format(""), 1)
    launch(reader, 2, 32, [address], memory)
    reader = kernel_of(START + "@!%p1 ld.global.f32 %f1, [%d1];", 1)
    with pytest.raises(PTXError, match=r"thread \(16, 0, 0\): reads y where nothing was written"):
        launch(reader, 2, 32, [address], memory)


def test_checks_can_be_left_out():
    zeros = np.zeros(64, np.uint32)
    run(EXCHANGE.format(""), zeros, outside=SHARED, checks=False)
    assert zeros[:32].tolist() == list(range(31, -1, -1))


def test_launches_do_not_race_with_each_other():
    memory, array = Memory(), np.zeros(64, np.uint32)
    address = memory.alloc(array)
    launch(kernel_of(START + "st.global.u32 [%d1], %r2;", 1), 2, 32, [address], memory)
    back = "sub.u32 %r5, 63, %r2; mad.wide.u32 %d1, %r5, 4, %d0; st.global.u32 [%d1], %r2;"
    launch(kernel_of(START + back, 1), 2, 32, [address], memory)
    assert array.tolist() == list(range(63, -1, -1))


def test_nothing_lies_between_arrays():
    arrays = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    for offset in (256, 1024, -16):
        base = "p1" if offset < 0 else "p0"
        with pytest.raises(PTXError, match=f"at byte {offset} of array {int(offset < 0)}"):
            run(f"ld.param.u64 %d5, [{base}]; st.global.u32 [%d5+{offset}], 1;", *arrays, block=1)


def test_a_fault_in_one_of_several_spaces_names_the_thread():
    """Threads 0 to 15 read global memory, the others shared memory, where 20 wrote nothing."""
    body = (
        OWN + "setp.ne.u32 %p2, %r0, 20; @%p2 st.shared.u32 [%r5], 1; bar.sync 0; "
        "cvt.u64.u32 %d5, %r5; cvta.shared.u64 %d5, %d5; @%p1 mov.u64 %d5, %d2; ld.u32 %r6, [%d5];"
    )
    with pytest.raises(PTXError, match=r"thread \(20, 0, 0\): reads shared memory where nothing"):
        run(body, np.zeros(32, np.uint32), outside=SHARED)


def test_arrays_that_kernels_must_not_write():
    array = np.zeros(32, np.uint32)
    array.flags.writeable = False
    run("ld.global.u32 %r5, [%d1];", array)
    with pytest.raises(PTXError, match="which is read-only"):
        run("st.global.u32 [%d1], %r0;", array)
    with pytest.raises(PTXError, match="C-contiguous"):
        Memory().alloc(np.zeros((4, 4))[:, 1:])


def test_arguments_are_checked():
    kernel, memory = kernel_of("ret;", 2), Memory()
    launch(kernel, 1, 1, [0, 2**64 - 1], memory)
    for args, message in (
        ([0], "takes 2, found 1"), ([0, "x"], "found 'x'"), ([0, 2**64], "does not fit"),
        ([0, -(2**63) - 1], "does not fit"), ([0, np.zeros(2)], "found array"),
    ):  # fmt: skip
        with pytest.raises(PTXError, match=message):
            launch(kernel, 1, 1, args, memory)
    with pytest.raises(PTXError, match="grid: expected one to three positive"):
        launch(kernel, (1, 0), 1, [0, 0], memory)
    with pytest.raises(PTXError, match="at most 1024 threads, found 1025"):
        launch(kernel, 1, 1025, [0, 0], memory)
