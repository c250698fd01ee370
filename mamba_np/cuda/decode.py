"""One token of one text: a layer in four kernels, each of which reads its weights once.

    norm_in_conv -> x, z -> select -> B, C, dt -> step -> y -> out_residual -> residual

A number of an output needs all of the vector before it, so a new kernel begins where all blocks
have to wait for each other. Vectors are float32; states and windows are advanced in place.
"""

from functools import cache

from ..errors import InputError
from .dialect import cuda, types
from .formulas import F32, decay, output, routine, silu, softplus, state_update
from .intrinsics import WHOLE_WARP, load4, store4, warp_sum
from .products import (
    QUADS,
    REGISTERS,
    THREADS,
    U32,
    WARPS,
    check_dtype,
    kernel_of,
    named,
    next_row,
    normed,
    plane_of,
    row_product,
    shared_floats,
)
from .registry import F32_POINTER, INT, U32_POINTER, Budget, Kernel

LARGEST_KERNEL = 32
"""Inputs of a window: each is one lane's."""

STEP_THREADS = 64
"""Threads of a block of ``step``: there are few channels, and many processors to share them."""

STEP_LANES = 4
"""Lanes that share a channel in ``step``."""

MOST_STATES = 64


@cache
def norm_in_conv(dtype: str, K: int, width: int, group: int = 0) -> Kernel:
    """Return the kernel of a layer's first part: norm, in_proj, convolution, silu.

    residual (D_pad), norm (D_pad), eps, D, D_pad, in_proj (2 E_pad, D_pad), its scales, its bias
    (2 E_pad), conv (K, E_pad), conv_bias (E_pad), window (K, E_pad), x (E_pad), z (E_pad), E_pad.

    ``width`` is ``products.width_for(D_pad)``. Any number of blocks will do. The window moves on by
    one; x is convolved and activated, z as in_proj makes it. Raises InputError for a dtype, a
    group or a K that it cannot do.
    """
    if not 1 <= K <= LARGEST_KERNEL:
        raise InputError(f"conv_kernel: expected 1 to {LARGEST_KERNEL}, found {K}")
    check_dtype(dtype, group)
    product = row_product(dtype, group, plane=plane_of(dtype, width))
    norm, columns, vector = normed(dtype, width), U32(4 * QUADS[dtype]), shared_floats(dtype, width)

    @routine
    def convolve(value, past, tap, window, row, lane, E_pad):
        """Move the window of a channel on; return its convolution. Lane k has input k's weight."""
        if lane == U32(K - 1):
            past = value
        cuda.syncwarp()  # all have read what others will overwrite
        if lane < U32(K):
            window[lane * E_pad + row] = past
        return warp_sum(tap * past)

    def kernel(
        residual, scale, eps, D, D_pad, weights, scales, bias, conv, conv_bias, window, x, z, E_pad
    ):
        u = cuda.shared.array(vector, types.float32, alignment=16)
        squares = cuda.shared.array(WARPS, types.float32)
        thread, channels = U32(cuda.threadIdx.x), U32(E_pad)
        lane, count = thread % U32(32), U32(U32(D_pad) // columns)
        rms = norm(residual, scale, eps, (D, D_pad), u, squares)
        row = U32(U32(cuda.blockIdx.x) * U32(WARPS) + thread // U32(32))
        while row < U32(2) * channels:
            past, tap = F32(0), F32(0)  # asked for before the weights, which take longer
            if row < channels and lane < U32(K):
                tap = conv[lane * channels + row]
                if lane < U32(K - 1):
                    past = window[(lane + U32(1)) * channels + row]
            value = warp_sum(product(weights, scales, row, u, count, lane)) / rms + bias[row]
            if row < channels:
                y = convolve(value, past, tap, window, row, lane, channels)
                if lane == U32(0):
                    x[row] = silu(y + conv_bias[row])
            elif lane == U32(0):
                z[row - channels] = value
            row = next_row(row)

    arguments = (
        *(F32_POINTER, F32_POINTER, types.float32, INT, INT, U32_POINTER, F32_POINTER),
        *(F32_POINTER,) * 6,
        INT,
    )
    name = named("norm_in_conv", dtype, group, K=K, width=width)
    return kernel_of(kernel, name, arguments, vector + WARPS)


@cache
def select(dtype: str, group: int = 0) -> Kernel:
    """Return the kernel of x_proj: what the states get, what is read of them, and step sizes.

    x_proj (M, E_pad), its scales, x (E_pad), selected (M), E_pad. One block a row: M blocks.
    Raises InputError for a dtype or a group that it cannot do.
    """
    product, columns = row_product(dtype, group, lanes=THREADS), U32(4 * QUADS[dtype])

    def kernel(weights, scales, x, selected, E_pad):
        sums = cuda.shared.array(WARPS, types.float32)
        thread, row = U32(cuda.threadIdx.x), U32(cuda.blockIdx.x)
        count = U32(U32(E_pad) // columns)
        total = warp_sum(product(weights, scales, row, x, count, thread))
        if thread % U32(32) == U32(0):
            sums[thread // U32(32)] = total
        cuda.syncthreads()
        if thread == U32(0):
            total = F32(0)
            for warp in range(WARPS):
                total += sums[warp]
            selected[row] = total

    arguments = U32_POINTER, F32_POINTER, F32_POINTER, F32_POINTER, INT
    return kernel_of(kernel, named("select", dtype, group), arguments, WARPS)


@cache
def step(dtype: str, N: int) -> Kernel:
    """Return the kernel of dt_proj and the state space model.

    selected (2 N4 + R8 or more), dt_proj (E_pad, R8), dt_bias (E_pad), A_per_octave (E_pad, N4),
    D (E_pad), x (E_pad), z (E_pad), h (E_pad, N4), y (E_pad), R8. Blocks: E_pad / 16.

    h moves on by one step; y is gated. dt_proj is float32, bfloat16 or float16, as in int8 models,
    too. Raises InputError for another dtype or more than 64 states.
    """
    if dtype not in QUADS or dtype == "int8" or not 1 <= N <= MOST_STATES:
        raise InputError(
            f"step: expected dt_proj as floats and 1 to {MOST_STATES} states, found {dtype}, {N}"
        )
    quads = -(-N // 4)
    N4 = 4 * quads
    product, columns = row_product(dtype, lanes=STEP_LANES, start=2 * N4), U32(4 * QUADS[dtype])

    @routine
    def sum_of_lanes(v):
        v += cuda.shfl_xor_sync(WHOLE_WARP, v, 1)
        return v + cuda.shfl_xor_sync(WHOLE_WARP, v, 2)

    @routine
    def advance(h, A, selected, place, quad, delta, drive):
        """Advance four states of a channel, and return their share of its output."""
        s, a = load4(h, place), load4(A, place)
        B, C = load4(selected, U32(4) * quad), load4(selected, U32(4) * (quad + U32(quads)))
        s0 = state_update(s[0], decay(delta, a[0]), drive * B[0])
        s1 = state_update(s[1], decay(delta, a[1]), drive * B[1])
        s2 = state_update(s[2], decay(delta, a[2]), drive * B[2])
        s3 = state_update(s[3], decay(delta, a[3]), drive * B[3])
        store4(h, place, s0, s1, s2, s3)
        return s0 * C[0] + s1 * C[1] + s2 * C[2] + s3 * C[3]

    def kernel(selected, weights, dt_bias, A, D, x, z, h, y, R8):
        thread = U32(cuda.blockIdx.x) * U32(STEP_THREADS) + U32(cuda.threadIdx.x)
        channel, lane = thread // U32(STEP_LANES), thread % U32(STEP_LANES)
        count = U32(U32(R8) // columns)
        raw = sum_of_lanes(product(weights, dt_bias, channel, selected, count, lane))
        delta, now = softplus(raw + dt_bias[channel]), x[channel]
        total = F32(0)
        for quad in range(lane, U32(quads), U32(STEP_LANES)):
            place = U32(4) * (channel * U32(quads) + quad)
            total += advance(h, A, selected, place, quad, delta, delta * now)
        total = sum_of_lanes(total)
        if lane == U32(0):
            y[channel] = output(total, now, D[channel], z[channel])

    arguments = F32_POINTER, U32_POINTER, *(F32_POINTER,) * 7, INT
    return Kernel(f"step {dtype} N={N}", kernel, arguments, STEP_THREADS, Budget(REGISTERS))


@cache
def out_residual(dtype: str, group: int = 0) -> Kernel:
    """Return the kernel of out_proj: residual += out_proj y + bias.

    out_proj (rows, E_pad), its scales, its bias (rows), y (E_pad), residual (rows), rows, E_pad.
    Any number of blocks will do. Raises InputError for a dtype or a group that it cannot do.
    """
    product, columns = row_product(dtype, group), U32(4 * QUADS[dtype])

    def kernel(weights, scales, bias, y, residual, rows, E_pad):
        thread = U32(cuda.threadIdx.x)
        lane, count = thread % U32(32), U32(U32(E_pad) // columns)
        row = U32(U32(cuda.blockIdx.x) * U32(WARPS) + thread // U32(32))
        while row < U32(rows):
            total = warp_sum(product(weights, scales, row, y, count, lane))
            if lane == U32(0):
                residual[row] += total + bias[row]
            row = next_row(row)

    arguments = U32_POINTER, *(F32_POINTER,) * 4, INT, INT
    return kernel_of(kernel, named("out_residual", dtype, group), arguments)
