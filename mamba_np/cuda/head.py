"""From the residual to the next token's id and its embedding, without leaving the device.

``score`` makes the scores of the vocabulary, and each of its blocks names its best token; ``pick``
takes the best of those, notes it, and begins the next token with its embedding. How many tokens
have been made is counted on the device, so that the same recorded work does for all of them.

A token is the best if its score is the highest or, in sampling, its score over the temperature plus
Gumbel noise (``equations.gumbel``). Among equals the lowest id wins, and NaN wins over every
number: as ``numpy.argmax`` has it.
"""

from functools import cache

from . import noise
from .dialect import cuda, types
from .formulas import F32, gumbel, routine
from .intrinsics import WHOLE_WARP, bits_of, load4_words, store4, warp_sum
from .products import (
    QUADS,
    THREADS,
    U32,
    U64,
    WARPS,
    WIDENED,
    check_dtype,
    kernel_of,
    named,
    next_row,
    normed,
    plane_of,
    row_product,
    shared_floats,
)
from .registry import F32_POINTER, I32_POINTER, INT, U32_POINTER, Kernel

I32 = types.int32
INFINITE = 0x7F800000
"""The rank of infinity; NaN's is higher, that of minus infinity the opposite."""
LOWEST, NOBODY = -(2**31), 2**31 - 1
"""The rank of no token at all, which loses against every token, and its id."""

_philox, _uniform = routine(noise.philox), routine(noise.uniform)


@routine
def noise_of(token, count, seed):
    """Return the noise of a token, if ``count`` were made before, by a seed of two words."""
    words = _philox((token, U32(count), U32(0), U32(0)), (seed[0], seed[1]))
    return gumbel(_uniform(words[0]))


@routine
def rank(x):
    """Return an integer that orders float32 as argmax does: -0 is 0, and NaN is above infinity.

    In integers, because fast arithmetic takes it that there is no NaN.
    """
    bits = bits_of(x)
    size = U32(bits & U32(0x7FFFFFFF))
    if size > U32(INFINITE):
        return I32(0x7FFFFFFF)
    return I32(size) if bits == size else I32(-I32(size))


@routine
def better(one, other):
    """Return the better one of two (rank, id)."""
    if other[0] > one[0] or (other[0] == one[0] and other[1] < one[1]):
        return other
    return one


@cache
def score(dtype: str, width: int, sampling: bool, group: int = 0) -> Kernel:
    """Return the kernel of the last norm and the head.

    residual (D_pad), norm_f (D_pad), eps, D, D_pad, lm_head (V, D_pad), its scales, V, logits (V),
    bests (blocks, 2), temperature (1), seed (2), count (1).

    ``width`` is ``products.width_for(D_pad)``. Any number of blocks will do; each writes its best
    token's rank and id. Only sampling reads the last three. Raises InputError for a dtype or a
    group that it cannot do.
    """
    check_dtype(dtype, group)
    product = row_product(dtype, group, plane=plane_of(dtype, width))
    norm, columns, vector = normed(dtype, width), U32(4 * QUADS[dtype]), shared_floats(dtype, width)

    def kernel(
        residual, scale, eps, D, D_pad, weights, scales, V, logits, bests, temperature, seed, count
    ):
        x = cuda.shared.array(vector, types.float32, alignment=16)
        squares = cuda.shared.array(WARPS, types.float32)
        ranks, ids = cuda.shared.array(WARPS, types.int32), cuda.shared.array(WARPS, types.int32)
        thread, pieces = U32(cuda.threadIdx.x), U32(U32(D_pad) // columns)
        lane, warp = thread % U32(32), thread // U32(32)
        rms = norm(residual, scale, eps, (D, D_pad), x, squares)
        best = I32(LOWEST), I32(NOBODY)
        token = U32(U32(cuda.blockIdx.x) * U32(WARPS) + warp)
        while token < U32(V):
            value = warp_sum(product(weights, scales, token, x, pieces, lane)) / rms
            if lane == U32(0):
                logits[token] = value
            if sampling:
                value = value / temperature[0] + noise_of(U32(token), count[0], seed)
            best = better(best, (rank(value), I32(token)))
            token = next_row(token)
        if lane == U32(0):
            ranks[warp], ids[warp] = best
        cuda.syncthreads()
        if thread == U32(0):
            for other in range(1, WARPS):
                best = better(best, (ranks[other], ids[other]))
            bests[U32(2) * U32(cuda.blockIdx.x)] = best[0]
            bests[U32(2) * U32(cuda.blockIdx.x) + U32(1)] = best[1]

    arguments = (
        *(F32_POINTER, F32_POINTER, types.float32, INT, INT, U32_POINTER, F32_POINTER, INT),
        *(F32_POINTER, I32_POINTER, F32_POINTER, U32_POINTER, I32_POINTER),
    )
    name = named("score sampling" if sampling else "score greedy", dtype, group, width=width)
    return kernel_of(kernel, name, arguments, vector + 3 * WARPS)


@cache
def pick(dtype: str, group: int = 0) -> Kernel:
    """Return the kernel that takes the best token; one block.

    bests (blocks, 2), blocks, ids (room for all), count (1), embeddings (V, D_pad), their scales,
    residual (D_pad), D_pad. ids[count] becomes the token and the residual its embedding; then count
    is one more. Raises InputError for a dtype or a group that it cannot do.
    """
    check_dtype(dtype, group)
    put, columns = _writer(dtype, group), U32(4 * QUADS[dtype])

    @routine
    def best_of_warp(best):
        for distance in (16, 8, 4, 2, 1):
            there = cuda.shfl_xor_sync(WHOLE_WARP, best[0], distance)
            best = better(best, (there, cuda.shfl_xor_sync(WHOLE_WARP, best[1], distance)))
        return best

    def kernel(bests, blocks, ids, count, embeddings, scales, residual, D_pad):
        warp_ranks = cuda.shared.array(WARPS, types.int32)
        warp_ids = cuda.shared.array(WARPS, types.int32)
        thread, pieces = U32(cuda.threadIdx.x), U32(U32(D_pad) // columns)
        best = I32(LOWEST), I32(NOBODY)
        for block in range(U32(thread), U32(blocks), U32(THREADS)):
            best = better(best, (bests[U32(2) * block], bests[U32(2) * block + U32(1)]))
        best = best_of_warp(best)
        if thread % U32(32) == U32(0):
            warp_ranks[thread // U32(32)], warp_ids[thread // U32(32)] = best
        cuda.syncthreads()
        for warp in range(WARPS):
            best = better(best, (warp_ranks[warp], warp_ids[warp]))
        for piece in range(U32(thread), pieces, U32(THREADS)):
            put(embeddings, scales, U32(best[1]), piece, pieces, residual)
        if thread == U32(0):
            ids[count[0]] = best[1]
            count[0] += I32(1)

    arguments = (
        *(I32_POINTER, INT, I32_POINTER, I32_POINTER, U32_POINTER, F32_POINTER, F32_POINTER, INT),
    )
    return kernel_of(kernel, named("pick", dtype, group), arguments, 2 * WARPS)


def _writer(dtype: str, group: int):
    """Return a device function that writes 16 bytes' worth of a row as float32."""
    widened, quads = WIDENED[dtype], QUADS[dtype]

    @routine
    def store(residual, place, w, scale):
        store4(residual, place, w[0] * scale, w[1] * scale, w[2] * scale, w[3] * scale)

    @routine
    def words_of(embeddings, token, piece, pieces):
        return load4_words(embeddings, (U64(token) * U64(pieces) + U64(piece)) << U64(2))

    @routine
    def one(embeddings, scales, token, piece, pieces, residual):
        w = widened(words_of(embeddings, token, piece, pieces))
        store(residual, U32(4) * piece, w, F32(1))

    @routine
    def two(embeddings, scales, token, piece, pieces, residual):
        w = widened(words_of(embeddings, token, piece, pieces))
        store(residual, U32(8) * piece, w[0:4], F32(1))
        store(residual, U32(8) * piece + U32(4), w[4:8], F32(1))

    @routine
    def four(embeddings, scales, token, piece, pieces, residual):
        w = widened(words_of(embeddings, token, piece, pieces))
        groups = U32((U32(16) * pieces + U32(group - 1)) // U32(group))
        scale = scales[U64(token) * U64(groups) + U64((U32(16) * piece) // U32(group))]
        store(residual, U32(16) * piece, w[0:4], scale)
        store(residual, U32(16) * piece + U32(4), w[4:8], scale)
        store(residual, U32(16) * piece + U32(8), w[8:12], scale)
        store(residual, U32(16) * piece + U32(12), w[12:16], scale)

    return {1: one, 2: two, 4: four}[quads]
