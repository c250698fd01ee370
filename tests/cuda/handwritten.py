"""PTX by hand: a kernel around some lines, and one instruction run for many numbers."""

import numpy as np
from ptx import Memory, launch, parse

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


def kernel_of(body, parameters=8, outside=""):
    """Return a kernel of 64-bit parameters p0, p1, ... with registers %p, %h, %r, %d, %f, %g."""
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    registers = "".join(
        f".reg .{kind} %{name}<30>;\n"
        for kind, name in (
            ("pred", "p"), ("b16", "h"), ("b32", "r"), ("b64", "d"), ("f32", "f"), ("f64", "g"),
        )
    )  # fmt: skip
    text = f"{HEAD}{outside}\n.visible .entry one({names})\n{{\n{registers}{body}\n}}\n"
    return parse(text).kernel


REGISTER = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}


def calculate(instruction, *arrays, out, **options):
    """Run one instruction for all elements: operands are {a}, {b}, {c}, the result is {d}."""
    arrays = [np.ascontiguousarray(one) for one in np.broadcast_arrays(*arrays)]
    result = np.zeros(len(arrays[0]), out)
    lines, names = (
        ["mov.u32 %r20, %tid.x; mov.u32 %r21, %ctaid.x; mad.lo.u32 %r20, %r21, 64, %r20;"],
        {},
    )
    lines += [f"setp.ge.u32 %p20, %r20, {len(result)}; @%p20 ret;"]
    for k, array in enumerate([*arrays, result]):
        size, place = array.itemsize, f"%d{20 + k}"
        names["abcdef"[k] if k < len(arrays) else "d"] = f"{REGISTER[size]}{10 + k}"
        lines += [
            f"ld.param.u64 {place}, [p{k}]; mad.wide.u32 {place}, %r20, {size}, {place};",
            f"ld.global.b{8 * size} {REGISTER[size]}{10 + k}, [{place}];",
        ]
    lines += [instruction.format(**names) + ";"]
    lines += [f"st.global.b{8 * result.itemsize} [{place}], {names['d']};"]
    memory = Memory()
    args = [memory.alloc(array) for array in [*arrays, result]]
    kernel = kernel_of("\n".join(lines), len(args))
    launch(kernel, -(-len(result) // 64), 64, args, memory, **options)
    return result


def signed(x, bits=32):
    return x - (1 << bits) if x >> bits - 1 else x


START = """
mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r2, %r1, %r2, %r0;
ld.param.u64 %d0, [p0]; mad.wide.u32 %d1, %r2, 4, %d0; mad.wide.u32 %d2, %r0, 4, %d0;
shl.b32 %r3, %r0, 2; xor.b32 %r4, %r3, 124;
setp.lt.u32 %p1, %r0, 16;
"""
"""Thread %r0, block %r1, both %r2; array p0 at %d0, its element %r2 at %d1 and %r0 at %d2; byte %r3
of a thread's word in shared memory, byte %r4 of that of the thread opposite in its warp; %p1: the
first 16."""


def run(body, *arrays, grid=1, block=32, outside="", memory=None, **options):
    """Run lines after ``START`` on arrays p0, p1, ...; return what ``launch`` returns."""
    memory = memory or Memory()
    addresses = [memory.alloc(array) for array in arrays]
    kernel = kernel_of(START + body, len(arrays), outside)
    return launch(kernel, grid, block, addresses, memory, **options)
