"""The judge is judged first: the oracle against references from another program, and algebra."""

import ast
import math
from pathlib import Path

import naive
import numpy as np
import pytest
from conftest import MODELS
from tolerances import assert_close_to_scale, tolerance

TIGHT = tolerance("oracle", "float64")


def check_states(result, refs, prefix, layers=None):
    for kind in ("conv_states", "ssm_states"):
        states = getattr(result, kind)
        for i in range(len(states) if layers is None else layers):
            key = f"f64.{prefix}.{kind}.{i}"
            assert_close_to_scale(states[i], refs[key], TIGHT, key)


@pytest.fixture(params=MODELS)
def case(request, refs, oracle_weights):
    """(reference arrays, tensors, config) of each checkpoint."""
    return refs(request.param), *oracle_weights(request.param)


def test_it_imports_nothing_of_the_package():
    tree = ast.parse(Path(naive.__file__).read_text("utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    allowed = {"json", "math", "pickle", "zipfile", "collections", "pathlib", "typing"}
    assert roots == allowed | {"ml_dtypes", "numpy", "safetensors"}


def test_logits_loss_hidden_states_and_final_cache(case):
    refs, tensors, config = case
    result = naive.forward(tensors, config, refs["in.input_ids"])
    assert_close_to_scale(result.logits, refs["f64.logits"], TIGHT, "logits")
    loss = naive.cross_entropy(result.logits, refs["in.labels"])
    assert_close_to_scale(loss, refs["f64.loss"], TIGHT, "loss")
    assert len(result.hidden_states) == len(result.ssm_states) + 1
    for i, hidden in enumerate(result.hidden_states):
        key = f"f64.hidden_states.{i}"
        assert_close_to_scale(hidden, refs[key], TIGHT, key)
    check_states(result, refs, "end")
    embeddings = tensors["backbone.embeddings.weight"][refs["in.input_ids"]]
    assert_close_to_scale(embeddings, refs["f64.embeddings"], 0, "embeddings")


def test_embeddings_as_input(case):
    refs, tensors, config = case
    result = naive.forward(tensors, config, inputs_embeds=refs["in.inputs_embeds"])
    assert_close_to_scale(result.logits, refs["f64.logits_embeds"], TIGHT, "logits_embeds")


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_masks_by_the_rule_of_transformers(case, side):
    refs, tensors, config = case
    mask, key = refs[f"in.mask_{side}"], f"f64.logits_mask_{side}"
    result = naive.forward(
        tensors, config, refs["in.input_ids"], attention_mask=mask, mask_rule="transformers"
    )
    assert_close_to_scale(result.logits, refs[key], TIGHT, key)
    if side == "left":
        check_states(result, refs, "mask_left")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_tokens_as_absent_give_the_same_where_they_are_padding(case, side):
    refs, tensors, config = case
    mask = refs[f"in.mask_{side}"] != 0
    result = naive.forward(tensors, config, refs["in.input_ids"], attention_mask=mask)
    expected = refs[f"f64.logits_mask_{side}"]
    assert_close_to_scale(result.logits[mask], expected[mask], TIGHT, side)
    assert np.isnan(result.logits[~mask]).all()


def test_holes_are_where_the_two_rules_differ(case):
    refs, tensors, config = case
    mask = refs["in.mask_holes"] != 0
    result = naive.forward(tensors, config, refs["in.input_ids"], attention_mask=mask)
    difference = np.abs(result.logits - refs["f64.logits_mask_holes"])[mask].max()
    assert difference > 0.1 * np.abs(refs["f64.logits"]).max()


@pytest.mark.parametrize("prompt", ["prefill", "short1", "short2"])
def test_a_prompt_and_then_one_token_at_a_time(case, prompt):
    refs, tensors, config = case
    ids = refs["in.input_ids"]
    length = {"prefill": 9, "short1": 1, "short2": 2}[prompt]
    result = naive.forward(tensors, config, ids[:, :length])
    check_states(result, refs, prompt, layers=None if prompt == "prefill" else 1)
    steps = []
    expected = refs["f64.step_logits" if prompt == "prefill" else f"f64.{prompt}.step_logits"]
    if prompt != "prefill":
        assert_close_to_scale(result.logits, refs[f"f64.{prompt}.logits"], TIGHT, "logits")
    for t in range(length, length + expected.shape[1]):
        states = result.conv_states, result.ssm_states
        result = naive.forward(tensors, config, ids[:, t : t + 1], states=states)
        steps.append(result.logits)
    assert_close_to_scale(np.concatenate(steps, axis=1), expected, TIGHT, "steps")
    if prompt == "prefill":
        check_states(result, refs, "end")


def test_a_long_sequence(refs, oracle_weights):
    refs = refs("base_silu")
    result = naive.forward(*oracle_weights("base_silu"), refs["f64.long.input_ids"])
    logits = result.logits[:, refs["f64.long.positions"]]
    assert_close_to_scale(logits, refs["f64.long.logits"], TIGHT, "long logits")
    for i, state in enumerate(result.ssm_states):
        assert_close_to_scale(state, refs[f"f64.long.ssm_states.{i}"], TIGHT, f"state {i}")


def test_greedy_continuations(case):
    refs, tensors, config = case
    ids = refs["in.input_ids"][:, :9]
    found = naive.greedy(tensors, config, ids, 40)
    assert np.array_equal(found, refs["gen.greedy"])
    mask = refs["in.mask_left"][:, :9]
    found = naive.greedy(tensors, config, np.where(mask, ids, 0), 40, mask)
    assert np.array_equal(found, refs["gen.greedy_left_padded"])


def test_the_bundled_model(refs):
    folder = Path(naive.__file__).parent.parent / "mamba_np" / "models" / "stories"
    refs = refs("stories")
    for i in ("0", "1"):
        result = naive.forward(
            naive.read_tensors(folder), naive.read_config(folder), refs[f"{i}.input_ids"]
        )
        assert_close_to_scale(result.logits, refs[f"{i}.logits_f64"], TIGHT, f"text {i}")


# --- parts that the checkpoints do not reach -----------------------------------------------------


def test_the_scan_is_the_recurrence_written_out_in_scalars(rng):
    rows, E, L, N, G = 2, 6, 5, 3, 2
    u, delta, z = rng.normal(size=(3, rows, E, L))
    A, bias, D = -rng.random((E, N)), rng.normal(size=E), rng.normal(size=E)
    B, C = rng.normal(size=(2, rows, G, N, L))
    start = rng.normal(size=(rows, E, N))
    y, last = naive.selective_scan(
        u, delta, A, B, C, D, z, bias, delta_softplus=True, initial_state=start
    )
    for b in range(rows):
        for e in range(E):
            group = 0 if e < E // G else 1
            h = [float(start[b, e, n]) for n in range(N)]
            for t in range(L):
                step = math.log(1 + math.exp(delta[b, e, t] + bias[e]))
                total = D[e] * u[b, e, t]
                for n in range(N):
                    h[n] = math.exp(step * A[e, n]) * h[n]
                    h[n] += step * B[b, group, n, t] * u[b, e, t]
                    total += C[b, group, n, t] * h[n]
                total *= z[b, e, t] / (1 + math.exp(-z[b, e, t]))
                assert y[b, e, t] == pytest.approx(total, rel=1e-12, abs=1e-13)
            assert last[b, e] == pytest.approx(h, rel=1e-12, abs=1e-13)


def test_layouts_of_B_and_C_agree(rng):
    rows, E, L, N = 2, 4, 6, 3
    u, delta = rng.random((2, rows, E, L))
    A = -rng.random((E, N))
    row = rng.normal(size=N)
    by_channel = np.tile(row, (E, 1))
    by_time = np.tile(row[None, :, None], (rows, 1, L))
    grouped = np.tile(row[None, None, :, None], (rows, 2, 1, L))
    results = [naive.selective_scan(u, delta, A, B, B)[0] for B in (by_channel, by_time, grouped)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_a_constant_input_with_exact_hold_is_the_solution_of_the_differential_equation():
    # h' = a h + b u with u constant has h(t) = (e^(a t) - 1) / a * b u.
    a, b, u, dt, L = -0.7, 1.3, 2.0, 0.25, 40
    shape = (1, 1, L)
    _, last = naive.selective_scan(
        np.full(shape, u), np.full(shape, dt), [[a]], [[b]], [[1.0]], rule="zoh"
    )
    assert last[0, 0, 0] == pytest.approx(math.expm1(a * dt * L) / a * b * u, rel=1e-13)


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("mamba", 1), ("bilinear", 2)])
def test_the_other_rules_approach_it_at_their_order(rule, order):
    def error(L):
        shape, dt = (1, 1, L), 2.0 / L
        _, last = naive.selective_scan(
            np.ones(shape), np.full(shape, dt), [[-0.7]], [[1.0]], [[1.0]], rule=rule
        )
        return abs(last[0, 0, 0] - math.expm1(-0.7 * 2.0) / -0.7)

    assert error(200) / error(400) == pytest.approx(2**order, rel=0.05)


def test_the_convolution_is_a_correlation_with_the_past(rng):
    E, K, L = 3, 4, 7
    x, weight, bias = rng.normal(size=(L, E)), rng.normal(size=(E, K)), rng.normal(size=E)
    y, window = naive.causal_conv(x, weight, bias)
    for e in range(E):
        full = np.correlate(np.r_[np.zeros(K - 1), x[:, e]], weight[e], "valid") + bias[e]
        assert y[:, e] == pytest.approx(full, rel=1e-12, abs=1e-14)
    assert np.array_equal(window, x[-K:].T)
    short = naive.causal_conv(x[:2], weight, bias)[1]
    assert np.array_equal(short, np.c_[np.zeros((E, K - 2)), x[:2].T])


def test_the_norm_has_root_mean_square_one(rng):
    x = rng.normal(size=50) * 7
    y = naive.rms_norm(x, np.ones(50), 0.0)
    assert math.fsum(y * y) / 50 == pytest.approx(1, rel=1e-14)
    assert y / x == pytest.approx(np.full(50, y[0] / x[0]), rel=1e-14)


def test_cross_entropy_of_known_distributions():
    flat = np.zeros((1, 3, 5))
    assert naive.cross_entropy(flat, [[0, 1, 2]]) == pytest.approx(math.log(5), rel=1e-15)
    sure = np.array([[[0.0, 1000.0], [0.0, 0.0]]])
    assert naive.cross_entropy(sure, [[-100, 1]]) == 0
    assert naive.cross_entropy(sure, [[-100, 0]]) == 1000
    assert math.isnan(naive.cross_entropy(flat, [[0, -100, -100]]))


@pytest.mark.parametrize(
    ("name", "x", "expected"),  # computed with mpmath at 30 digits
    [
        ("silu", 1.0, 0.731058578630004879),
        ("silu", -30.0, -2.80728689065178969e-12),
        ("softplus", 0.0, math.log(2)),
        ("softplus", -17.0, 4.13993763308974745e-8),
        ("softplus", 25.0, 25.0),
        ("gelu", 1.0, 0.841344746068542949),
        ("gelu", -3.0, -0.00404969409489028358),
        ("gelu_tanh", 1.0, 0.841191990608276705),
        ("relu", -2.0, 0.0),
        ("relu", 3.5, 3.5),
    ],
)
def test_scalar_functions(name, x, expected):
    assert getattr(naive, name)(x) == pytest.approx(expected, rel=1e-15)
