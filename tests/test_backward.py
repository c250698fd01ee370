"""The backward pass, function by function, against differences of the forward pass."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from differences import assert_gradients
from hypothesis import given
from hypothesis import strategies as st
from test_reference import FIELDS, SIZES, config_of
from tolerances import assert_close_to_scale, tolerance

from mamba_np import backward, reference
from mamba_np import equations as eq
from mamba_np.errors import InputError
from mamba_np.params import Layer

EPS = 1e-2
seeds = st.integers(0, 2**32 - 1)


def named(B, L, D, E, N, K, R):
    """{letter: size}, with the composite sizes of the projections."""
    plain = {"B": B, "L": L, "D": D, "E": E, "N": N, "K": K, "R": R}
    return plain | {"2E": 2 * E, "R+2N": R + 2 * N}


def maker(sizes, rng):
    """Return a function from a shape like "B L E" to normal random numbers."""
    return lambda shape: rng.normal(size=[sizes[s] for s in shape.split()])


@pytest.fixture(params=SIZES)
def sizes(request):
    return named(*SIZES[request.param])


@pytest.fixture
def make(sizes, rng):
    return maker(sizes, rng)


def lengths_of(sizes):
    """Rows of different lengths, one of them empty and one full where there are several."""
    return np.arange(sizes["B"]) * sizes["L"] // max(1, sizes["B"] - 1)


# --- the pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_linear(make, rng, bias):
    inputs = {"x": make("B L D"), "weight": make("E D")} | ({"bias": make("E")} if bias else {})
    dy = make("B L E")
    found = backward.d_linear(dy, inputs["x"], inputs["weight"])
    gradients = dict(zip(inputs, found, strict=False))
    assert_gradients(reference.linear, inputs, dy, gradients, rng)


def test_linear_widens_sixteen_bit_weights(make):
    dy, x, half = (make(s).astype(np.float32) for s in ("B L E", "B L D", "E D"))
    half = half.astype(np.float16)
    found, wide = (backward.d_linear(dy, x, w) for w in (half, half.astype(np.float32)))
    assert all(a.dtype == np.float32 for a in found)
    assert all(map(np.array_equal, found, wide))


def test_rms_norm(make, rng):
    inputs, dy = {"x": make("B L D"), "weight": make("D")}, make("B L D")
    found = backward.d_rms_norm(dy, *inputs.values(), EPS)
    gradients = dict(zip(inputs, found, strict=True))
    norm = lambda x, weight: reference.rms_norm(x, weight, EPS)  # noqa: E731
    assert_gradients(norm, inputs, dy, gradients, rng)


def test_rms_norm_detached(make, rng):
    inputs, dy = {"x": make("B L D"), "weight": make("D")}, make("B L D")
    rms = inputs["x"] / reference.rms_norm(inputs["x"], np.ones(inputs["x"].shape[-1]), EPS)
    found = backward.d_rms_norm(dy, *inputs.values(), EPS, {"norm"})
    gradients = dict(zip(inputs, found, strict=True))
    assert_gradients(lambda x, weight: x / rms * weight, inputs, dy, gradients, rng)


def test_embed_adds_up_the_tokens_that_are_the_same(rng):
    ids = np.array([[5, 0, 3, 5], [5, 5, 0, 2]])
    dx, expected = rng.normal(size=(2, 4, 3)), np.zeros((7, 3))
    for row, token in zip(dx.reshape(-1, 3), ids.ravel(), strict=True):
        expected[token] += row
    found = backward.d_embed(dx, ids, 7)
    assert_close_to_scale(found, expected, tolerance("step", "float64"), "embeddings")
    assert not found[[1, 4, 6]].any()


def test_embed_of_no_token():
    found = backward.d_embed(np.zeros((2, 0, 3), np.float32), np.zeros((2, 0), int), 5)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.zeros((5, 3)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_causal_conv(make, rng, last, bias):
    x, weight, b, window = make("B L E"), make("E K"), make("E"), make("B E K")
    dy, d_window = make("B L E"), make("B E K")
    found = backward.d_causal_conv(dy, x, weight, window, d_window if last else None)
    inputs = {"x": x, "weight": weight, "bias": b, "window": window}
    gradients = dict(zip(inputs, found, strict=True))
    if not bias:
        inputs["bias"] = None
        del gradients["bias"]
    outputs = dy, d_window if last else np.zeros_like(d_window)
    assert_gradients(reference.causal_conv, inputs, outputs, gradients, rng)


# --- the scan ------------------------------------------------------------------------------------

LAYOUTS = [("B L N", "B L N"), ("B L E N", "B L E N"), ("B L N", "B L E N"), ("B L E N", "B L N")]


def scan_inputs(make, B="B L N", C="B L N"):
    return {
        "x": make("B L E"),
        "delta": 0.1 + np.abs(make("B L E")),
        "A": -0.1 - np.abs(make("E N")),
        "B": make(B),
        "C": make(C),
        "h": make("B E N"),
    }


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("B", "C"), LAYOUTS)
def test_selective_scan(make, rng, B, C, last):
    inputs, dy, d_h = scan_inputs(make, B, C), make("B L E"), make("B E N")
    found = backward.d_selective_scan(dy, **inputs, d_h=d_h if last else None)
    outputs = dy, d_h if last else np.zeros_like(d_h)
    assert_gradients(reference.selective_scan, inputs, outputs, found._asdict(), rng)


@given(st.tuples(*[st.integers(1, 5)] * 4), st.sampled_from(LAYOUTS), st.integers(1, 200), seeds)
def test_selective_scan_of_any_size_in_any_blocks(sizes, layout, block, seed):
    B, L, E, N = sizes
    rng = np.random.default_rng(seed)
    make = maker(named(B, 3 * L, 1, E, N, 1, 1), rng)
    inputs, outputs = scan_inputs(make, *layout), (make("B L E"), make("B E N"))
    with mock.patch.object(backward, "SCAN_BLOCK", block):
        found = backward.d_selective_scan(outputs[0], **inputs, d_h=outputs[1])
    assert_gradients(reference.selective_scan, inputs, outputs, found._asdict(), rng)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("B", "C"), LAYOUTS)
def test_blocks_of_steps_change_nothing_but_rounding(rng, B, C, last, monkeypatch):
    make = maker(named(2, 50, 1, 3, 4, 1, 1), rng)
    inputs, dy, d_h = scan_inputs(make, B, C), make("B L E"), make("B E N") if last else None
    whole = backward.d_selective_scan(dy, **inputs, d_h=d_h)
    step = inputs["h"].size
    for block in (1, 7 * step, 49 * step, 50 * step):
        monkeypatch.setattr(backward, "SCAN_BLOCK", block)
        found = backward.d_selective_scan(dy, **inputs, d_h=d_h)
        for name, a in found._asdict().items():
            label = f"{name}, blocks of {block}"
            assert_close_to_scale(a, getattr(whole, name), tolerance("scan", "float64"), label)


def test_selective_scan_of_no_step(rng):
    make = maker(named(2, 0, 1, 3, 4, 1, 1), rng)
    inputs, d_h = scan_inputs(make), make("B E N")
    found = backward.d_selective_scan(make("B L E"), **inputs, d_h=d_h)
    assert {name: a.shape for name, a in found._asdict().items()} == {
        name: a.shape for name, a in inputs.items()
    }
    assert np.array_equal(found.h, d_h)
    assert not found.A.any()


def test_the_scan_leaves_its_arguments_alone(make):
    inputs = scan_inputs(make) | {"dy": make("B L E"), "d_h": make("B E N")}
    before = {name: a.copy() for name, a in inputs.items()}
    backward.d_selective_scan(**inputs)
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)


# --- the mixer -----------------------------------------------------------------------------------


def make_layer(make, biases=True):
    """Return random parameters; step sizes of about 0.1 to 0.5."""
    arrays = {f: 0.5 * make(s) for f, (_, s) in FIELDS.items() if biases or not f.endswith("_bias")}
    arrays["dt_bias"] = make("E") * 0.5 - 1
    return Layer(**{f: arrays.get(f) for f in FIELDS})


def mixer_case(make, sizes, biases=True, lengths=None, **options):
    """Return what a mixer is called with: u, layer, config, state, lengths; and dy.

    Outputs after the end of a row mean nothing, and yet dy is not zero there: the gradients are
    those of what ``reference.mixer`` computes.
    """
    config = config_of(sizes, **options)
    state = reference.State(make("B E K"), make("B E N"))
    return (make("B L D"), make_layer(make, biases), config, state, lengths), make("B L D")


def all_inputs(u, layer, state):
    """Return {name: array} of all that a mixer's output depends on."""
    fields = {f: getattr(layer, f) for f in FIELDS if f != "norm"}
    return {"u": u, "window": state.window, "h": state.h} | {
        f: a for f, a in fields.items() if a is not None
    }


def gradients_of(case, dy, detach=backward.NOTHING):
    """Return the gradients of all of a mixer's inputs by name."""
    u, layer, config, state, lengths = case
    steps, _ = reference.mixer_steps(u, layer, config, state, lengths)
    found = backward.d_mixer(dy, u, layer, config, steps, state, lengths, detach)
    return {"u": found.u, "window": found.window, "h": found.h} | found.parameters


def as_function(case):
    """Return ``reference.mixer`` as a function of all its inputs."""
    _, layer, config, _, lengths = case

    def mixer(u, window, h, **fields):
        now = replace(layer, **fields)
        return reference.mixer(u, now, config, reference.State(window, h), lengths)[0]

    return mixer


def check_mixer(case, dy, rng, **options):
    inputs, found = all_inputs(case[0], case[1], case[3]), gradients_of(case, dy)
    assert set(found) == set(inputs)
    assert_gradients(as_function(case), inputs, dy, found, rng, **options)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_mixer(make, sizes, rng, biases, ended):
    lengths = lengths_of(sizes) if ended else None
    case, dy = mixer_case(make, sizes, biases, lengths, use_bias=biases, use_conv_bias=biases)
    check_mixer(case, dy, rng)


@pytest.mark.parametrize("act", sorted(f.__name__ for f in set(eq.ACTIVATIONS.values())))
def test_mixer_with_each_activation(rng, act):
    sizes = named(*SIZES["odd"])
    name = next(name for name, f in eq.ACTIVATIONS.items() if f.__name__ == act)
    case, dy = mixer_case(maker(sizes, rng), sizes, hidden_act=name)
    # Differences must not reach over a kink.
    step = {"step": 1e-5} if "relu" in act else {}
    check_mixer(case, dy, rng, **step)


@given(st.tuples(*[st.integers(1, 4)] * 7), st.booleans(), st.data(), seeds)
def test_mixer_of_any_size(sizes, biases, data, seed):
    sizes, rng, lengths = named(*sizes), np.random.default_rng(seed), None
    if data.draw(st.booleans(), "lengths"):
        each = st.integers(0, sizes["L"])
        lengths = np.array(data.draw(st.lists(each, min_size=sizes["B"], max_size=sizes["B"])))
    check_mixer(*mixer_case(maker(sizes, rng), sizes, biases, lengths), rng)


def test_positions_after_the_end_have_no_gradient(rng):
    sizes = named(*SIZES["odd"])
    lengths = np.array([5, 0])
    case, dy = mixer_case(maker(sizes, rng), sizes, lengths=lengths)
    dy[np.arange(sizes["L"]) >= lengths[:, None]] = 0
    d_u = gradients_of(case, dy)["u"]
    assert d_u[0, :5].all()
    assert not d_u[0, 5:].any()
    assert not d_u[1].any()


def test_float32_is_close_to_float64(make, sizes):
    case, dy = mixer_case(make, sizes)
    u, layer, config, state, lengths = case
    narrow = lambda a: a.astype(np.float32)  # noqa: E731
    small = Layer(**{f: narrow(getattr(layer, f)) for f in FIELDS})
    state = reference.State(*map(narrow, state))
    found = gradients_of((narrow(u), small, config, state, lengths), narrow(dy))
    for name, expected in gradients_of(case, dy).items():
        assert found[name].dtype == np.float32, name
        assert_close_to_scale(found[name], expected, tolerance("gradient", "float32"), name)


# --- what a backward pass leaves out -------------------------------------------------------------


def with_frozen(case, detach):
    """Return the mixer as a function of its inputs, what is detached being as it is in ``case``."""
    u, layer, config, state, lengths = case
    frozen, _ = reference.mixer_steps(u, layer, config, state, lengths)
    read_before, opened_before = frozen.y + layer.D * frozen.x, eq.silu(frozen.z)
    E, act = config.intermediate_size, eq.ACTIVATIONS[config.hidden_act]

    def mixer(u, window, h, **fields):
        now = replace(layer, **fields)
        xz = reference.linear(u, now.in_proj, now.in_proj_bias)
        conv, _ = reference.causal_conv(xz[..., :E], now.conv, now.conv_bias, window)
        x, opened = act(conv), eq.silu(xz[..., E:])
        if "activation" in detach:
            x = conv * (act(frozen.conv) / frozen.conv)
            opened = xz[..., E:] * eq.sigmoid(frozen.z)
        delta, B, C, *_ = reference.select(x, now.x_proj, now.dt_proj, now.dt_bias)
        if lengths is not None:
            delta[np.arange(delta.shape[1]) >= lengths[:, None]] = 0
        delta = frozen.selected.delta if "delta" in detach else delta
        B = frozen.selected.B if "B" in detach else B
        C = frozen.selected.C if "C" in detach else C
        y, _ = reference.selective_scan(x, delta, eq.continuous_A(now.A_log), B, C, h)
        read = y + now.D * x
        gated = read * opened
        if "gate" in detach:  # half the change of each factor
            gated = 0.5 * (read * opened_before + read_before * opened)
        return reference.linear(gated, now.out_proj, now.out_proj_bias)

    return mixer


def check_detached(case, dy, detach, rng, **options):
    inputs, found = all_inputs(case[0], case[1], case[3]), gradients_of(case, dy, detach)
    assert_gradients(with_frozen(case, detach), inputs, dy, found, rng, **options)


SWITCHES = [name for name in backward.DETACHABLE if name != "norm"]


@pytest.mark.parametrize("name", SWITCHES)
def test_what_is_detached_counts_as_a_constant(name, make, sizes, rng):
    case, dy = mixer_case(make, sizes)
    check_detached(case, dy, {name}, rng)
    plain, detached = gradients_of(case, dy), gradients_of(case, dy, {name})
    assert any((plain[key] != detached[key]).any() for key in plain)


@given(st.sets(st.sampled_from(SWITCHES)), st.booleans(), seeds)
def test_any_of_them_together(detach, ended, seed):
    sizes, rng = named(*SIZES["odd"]), np.random.default_rng(seed)
    lengths = lengths_of(sizes) if ended else None
    check_detached(*mixer_case(maker(sizes, rng), sizes, lengths=lengths), detach, rng)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "mish", "tanh", "relu", "identity"])
def test_the_detached_activation_is_the_models_own(act, rng):
    sizes = named(*SIZES["odd"])
    case, dy = mixer_case(maker(sizes, rng), sizes, hidden_act=act)
    check_detached(case, dy, {"activation"}, rng, **({"step": 1e-5} if act == "relu" else {}))


@pytest.mark.parametrize("act", ["silu", "gelu", "relu", "identity"])
def test_the_detached_activation_at_zero(act, rng):
    # act(x) / x has no value there; its limit is the derivative.
    sizes = named(*SIZES["odd"])
    (u, layer, *rest), dy = mixer_case(maker(sizes, rng), sizes, hidden_act=act)
    case = u, replace(layer, conv=layer.conv * 0, conv_bias=layer.conv_bias * 0), *rest
    found, expected = gradients_of(case, dy, {"activation"}), gradients_of(case, dy)
    assert np.array_equal(found["conv_bias"], expected["conv_bias"])
    assert found["conv_bias"].any() == (act != "relu")


def test_the_gate_halves_what_comes_from_either_factor(make, sizes):
    case, dy = mixer_case(make, sizes)
    plain, half = gradients_of(case, dy), gradients_of(case, dy, {"gate"})
    felt = [name for name in plain if plain[name].any()]  # a window of 1 is no more than its place
    same = {name for name in felt if np.array_equal(half[name], plain[name])}
    assert same == {"out_proj", "out_proj_bias"}
    for name in set(plain) - same:
        rtol = tolerance("step", "float64")
        assert_close_to_scale(half[name], plain[name] / 2, rtol, name)


@pytest.mark.parametrize("bad", ["gates", "A", "", 3, None])
def test_unknown_names_to_detach_are_named(make, sizes, bad):
    case, dy = mixer_case(make, sizes)
    with pytest.raises(InputError, match=f"^detach: expected names among delta, .* {bad!r}$"):
        gradients_of(case, dy, {"gate", bad})
    with pytest.raises(InputError, match=f"^detach: expected names among delta, .* {bad!r}$"):
        backward.d_rms_norm(dy, case[0], np.ones(dy.shape[-1]), EPS, {"norm", bad})


# --- the loss ------------------------------------------------------------------------------------


def loss_inputs(rng, B=3, L=6, D=4, V=9):
    labels = rng.integers(V, size=(B, L))
    labels[rng.random((B, L)) < 0.3] = reference.IGNORED_LABEL
    labels[0, 1] = 2  # one at least to predict
    return {"x": rng.normal(size=(B, L, D)), "lm_head": rng.normal(size=(V, D))}, labels


def mean_loss(labels):
    return lambda x, lm_head: reference.cross_entropy(reference.head(x, lm_head), labels)


@given(seeds, st.integers(1, 60))
def test_cross_entropy(seed, scores_at_once):
    rng = np.random.default_rng(seed)
    inputs, labels = loss_inputs(rng)
    with mock.patch.object(backward, "LOGITS", scores_at_once):
        loss, *found = backward.d_cross_entropy(*inputs.values(), labels)
    assert loss == pytest.approx(mean_loss(labels)(**inputs), rel=1e-13)
    gradients = dict(zip(inputs, found, strict=True))
    assert_gradients(mean_loss(labels), inputs, np.float64(1), gradients, rng)


def test_positions_without_a_label_have_no_gradient(rng):
    inputs, labels = loss_inputs(rng)
    _, d_x, _ = backward.d_cross_entropy(*inputs.values(), labels)
    counted = np.zeros(labels.shape, bool)
    counted[:, :-1] = labels[:, 1:] != reference.IGNORED_LABEL
    assert np.array_equal(d_x.any(axis=-1), counted)


@pytest.mark.parametrize("L", [1, 4])
def test_no_label_at_all(L):
    x, labels = np.ones((2, L, 3), np.float32), np.full((2, L), reference.IGNORED_LABEL)
    loss, d_x, d_head = backward.d_cross_entropy(x, np.ones((5, 3), np.float32), labels)
    assert np.isnan(loss)
    assert d_x.dtype == d_head.dtype == np.float32
    assert np.array_equal(d_x, x * 0)
    assert np.array_equal(d_head, np.zeros((5, 3)))


def test_cross_entropy_in_float32_widens_sixteen_bit_heads(rng):
    inputs, labels = loss_inputs(rng)
    x, half = inputs["x"].astype(np.float32), inputs["lm_head"].astype(np.float16)
    found = backward.d_cross_entropy(x, half, labels)
    wide = backward.d_cross_entropy(x.astype(np.float64), half.astype(np.float64), labels)
    for name, a, b in zip(("loss", "x", "lm_head"), found, wide, strict=True):
        assert a.dtype == (np.float64 if name == "loss" else np.float32)
        assert_close_to_scale(a, b, tolerance("gradient", "float32"), name)
