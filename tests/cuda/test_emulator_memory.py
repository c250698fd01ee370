"""The emulator of tests/ptx: memory, exchange in warps, branches and barriers, against NumPy."""

import numpy as np
import pytest
from handwritten import HEAD, kernel_of, run
from ptx import Memory, PTXError, launch, parse

LANES = np.arange(32)


def results(body, dtype=np.uint32, block=32, **options):
    """Run lines that leave %r5 (or %d5 for 8 bytes); return it for each thread."""
    out = np.zeros(block, dtype)
    size = out.itemsize
    body += f" mad.wide.u32 %d6, %r0, {size}, %d0; st.global.b{8 * size} [%d6], "
    run(body + ("%d5;" if size == 8 else "%r5;"), out, block=block, **options)
    return out


def test_vectors_and_narrow_numbers(rng):
    source = rng.integers(0, 2**32, 256, np.uint32)
    target = np.zeros_like(source)
    run(
        "shl.b32 %r5, %r0, 5; cvt.u64.u32 %d5, %r5; add.u64 %d6, %d0, %d5; ld.param.u64 %d7, [p1]; "
        "add.u64 %d7, %d7, %d5; ld.global.nc.L1::no_allocate.v4.u32 {%r6, %r7, %r8, %r9}, [%d6]; "
        "ld.global.cs.v2.f32 {%f1, %f2}, [%d6+16]; ld.volatile.global.u64 %d8, [%d6+24]; "
        "st.global.cs.v4.b32 [%d7], {%r9, %r8, %r7, %r6}; st.v2.f32 [%d7+16], {%f2, %f1}; "
        "st.global.b64 [%d7+24], %d8;",
        source, target,
    )  # fmt: skip
    rows = source.reshape(32, 8)
    assert np.array_equal(target.reshape(32, 8), rows[:, [3, 2, 1, 0, 5, 4, 6, 7]])
    values = np.array([0, 1, 127, 128, 255, 200, 77, 129], np.uint8)
    wide = np.zeros((8, 4), np.uint32)
    run(
        "cvt.u64.u32 %d5, %r0; add.u64 %d5, %d5, %d0; ld.param.u64 %d6, [p1]; "
        "mad.wide.u32 %d6, %r0, 16, %d6; ld.global.u8 %r5, [%d5]; ld.global.s8 %r6, [%d5]; "
        "ld.global.s8 %h1, [%d5]; cvt.u32.u16 %r7, %h1; ld.global.b8 %h2, [%d5]; "
        "cvt.s32.s16 %r8, %h2; st.global.v4.u32 [%d6], {%r5, %r6, %r7, %r8}; "
        "st.global.u8 [%d5], 7;",
        values, wide, block=8,
    )  # fmt: skip
    old = np.array([0, 1, 127, 128, 255, 200, 77, 129], np.uint8)
    extended = old.view(np.int8).astype(np.int32).view(np.uint32)
    assert np.array_equal(wide.T, [old, extended, extended & 0xFFFF, old])
    assert (values == 7).all()


def test_generic_addresses_find_every_space():
    """A third of the threads each: global, shared and local memory by the same instruction."""
    found = results(
        ".shared .align 8 .b8 s[128]; .local .align 8 .b8 l[8]; cvt.u64.u32 %d5, %r3; "
        "cvta.shared.u64 %d7, s; add.u64 %d7, %d7, %d5; cvta.local.u64 %d8, l; mov.u64 %d9, %d2; "
        "rem.u32 %r6, %r0, 3; setp.eq.u32 %p2, %r6, 1; @%p2 mov.u64 %d9, %d7; "
        "setp.eq.u32 %p2, %r6, 2; @%p2 mov.u64 %d9, %d8; add.u32 %r7, %r0, 100; "
        "st.u32 [%d9], %r7; ld.u32 %r5, [%d9]; "
        "@%p2 ld.local.u32 %r5, [l]; setp.eq.u32 %p2, %r6, 1; @%p2 bra L; bra M; "
        "L: cvta.to.shared.u64 %d9, %d9; ld.shared.u32 %r5, [%d9]; M: add.u32 %r5, %r5, 1;"
    )
    assert found.tolist() == list(range(101, 133))


ATOMICS = {  # {instruction: (start, values, function of old and value)}
    "add.u32": lambda old, x: old + x,
    "min.u32": min,
    "max.s32": max,
    "and.b32": lambda old, x: old & x,
    "or.b32": lambda old, x: old | x,
    "xor.b32": lambda old, x: old ^ x,
    "exch.b32": lambda old, x: x,
    "inc.u32": lambda old, x: 0 if old >= x else old + 1,
    "dec.u32": lambda old, x: x if old == 0 or old > x else old - 1,
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(name, space):
    """Four words, each changed by eight threads in order; each thread gets what it found."""
    first = (
        ".shared .align 4 .b8 s[16]; and.b32 %r6, %r3, 15; cvt.u64.u32 %d5, %r6; "
        "ld.param.u64 %d7, [p1]; add.u64 %d7, %d7, %d5; mov.u64 %d9, %d7; "
        "mad.lo.u32 %r8, %r0, 5, 3; "
    )
    body = f"atom.global.{name} %r7, [%d7], %r8; "
    if space == "shared":
        body = (
            "mov.u64 %d8, s; add.u64 %d7, %d8, %d5; setp.lt.u32 %p2, %r0, 4; "
            "@%p2 st.shared.u32 [%d7], 50; bar.sync 0; "
            f"atom.shared.{name} %r7, [%d7], %r8; bar.sync 0; ld.shared.u32 %r9, [%d7]; "
            "@%p2 st.global.u32 [%d9], %r9; "
        )
    out, words = np.zeros(32, np.uint32), np.full(4, 50, np.uint32)
    run(first + body + "st.global.u32 [%d1], %r7;", out, words)
    expected = [50] * 4
    for thread in range(32):
        assert out[thread] == expected[thread % 4]
        expected[thread % 4] = ATOMICS[name](expected[thread % 4], 5 * thread + 3)
    assert words.tolist() == expected


def test_atomics_with_two_operands_floats_and_none_returned():
    words, sums = np.zeros(1, np.uint32), np.zeros(1, np.float32)
    run(
        "cvt.rn.f32.u32 %f1, %r2; ld.param.u64 %d5, [p1]; red.global.add.f32 [%d5], %f1; "
        "add.u32 %r5, %r2, 1; atom.global.cas.b32 %r6, [%d0], %r2, %r5; ",
        words, sums, grid=3,
    )  # fmt: skip
    assert words[0] == 96
    assert sums[0] == sum(range(96))


# --- warps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("up.b32 %r5|%p2, %r0, 3, 0", LANES - 3),
        ("down.b32 %r5|%p2, %r0, 5, 31", LANES + 5),
        ("bfly.b32 %r5|%p2, %r0, 9, 31", LANES ^ 9),
        ("idx.b32 %r5|%p2, %r0, 17, 31", LANES * 0 + 17),
        ("down.b32 %r5|%p2, %r0, 2, 0x1807", np.where(LANES % 8 < 6, LANES + 2, 99)),
        ("up.b32 %r5|%p2, %r0, 2, 0x1800", np.where(LANES % 8 > 1, LANES - 2, 99)),
        ("idx.b32 %r5|%p2, %r0, 11, 0x1807", LANES // 8 * 8 + 3),
    ],
)
def test_shuffles(text, source):
    valid = (source >= 0) & (source < 32)
    expected = np.where(valid, source, LANES)
    found = results(f"shfl.sync.{text}, -1; selp.u32 %r6, 256, 0, %p2; or.b32 %r5, %r5, %r6;")
    assert np.array_equal(found, expected + 256 * valid)


def test_shuffles_wait_for_lanes_that_come_later():
    """The loop lies behind the shuffle in the text; lanes leave it one by one."""
    found = results(
        "mov.u32 %r6, 0; bra L; E: shfl.sync.bfly.b32 %r5, %r6, 1, 31, -1; bra F; "
        "L: add.u32 %r6, %r6, 1; setp.gt.u32 %p2, %r6, %r0; @%p2 bra E; bra L; F:",
        block=64,
    )
    assert np.array_equal(found, (np.arange(64) ^ 1) + 1)
    found = results(  # guarded: the other lanes go on
        "mov.u32 %r5, 7; mov.u32 %r6, 0; bra L; "
        "E: @%p1 shfl.sync.bfly.b32 %r5, %r0, 1, 31, 0xFFFF; bra F; "
        "L: add.u32 %r6, %r6, 1; setp.gt.u32 %p2, %r6, %r0; @%p2 bra E; bra L; F:"
    )
    assert np.array_equal(found, np.where(LANES < 16, LANES ^ 1, 7))


def test_lanes_that_a_guard_excludes_do_not_wait():
    """Four lanes leave the loop at a time; the odd ones shuffle, once all odd ones have come."""
    found = results(
        "and.b32 %r7, %r0, 1; setp.eq.u32 %p4, %r7, 1; shr.u32 %r8, %r0, 2; mov.u32 %r5, 99; "
        "mov.u32 %r6, 0; bra L; E: @%p4 shfl.sync.bfly.b32 %r5, %r0, 6, 31, 0xAAAAAAAA; bra F; "
        "L: add.u32 %r6, %r6, 1; setp.gt.u32 %p2, %r6, %r8; @%p2 bra E; bra L; F:"
    )
    assert np.array_equal(found, np.where(LANES % 2, LANES ^ 6, 99))


def test_votes_and_matches():
    block = np.arange(64)
    low = block % 32
    vote = "setp.lt.u32 %p2, %r0, 40; "
    found = results(vote + "vote.sync.ballot.b32 %r5, %p2, -1;", block=64)
    assert np.array_equal(found, np.where(block < 32, 2**32 - 1, 255))
    for mode, expected in (("all", block < 32), ("any", block >= 0), ("uni", block < 32)):
        text = f"{vote} vote.sync.{mode}.pred %p3, %p2, -1; selp.u32 %r5, 1, 0, %p3;"
        assert np.array_equal(results(text, block=64), expected), mode
    found = results("and.b32 %r6, %r0, 3; match.any.sync.b32 %r5, %r6, -1;", block=64)
    assert np.array_equal(found, 0x11111111 << low % 4)
    found = results("shr.u32 %r6, %r0, 6; match.all.sync.b32 %r5|%p2, %r6, -1;", block=64)
    assert (found == 2**32 - 1).all()
    assert (results("match.all.sync.b32 %r5|%p2, %r0, -1;") == 0).all()
    found = results("redux.sync.add.s32 %r5, %r0, -1;", block=64)
    assert np.array_equal(found, np.repeat([496, 496 + 1024], 32))
    found = results("mov.u32 %r5, 0; @%p1 activemask.b32 %r5;")
    assert np.array_equal(found, np.where(LANES < 16, 0xFFFF, 0))


def test_special_registers():
    names = [f"{one}.{axis}" for one in ["tid", "ntid", "ctaid", "nctaid"] for axis in "xyz"]
    names += ["laneid", "warpid", "lanemask_lt", "lanemask_ge"]
    grid, block = (2, 3, 4), (5, 4, 3)
    out = np.zeros((4, 3, 2, 3, 4, 5, len(names)), np.uint32)
    place = (  # a flat number of the thread in the grid
        "mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.z; mov.u32 %r3, %ctaid.y; "
        "mad.lo.u32 %r2, %r2, %r1, %r3; mov.u32 %r1, %nctaid.x; mov.u32 %r3, %ctaid.x; "
        "mad.lo.u32 %r2, %r2, %r1, %r3; "
        "mov.u32 %r3, %tid.z; mad.lo.u32 %r2, %r2, 3, %r3; mov.u32 %r3, %tid.y; "
        "mad.lo.u32 %r2, %r2, 4, %r3; mov.u32 %r3, %tid.x; mad.lo.u32 %r2, %r2, 5, %r3; "
        f"ld.param.u64 %d0, [p0]; mad.wide.u32 %d0, %r2, {4 * len(names)}, %d0; "
    )
    stores = "".join(
        f"mov.u32 %r5, %{name}; st.global.u32 [%d0+{4 * k}], %r5; " for k, name in enumerate(names)
    )
    memory = Memory()
    launch(kernel_of(place + stores, 1), grid, block, [memory.alloc(out)], memory)
    ctaid_z, ctaid_y, ctaid_x, tid_z, tid_y, tid_x = np.indices(out.shape[:-1])
    flat = tid_x + 5 * tid_y + 20 * tid_z
    lane = flat % 32
    expected = [tid_x, tid_y, tid_z, 5, 4, 3, ctaid_x, ctaid_y, ctaid_z, 2, 3, 4, lane, flat // 32,
                2**lane - 1, 2**32 - 2**lane]  # fmt: skip
    for k, one in enumerate(expected):
        assert (out[..., k] == one).all(), names[k]


# --- branches and barriers ------------------------------------------------------------------------


def collatz(n):
    steps = 0
    while n != 1:
        n, steps = (3 * n + 1 if n % 2 else n // 2), steps + 1
    return steps


def test_threads_part_and_meet_again():
    """A loop with a branch, other for each thread; more threads than run together."""
    out = np.zeros(5 * 1000, np.uint32)
    body = (
        "add.u32 %r5, %r2, 1; mov.u32 %r6, 0; L: setp.eq.u32 %p2, %r5, 1; @%p2 bra E; "
        "add.u32 %r6, %r6, 1; and.b32 %r7, %r5, 1; setp.eq.u32 %p3, %r7, 0; @%p3 bra M; "
        "mad.lo.u32 %r5, %r5, 3, 1; bra.uni L; M: shr.u32 %r5, %r5, 1; bra.uni L; "
        "E: st.global.u32 [%d1], %r6;"
    )
    counters = run(body, out, grid=5, block=1000)
    steps = [collatz(n + 1) for n in range(5000)]
    assert out.tolist() == steps
    assert counters.opcodes["shr.u32"] + counters.opcodes["mad.lo.u32"] == sum(steps) + 5000
    assert counters.opcodes["add.u32"] == sum(steps) + 5000
    assert counters.bytes_stored == {"global": 20000}
    assert counters.steps < 20 * sum(sorted(steps)[-10:]), "threads run one by one"


def test_what_follows_a_branch_runs_once():
    text = "@{} bra L; " + "add.u32 %r0, %r0, 1; " * 10 + "L: " + "add.u32 %r0, %r0, 3; " * 100
    out = np.zeros(32, np.uint32)
    together, apart = (
        run(f"setp.lt.u32 %p2, %r0, {n}; " + text.format("%p2"), out).steps for n in (0, 16)
    )
    assert together <= apart < together + 10


def test_barriers_that_count():
    vote = "setp.lt.u32 %p2, %r0, 40; "
    found = results(vote + "barrier.sync.red.popc.u32 %r5, 0, %p2;", block=64)
    assert (found == 40).all()
    for mode, expected in (("and", 0), ("or", 1)):
        text = f"{vote} bar.red.{mode}.pred %p3, 0, %p2; selp.u32 %r5, 1, 0, %p3;"
        assert (results(text, block=64) == expected).all()


def test_the_barrier_of_a_grid():
    """Each block reads what another block wrote: only after all have met."""
    call = (
        "{ .reg .b32 unused; .param .b64 param0; st.param.b64 [param0+0], 1; .param .b32 param1; "
        "st.param.b32 [param1+0], 0; .param .b32 retval0; call.uni (retval0), cudaCGSynchronize, "
        "( param0, param1 ); ld.param.b32 %r9, [retval0+0]; } "
    )
    body = (
        "st.global.u32 [%d1], %r2; {} sub.u32 %r5, 191, %r2; mad.wide.u32 %d5, %r5, 4, %d0; "
        "ld.global.u32 %r6, [%d5]; ld.param.u64 %d6, [p1]; mad.wide.u32 %d6, %r2, 4, %d6; "
        "st.global.u32 [%d6], %r6;"
    )
    out = np.zeros(192, np.uint32)
    run(body.replace("{}", call), np.zeros(192, np.uint32), out, grid=6)
    assert np.array_equal(out, np.arange(192)[::-1])
    with pytest.raises(PTXError, match="race"):
        run(body.replace("{}", ""), np.zeros(192, np.uint32), out, grid=6)


def test_copies_end_with_a_wait():
    source, out = np.arange(64, dtype=np.uint32), np.zeros(32, np.uint32)
    copy = "cp.async.ca.shared.global [%r5{}], [%d1+{}], 4; cp.async.commit_group; "
    run(
        ".shared .align 4 .b8 s[256]; mov.u32 %r5, s; add.u32 %r5, %r5, %r3; "
        + copy.format("", 0) + copy.format("+128", 128)
        + "cp.async.wait_group 1; ld.shared.u32 %r6, [%r5]; cp.async.wait_group 0; "
        "ld.shared.u32 %r7, [%r5+128]; add.u32 %r6, %r6, %r7; ld.param.u64 %d5, [p1]; "
        "mad.wide.u32 %d5, %r0, 4, %d5; st.global.u32 [%d5], %r6;",
        source, out,
    )  # fmt: skip
    assert np.array_equal(out, 2 * np.arange(32) + 32)


def test_parameters_and_several_kernels():
    text = HEAD + (
        ".visible .entry a(.param .u64 y, .param .f32 x, .param .s32 n) .maxntid 32, 1, 1 { "
        ".reg .f32 %f<4>; .reg .b32 %r<4>; .reg .b64 %d<4>; ld.param.u64 %d1, [y]; "
        "ld.param.f32 %f1, [x]; ld.param.u32 %r1, [n]; cvt.rn.f32.s32 %f2, %r1; "
        "add.f32 %f1, %f1, %f2; st.global.f32 [%d1], %f1; }\n.visible .entry b() { ret; }"
    )
    module, memory, y = parse(text), Memory(), np.zeros(1, np.float32)
    launch(module.kernels["a"], 1, 1, [memory.alloc(y), 0.5, -3], memory)
    assert y[0] == -2.5
    launch(module.kernels["b"], 1, 1, [], memory)
    with pytest.raises(PTXError, match="expected one kernel, found a, b"):
        launch(module, 1, 1, [], memory)
    with pytest.raises(PTXError, match="at most 32 threads, found 33"):
        launch(module.kernels["a"], 1, 33, [0, 0, 0], memory)
