"""Quantities made of traces: sums written out in loops, closed forms, and their own identities."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import bundled_model_path
from hypothesis import given
from hypothesis import strategies as st
from small_model import LAYER, SMALL, small_model
from test_laws import configs, make_model, seeds
from tolerances import assert_close_to_scale, tolerance

import mamba_np
from mamba_np import MambaConfig, MambaForCausalLM, analysis
from mamba_np.analysis import identities, parts
from mamba_np.errors import InputError
from mamba_np.reference import mixer_steps, rms_norm

ALL = ("delta", "B", "C", "x", "y", "h", "residual", "logits")
TEXT = "Once upon a time there was a little girl, and the king said to her: who are you?"
IDS = np.random.default_rng(5).integers(17, size=12)
AT = 8


@pytest.fixture
def model(dtype):
    return small_model(dtype)


@pytest.fixture
def trace(model):
    return model.trace(IDS, capture=ALL)


def loops(trace, layer=LAYER):
    """Return (delta, A, B, C, x) of a layer as nested lists of Python numbers."""
    names = ("delta", "A", "B", "C", "x")
    return [getattr(trace, name)[layer].astype(np.float64).tolist() for name in names]


def remaining(delta, A, e, n, s, t):
    """Return what is left at t of what token s wrote: e**(A (S_t - S_s))."""
    return math.exp(A[e][n] * math.fsum(delta[i][e] for i in range(s + 1, t + 1)))


def alpha(trace, e, t, s):
    delta, A, B, C, _ = loops(trace)
    terms = (
        C[t][n] * remaining(delta, A, e, n, s, t) * delta[s][e] * B[s][n] for n in range(len(A[0]))
    )
    return math.fsum(terms)


def close(found, expected, dtype):
    assert_close_to_scale(found, np.asarray(expected), tolerance("law", dtype), "analysis")


# --- memory --------------------------------------------------------------------------------------


def test_half_lives_by_counting(trace):
    found = analysis.half_life(trace, LAYER)
    delta, A, *_ = loops(trace)
    L, E, N = found.shape
    assert (L, E, N) == (12, 18, 3)
    for t, e, n in np.ndindex(found.shape):
        later = [k for k in range(L - t) if remaining(delta, A, e, n, t, t + k) <= 0.5]
        assert found[t, e, n] == (later[0] if later else np.inf)
    assert np.isfinite(found).any()
    assert np.isinf(found).any()


def test_the_half_life_of_steady_steps():
    text = small_model().trace(IDS)
    A = text.A[LAYER]
    steady = replace(text, delta=np.full(text.delta.shape, 0.25))
    found = analysis.steady_half_life(steady, LAYER)
    close(found, np.broadcast_to(math.log(2) / (0.25 * -A), found.shape), "float64")
    counted = analysis.half_life(steady, LAYER)[0]
    short = counted < np.inf
    assert (counted[short] == np.ceil(found[0] - 1e-12)[short]).all()


def test_survival_of_the_first_write(trace, dtype):
    delta, A, *_ = loops(trace)
    found = analysis.survival(trace, LAYER)
    expected = [[remaining(delta, A, e, n, 0, 11) for n in range(3)] for e in range(18)]
    close(found, expected, dtype)


def test_strengths_by_loops(trace, dtype):
    delta, A, B, C, x = loops(trace)
    found = analysis.strengths(trace, LAYER)
    h = np.zeros((18, 3))
    for t in range(12):
        write = np.array([[delta[t][e] * b * x[t][e] for b in B[t]] for e in range(18)])
        keep = np.array([[math.exp(delta[t][e] * a) for a in A[e]] for e in range(18)])
        h = keep * h + write
        close(found.write[t], math.sqrt((write**2).sum()), dtype)
        close(found.keep[t], keep.mean(), dtype)
        close(found.read[t], math.sqrt(((h @ C[t]) ** 2).sum()), dtype)


@pytest.mark.parametrize("block", [1, 40, parts.BLOCK])
def test_who_lives_in_the_state(trace, dtype, block, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", block)
    delta, A, B, _, x = loops(trace)

    def part(e, n, s):
        return remaining(delta, A, e, n, s, AT) * delta[s][e] * B[s][n] * x[s][e]

    every = np.array(
        [[[part(e, n, s) for n in range(3)] for e in range(18)] for s in range(AT + 1)]
    )
    close(analysis.state_parts(trace, LAYER, 4, AT), every[:, 4], dtype)
    close(analysis.state_parts(trace, LAYER, 4, AT - 12), every[:, 4], dtype)
    shares = analysis.state_shares(trace, LAYER, AT)
    close(shares, np.sqrt((every**2).sum(axis=(1, 2))), dtype)


@pytest.mark.parametrize("block", [1, parts.BLOCK])
def test_influence_by_loops(trace, dtype, block, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", block)
    delta, A, B, C, x = loops(trace)
    expected = [
        math.fsum(
            abs(C[t][n]) * remaining(delta, A, e, n, s, t) * abs(delta[s][e] * B[s][n] * x[s][e])
            for t in range(s, 12) for e in range(18) for n in range(3)
        )
        for s in range(12)
    ]  # fmt: skip
    close(analysis.influence(trace, LAYER), expected, dtype)


# --- attention -----------------------------------------------------------------------------------


def test_hidden_attention_is_the_sum_over_states(trace, dtype):
    found = analysis.hidden_attention(trace, LAYER, 6)
    expected = [[alpha(trace, 6, t, s) if s <= t else 0 for s in range(12)] for t in range(12)]
    close(found, expected, dtype)
    assert (found[np.triu_indices(12, 1)] == 0).all()
    assert found.dtype == dtype


def test_the_mean_is_over_the_absolute_values_of_the_traced_channels(model, dtype):
    some = model.trace(IDS, channels=[17, 2, 5])
    found = analysis.mean_hidden_attention(some, LAYER)
    each = [np.abs(analysis.hidden_attention(some, LAYER, e)) for e in (2, 5, 17)]
    close(found, np.mean(each, axis=0), dtype)
    assert found.dtype == dtype


@given(st.integers(1, 80), st.integers(1, 40), st.integers(1, 19), seeds)
def test_compiled_attention_of_any_size(length, channels, states, seed):
    from mamba_np.kernels.attention import absolute_attention

    rng = np.random.default_rng(seed)
    delta = np.exp(rng.uniform(-7, 2, (length, channels))).astype(np.float32)
    A = -np.exp(rng.normal(size=(channels, states))).astype(np.float32)
    B, C = rng.normal(size=(2, length, states)).astype(np.float32)
    wide = [a.astype(np.float64) for a in (delta, A, B, C)]
    S = np.cumsum(wide[0], axis=0)
    left = np.exp(np.minimum(0, wide[1] * (S[:, None] - S)[..., None]))  # (t s c n)
    each = np.einsum("tn,tscn,sc,sn->tsc", wide[3], left, wide[0], wide[2])
    expected = np.tril(np.abs(each).sum(axis=-1))
    close(absolute_attention(delta, A, B, C), expected, "float32")


def test_compiled_attention_of_a_long_text():
    """Its scratch is large: what is freed too early would be unmapped."""
    from mamba_np.kernels.attention import absolute_attention

    delta, A = np.full((2500, 1), 0.5, np.float32), np.full((1, 2), -0.25, np.float32)
    B = np.ones((2500, 2), np.float32)
    found = absolute_attention(delta, A, B, B)
    distance = np.arange(2500)[:, None] - np.arange(2500)
    expected = np.where(distance >= 0, np.exp(-0.125 * np.abs(distance)), 0)  # 2 states of 0.5
    close(found, expected, "float32")


@pytest.mark.parametrize("rule", ["zoh", "euler", "bilinear"])
def test_attention_with_other_rules_gives_the_scans_output(rule):
    config = MambaConfig(**SMALL.to_dict() | {"discretisation": rule})
    text = make_model(config).trace(IDS, capture=ALL)
    assert identities.hidden_attention(text, LAYER, 3) <= tolerance("law", "float64")
    assert identities.mean_hidden_attention(text, LAYER) <= tolerance("law", "float64")
    assert identities.state_parts(text, LAYER, 3, 7) <= tolerance("law", "float64")
    if rule != "zoh":
        with pytest.raises(InputError, match=rf"^trace: expected a state that decays.*'{rule}'"):
            analysis.half_life(text, LAYER)


def test_receptive_fields_of_known_matrices():
    diagonal = analysis.receptive_field(np.eye(5))
    assert (diagonal.mean_distance == 0).all()
    assert (diagonal.reach == 1).all()
    even = analysis.receptive_field(np.tril(np.ones((10, 10))), share=0.5)
    assert np.allclose(even.mean_distance, np.arange(10) / 2)
    assert (even.reach == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]).all()
    first = np.zeros((4, 4))
    first[:, 0] = -2.0
    assert (analysis.receptive_field(first).mean_distance == [0, 1, 2, 3]).all()
    assert (analysis.receptive_field(first).reach == [1, 2, 3, 4]).all()
    assert (analysis.receptive_field(np.zeros((3, 3))).mean_distance == 0).all()


@pytest.mark.parametrize("share", [0, -1, 1.01, "half", math.nan])
def test_shares_that_are_none(share):
    with pytest.raises(InputError, match=r"^share: expected"):
        analysis.receptive_field(np.eye(2), share)


# --- states --------------------------------------------------------------------------------------


def with_states(states):
    """Return a trace whose states of one layer are (P, c, N)."""
    text = small_model().trace(IDS[: len(states)], capture=("h",))
    return replace(text, h=np.broadcast_to(states, (3, *np.shape(states))).copy())


def test_ranks_of_known_states():
    one = np.outer(np.arange(1, 19), [1.0, -2, 3])
    flat = np.concatenate([np.eye(3), np.zeros((15, 3))])
    found = analysis.effective_rank(with_states([one, flat, 0 * one]), LAYER)
    assert np.allclose(found, [1, 3, 0])


def test_the_size_of_known_states():
    states = np.stack([np.full((18, 3), -2.0), np.arange(54.0).reshape(18, 3)])
    found = analysis.state_size(with_states(states), LAYER)
    assert np.allclose(found.norm, [2 * math.sqrt(54), math.sqrt(53 * 54 * 107 / 6)])
    assert np.allclose(found.mean, [-2, 26.5])
    assert np.allclose(found.std, [0, math.sqrt((54**2 - 1) / 12)])


def test_similarity_is_a_cosine(trace, dtype):
    B, C = trace.B[LAYER], trace.C[LAYER]
    found = analysis.similarity(trace, LAYER)
    expected = [
        [np.dot(c, b) / math.sqrt(np.dot(c, c) * np.dot(b, b)) for b in B.astype(float)]
        for c in C.astype(float)
    ]
    close(found, expected, dtype)
    close(np.diag(analysis.similarity(trace, LAYER, "B", "B")), np.ones(12), dtype)
    with pytest.raises(InputError, match=r"^rows: expected"):
        analysis.similarity(trace, LAYER, "A")


# --- mixers --------------------------------------------------------------------------------------


def dense(model, ids, layer):
    """Return a layer's mixer as whole matrices: Att (E, L, L), inputs (L, E), out_proj (D, E)."""
    params, config = model.params, model.config
    x = params.embeddings[ids][None]
    from mamba_np.gradients import _zero_state
    from mamba_np.reference import block

    start = _zero_state(config, 1, x.dtype)
    for one in params.layers[:layer]:
        x, _ = block(x, one, config, start)
    own = params.layers[layer]
    steps, _ = mixer_steps(rms_norm(x, own.norm, config.layer_norm_epsilon), own, config, start)
    L, K = len(ids), config.conv_kernel
    sigma, gate = steps.x[0] / steps.conv[0], steps.z[0] / (1 + np.exp(-steps.z[0]))
    delta, B, C = (part[0] for part in steps.selected[:3])
    S, A = np.cumsum(delta, axis=0), -np.exp(own.A_log)
    matrices = []
    for e in range(config.intermediate_size):
        left = np.exp(np.minimum(0, A[e] * (S[:, None, e] - S[None, :, e])[..., None]))
        att = np.tril(np.einsum("tn,tsn,s,sn->ts", C, left, delta[:, e], B)) + np.eye(L) * own.D[e]
        band = sum(np.eye(L, k=-k) * own.conv[e, K - 1 - k] for k in range(K))
        matrices.append(np.diag(gate[:, e]) @ att @ np.diag(sigma[:, e]) @ band)
    return np.array(matrices), steps.inputs[0], own.out_proj


@pytest.mark.parametrize("kernel", [1, 4, 6])
def test_a_mixer_is_its_matrices(kernel):
    model = make_model(MambaConfig(**SMALL.to_dict() | {"conv_kernel": kernel}))
    matrices, inputs, W = dense(model, IDS, LAYER)
    close(analysis.mixer_attention(model, IDS, LAYER, 7), matrices[7], "float64")
    parts = np.einsum("de,ets,se->tsd", W, matrices, inputs)
    found = analysis.contributions(model, IDS, LAYER, AT)
    close(found.tokens, parts[AT, : AT + 1], "float64")
    norms = analysis.contribution_norms(model, IDS[None], LAYER)
    close(norms, np.linalg.norm(parts, axis=-1), "float64")


@given(configs, seeds, st.data())
def test_contributions_and_relevance_add_up_in_any_model(config, seed, data):
    model, rng = make_model(config, seed), np.random.default_rng(seed)
    ids = rng.integers(config.vocab_size, size=data.draw(st.integers(1, 9)))
    layer = data.draw(st.integers(0, config.num_hidden_layers - 1))
    at = data.draw(st.integers(-len(ids), len(ids) - 1))
    bound = tolerance("law", "float64")
    assert identities.contributions(model, ids, layer, at) <= bound
    channel = data.draw(st.integers(0, config.intermediate_size - 1))
    assert identities.mixer_attention(model, ids, layer, channel) <= bound
    assert identities.relevance(model, ids, None, at) <= bound


# --- predictions ---------------------------------------------------------------------------------


def test_the_lens_after_the_last_layer_is_the_models_own_prediction(model, trace):
    found = analysis.logit_lens(model, trace, 4)
    order = np.argsort(-trace.logits, axis=-1, kind="stable")[:, :4]
    assert (found.ids[-1] == order).all()
    p = np.exp(trace.logits.astype(np.float64))
    expected = np.take_along_axis(p / p.sum(axis=-1, keepdims=True), order, axis=-1)
    close(found.probabilities[-1], expected, model.dtype)
    assert found.probabilities.shape == (3, 12, 4)


def test_the_lens_of_a_layer_is_the_prediction_of_a_model_that_ends_there(model, trace):
    params = replace(model.params, layers=model.params.layers[:2])
    config = MambaConfig(**SMALL.to_dict() | {"num_hidden_layers": 2})
    short = MambaForCausalLM(config, params=params).trace(IDS, capture=("residual", "logits"))
    found = analysis.logit_lens(model, trace, 17).probabilities[1]
    p = np.sort(np.exp(short.logits.astype(np.float64)), axis=-1)[:, ::-1]
    close(found, p / p.sum(axis=-1, keepdims=True), model.dtype)


def test_without_its_rules_relevance_is_the_gradient_and_does_not_add_up():
    """Central differences of the logit along each token's embedding."""
    model = small_model("float64")
    found = analysis.relevance(model, IDS, 3, AT, rules=False)
    x = model.params.embeddings[IDS][None]
    for t in range(AT + 1):
        step = np.zeros_like(x)
        step[:, t] = 1e-5 * x[:, t]
        up, down = (model(inputs_embeds=x + s * step).logits[0, AT, 3] for s in (1, -1))
        np.testing.assert_allclose(found.tokens[t], (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
    assert abs(found.tokens.sum() + found.bias - found.logit) > 1e-3


def test_relevance_of_a_chosen_token(model, dtype):
    r = analysis.relevance(model, IDS, 3, AT)
    logits = model(IDS[None]).logits[0, AT]
    assert r.token == 3
    close(r.logit, logits[3], dtype)
    assert (r.tokens[AT + 1 :] == 0).all()
    assert (r.tokens[: AT + 1] != 0).all()
    likeliest = analysis.relevance(model, IDS, at=AT)
    assert likeliest.token == logits.argmax()


def test_relevance_is_the_gradient_times_the_embeddings_where_the_model_is_linear():
    """One layer without a convolution's bias: what is detached is held while embeddings move."""
    config = MambaConfig(**SMALL.to_dict() | {"num_hidden_layers": 1, "use_bias": False})
    model = make_model(config)
    own, norm_f = model.params.layers[0], model.params.norm_f
    x = model.params.embeddings[IDS][None]
    eps = config.layer_norm_epsilon
    matrices, _, W = dense(model, IDS, 0)
    rms = np.sqrt(np.mean(x[0] ** 2, axis=-1, keepdims=True) + eps)
    inner = own.in_proj[:18] * own.norm / rms[:, None]  # (L E D)
    y = model.backbone.layers[0](x)[0]
    scale = norm_f / np.sqrt(np.mean(y[AT] ** 2) + eps)
    through = np.einsum(
        "d,de,es,sef->sf", model.params.lm_head[3] * scale, W, matrices[:, AT], inner
    )
    # the gate's side: half of the output counts as made by z, at the last token alone
    found = analysis.relevance(model, IDS, 3, AT).tokens
    direct = through / 2 * x[0]
    expected = direct.sum(axis=-1)
    expected[AT] = found[AT]  # the gate and the residual have their share there
    close(found, expected, "float64")


# --- identities, on a trained model --------------------------------------------------------------


@pytest.fixture(scope="module", params=["float64", "float32"])
def trained(request):
    model = MambaForCausalLM.from_pretrained(bundled_model_path(), dtype=request.param)
    return model, model.trace(TEXT, capture=ALL)


def test_identities_of_a_trained_model(trained):
    model, text = trained
    bound = {"float64": 1e-10, "float32": 1e-5}[model.compute_dtype.name]
    last = len(text) - 1
    for layer in (0, model.config.num_hidden_layers - 1):
        found = {
            "half_life": identities.half_life(text, layer),
            "state_parts": identities.state_parts(text, layer, 9),
            "state_shares": identities.state_shares(text, layer),
            "influence": identities.influence(text, layer),
            "hidden_attention": identities.hidden_attention(text, layer, 9),
            "mean_hidden_attention": identities.mean_hidden_attention(text, layer),
            "mixer_attention": identities.mixer_attention(model, text.ids, layer, 9),
            "contributions": identities.contributions(model, text.ids, layer, last),
            "logit_lens": identities.logit_lens(model, text),
            "relevance": identities.relevance(model, text.ids),
            "effective_rank": identities.effective_rank(text, layer),
        }
        assert {name: off for name, off in found.items() if not off <= bound} == {}


def test_identities_see_what_is_wrong(trace, model):
    """Every identity of a trace fails when one number of what it checks is another."""
    y, h = trace.y.copy(), trace.h.copy()
    y[LAYER, 5, 6] += 0.1 * np.abs(y).max()
    h[LAYER, AT, 6] += 0.1 * np.abs(h).max()
    wrong = replace(trace, y=y, h=h)
    assert identities.hidden_attention(wrong, LAYER, 6) > 1e-3
    assert identities.state_parts(wrong, LAYER, 6, AT) > 1e-3
    logits = trace.logits + np.eye(12, 17)
    assert identities.logit_lens(model, replace(trace, logits=logits)) > 1e-3


# --- arguments -----------------------------------------------------------------------------------


def test_what_was_not_traced_is_named():
    text = small_model().trace(IDS, layers=[2], channels=[1])
    with pytest.raises(InputError, match=r"^layer: expected one of"):
        analysis.half_life(text, 0)
    with pytest.raises(InputError, match=r"^channel: expected one of"):
        analysis.hidden_attention(text, 2, 0)
    with pytest.raises(InputError, match=r"^trace: expected one that holds 'y'|'x'"):
        analysis.strengths(text, 2)
    with pytest.raises(InputError, match=r"^at: expected"):
        analysis.state_shares(small_model().trace(IDS, capture=ALL), 0, at=12)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("layer", (IDS, 3)), ("at", (IDS, 0, 12)), ("at", (IDS, 0, -13)),
        ("input_ids", (IDS.reshape(2, 6), 0)),
    ],
)  # fmt: skip
def test_bad_arguments_of_contributions(name, arguments):
    with pytest.raises(InputError, match=rf"^{name}: expected"):
        analysis.contributions(small_model(), *arguments)


@pytest.mark.parametrize(("name", "options"), [("token", {"token": 17}), ("at", {"at": 12})])
def test_bad_arguments_of_relevance(name, options):
    with pytest.raises(InputError, match=rf"^{name}: expected"):
        analysis.relevance(small_model(), IDS, **options)


def test_every_function_has_its_identity_or_a_closed_form():
    without = {"steady_half_life", "survival", "strengths", "receptive_field", "state_size"}
    functions = {name for name in analysis.__all__ if name[0].islower()} - {"identities"}
    checked = {name for name in functions if hasattr(identities, name)}
    assert functions - checked == without | {"similarity", "contribution_norms"}
    assert mamba_np.analysis is analysis
