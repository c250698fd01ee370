"""The compiled engine, step by step and whole, against the float64 oracle."""

from dataclasses import fields, replace

import ml_dtypes
import naive
import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

import mamba_np
from mamba_np import (
    MambaConfig,
    MambaForCausalLM,
    backend,
    bundled_model_path,
    reference,
    threads,
)
from mamba_np import equations as eq
from mamba_np.errors import BackendError
from mamba_np.kernels import cpu, lanes, memory, packing
from mamba_np.kernels.decode import DECODE_TEXTS
from mamba_np.kernels.linear import widen
from mamba_np.kernels.options import kernel
from mamba_np.kernels.packing import padded, stored
from mamba_np.params import Layer, convert, map_arrays

F32 = np.float32
RTOL = tolerance("scan", "float32")


@pytest.fixture
def threads_set():
    """Let a test choose the number of threads."""
    before = mamba_np.get_num_threads()
    yield mamba_np.set_num_threads
    mamba_np.set_num_threads(before)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=F32)


# --- lanes -------------------------------------------------------------------------------------


@kernel
def apply(which, a, b, out):
    x, y = memory.load(a, 0), memory.load(b, 0)
    if which == 0:
        memory.store(out, 0, x + y * x - y)
    elif which == 1:
        memory.store(out, 0, lanes.select(x >= y, x / y, -abs(x)))
    elif which == 2:
        memory.store(out, 0, np.maximum(np.minimum(x, y), F32(0.1)))
    elif which == 3:
        memory.store(out, 0, lanes.spread(lanes.total(x)))
    elif which == 4:
        memory.store(out, 0, eq.silu(x))
    elif which == 5:
        memory.store(out, 0, eq.softplus(x))
    elif which == 6:
        memory.store(out, 0, eq.sigmoid(x))
    else:
        memory.store(out, 0, eq.decay(abs(y), -abs(y)))


FORMULAS = [
    lambda x, y: x + y * x - y,
    lambda x, y: np.where(x >= y, x / y, -abs(x)),
    lambda x, y: np.maximum(np.minimum(x, y), 0.1),
    lambda x, y: np.full(16, x.sum()),
    lambda x, y: naive.each(naive.silu, x),
    lambda x, y: naive.each(naive.softplus, x),
    lambda x, y: naive.each(naive.sigmoid, x),
    lambda x, y: 2 ** -(y * y),
]


@pytest.mark.parametrize("which", range(8))
def test_lanes_compute_what_numbers_compute(which, rng):
    for scale in (0.1, 1, 10):
        a, b, out = normal(rng, 16) * F32(scale), normal(rng, 16), np.empty(16, F32)
        apply(which, a, b, out)
        expected = FORMULAS[which](a.astype(np.float64), b.astype(np.float64))
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("which", [0, 2, 4, 5, 6])
def test_nan_stays_in_its_lane(which):
    a, b, out = np.ones(16, F32), np.ones(16, F32), np.empty(16, F32)
    a[3] = np.nan
    apply(which, a, b, out)
    assert np.isnan(out[3])
    assert np.isfinite(np.delete(out, 3)).all()


@pytest.mark.parametrize("rows", [1, 3, 37])
@pytest.mark.parametrize("inputs", [1, 15, 16, 33, 256])
@pytest.mark.parametrize("dtype", [F32, ml_dtypes.bfloat16, np.float16])
def test_stored_weights_are_widened_exactly(dtype, inputs, rows, rng):
    weights = (normal(rng, rows + 2, inputs) * 10).astype(dtype)
    weights[0, 0] = np.array(1e-7, dtype)  # subnormal in float16
    matrix, panel = stored(weights), np.full((rows, inputs), np.nan, F32)
    for first in (0, 2):
        widen(matrix.place, matrix.like, matrix.group, first, panel)
        np.testing.assert_array_equal(panel, weights[first : first + rows].astype(F32))


@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 8, 9, 20])
@pytest.mark.parametrize("inputs", [1, 16, 40, 100])
@pytest.mark.parametrize("dtype", [F32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("size", [1, 3])
def test_scores(dtype, inputs, tokens, size, rng, monkeypatch):
    monkeypatch.setattr("mamba_np.kernels.head.threads_for", lambda _: size)
    weights, x = normal(rng, 50, inputs).astype(dtype), normal(rng, 1, tokens, inputs)
    found = cpu.head(x, weights)
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    assert found.shape == (1, tokens, 50)
    assert_close_to_scale(found, expected, tolerance("step", F32))


# --- the scan and the convolution --------------------------------------------------------------

LENGTHS = [1, 2, 63, 64, 65, 200]


def scan_inputs(rng, B, L, E, N):
    delta = naive.each(naive.softplus, rng.normal(-3, 1.5, (B, L, E))).astype(F32)
    A = -np.exp(rng.uniform(-1, 3, (E, N))).astype(F32)
    return (
        *(normal(rng, B, L, E), delta, A),
        *(normal(rng, B, L, N), normal(rng, B, L, N), normal(rng, B, E, N)),
    )


def expected_scan(x, delta, A, B, C, h):
    major = [a.swapaxes(1, 2) for a in (x, delta)]
    minor = [a.swapaxes(1, 2) for a in (B, C)]
    y, h = naive.selective_scan(*major, A, *minor, initial_state=h)
    return y.swapaxes(1, 2), h


@pytest.mark.parametrize("N", [1, 3, 8, 16, 64, 128])
@pytest.mark.parametrize("E", [1, 16, 40])
@pytest.mark.parametrize("L", LENGTHS)
def test_selective_scan(L, E, N, rng):
    for B in (1, 3):
        inputs = scan_inputs(rng, B, L, E, N)
        before = [a.copy() for a in inputs]
        found, expected = cpu.selective_scan(*inputs), expected_scan(*inputs)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close_to_scale(ours, theirs, RTOL)
        for a, b in zip(inputs, before, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("N", [1, 8, 16, 64, 128])
def test_selective_scan_over_thousands_of_steps(N, rng):
    inputs = scan_inputs(rng, 1, 4097, 18, N)
    for ours, theirs in zip(cpu.selective_scan(*inputs), expected_scan(*inputs), strict=True):
        assert_close_to_scale(ours, theirs, RTOL)


def test_arrays_in_any_layout(rng, threads_set):
    x, delta, A, B, C, h = scan_inputs(rng, 2, 70, 24, 8)
    expected = cpu.selective_scan(x, delta, A, B, C, h)
    strange = [np.asfortranarray(a)[::1] for a in (x, delta, A, B, C, h)]
    strange[0] = np.repeat(x, 2, axis=2)[:, :, ::2]
    strange[1].flags.writeable = False
    for size in (1, 2, 5):
        threads_set(size)
        for ours, theirs in zip(cpu.selective_scan(*strange), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("delta", [0, 1e-30, 1e30, np.inf])
def test_extreme_steps(delta, rng):
    x, _, A, B, C, h = scan_inputs(rng, 1, 5, 16, 4)
    steps = np.full_like(x, delta)
    if delta == np.inf:
        x[:] = 0
        h[:] = 0
        found = cpu.selective_scan(x, steps, A, B, C, h)[0]
        assert np.isnan(found).all()  # inf * 0, as in NumPy
        return
    with np.errstate(over="ignore"):
        expected = reference.selective_scan(x, steps, A, B, C, h)
    for ours, theirs in zip(cpu.selective_scan(x, steps, A, B, C, h), expected, strict=True):
        assert_close_to_scale(ours, theirs, 1e-6)


def test_states_that_grow_are_right_too(rng):
    x, delta, A, B, C, h = scan_inputs(rng, 1, 9, 16, 4)
    found, expected = (engine.selective_scan(x, delta, -A, B, C, h) for engine in (cpu, reference))
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("K", [1, 2, 4, 7])
@pytest.mark.parametrize("L", [1, 3, 4, 30])
@pytest.mark.parametrize("E", [5, 16, 40])
def test_causal_conv(E, L, K, rng):
    x, weight, bias, window = (
        normal(rng, *shape) for shape in ((3, L, E), (E, K), (E,), (3, E, K))
    )
    for lengths in (None, np.array([0, 1, L])):
        found = cpu.causal_conv(x, weight, bias, window, lengths)
        wide = [a.astype(np.float64) for a in (x, weight, bias, window)]
        expected = reference.causal_conv(*wide, lengths)
        assert_close_to_scale(found[0], expected[0], tolerance("step", F32))
        np.testing.assert_array_equal(found[1], expected[1])


# --- whole models ------------------------------------------------------------------------------

SHAPES = {
    "whole lanes": {"hidden_size": 32, "state_size": 16, "time_step_rank": 4},
    "odd": {"hidden_size": 10, "intermediate_size": 21, "state_size": 5, "time_step_rank": 3},
    "tiny": {"hidden_size": 1, "intermediate_size": 1, "state_size": 1, "time_step_rank": 1},
    "biases": {"hidden_size": 24, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3},
    "all biases": {"hidden_size": 24, "use_bias": True},
    "untied": {"hidden_size": 48, "tie_word_embeddings": False, "conv_kernel": 6},
}


def make_model(name, dtype="float32"):
    config = MambaConfig(vocab_size=37, num_hidden_layers=3, **SHAPES[name])
    model = MambaForCausalLM(config, rng=1)
    rng = np.random.default_rng(2)
    shaken = map_arrays(lambda _, a: a + normal(rng, *a.shape) * F32(0.2), model.params)
    return MambaForCausalLM(config, params=convert(shaken, dtype), backend="cpu")


def oracle(model, ids, **options):
    tensors = {name: a.astype(np.float64) for name, a in model.state_dict().items()}
    return naive.forward(tensors, model.config.to_dict(), ids, **options)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", SHAPES)
def test_models_compute_what_the_oracle_computes(name, dtype, size, rng, threads_set, monkeypatch):
    monkeypatch.setattr("mamba_np.kernels.decode.WORTH_A_THREAD", 1)  # as if it were large
    monkeypatch.setattr(cpu, "CHUNK", 12)
    threads_set(size)
    model = make_model(name, dtype)
    ids = rng.integers(0, 37, (3, 20))
    expected = oracle(model, ids)
    law = tolerance("law", F32)
    start = model(ids[:, :16])
    cache = start.cache_params
    logits = [start.logits]
    logits += [model(ids[:, t : t + 1], cache_params=cache).logits for t in range(16, 20)]
    assert_close_to_scale(np.concatenate(logits, axis=1), expected.logits, law)
    for i, state in enumerate(cache.ssm_states):
        assert_close_to_scale(state, expected.ssm_states[i], law)
    for i, state in enumerate(cache.conv_states):
        assert_close_to_scale(state, expected.conv_states[i], law)
    hidden = model(ids, output_hidden_states=True).hidden_states
    for ours, theirs in zip(hidden, expected.hidden_states, strict=True):
        assert_close_to_scale(ours, theirs, law)


@pytest.mark.parametrize("rows", [*range(1, 9), 17])
def test_a_token_of_each_text_is_the_same_bits_alone(rows, rng):
    model = make_model("odd")
    ids = rng.integers(0, 37, (rows, 6))
    together, caches = model(ids[:, :5]), [model(row[None, :5]).cache_params for row in ids]
    joined = together.cache_params
    for i, cache in enumerate(caches):  # the same start, to the bit
        joined.conv_states[0][i] = cache.conv_states[0][0]
        for ours, theirs in zip(joined.memory, cache.memory, strict=True):
            ours[:, i] = theirs[:, 0]
    scores = model(ids[:, 5:], cache_params=joined).logits
    for i, cache in enumerate(caches):
        alone = model(ids[i : i + 1, 5:], cache_params=cache).logits
        np.testing.assert_array_equal(scores[i], alone[0])


def test_a_token_of_many_texts_is_what_each_has_alone(rng):
    model = make_model("odd")
    ids = rng.integers(0, 37, (DECODE_TEXTS + 1, 6))  # so many are the matrix library's
    cache = model(ids[:, :5]).cache_params
    together = model(ids[:, 5:], cache_params=cache).logits
    for i in (0, DECODE_TEXTS):
        alone = model(ids[i : i + 1]).logits[0, 5:]
        assert_close_to_scale(together[i], alone, tolerance("law", F32))


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_threads_changes_no_bit_of_a_step(size, rng, threads_set, monkeypatch):
    monkeypatch.setattr("mamba_np.kernels.decode.WORTH_A_THREAD", 1)
    model, ids = make_model("whole lanes"), rng.integers(0, 37, (2, 4))
    results = []
    for n in (1, size):
        threads_set(n)
        cache = model.new_cache(2)
        results.append([model(ids[:, t : t + 1], cache_params=cache).logits for t in range(4)])
    np.testing.assert_array_equal(*results)


def test_a_step_with_ended_texts_leaves_these_alone(rng):
    model, ids = make_model("odd"), rng.integers(0, 37, (3, 4))
    cache = model(ids).cache_params
    before = cache.copy()
    alive = np.array([[1], [0], [1]])
    model(ids[:, :1], cache_params=cache, attention_mask=alive)
    for now, then in zip(cache.memory, before.memory, strict=True):
        np.testing.assert_array_equal(now[:, 1], then[:, 1])
        assert (now[:, 0] != then[:, 0]).any()


def test_parameters_changed_in_place_are_seen(rng):
    model, ids = make_model("whole lanes"), rng.integers(0, 37, (1, 3))
    before = model(ids).logits
    model.params.layers[1].A_log[:] += 1
    model.params.layers[0].D[:] *= 2
    assert_close_to_scale(model(ids).logits, oracle(model, ids).logits, tolerance("law", F32))
    assert (model(ids).logits != before).any()


FIELDS = [f.name for f in fields(Layer)]


def scores_of(model, prompt, token):
    """Return the scores of a prompt and of a token after it."""
    start = model(prompt)
    return start.logits, model(token, cache_params=start.cache_params.copy()).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("field", [*FIELDS, "norm_f", "embeddings"])
def test_one_number_changed_in_place_is_seen_by_prompt_and_token(field, dtype, rng):
    model = make_model("all biases", dtype)
    owner = model.params.layers[1] if field in FIELDS else model.params
    prompt, token = rng.integers(0, 37, (1, 5)), [[3]]
    before = scores_of(model, prompt, token)
    getattr(owner, field).reshape(-1)[-1] += 2
    found = scores_of(model, prompt, token)
    copies = map_arrays(lambda _, a: a.copy(), model.params)
    expected = scores_of(MambaForCausalLM(model.config, params=copies), prompt, token)
    for a, b, then in zip(found, expected, before, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != then).any()


def test_what_has_not_changed_is_packed_once():
    model = make_model("odd").make_writeable()
    first = packing.packed(model.params, model.config)
    assert packing.packed(model.params, model.config) is first
    model.params.norm_f[-1] = -model.params.norm_f[-1]
    second = packing.packed(model.params, model.config)
    assert second is not first
    assert packing.packed(model.params, model.config) is second


def test_what_cannot_change_is_not_looked_at(monkeypatch):
    model = MambaForCausalLM.from_pretrained(bundled_model_path())
    first = packing.packed(model.params, model.config)
    monkeypatch.setattr(packing, "_equal", None)
    assert packing.packed(model.params, model.config) is first


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", ["a read-only view", "every second number", "by columns"])
def test_a_change_of_what_a_parameter_is_a_view_of_is_seen(kind, field, rng):
    model = make_model("untied")
    layer = model.params.layers[1]
    array = getattr(layer, field)
    if array is None:
        pytest.skip("a bias that the model does without")
    if kind == "by columns":
        own = np.full(array.shape[::-1], 0.125, F32).T
    else:
        base = np.full((*array.shape[:-1], 2 * array.shape[-1]), 0.125, F32)
        own = base[..., ::2] if kind == "every second number" else base[..., : array.shape[-1]]
    view = own.view()
    view.flags.writeable = kind != "a read-only view"
    layers = (model.params.layers[0], replace(layer, **{field: view}), model.params.layers[2])
    model.params = replace(model.params, layers=layers)
    prompt, token = rng.integers(0, 37, (1, 5)), [[3]]
    before = scores_of(model, prompt, token)
    own[(-1,) * own.ndim] += 2
    found = scores_of(model, prompt, token)
    copies = map_arrays(lambda _, a: a.copy(), model.params)
    expected = scores_of(MambaForCausalLM(model.config, params=copies), prompt, token)
    for a, b, then in zip(found, expected, before, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != then).any()


@pytest.mark.parametrize("dtype", [F32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("size", [1, 3, 16, 37])
def test_a_watch_sees_every_bit(size, dtype, rng):
    arrays = [rng.normal(size=size).astype(dtype) for _ in range(3)]
    arrays[1][:] = 0
    arrays[2][-1] = np.nan
    watch = packing.Watch(arrays)
    assert watch.unchanged()
    for array in arrays:
        bits = array.view(np.uint8)
        for place in (0, len(bits) // 2, len(bits) - 1):
            for bit in (1, 128):  # 128 of the last byte: a zero of the other sign
                bits[place] ^= bit
                assert not watch.unchanged()
                bits[place] ^= bit
                assert watch.unchanged()


def test_a_region_in_another_thread_changes_nothing(rng, threads_set):
    from concurrent.futures import ThreadPoolExecutor

    threads_set(2)
    model = make_model("whole lanes")
    texts = [rng.integers(0, 37, (1, 50)) for _ in range(6)]
    expected = [model(ids).logits for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: model(ids).logits, texts * 5))
    for i, logits in enumerate(found):
        assert_close_to_scale(logits, expected[i % 6], tolerance("law", F32))


# --- which models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "dtype", "found"),
    [
        ({}, "float64", "computing in float64"),
        ({"hidden_act": "gelu"}, "float32", "hidden_act='gelu'"),
        ({"discretisation": "zoh"}, "bfloat16", "discretisation='zoh'"),
        ({"selective": ["B"]}, "float32", "selective=('B',)"),
    ],
)
def test_what_has_no_kernels_is_refused_by_name_and_computed_by_numpy(options, dtype, found):
    config = MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, **options)
    assert MambaForCausalLM(config, dtype=dtype).backend == "numpy"
    with pytest.raises(BackendError, match="backend: 'cpu' has no kernels for") as error:
        MambaForCausalLM(config, dtype=dtype, backend="cpu")
    assert found in str(error.value)


def test_a_model_whose_parameters_are_replaced_is_checked_again():
    model = make_model("tiny")
    model.params = convert(model.params, "float64")
    with pytest.raises(BackendError, match="computing in float64"):
        model([[1]])


def test_padding():
    assert [padded(n) for n in (1, 15, 16, 17)] == [16, 16, 16, 32]
    assert backend.available()[0] == "cpu"
    assert threads.get_num_threads() >= 1
