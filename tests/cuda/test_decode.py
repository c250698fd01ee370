"""One token through the four kernels of a layer, executed from the compiled code."""

import naive
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from matrices import KINDS, padded, stored
from running import ARCHITECTURES, InPlace, empty, run
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq
from mamba_np.cuda import compiler, decode, head
from mamba_np.cuda.products import width_for
from mamba_np.errors import InputError

CLOSE = tolerance("step", "float32")
MODEL = tolerance("model", "float32")
NOT_READ = np.zeros(2, np.float32)
FLOATS = ("float32", "bfloat16", "float16")


def close(found, expected, name):
    assert_close_to_scale(found, expected, CLOSE, name)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def up(n, step):
    return -(-n // step) * step


# --- norm, in_proj, convolution -------------------------------------------------------------------


def first_part(dtype, group, D, E, K, blocks, **options):
    rng = np.random.default_rng((D, E, K))
    D_pad, E_pad = up(D, 16), up(E, 8)
    residual, scale = (padded(random(rng, D) * 3, D_pad) for _ in range(2))
    W = np.zeros((2 * E_pad, D_pad), np.float32)
    bias = np.zeros(2 * E_pad, np.float32)
    for half in (0, E_pad):
        W[half : half + E, :D], bias[half : half + E] = random(rng, E, D), random(rng, E)
    W = stored(W, dtype, group)
    conv, window = (padded(random(rng, K, E), K, E_pad) for _ in range(2))
    conv_bias = padded(random(rng, E), E_pad)
    x, z, moved = empty(E_pad), empty(E_pad), window.copy()
    run(
        decode.norm_in_conv(dtype, K, width_for(D_pad), group), (blocks,), residual, scale, 1e-2, D,
        D_pad, W.words, W.scales, bias, conv, conv_bias, InPlace(moved), x, z, E_pad, **options,
    )  # fmt: skip
    u = padded(naive.rms_norm(residual[:D], scale[:D], float(np.float32(1e-2))), D_pad)
    exact = np.zeros(D_pad)
    exact[:D] = naive.rms_norm(residual[:D], scale[:D], float(np.float32(1e-2)))
    assert np.allclose(u, exact)
    xz = W.exact @ exact + bias
    one, last = naive.causal_conv(xz[None, :E_pad], conv.T, conv_bias, window.T)
    name = f"{dtype} D={D} E={E} K={K}"
    close(x.array, naive.each(naive.silu, one[0]), f"x of {name}")
    close(z.array, xz[E_pad:], f"z of {name}")
    close(moved, last.T, f"window of {name}")
    np.testing.assert_array_equal(moved[:-1], window[1:])
    for pads in (x.array[E:], z.array[E:], moved[-1, E:]):
        np.testing.assert_array_equal(pads, 0)


@pytest.mark.parametrize(("D", "E", "K", "blocks"), [(10, 5, 2, 1), (200, 20, 4, 2), (65, 9, 5, 5)])
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_norm_in_proj_and_convolution(dtype, group, D, E, K, blocks):
    first_part(dtype, group, D, E, K, blocks)


@pytest.mark.parametrize("K", [1, 3, 32])
def test_windows_of_other_lengths(K):
    first_part("float32", 0, 12, 11, K, 2)


@pytest.mark.parametrize(
    ("D", "dtype", "group"), [(1030, "int8", 16), (2100, "bfloat16", 0), (8192, "float32", 0)]
)
def test_wide_models(D, dtype, group):
    first_part(dtype, group, D, 3, 4, 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_first_part_on_each_architecture(arch):
    first_part("bfloat16", 0, 72, 10, 4, 2, arch=arch)


def test_the_first_part_with_rounding_hardware():
    first_part("bfloat16", 0, 72, 10, 4, 2, approximate=True)


def test_zeros_are_normed_to_zeros():
    zeros = np.zeros((16, 16), np.float32)
    x, z = empty(8), empty(8)
    run(
        decode.norm_in_conv("float32", 2, 1024), (1,), zeros[0], zeros[0] + 1, 1e-5, 16, 16,
        zeros.view(np.uint32), zeros[0], zeros[0], zeros[:2, :8], zeros[0, :8],
        InPlace(zeros[:2, :8].copy()), x, z, 8,
    )  # fmt: skip
    assert not x.array.any()
    assert not z.array.any()


def test_weights_that_are_refused():
    for factory in (lambda d: decode.norm_in_conv(d, 4, 1024), decode.select, decode.out_residual):
        with pytest.raises(InputError, match=r"dtype: expected one of .* found 'float64'"):
            factory("float64")


@pytest.mark.parametrize("K", [0, 33])
def test_windows_that_are_refused(K):
    with pytest.raises(InputError, match=f"conv_kernel: expected 1 to 32, found {K}"):
        decode.norm_in_conv("float32", K, 1024)


# --- x_proj ---------------------------------------------------------------------------------------


def second_part(dtype, group, M, E_pad, **options):
    rng = np.random.default_rng((M, E_pad))
    W, x, selected = stored(random(rng, M, E_pad), dtype, group), random(rng, E_pad), empty(M)
    run(decode.select(dtype, group), (M,), W.words, W.scales, x, selected, E_pad, **options)
    close(selected.array, W.exact @ x, f"{dtype} M={M} E={E_pad}")


@pytest.mark.parametrize(("M", "E_pad"), [(8, 16), (3, 1536), (2, 5120)])
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_x_proj(dtype, group, M, E_pad):
    second_part(dtype, group, M, E_pad)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_x_proj_on_each_architecture(arch):
    second_part("float16", 0, 8, 256, arch=arch)


# --- dt_proj and the states -----------------------------------------------------------------------


def third_part(dtype, N, R, E, **options):
    rng = np.random.default_rng((N, R, E))
    N4, R8, E_pad = up(N, 4), up(R, 8), up(E, 16)
    selected = np.zeros(2 * N4 + R8, np.float32)
    B, C, low = random(rng, N), random(rng, N), random(rng, R)
    selected[:N], selected[N4 : N4 + N], selected[2 * N4 : 2 * N4 + R] = B, C, low
    W = stored(padded(random(rng, E, R), E_pad, R8), dtype)
    A_log = rng.uniform(-1, 3, (E, N)).astype(np.float32)
    A = padded(eq.per_octave(eq.continuous_A(A_log)), E_pad, N4)
    bias, D, x, z = (padded(random(rng, E) * 2, E_pad) for _ in range(4))
    bias[:3] = 21, 30, -30  # past the threshold of softplus, and where it is nearly nothing
    h, y = padded(random(rng, E, N), E_pad, N4), empty(E_pad)
    moved = h.copy()
    run(
        decode.step(dtype, N), (E_pad // 16,), selected, W.words, bias, A, D, x, z, InPlace(moved),
        y, R8, **options,
    )  # fmt: skip
    delta = naive.each(naive.softplus, W.exact[:E, :R] @ low.astype(float) + bias[:E])
    column = lambda v: v[None, :E, None]  # noqa: E731
    one, last = naive.selective_scan(
        column(x), column(delta), -np.exp(A_log.astype(float)), B[None, :, None], C[None, :, None],
        D[:E], column(z), initial_state=h[None, :E, :N],
    )  # fmt: skip
    name = f"{dtype} N={N} R={R} E={E}"
    close(y.array[:E], one[0, :, 0], f"y of {name}")
    close(moved[:E, :N], last[0], f"h of {name}")
    assert not moved[E:].any()
    assert not moved[:, N:].any()
    assert not y.array[E:].any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("N", [1, 3, 16])
@pytest.mark.parametrize(("R", "E"), [(1, 5), (48, 40)])
def test_step(dtype, N, R, E):
    third_part(dtype, N, R, E)


@pytest.mark.parametrize(("N", "R"), [(4, 8), (20, 160), (64, 3)])
def test_more_states_and_ranks(N, R):
    third_part("float32", N, R, 17)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_step_on_each_architecture(arch):
    third_part("bfloat16", 16, 10, 20, arch=arch)


def test_step_with_rounding_hardware():
    third_part("float32", 16, 10, 20, approximate=True)


@pytest.mark.parametrize(("dtype", "N"), [("int8", 16), ("float32", 0), ("float32", 65)])
def test_steps_that_are_refused(dtype, N):
    with pytest.raises(InputError, match=f"1 to 64 states, found {dtype}, {N}"):
        decode.step(dtype, N)


# --- out_proj -------------------------------------------------------------------------------------


def fourth_part(dtype, group, rows, E_pad, blocks, **options):
    rng = np.random.default_rng((rows, E_pad))
    W = stored(random(rng, rows, E_pad), dtype, group)
    bias, y, residual = random(rng, rows), random(rng, E_pad), random(rng, rows) * 9
    new = residual.copy()
    run(
        decode.out_residual(dtype, group), (blocks,), W.words, W.scales, bias, y, InPlace(new),
        rows, E_pad, **options,
    )  # fmt: skip
    close(new, residual.astype(float) + W.exact @ y + bias, f"{dtype} D={rows} E={E_pad}")


@pytest.mark.parametrize(("rows", "E_pad", "blocks"), [(5, 16, 1), (24, 784, 2), (8, 3072, 3)])
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_out_proj(dtype, group, rows, E_pad, blocks):
    fourth_part(dtype, group, rows, E_pad, blocks)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_out_proj_on_each_architecture(arch):
    fourth_part("int8", 16, 9, 272, 2, arch=arch)


# --- together -------------------------------------------------------------------------------------

D, E, N, R, K, V = 24, 20, 3, 5, 4, 29
D_PAD, E_PAD, N4, R8 = 32, 48, 4, 8  # multiples of every group here
M = 2 * N4 + R8


class Block:
    """One block of a model: what the oracle reads, what the kernels read, and its states."""

    def __init__(self, rng, dtype, group):
        # dt_proj is never int8.
        kinds = {"dtype": dtype, "group": group}, {"dtype": dtype.replace("int8", "float32")}
        self.dtype, self.group, self.low = dtype, group, kinds[1]["dtype"]
        self.norm, self.bias = padded(random(rng, D), D_PAD), np.zeros(2 * E_PAD, np.float32)
        into = np.zeros((2 * E_PAD, D_PAD), np.float32)
        for half in (0, E_PAD):
            into[half : half + E, :D] = random(rng, E, D)
            self.bias[half : half + E] = random(rng, E)
        self.into = stored(into, **kinds[0])
        self.conv, self.conv_bias = padded(random(rng, K, E), K, E_PAD), random(rng, E)
        select = np.zeros((M, E_PAD), np.float32)
        for first, count in ((0, N), (N4, N), (2 * N4, R)):
            select[first : first + count, :E] = random(rng, count, E) / 4
        self.select = stored(select, **kinds[0])
        self.dt = stored(padded(random(rng, E, R) / 4, E_PAD, R8), **kinds[1])
        self.dt_bias, self.skip = (padded(random(rng, E), E_PAD) for _ in range(2))
        self.A_log = rng.uniform(-1, 2, (E, N)).astype(np.float32)
        self.A = padded(eq.per_octave(eq.continuous_A(self.A_log)), E_PAD, N4)
        self.out = stored(padded(random(rng, D, E) / 4, D_PAD, E_PAD), **kinds[0])
        self.out_bias = padded(random(rng, D), D_PAD)
        self.window = np.zeros((K, E_PAD), np.float32)
        self.h = np.zeros((E_PAD, N4), np.float32)

    def tensors(self):
        """Return the parameters in float64, as checkpoints name and order them."""
        halves = np.r_[:E, E_PAD : E_PAD + E]
        rows = np.r_[2 * N4 : 2 * N4 + R, :N, N4 : N4 + N]
        found = {
            "norm.weight": self.norm[:D],
            "in_proj.weight": self.into.exact[halves, :D], "in_proj.bias": self.bias[halves],
            "conv1d.weight": self.conv.T[:E], "conv1d.bias": self.conv_bias,
            "x_proj.weight": self.select.exact[rows, :E],
            "dt_proj.weight": self.dt.exact[:E, :R], "dt_proj.bias": self.dt_bias[:E],
            "A_log": self.A_log, "D": self.skip[:E],
            "out_proj.weight": self.out.exact[:D, :E], "out_proj.bias": self.out_bias[:D],
        }  # fmt: skip
        return {name: np.asarray(array, np.float64) for name, array in found.items()}

    def token(self, residual, **options):
        """Advance by one token: the residual (D_PAD) in place."""
        x, z, selected, y = empty(E_PAD), empty(E_PAD), empty(M), empty(E_PAD)
        run(
            decode.norm_in_conv(self.dtype, K, 1024, self.group), (3,), residual, self.norm, 1e-5,
            D, D_PAD, self.into.words, self.into.scales, self.bias, self.conv,
            padded(self.conv_bias, E_PAD), InPlace(self.window), x, z, E_PAD, **options,
        )  # fmt: skip
        run(
            decode.select(self.dtype, self.group), (M,), self.select.words, self.select.scales,
            x.array, selected, E_PAD, **options,
        )  # fmt: skip
        run(
            decode.step(self.low, N), (E_PAD // 16,), selected.array, self.dt.words, self.dt_bias,
            self.A, self.skip, x.array, z.array, InPlace(self.h), y, R8, **options,
        )  # fmt: skip
        run(
            decode.out_residual(self.dtype, self.group), (2,), self.out.words, self.out.scales,
            self.out_bias, y.array, InPlace(residual), D_PAD, E_PAD, **options,
        )  # fmt: skip


@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_a_layer_over_several_tokens(dtype, group):
    rng = np.random.default_rng(5)
    block, inputs = Block(rng, dtype, group), random(rng, 6, D)
    zeros = np.zeros((E, K)), np.zeros((E, N))
    expected, window, h = naive.block(inputs.astype(float), block.tensors(), {}, *zeros)
    for t, x in enumerate(inputs):
        residual = padded(x, D_PAD)
        block.token(residual)
        assert_close_to_scale(residual[:D], expected[t], MODEL, f"{dtype}: token {t}")
        assert not residual[D:].any()
    assert_close_to_scale(block.window[:, :E], window.T, MODEL, f"{dtype}: window")
    assert_close_to_scale(block.h[:E, :N], h, MODEL, f"{dtype}: h")


@pytest.mark.parametrize(("dtype", "group", "arch"), [("bfloat16", 0, 75), ("int8", 16, 120)])
def test_ten_greedy_tokens_of_a_model(dtype, group, arch):
    rng = np.random.default_rng(9)
    blocks = [Block(rng, dtype, group) for _ in range(2)]
    embeddings = stored(padded(random(rng, V, D), V, D_PAD), dtype, group)
    norm_f = padded(random(rng, D), D_PAD)
    tensors = {
        f"backbone.layers.{i}.mixer.{name}": array
        for i, block in enumerate(blocks)
        for name, array in block.tensors().items()
    }
    tensors["backbone.embeddings.weight"] = embeddings.exact[:, :D]
    tensors["backbone.norm_f.weight"] = norm_f[:D].astype(float)
    expected = naive.greedy(tensors, {}, [[7]], 10)[0]
    count, ids = np.zeros(1, np.int32), np.full(11, -1, np.int32)
    bests = np.array([[1, 7]], np.int32)  # the first token, as if it had been chosen
    for _ in range(11):
        residual = empty(D_PAD)
        run(
            head.pick(dtype, group), (1,), bests, len(bests), InPlace(ids), InPlace(count),
            embeddings.words, embeddings.scales, residual, D_PAD, arch=arch,
        )  # fmt: skip
        for block in blocks:
            block.token(residual.array, arch=arch)
        best = empty(2, 2, dtype=np.int32)
        run(
            head.score(dtype, 1024, False, group), (2,), residual.array, norm_f, 1e-5, D, D_PAD,
            embeddings.words, embeddings.scales, V, empty(V), best, NOT_READ, NOT_READ,
            NOT_READ, arch=arch,
        )  # fmt: skip
        bests = best.array
    assert list(ids) == list(expected)
    assert len(set(ids)) > 4


# --- what they cost -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [75, 90])
@pytest.mark.parametrize(
    "kernel",
    [
        decode.norm_in_conv("int8", 4, 8192, 48),
        decode.select("bfloat16"),
        decode.step("float16", 16),
        decode.out_residual("float32"),
    ],
    ids=lambda kernel: kernel.name,
)
def test_budgets(kernel, arch):
    text = compiler.ptx(kernel, arch)
    code = compiler.link(text, arch)
    assert code.registers <= kernel.budget.registers
    assert (code.stack, code.spilled) == (0, 0)
    assert code.shared <= kernel.budget.shared + 1024  # which newer architectures add
    assert ".f64 " not in text
    assert "ld.global.nc.L1::no_allocate.v4.u32" in text
