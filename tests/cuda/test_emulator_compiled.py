"""The emulator of tests/ptx runs what Numba compiles, and finds what is then spoilt."""

import re
from functools import cache

import numpy as np
import pytest
from ptx import Memory, PTXError, launch, parse
from tolerances import TOLERANCES

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from numba import cuda, float32, int32, types

from mamba_np.cuda.registry import F32_POINTER, I32_POINTER, INT, Budget, Kernel

ARCHITECTURES = (75, 80, 90, 100, 120)
TILE, THREADS, WARPS, BINS = 16, 128, 4, 37


def sums_of_rows(x, sums, length):
    """One block a row: each warp by shuffles, the warps by shared memory."""
    parts = cuda.shared.array(WARPS, float32)
    thread, row, total = cuda.threadIdx.x, cuda.blockIdx.x, float32(0)
    for place in range(thread, length, THREADS):
        total += x[row * length + place]
    for distance in (16, 8, 4, 2, 1):
        total += cuda.shfl_down_sync(0xFFFFFFFF, total, distance)
    if thread % 32 == 0:
        parts[thread // 32] = total
    cuda.syncthreads()
    if thread == 0:
        sums[row] = parts[0] + parts[1] + parts[2] + parts[3]


def product(a, b, c, n):
    """Square matrices, by tiles in shared memory; n need not be a multiple of the tile."""
    left = cuda.shared.array((TILE, TILE), float32)
    right = cuda.shared.array((TILE, TILE), float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    row, column = cuda.blockIdx.y * TILE + i, cuda.blockIdx.x * TILE + j
    total = float32(0)
    for start in range(0, n, TILE):
        left[i, j] = a[row * n + start + j] if row < n and start + j < n else float32(0)
        right[i, j] = b[(start + i) * n + column] if start + i < n and column < n else float32(0)
        cuda.syncthreads()
        for k in range(TILE):
            total += left[i, k] * right[k, j]
        cuda.syncthreads()
    if row < n and column < n:
        c[row * n + column] = total


def histogram(x, counts, length):
    """Counts of a block in shared memory, then added to all others'."""
    mine = cuda.shared.array(BINS, int32)
    for place in range(cuda.threadIdx.x, BINS, THREADS):
        mine[place] = 0
    cuda.syncthreads()
    for place in range(cuda.grid(1), length, cuda.gridsize(1)):
        cuda.atomic.add(mine, x[place], 1)
    cuda.syncthreads()
    if cuda.threadIdx.x < BINS:
        cuda.atomic.add(counts, cuda.threadIdx.x, mine[cuda.threadIdx.x])


KERNELS = {
    sums_of_rows: (F32_POINTER, F32_POINTER, INT),
    product: (F32_POINTER, F32_POINTER, F32_POINTER, INT),
    histogram: (I32_POINTER, types.Array(types.int32, 1, "C"), INT),
}


@cache
def text_of(function, arch=90):
    from mamba_np.cuda import compiler

    kernel = Kernel(function.__name__, function, KERNELS[function], THREADS, Budget(255))
    return compiler.ptx(kernel, arch)


def near(found, expected):
    scale = np.abs(expected).max()
    return np.abs(found - expected).max() <= TOLERANCES["step", "float32"] * scale


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shuffles_and_shared_memory(rng, arch):
    x = rng.standard_normal((7, 333)).astype(np.float32)
    memory, sums = Memory(), np.zeros(7, np.float32)
    args = [memory.alloc(x), memory.alloc_uninitialised(sums), 333]
    counters = launch(parse(text_of(sums_of_rows, arch)), 7, THREADS, args, memory)
    assert memory.unwritten() == 0
    assert near(sums, x.sum(1, dtype=np.float64))
    shuffles = sum(n for name, n in counters.opcodes.items() if name.startswith("shfl.sync.down"))
    assert shuffles == 7 * THREADS * 5
    assert counters.bytes_loaded["global"] == x.nbytes


def multiply(text, n=40):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, n)).astype(np.float32)
    memory, c = Memory(), np.zeros((n, n), np.float32)
    args = [memory.alloc(a), memory.alloc(b), memory.alloc_uninitialised(c), n]
    blocks = -(-n // TILE)
    launch(parse(text), (blocks, blocks), (TILE, TILE), args, memory)
    return near(c, a.astype(np.float64) @ b), memory.unwritten()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_product_of_matrices_by_tiles(arch):
    assert multiply(text_of(product, arch)) == (True, 0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_atomics_in_two_spaces(rng, arch):
    x = rng.integers(0, BINS, 1000, np.int32)
    counts, memory = np.zeros(BINS, np.int32), Memory()
    address = memory.alloc(counts)
    array = [0, 0, BINS, 4, address, BINS, 4]  # as Numba hands an array to a kernel
    args = [memory.alloc(x), *array, len(x)]
    launch(parse(text_of(histogram, arch)), 3, THREADS, args, memory)
    assert np.array_equal(counts, np.bincount(x, minlength=BINS))


# --- spoilt ---------------------------------------------------------------------------------------


def without(text, pattern):
    """Yield the text without each of its lines that match."""
    for match in re.finditer(rf"\n[^\n]*{pattern}[^\n]*", text):
        yield text[: match.start()] + text[match.end() :]


def test_each_barrier_is_needed():
    spoilt = list(without(text_of(product), r"\bbar\.sync"))
    assert len(spoilt) >= 2
    for text in spoilt:
        with pytest.raises(PTXError, match=r"race|nothing was written"):
            multiply(text)


def test_each_store_is_needed():
    spoilt = list(without(text_of(product), r"\bst\.(shared|global)"))
    assert len(spoilt) >= 3
    for text in spoilt:
        if "st.global" in text:
            with pytest.raises(PTXError, match="nothing was written"):
                multiply(text)
        else:
            assert multiply(text)[1] == 40 * 40


@pytest.mark.parametrize("offset", [4, -4, 2, 1 << 20])
def test_a_store_elsewhere_is_found(offset):
    text = text_of(product)
    (store,) = re.finditer(r"(st\.global\.\w+\s+\[%rd\d+)\]", text)
    text = text[: store.start()] + f"{store[1]}+{offset}]" + text[store.end() :]
    message = "misaligned" if offset == 2 else "out of bounds|race"
    with pytest.raises(PTXError, match=message):
        multiply(text)
