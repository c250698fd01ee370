"""The steps of the readable forward pass, each against the oracle, in both dtypes."""

import naive
import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq
from mamba_np import reference
from mamba_np.config import MambaConfig
from mamba_np.params import Layer

DTYPES = [np.float32, np.float64]
SIZES = {
    "odd": (2, 9, 7, 11, 3, 4, 2),
    "single": (1, 1, 1, 1, 1, 1, 1),
    "wide": (3, 6, 24, 48, 16, 2, 5),
}
FIELDS = {  # of Layer: name in a checkpoint, shape
    "norm": ("norm.weight", "D"),
    "in_proj": ("in_proj.weight", "2E D"),
    "in_proj_bias": ("in_proj.bias", "2E"),
    "conv": ("conv1d.weight", "E K"),
    "conv_bias": ("conv1d.bias", "E"),
    "x_proj": ("x_proj.weight", "R+2N E"),
    "dt_proj": ("dt_proj.weight", "E R"),
    "dt_bias": ("dt_proj.bias", "E"),
    "A_log": ("A_log", "E N"),
    "D": ("D", "E"),
    "out_proj": ("out_proj.weight", "D E"),
    "out_proj_bias": ("out_proj.bias", "D"),
}


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=SIZES)
def sizes(request):
    """{letter: size}, with the composite sizes of the projections."""
    named = dict(zip("BLDENKR", SIZES[request.param], strict=True))
    return named | {"2E": 2 * named["E"], "R+2N": named["R"] + 2 * named["N"]}


@pytest.fixture
def make(rng, dtype, sizes):
    """A function from a shape like "B L E" to normal random numbers."""
    return lambda shape: rng.normal(size=[sizes[s] for s in shape.split()]).astype(dtype)


def make_layer(make, biases=True):
    """Return the same random arrays as a Layer and as the oracle's dictionary."""
    arrays = {f: 0.5 * make(s) for f, (_, s) in FIELDS.items() if biases or not f.endswith("_bias")}
    arrays["dt_bias"] = make("E") * 0.5 - 2
    layer = Layer(**{f: arrays.get(f) for f in FIELDS})
    return layer, {FIELDS[f][0]: a.astype(np.float64) for f, a in arrays.items()}


def close(found, expected, dtype, name, step="step"):
    found = np.asarray(found)
    assert found.dtype == dtype, f"{name}: dtype {found.dtype}"
    assert_close_to_scale(found, expected, tolerance(step, dtype), name)


def each_row(function, *arrays):
    return np.stack([function(*row) for row in zip(*arrays, strict=True)])


def config_of(sizes, **options):
    return MambaConfig(
        vocab_size=5,
        hidden_size=sizes["D"],
        intermediate_size=sizes["E"],
        state_size=sizes["N"],
        conv_kernel=sizes["K"],
        time_step_rank=sizes["R"],
        num_hidden_layers=1,
        **options,
    )


def test_rms_norm(make, dtype):
    x, weight = make("B L D"), make("D")
    found = reference.rms_norm(x, weight, 1e-5)
    expected = [[naive.rms_norm(v, weight, 1e-5) for v in row] for row in x]
    close(found, expected, dtype, "rms_norm")


def test_rms_norm_of_zeros_is_zero(dtype):
    assert (reference.rms_norm(np.zeros((1, 2, 3), dtype), np.ones(3, dtype), 1e-5) == 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_linear(make, dtype, bias):
    x, weight, b = make("B L D"), make("E D"), make("E") if bias else None
    expected = each_row(lambda row: naive.linear(row.astype(float), weight.astype(float), b), x)
    close(reference.linear(x, weight, b), expected, dtype, "linear")


def test_linear_widens_sixteen_bit_weights(rng):
    x, weight = rng.normal(size=(1, 3, 4)).astype(np.float32), rng.normal(size=(5, 4))
    half = weight.astype(np.float16)
    found = reference.linear(x, half)
    assert found.dtype == np.float32
    assert np.array_equal(found, reference.linear(x, half.astype(np.float32)))


def test_embed(rng):
    table = rng.normal(size=(6, 3)).astype(np.float16)
    ids = np.array([[5, 0, 3]])
    found = reference.embed(ids, table, np.dtype(np.float32))
    assert found.dtype == np.float32
    assert np.array_equal(found, table[ids].astype(np.float32))


@pytest.mark.parametrize("bias", [True, False])
def test_causal_conv(make, dtype, bias):
    x, weight, window = make("B L E"), make("E K"), make("B E K")
    b = make("E") if bias else None
    y, new = reference.causal_conv(x, weight, b, window)
    for i in range(len(x)):
        expected_y, expected_window = naive.causal_conv(x[i], weight.astype(float), b, window[i])
        close(y[i], expected_y, dtype, "y")
        assert np.array_equal(new[i], expected_window)


def test_causal_conv_of_rows_that_end_early(make, dtype, sizes):
    x, weight, window = make("B L E"), make("E K"), make("B E K")
    lengths = np.arange(sizes["B"]) * sizes["L"] // max(1, sizes["B"] - 1)
    y, new = reference.causal_conv(x, weight, None, window, lengths)
    for i, length in enumerate(lengths):
        expected_y, expected = naive.causal_conv(
            x[i, :length], weight.astype(float), None, window[i]
        )
        close(y[i, :length], expected_y, dtype, f"y of row {i}")
        assert np.array_equal(new[i], expected), f"window of row {i}, {length} positions"


def test_causal_conv_changes_no_argument(make):
    arguments = make("B L E"), make("E K"), make("E"), make("B E K")
    before = [a.copy() for a in arguments]
    reference.causal_conv(*arguments)
    assert all(np.array_equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_select(make, dtype):
    x, x_proj, dt_proj, bias = make("B L E"), make("R+2N E"), make("E R"), make("E")
    wide = [a.astype(np.float64) for a in (x_proj, dt_proj, bias)]
    found = reference.select(x, x_proj, dt_proj, bias)
    expected = zip(*(naive.select(row.astype(np.float64), *wide) for row in x), strict=True)
    for name, a, b in zip(("delta", "B", "C"), found[:3], expected, strict=True):
        close(a, np.stack(b), dtype, name)


@pytest.mark.parametrize("selective", [(), ("C",), ("delta", "B")])
def test_what_is_not_selective_is_the_same_at_every_step(make, dtype, selective):
    x, weights = make("B L E"), [make("R+2N E"), make("E R"), make("E")]
    found = reference.select(x, *weights, selective)
    free, fixed = (reference.select(some, *weights) for some in (x, np.ones_like(x)))
    for name in ("delta", "B", "C"):
        expected = getattr(free if name in selective else fixed, name)
        close(getattr(found, name), expected.astype(np.float64), dtype, name)


# --- the scan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65])
@pytest.mark.parametrize("scan", [reference.recurrence, reference.associative_scan])
def test_both_scans_give_the_states_of_the_recurrence(scan, L, rng, dtype):
    A_bar = rng.random((2, L, 3, 4)).astype(dtype)
    drive = rng.normal(size=(2, L, 3, 4)).astype(dtype)
    start = rng.normal(size=(2, 3, 4)).astype(dtype)
    before = A_bar.copy(), drive.copy(), start.copy()
    states = scan(A_bar, drive, start)
    h = start.astype(np.float64)
    for t in range(L):
        h = A_bar[:, t].astype(np.float64) * h + drive[:, t]
        close(states[:, t], h, dtype, f"state {t} of {L}", "scan")
    assert all(map(np.array_equal, before, (A_bar, drive, start)))


@pytest.mark.parametrize("rule", sorted(eq.DISCRETISATIONS))
@pytest.mark.parametrize("scan", [reference.recurrence, reference.associative_scan])
def test_selective_scan(make, dtype, scan, rule):
    x, delta = make("B L E"), np.abs(make("B L E")) * dtype(0.3)
    A, h = -np.abs(make("E N")) - dtype(0.05), make("B E N")
    B, C = make("B L N"), make("B L N")
    found = reference.selective_scan(
        x, delta, A, B, C, h, discretise=eq.DISCRETISATIONS[rule], scan=scan
    )
    peers = (a.swapaxes(1, 2) for a in (x, delta))
    expected = naive.selective_scan(
        *peers, A, B.swapaxes(1, 2), C.swapaxes(1, 2), initial_state=h, rule=rule
    )
    close(found[0], expected[0].swapaxes(1, 2), dtype, "y", "scan")
    close(found[1], expected[1], dtype, "h", "scan")


def test_selective_scan_with_B_and_C_of_each_channel(make, dtype):
    x, delta, A, h = make("B L E"), np.abs(make("B L E")), -np.abs(make("E N")), make("B E N")
    B, C = make("B L E N"), make("B L E N")
    y, last = reference.selective_scan(x, delta, A, B, C, h)
    peers = [a.swapaxes(1, 2) for a in (x, delta)]
    groups = [np.moveaxis(a, 1, 3) for a in (B, C)]  # as many groups as channels
    expected = naive.selective_scan(*peers, A, *groups, initial_state=h)
    close(y, expected[0].swapaxes(1, 2), dtype, "y", "scan")
    close(last, expected[1], dtype, "h", "scan")


@pytest.mark.parametrize("scan", [reference.recurrence, reference.associative_scan])
def test_blocks_of_steps_change_nothing_but_rounding(scan, rng, dtype, monkeypatch):
    x, delta = rng.random((2, 2, 50, 3)).astype(dtype)
    A, B, C = -rng.random((3, 4)).astype(dtype), *rng.normal(size=(2, 2, 50, 4)).astype(dtype)
    h = rng.normal(size=(2, 3, 4)).astype(dtype)
    whole = reference.selective_scan(x, delta, A, B, C, h, scan=scan)
    for block in (1, 7 * h.size, 50 * h.size):
        monkeypatch.setattr(reference, "SCAN_BLOCK", block)
        found = reference.selective_scan(x, delta, A, B, C, h, scan=scan)
        for name, a, b in zip(("y", "h"), found, whole, strict=True):
            assert_close_to_scale(a, b, tolerance("scan", dtype), f"{name}, blocks of {block}")


def test_long_scans_do_not_drift(rng, dtype):
    L, E, N = 5000, 3, 4
    x, delta = (
        rng.normal(size=(1, L, E)).astype(dtype),
        rng.random((1, L, E)).astype(dtype) * dtype(0.1),
    )
    A, B, C = -rng.random((E, N)).astype(dtype), *rng.normal(size=(2, 1, L, N)).astype(dtype)
    h = np.zeros((1, E, N), dtype)
    transposed = [a.swapaxes(1, 2) for a in (x, delta)]
    expected = naive.selective_scan(*transposed, A, B.swapaxes(1, 2), C.swapaxes(1, 2))
    for scan in (reference.recurrence, reference.associative_scan):
        y, last = reference.selective_scan(x, delta, A, B, C, h, scan=scan)
        close(y, expected[0].swapaxes(1, 2), dtype, "y", "scan")
        close(last, expected[1], dtype, "h", "scan")


# --- the block -----------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("act", ["silu", "gelu", "relu", "tanh"])
def test_mixer_and_block(make, dtype, sizes, act, biases):
    layer, naive_layer = make_layer(make, biases)
    config = config_of(sizes, hidden_act=act)
    x, state = make("B L D"), reference.State(make("B E K"), make("B E N"))
    mixed, mixer_state = reference.mixer(x, layer, config, state)
    out, block_state = reference.block(x, layer, config, state)
    plain = {"hidden_act": act}
    for i in range(len(x)):
        start = state.window[i].astype(np.float64), state.h[i].astype(np.float64)
        y, window, h = naive.mixer(x[i].astype(np.float64), naive_layer, act, *start)
        close(mixed[i], y, dtype, "mixer")
        close(mixer_state.window[i], window, dtype, "window of the mixer")
        close(mixer_state.h[i], h, dtype, "h of the mixer")
        y, window, h = naive.block(x[i].astype(np.float64), naive_layer, plain, *start)
        close(out[i], y, dtype, "block")
        close(block_state.window[i], window, dtype, "window of the block")
        close(block_state.h[i], h, dtype, "h of the block")


def test_rows_that_end_early_leave_their_state_as_it_was(make, dtype, sizes):
    layer, naive_layer = make_layer(make)
    x, state = make("B L D"), reference.State(make("B E K"), make("B E N"))
    lengths = np.arange(sizes["B"]) * sizes["L"] // max(1, sizes["B"] - 1)
    out, new = reference.block(x, layer, config_of(sizes), state, lengths)
    for i, length in enumerate(lengths):
        start = state.window[i].astype(np.float64), state.h[i].astype(np.float64)
        y, window, h = naive.block(x[i, :length].astype(np.float64), naive_layer, {}, *start)
        close(out[i, :length], y, dtype, f"row {i}")
        close(new.window[i], window, dtype, f"window of row {i}")
        close(new.h[i], h, dtype, f"h of row {i}")


def test_the_gate_is_silu_whatever_the_activation(make, dtype, sizes):
    # hidden_act is the convolution's; a model whose gate used it too would differ here.
    layer, naive_layer = make_layer(make)
    x, state = make("B L D"), reference.State(make("B E K"), make("B E N"))
    relu, _ = reference.mixer(x, layer, config_of(sizes, hidden_act="relu"), state)
    wide = [a[0].astype(np.float64) for a in (x, state.window, state.h)]
    close(relu[0], naive.mixer(wide[0], naive_layer, "relu", *wide[1:])[0], dtype, "relu")


def test_the_configuration_selects_the_scan():
    choose = lambda **options: reference.scan_of(MambaConfig(**options))  # noqa: E731
    assert choose(use_associative_scan=True) is reference.associative_scan
    assert choose(use_mambapy=True, use_associative_scan=False) is reference.associative_scan
    assert choose(use_associative_scan=False) is reference.recurrence
