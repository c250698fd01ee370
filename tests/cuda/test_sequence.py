"""Norm, convolution and rows that change their dtype, as compiled, against the float64 oracle."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

import naive
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import KINDS, padded, stored
from running import ARCHITECTURES, InPlace, empty, run
from tolerances import assert_close_to_scale, tolerance

from mamba_np.cuda import sequence
from mamba_np.errors import InputError

RTOL = tolerance("step", "float32")
BFLOAT16 = ml_dtypes.bfloat16
THREADS = sequence.THREADS


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def pairs(rows, width):
    """Return an array for bfloat16 results; ``.array.view(BFLOAT16)`` shows them."""
    return empty(rows, width // 2, dtype=np.uint32)


# --- norm -----------------------------------------------------------------------------------------


def normed(x, scale, eps, D, arch=90, out="float32"):
    y = pairs(*x.shape) if out == "bfloat16" else empty(*x.shape)
    run(sequence.rms_norm(out), (len(x),), x, scale, np.float32(eps), D, x.shape[1], y, arch=arch)
    return y.array.view(BFLOAT16) if out == "bfloat16" else y.array


@pytest.mark.parametrize(
    ("T", "D", "D_pad", "arch"),
    [(3, 8, 8, 90), (2, 5, 128, 75), (1, 700, 768, 120), (2, 1024, 1024, 90), (1, 1, 16, 90)],
)
def test_rms_norm(rng, T, D, D_pad, arch):
    x, scale = padded(normal(rng, T, D) * 5, T, D_pad), padded(normal(rng, D), D_pad)
    eps = 0.3
    y = normed(x, scale, eps, D, arch)
    expected = [naive.rms_norm(row[:D], scale[:D], np.float32(eps)) for row in x]
    assert_close_to_scale(y[:, :D], expected, RTOL)
    assert not y[:, D:].any(), "pads"
    narrow = normed(x, scale, eps, D, arch, "bfloat16")
    assert np.array_equal(narrow, y.astype(BFLOAT16))


def test_rms_norm_of_a_row_of_zeros(rng):
    assert not normed(np.zeros((1, 16), np.float32), normal(rng, 16), 1e-5, 16).any()


# --- convolution ----------------------------------------------------------------------------------


def convolved(xz, weights, bias, window, lengths, arch=90):
    """Return x (B, L, E) and the new windows (B, K, E)."""
    texts, L, E = *xz.shape[:2], xz.shape[2] // 2
    x, window, K = empty(texts, L, E), window.copy(), len(weights)
    grid = E // 128, -(-L // sequence.PIECE), texts
    lengths = np.array(lengths, np.int32)
    run(
        sequence.causal_conv(K), grid,
        xz, weights, bias, InPlace(window), lengths, x, L, E, arch=arch,
    )  # fmt: skip
    return x.array, window


def convolution(rng, texts, L, E, K):
    """Return xz with NaN in z, weights, bias and windows."""
    xz = normal(rng, texts, L, 2 * E)
    xz[..., E:] = np.nan
    return xz, normal(rng, K, E), normal(rng, E), normal(rng, texts, K, E)


def assert_convolution(arrays, lengths, x, new):
    xz, weights, bias, window = arrays
    E = weights.shape[1]
    for b, length in enumerate(lengths):
        inputs = xz[b, :, :E].astype(np.float64)
        expected, _ = naive.causal_conv(inputs, weights.T, bias, window[b].T.astype(np.float64))
        assert_close_to_scale(x[b], naive.each(naive.silu, expected), RTOL, "x")
        _, last = naive.causal_conv(inputs[:length], weights.T, bias, window[b].T)
        assert np.array_equal(new[b], last.T), "the window holds inputs themselves"


@pytest.mark.parametrize("L", [1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 130])
def test_every_length(rng, L):
    arrays = convolution(rng, 1, L, 128, 4)
    assert_convolution(arrays, [L], *convolved(*arrays, [L]))


@pytest.mark.parametrize("K", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_window(rng, K, arch):
    """Texts that end early, with states before them; the last window is all of the old one."""
    arrays, lengths = convolution(rng, 3, 70, 256, K), [70, 2, 0]
    assert_convolution(arrays, lengths, *convolved(*arrays, lengths, arch))


@settings(max_examples=10)
@given(st.data())
def test_a_convolution_can_be_cut_anywhere(data):
    L = data.draw(st.integers(2, 90))
    lengths = data.draw(st.lists(st.integers(0, L), min_size=1, max_size=3))
    cut = data.draw(st.integers(1, L - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    xz, weights, bias, window = convolution(rng, len(lengths), L, 128, 4)
    x, new = convolved(xz, weights, bias, window, lengths)
    for start, stop in ((0, cut), (cut, L)):
        ends = np.clip(np.subtract(lengths, start), 0, stop - start)
        piece = np.ascontiguousarray(xz[:, start:stop])
        found, window = convolved(piece, weights, bias, window, ends)
        for b, end in enumerate(ends):  # past the end, the first piece's window is not the inputs'
            assert np.array_equal(found[b, :end], x[b, start : start + end])
    assert np.array_equal(window, new)


@pytest.mark.parametrize("K", [0, 17])
def test_windows_that_have_no_room_are_refused(K):
    with pytest.raises(InputError, match=f"conv_kernel: expected 1 to 16 on a GPU, found {K}"):
        sequence.causal_conv(K)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("T", "width", "first", "count", "to_width"),
    [(3, 128, 0, 128, 128), (2, 48, 32, 12, 16), (1, 700, 4, 600, 604), (5, 4, 0, 4, 8)],
)
def test_narrow_rounds_to_the_nearest(rng, arch, T, width, first, count, to_width):
    x = normal(rng, T, width)
    x.view(np.uint32)[:, first::3] &= 0xFFFF0000
    x.view(np.uint32)[:, first::3] |= 0x8000  # halfway between two neighbours: to the even one
    y = np.full((T, to_width // 2), 7, np.uint32)
    before = y.view(np.uint16).copy()
    run(
        sequence.narrow(), (T,),
        np.ascontiguousarray(x.reshape(-1)[first:]), InPlace(y), count, width, to_width, arch=arch,
    )  # fmt: skip
    found = y.view(np.uint16)
    assert np.array_equal(
        found[:, :count].view(BFLOAT16), x[:, first : first + count].astype(BFLOAT16)
    )
    assert np.array_equal(found[:, count:], before[:, count:]), "beyond the columns"


@pytest.mark.parametrize(("dtype", "group"), KINDS)
@pytest.mark.parametrize("width", [64, 1152])
def test_widen(rng, dtype, group, width):
    m = stored(normal(rng, 3, width), dtype, group)
    y = empty(3, width)
    run(sequence.widen(dtype, group), (3,), m.words, m.scales, y, width)
    assert np.array_equal(y.array, m.exact.astype(np.float32))
    half = pairs(3, width)
    run(sequence.widen(dtype, group, "bfloat16"), (3,), m.words, m.scales, half, width)
    assert np.array_equal(half.array.view(BFLOAT16), m.exact.astype(np.float32).astype(BFLOAT16))


@pytest.mark.parametrize(("dtype", "group"), KINDS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_embed(rng, dtype, group, arch):
    m, ids = stored(normal(rng, 7, 192), dtype, group), np.array([6, 0, 3, 6], np.int32)
    residual = empty(4, 192)
    run(sequence.embed(dtype, group), (4,), ids, m.words, m.scales, residual, 192, arch=arch)
    assert np.array_equal(residual.array, m.exact[ids].astype(np.float32))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [4, 128, 1028])
def test_a_vector_for_each_row(rng, width, arch):
    rows, vector = normal(rng, 3, width), normal(rng, width)
    added, filled = rows.copy(), rows.copy()
    run(sequence.add_rows(), (3,), InPlace(added), vector, width, arch=arch)
    run(sequence.fill_rows(), (3,), InPlace(filled), vector, width, arch=arch)
    assert np.array_equal(added, rows + vector)
    assert np.array_equal(filled, np.broadcast_to(vector, rows.shape))


def test_what_cannot_be_read_or_written_is_refused():
    for make in (sequence.rms_norm, lambda out: sequence.widen("int8", 16, out)):
        with pytest.raises(
            InputError, match="out: expected one of float32, bfloat16, found 'int8'"
        ):
            make("int8")
    for make in (sequence.embed, sequence.widen):
        with pytest.raises(InputError, match="dtype: expected one of"):
            make("float64")
        with pytest.raises(InputError, match="group: expected a multiple of 16"):
            make("int8", 24)
