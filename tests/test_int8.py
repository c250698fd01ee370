"""int8 weights: how far one moves, both engines on the same stored numbers, what is refused."""

import copy
import pickle
from dataclasses import fields, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cli_runner import PROMPT, output_of, run
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from mamba_np import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, MambaModel
from mamba_np.errors import InputError, NonFiniteError
from mamba_np.int8 import GROUP, Int8Matrix, quantise, quantised

SIZES = {"vocab_size": 70, "hidden_size": 40, "num_hidden_layers": 2, "state_size": 5}


def matrix(seed, O, I):  # noqa: E741
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((O, I)) * 10 ** rng.uniform(-6, 3, (O, 1))).astype(np.float32)


sizes = {"seed": st.integers(0, 999), "O": st.integers(1, 9), "I": st.integers(1, 300)}
groups = st.sampled_from([16, 32, 64, 128, 256])


# --- the numbers ---------------------------------------------------------------------------------


@given(**sizes, group=groups)
def test_no_weight_moves_by_more_than_half_a_step(seed, O, I, group):  # noqa: E741
    w = matrix(seed, O, I)
    stored = quantise(w, group)
    for o in range(O):
        for first in range(0, I, group):
            part = w[o, first : first + group].astype(np.float64)
            found = stored[o][first : first + group]
            half = abs(part).max() / 254
            assert abs(found - part).max() <= half * (1 + 1e-5)


@given(**sizes, group=groups)
def test_what_was_stored_is_stored_again_the_same(seed, O, I, group):  # noqa: E741
    once = quantise(matrix(seed, O, I), group)
    twice = quantise(once.astype(np.float32), group)
    assert_array_equal(once.values, twice.values)
    assert_allclose(once.scales, twice.scales, rtol=3e-7)


def test_values_and_scales_of_a_small_matrix():
    w = np.zeros((2, 20), np.float32)
    w[0, :4] = [127, -63.5, 0.5, 1.5]  # step 1; halves go to the even neighbour
    w[0, 16] = -2.54  # a group of its own, of four inputs
    stored = quantise(w, 16)
    assert_array_equal(stored.values[0, :4], [127, -64, 0, 2])
    assert stored.values[0, 16] == -127
    assert_allclose(stored.scales, [[1, 0.02], [0, 0]], rtol=1e-6)
    assert not stored[1].any()
    assert stored.values.dtype == np.int8
    assert stored.scales.shape == (2, 2)


def test_indexing_and_widening_agree():
    stored = quantise(matrix(0, 7, 50), 16)
    wide = stored.astype(np.float32)
    assert wide.shape == stored.shape == (7, 50)
    assert len(stored) == 7
    assert stored.size == 350
    assert stored.nbytes == 350 + 7 * 4 * 4
    assert_array_equal(stored[np.array([[3, 1], [0, 0]])], wide[[[3, 1], [0, 0]]])
    assert_array_equal(stored[2:5].astype(np.float32), wide[2:5])
    assert_array_equal(np.stack(list(stored)), wide)
    assert stored.astype(np.float64).dtype == np.float64


def test_a_bfloat16_matrix_is_that_of_its_float32():
    w = matrix(0, 5, 40).astype(ml_dtypes.bfloat16)
    a, b = quantise(w), quantise(w.astype(np.float32))
    assert_array_equal(a.values, b.values)
    assert_array_equal(a.scales, b.scales)


@pytest.mark.parametrize("group", [0, 8, 24, -16])
def test_groups_are_whole_lanes(group):
    with pytest.raises(InputError, match="multiple of 16"):
        quantise(np.ones((2, 32), np.float32), group)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    model = MambaForCausalLM(MambaConfig(**SIZES), rng=0).make_writeable()
    model.params.layers[1].x_proj[2, 3] = bad
    with pytest.raises(NonFiniteError, match=r"layers\.1\.x_proj"):
        quantised(model.params)


# --- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return MambaForCausalLM(MambaConfig(**SIZES), rng=0)


def widened(params):
    """Return the parameters as float32 arrays, each as it is read."""

    def each(part):
        arrays = {f.name: getattr(part, f.name) for f in fields(part)}
        return {k: a.astype(np.float32) for k, a in arrays.items() if isinstance(a, Int8Matrix)}

    layers = tuple(replace(layer, **each(layer)) for layer in params.layers)
    own = each(params)
    if params.tied:
        own["lm_head"] = own["embeddings"]
    return replace(params, **own, layers=layers)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group", [16, 32, 128])
@pytest.mark.parametrize("rows", [1, 3, 4, 8])
def test_both_engines_compute_with_the_stored_weights(group, rows, tied):
    config = MambaConfig(**SIZES, tie_word_embeddings=tied)
    params = quantised(MambaForCausalLM(config, rng=0).params, group)
    assert params.tied is tied
    expected = MambaForCausalLM(config, params=widened(params), backend="numpy")
    ids = np.random.default_rng(1).integers(0, 70, (rows, 23))
    for backend in ("numpy", "cpu"):
        model = MambaForCausalLM(config, params=params, backend=backend)
        a, b = model(ids[:, :20]), expected(ids[:, :20])
        scale = abs(b.logits).max()
        assert abs(a.logits - b.logits).max() < 1e-5 * scale
        for t in range(20, 23):  # then a token at a time
            token = ids[:, t : t + 1]
            one = model(token, cache_params=a.cache_params).logits
            assert (
                abs(one - expected(token, cache_params=b.cache_params).logits).max() < 1e-5 * scale
            )


def test_stored_weights_are_near_the_drawn_ones(drawn):
    ids = np.random.default_rng(1).integers(0, 70, (1, 20))
    expected = drawn(ids).logits
    found = MambaForCausalLM(MambaConfig(**SIZES), rng=0, dtype="int8")(ids).logits
    error = abs(found - expected).max() / abs(expected).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
def test_from_pretrained(tmp_path, drawn, stored):
    MambaForCausalLM.from_pretrained(save(drawn, tmp_path / "a"), dtype=stored).save_pretrained(
        tmp_path / "b", max_shard_size="20KB"
    )
    source = MambaForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="int8")
    assert model.dtype == np.int8
    assert model.compute_dtype == np.float32
    assert model.params.tied
    assert "int8" in repr(model)
    assert model.num_parameters() == source.num_parameters()
    layer: Any
    layer, expected = model.params.layers[1], source.params.layers[1]
    assert_array_equal(layer.in_proj.values, quantise(expected.in_proj, GROUP).values)
    assert layer.dt_proj.dtype == layer.A_log.dtype == np.float32
    assert_array_equal(layer.dt_proj, expected.dt_proj.astype(np.float32))
    assert MambaModel.from_pretrained(tmp_path / "b", dtype=np.dtype(np.int8)).dtype == np.int8


def save(model, folder):
    model.save_pretrained(folder)
    return folder


def test_generation_copies_and_pickles(tmp_path, drawn):
    model = MambaForCausalLM.from_pretrained(save(drawn, tmp_path), dtype="int8")
    ids = np.array([[1, 2, 3]])
    tokens: Any = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert tokens.shape == (1, 8)
    assert model.find_non_finite() is None
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.dtype == np.int8
        assert twin.params.tied
        assert_array_equal(twin(ids).logits, model(ids).logits)


def test_what_int8_weights_cannot_do_is_said(tmp_path):
    model = MambaForCausalLM(MambaConfig(**SIZES), rng=0, dtype="int8")
    for call in (
        lambda: model.save_pretrained(tmp_path / "x"),
        model.make_writeable,
        lambda: model.resize_token_embeddings(80),
    ):
        with pytest.raises(InputError, match=r"found int8; load the model in another dtype"):
            call()
    assert not (tmp_path / "x").exists()


def test_the_command_line_loads_int8():
    assert output_of("generate", PROMPT, "--dtype", "int8", "--greedy", "-n", 3)
    refused = run("convert", "somewhere", "elsewhere", "--dtype", "int8")
    assert refused.exit_code == 2
    assert "int8" in refused.output


@pytest.mark.parametrize("group", [16, 32, 48, 128])
def test_a_text_beside_others_is_the_text_alone_bit_for_bit(drawn, group):
    model = MambaForCausalLM(MambaConfig(**SIZES), params=quantised(drawn.params, group))
    ids = np.random.default_rng(1).integers(0, 70, (5, 2))
    together = model(ids[:, 1:], cache_params=model(ids[:, :1]).cache_params).logits
    for row in range(5):
        one = ids[row : row + 1]
        alone = model(one[:, 1:], cache_params=model(one[:, :1]).cache_params).logits
        assert_array_equal(together[row], alone[0])
