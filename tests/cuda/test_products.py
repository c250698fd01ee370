"""One vector and a matrix of any dtype, executed from the compiled kernels."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from matrices import KINDS, NO_SCALES, stored
from running import ARCHITECTURES, empty, run
from tolerances import assert_close_to_scale, tolerance

from mamba_np.cuda import compiler, products
from mamba_np.errors import InputError

CLOSE = tolerance("step", "float32")


def multiply(dtype, group, O, I, blocks, seed=0, **options):  # noqa: E741
    """Return what the kernel makes of random numbers, and what it should."""
    rng = np.random.default_rng((seed, O, I))
    W = stored(rng.standard_normal((O, I)) * rng.uniform(0.1, 10, (O, 1)), dtype, group)
    x, y = rng.standard_normal(I).astype(np.float32), empty(O)
    run(products.gemv(dtype, group), (blocks,), W.words, W.scales, x, y, O, I, **options)
    return y.array, W.exact @ x


# Rows shorter than a warp's reach, in the middle of it, and several times as long; few and many
# rows for the warps; one piece alone.
@pytest.mark.parametrize(("O", "I"), [(1, 16), (9, 48), (3, 512), (20, 816), (5, 2064), (8, 4096)])
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_a_product_is_right(dtype, group, O, I):  # noqa: E741
    for blocks in (1, 3):
        found, expected = multiply(dtype, group, O, I, blocks)
        assert_close_to_scale(found, expected, CLOSE, f"{dtype} {O} {I} {blocks}")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_each_architecture(dtype, group, arch):
    found, expected = multiply(dtype, group, 10, 1104, 1, arch=arch)
    assert_close_to_scale(found, expected, CLOSE, f"{dtype} sm_{arch}")


@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_each_weight_meets_its_input(dtype, group):
    """The rows of an identity pick the numbers of x, one after another."""
    I = 144  # noqa: E741
    W, x, y = stored(np.eye(I), dtype, group), np.arange(I, dtype=np.float32) + 1, empty(I)
    run(products.gemv(dtype, group), (2,), W.words, W.scales, x, y, I, I)
    exact = np.diag(W.exact)
    np.testing.assert_allclose(y.array, exact * x, rtol=1e-6)
    np.testing.assert_allclose(exact, 1, rtol=1e-6)


def test_every_pattern_of_a_narrow_weight():
    """A sample of all float16 but infinity and NaN, and all bytes, come out as they are."""
    halves = np.arange(0, 2**16, 17, dtype=np.uint16).view(np.float16)
    W = np.zeros((len(halves), 16), np.float16)
    W[:, 5] = np.where(np.isfinite(halves), halves, 0)
    x, y = np.eye(16, dtype=np.float32), empty(len(W))
    run(products.gemv("float16"), (4,), W.view(np.uint32), NO_SCALES, x[5], y, len(W), 16)
    np.testing.assert_array_equal(y.array, W[:, 5].astype(np.float32))
    W, y, ones = np.zeros((256, 16), np.int8), empty(256), np.ones((256, 1), np.float32)
    W[:, 3] = np.arange(-128, 128)
    run(products.gemv("int8", 16), (4,), W.view(np.uint32), ones, x[3], y, 256, 16)
    np.testing.assert_array_equal(y.array, W[:, 3])


@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_weights_stream_by_in_whole_vectors(dtype, group):
    text = compiler.ptx(products.gemv(dtype, group), 90)
    assert text.count("ld.global.nc.L1::no_allocate.v4.u32") == 4
    assert ".f64 " not in text


def test_how_many_blocks():
    assert products.blocks_for(1, 132) == 1
    assert products.blocks_for(0, 132) == 1
    assert products.blocks_for(17, 132) == 3
    assert products.blocks_for(10**6, 132) == 132 * 8


def test_widths_are_few():
    assert [products.width_for(n) for n in (8, 1024, 1032, 2560, 8192)] == [
        1024,
        1024,
        2048,
        4096,
        8192,
    ]
    with pytest.raises(InputError, match="hidden_size: expected at most 8192 on a GPU, found 8200"):
        products.width_for(8200)


@pytest.mark.parametrize(
    ("dtype", "group", "text"),
    [
        ("float64", 0, "dtype: expected one of float32, bfloat16, float16, int8, found 'float64'"),
        ("int8", 0, "group: expected a multiple of 16 for int8 alone, found 0"),
        ("int8", 24, "group: expected a multiple of 16 for int8 alone, found 24"),
        ("float32", 16, "group: expected a multiple of 16 for int8 alone, found 16"),
    ],
)
def test_weights_that_cannot_be_read(dtype, group, text):
    with pytest.raises(InputError, match=text):
        products.gemv(dtype, group)
