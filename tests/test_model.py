"""The model classes as an interface: arguments, outputs, files. Their numbers: test_fixtures,
test_laws."""

import copy
import pickle
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tolerances import assert_close_to_scale, tolerance

from mamba_np import (
    MambaBlock,
    MambaCache,
    MambaCausalLMOutput,
    MambaConfig,
    MambaForCausalLM,
    MambaMixer,
    MambaModel,
    MambaOutput,
)
from mamba_np.errors import (
    CacheError,
    CheckpointError,
    ConfigError,
    FileMissingError,
    InputError,
    NonFiniteError,
)

CONFIG = MambaConfig(vocab_size=13, hidden_size=8, state_size=3, num_hidden_layers=3)
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.fixture(scope="module")
def model():
    return MambaForCausalLM(CONFIG, rng=0)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def test_outputs_of_the_bare_model(model):
    output = model.backbone(IDS)
    assert isinstance(output, MambaOutput)
    assert output.last_hidden_state.shape == (2, 4, 8)
    assert isinstance(output.cache_params, MambaCache)
    assert output.hidden_states is None


def test_outputs_of_the_language_model(model):
    output = model(IDS, labels=IDS, output_hidden_states=True)
    assert isinstance(output, MambaCausalLMOutput)
    assert output.keys() == ("loss", "logits", "cache_params", "hidden_states")
    assert output.logits.shape == (2, 4, 13)
    assert output.logits.dtype == np.float32
    assert np.shape(output.loss) == ()
    assert [h.shape for h in output.hidden_states] == [(2, 4, 8)] * 4


def test_the_last_hidden_state_is_the_last_of_all(model):
    output = model.backbone(IDS, output_hidden_states=True)
    np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)


def test_tuples_have_transformers_order(model):
    assert len(model(IDS, return_dict=False)) == 2
    loss, logits, cache = model(IDS, labels=IDS, return_dict=False)
    assert np.ndim(loss) == 0
    assert np.ndim(logits) == 3
    assert isinstance(cache, MambaCache)


def test_positional_arguments_have_transformers_order(model):
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    by_name = model(input_ids=IDS, attention_mask=mask, labels=IDS)
    by_place = model(IDS, mask, None, None, IDS)
    np.testing.assert_array_equal(by_name.logits, by_place.logits)
    assert by_name.loss == by_place.loss


def test_the_configuration_gives_the_defaults():
    config = MambaConfig(
        **CONFIG.to_dict()
        | {"use_cache": False, "output_hidden_states": True, "return_dict": False}
    )
    logits, hidden_states = MambaForCausalLM(config, rng=0)(IDS)
    assert logits.shape == (2, 4, 13)
    assert len(hidden_states) == 4


def test_cache_position_is_accepted_and_changes_nothing(model):
    with_it = model(IDS, cache_position=np.array([99]))
    np.testing.assert_array_equal(with_it.logits, model(IDS).logits)


def test_unknown_arguments_are_type_errors(model, saved):
    with pytest.raises(TypeError, match="atention_mask"):
        model(IDS, atention_mask=None)
    with pytest.raises(TypeError, match="torch_dtypo"):
        MambaForCausalLM.from_pretrained(saved, torch_dtypo="float32")
    with pytest.raises(InputError, match="config: expected a MambaConfig"):
        MambaModel({"hidden_size": 8})


@pytest.mark.parametrize("bad", ["x", {}, 3])
def test_what_is_no_cache_is_refused(model, bad):
    with pytest.raises(CacheError, match="cache_params: expected a MambaCache"):
        model(IDS, cache_params=bad)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"inputs_embeds": [[[0.0] * 8], [[0.0]]]}, "inputs_embeds"),
        ({"input_ids": IDS, "attention_mask": [[1], [1, 2]]}, "attention_mask"),
        ({"input_ids": IDS, "logits_to_keep": [[1], [1, 2]]}, "logits_to_keep"),
        ({"input_ids": IDS, "labels": [[1], [1, 2]]}, "labels"),
    ],
)
def test_rows_of_different_lengths_are_refused(model, arguments, name):
    with pytest.raises(InputError, match=f"{name}: expected rows of equal length"):
        model(**arguments)


@pytest.mark.parametrize("layer_idx", [3, -1, "a", None])
def test_layers_that_do_not_exist_are_refused(layer_idx):
    with pytest.raises(InputError, match="layer_idx: expected an integer from 0 to 2"):
        MambaMixer(CONFIG, layer_idx)


def test_a_layer_names_its_own_arguments():
    with pytest.raises(InputError, match=r"hidden_states: expected shape \(batch, length, 8\)"):
        MambaBlock(CONFIG)(np.zeros((2, 8)))
    with pytest.raises(InputError, match="config: expected a MambaConfig"):
        MambaMixer({})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state_size": 4}, "x_proj.weight: expected shape"),
        ({"num_hidden_layers": 2}, "expected 2 layers"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"use_bias": True}, "in_proj.bias: expected shape"),
        ({"vocab_size": 14}, "embeddings.weight: expected shape"),
    ],
)
def test_parameters_of_another_model_are_refused(model, changes, words):
    other = MambaConfig(**CONFIG.to_dict() | {"intermediate_size": 16} | changes)
    with pytest.raises(InputError, match="params: ") as caught:
        MambaForCausalLM(other, params=model.params)
    assert words in str(caught.value)
    with pytest.raises(InputError, match="params: expected Params"):
        MambaModel(CONFIG, params="x")


def test_a_model_says_what_it_is(model):
    assert repr(model).startswith("MambaForCausalLM(")
    assert "float32" in repr(model)


def test_generate_names_the_weight_that_is_not_a_number(model):
    broken = copy.deepcopy(model)
    broken.params.layers[1].in_proj[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"backbone\.layers\.1\.mixer\.in_proj\.weight"):
        broken.generate(IDS)


def test_bad_labels_leave_the_cache_as_it_was(model):
    cache = model(IDS).cache_params
    before = cache.copy()
    with pytest.raises(InputError, match="labels"):
        model(IDS, cache_params=cache, labels=IDS + 100)
    np.testing.assert_array_equal(cache.ssm_states[0], before.ssm_states[0])


def test_a_cache_of_other_weights_is_refused(model):
    other = MambaForCausalLM(CONFIG, rng=1)
    with pytest.raises(CacheError, match="found that of another one"):
        model(IDS, cache_params=other(IDS).cache_params)


def test_a_cache_of_the_bare_model_fits_the_language_model(model):
    cache = model.backbone(IDS[:, :2]).cache_params
    logits = model(IDS[:, 2:], cache_params=cache).logits
    assert_close_to_scale(logits, model(IDS).logits[:, 2:], tolerance("law", "float32"))


def test_a_fresh_cache_made_by_hand_is_accepted(model):
    cache = MambaCache(CONFIG, 2)
    output = model(IDS, cache_params=cache)
    assert output.cache_params is cache
    np.testing.assert_array_equal(output.logits, model(IDS).logits)


def test_blocks_called_one_by_one_are_the_model(model):
    cache = MambaCache(CONFIG, 2)
    backbone = model.backbone
    x = backbone.embeddings[IDS]
    for block in backbone.layers:
        assert isinstance(block, MambaBlock)
        x = block(x, cache_params=cache)
    expected = backbone(IDS, output_hidden_states=True)
    np.testing.assert_array_equal(x, expected.hidden_states[-2])
    np.testing.assert_array_equal(cache.ssm_states[2], expected.cache_params.ssm_states[2])


def test_a_mixer_is_its_block_without_norm_and_residual(model, rng):
    block = model.backbone.layers[1]
    mixer = block.mixer
    assert isinstance(mixer, MambaMixer)
    x = rng.normal(size=(2, 4, 8)).astype(np.float32)
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)  # the norm's weight is 1
    assert_close_to_scale(block(x), x + mixer(normed), tolerance("step", "float32"))


@pytest.mark.parametrize("cls", [MambaMixer, MambaBlock])
def test_a_layer_can_be_made_from_a_configuration_alone(cls, rng):
    x = rng.normal(size=(2, 4, 8)).astype(np.float32)
    first, same, other = cls(CONFIG, 0, rng=1), cls(CONFIG, 2, rng=1), cls(CONFIG, 0, rng=2)
    np.testing.assert_array_equal(first(x), same(x))
    assert np.abs(first(x) - other(x)).max() > 1e-3
    cache = MambaCache(CONFIG, 2)
    whole = first(x)
    pieces = [first(x[:, :3], cache_params=cache), first(x[:, 3:], cache_params=cache)]
    assert_close_to_scale(np.concatenate(pieces, 1), whole, tolerance("law", "float32"))


def test_masked_positions_come_back_as_zeros(model):
    mask = [[1, 0, 1, 0], [1, 1, 1, 1]]
    output = model(IDS, attention_mask=mask, output_hidden_states=True)
    assert not output.logits[0, [1, 3]].any()
    assert not any(h[0, [1, 3]].any() for h in output.hidden_states)


# --- parameters and files ----------------------------------------------------------------------


def test_num_parameters_counts_a_tied_head_once(model):
    assert model.num_parameters() == sum(a.size for a in model.state_dict().values())
    untied = MambaForCausalLM(MambaConfig(**CONFIG.to_dict() | {"tie_word_embeddings": False}))
    assert untied.num_parameters() == model.num_parameters() + 13 * 8


def test_the_130m_shape_has_its_published_number_of_parameters():
    # Contract of the released state-spaces/mamba-130m-hf; broadcast zeros take no memory.
    from mamba_np.params import map_arrays

    small = MambaForCausalLM(MambaConfig(num_hidden_layers=1), rng=0)
    one = small.num_parameters()
    layer = sum(a.size for k, a in small.state_dict().items() if ".layers.0." in k)
    assert one + 23 * layer == 129_135_360
    assert map_arrays(lambda _, a: a, small.params).tied


def test_save_and_load_give_the_same_logits(model, saved):
    loaded = MambaForCausalLM.from_pretrained(saved)
    np.testing.assert_array_equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.generation_config.eos_token_id == 0
    bare = MambaModel.from_pretrained(saved)
    np.testing.assert_array_equal(
        bare(IDS).last_hidden_state, model.backbone(IDS).last_hidden_state
    )


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
def test_the_dtype_of_the_files_can_be_kept(tmp_path, stored):
    MambaForCausalLM(CONFIG, rng=0, dtype=stored).save_pretrained(tmp_path)
    assert MambaForCausalLM.from_pretrained(tmp_path).dtype == np.float32
    assert MambaForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype.name == stored
    assert MambaForCausalLM.from_pretrained(tmp_path, torch_dtype=stored).dtype.name == stored


@pytest.mark.parametrize("bad", [{1, 2}, "\ud800"])
def test_a_save_that_cannot_be_finished_is_not_begun(tmp_path, bad):
    MambaForCausalLM(CONFIG, rng=0).save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    config = MambaConfig(**CONFIG.to_dict() | {"note": bad})
    with pytest.raises(ConfigError, match=r"config\.json"):
        MambaForCausalLM(config, rng=1).save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_generation_config_that_is_there_is_read(tmp_path):
    MambaForCausalLM(CONFIG, rng=0).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"num_beams": 1000000}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: num_beams: .* 64"):
        MambaForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").symlink_to("nowhere")
    with pytest.raises(FileMissingError, match="generation_config"):
        MambaForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert MambaForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == 0


def test_loaded_weights_are_read_only_until_asked(saved):
    model = MambaForCausalLM.from_pretrained(saved)
    with pytest.raises(ValueError, match="read-only"):
        model.params.layers[0].D[0] = 1
    before = model(IDS).logits
    model.make_writeable().params.layers[0].D[0] += 1
    assert np.abs(model(IDS).logits - before).max() > 0


def test_an_unchanged_loaded_model_pickles_by_its_files(saved):
    model = MambaForCausalLM.from_pretrained(saved, token="secret")
    model.generation_config.max_new_tokens = 7
    data = pickle.dumps(model)
    assert len(data) < 5000
    assert b"secret" not in data
    again = pickle.loads(data)
    np.testing.assert_array_equal(again(IDS).logits, model(IDS).logits)
    assert again.generation_config.max_new_tokens == 7
    assert len(pickle.dumps(again)) < 5000


def test_a_changed_model_pickles_by_value(saved):
    model = MambaForCausalLM.from_pretrained(saved, token="secret").make_writeable()
    model.params.layers[0].D[:] = 3
    data = pickle.dumps(model)
    assert b"secret" not in data
    assert len(data) < 1.5 * sum(a.nbytes for a in model.state_dict().values())
    again = pickle.loads(data)
    np.testing.assert_array_equal(again(IDS).logits, model(IDS).logits)
    assert again.params.tied


def test_changed_files_are_noticed_when_a_pickle_is_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    data = pickle.dumps(MambaForCausalLM.from_pretrained(tmp_path))
    MambaForCausalLM(CONFIG, rng=5).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected the weights that were pickled"):
        pickle.loads(data)


def test_the_fingerprint_tells_weights_but_not_their_storage(saved):
    prints = {
        dtype: MambaForCausalLM.from_pretrained(saved, dtype=dtype).fingerprint
        for dtype in ("float32", "float64", "bfloat16")
    }
    assert len(set(prints.values())) == 1
    for field in ("norm", "dt_bias", "D", "in_proj", "x_proj", "dt_proj", "out_proj"):
        changed = MambaForCausalLM.from_pretrained(saved).make_writeable()
        getattr(changed.params.layers[1], field)[...] *= 1.1
        assert changed.fingerprint != prints["float32"], field


def test_a_copy_is_a_model_of_its_own(model):
    other = copy.deepcopy(model)
    other.params.layers[0].D[:] = 0
    assert model.params.layers[0].D.all()


@pytest.mark.parametrize("size", [5, 20])
def test_the_vocabulary_can_be_resized(size):
    model = MambaForCausalLM(CONFIG, rng=0)
    before = model.params.embeddings
    embeddings = model.resize_token_embeddings(size, rng=0)
    common = min(size, 13)
    np.testing.assert_array_equal(embeddings[:common], before[:common])
    assert model.config.vocab_size == size
    assert model.params.tied
    assert model([[1]]).logits.shape == (1, 1, size)
    with pytest.raises(InputError, match="new_num_tokens"):
        model.resize_token_embeddings(0)


def test_default_configuration_of_the_page_counts_as_documented():
    # 768 x 32 layers: MambaConfig() of the page, 159,308,544 parameters.
    one = MambaModel(MambaConfig(num_hidden_layers=1), rng=0).state_dict()
    layer = sum(a.size for k, a in one.items() if "layers.0." in k)
    rest = sum(a.size for a in one.values()) - layer
    assert rest + 32 * layer == 159_308_544


# --- several at once ---------------------------------------------------------------------------


def _continue(model, ids):
    return model.generate(ids, max_new_tokens=5)


def test_threads_can_share_a_model(model):
    prompts = [IDS[:, : 1 + i % 4] for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(_continue, model), prompts))
    for text, prompt in zip(found, prompts, strict=True):
        np.testing.assert_array_equal(text, _continue(model, prompt))


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="this system has no fork")
def test_a_forked_process_can_use_the_model(model):
    # The oldest way of sharing work; spawned processes get the model as a pickle, tested above.
    expected = _continue(model, IDS)
    with warnings.catch_warnings():  # Python warns of forks beside threads, which other tests left
        warnings.simplefilter("ignore", DeprecationWarning)
        with get_context("fork").Pool(2) as pool:
            found = pool.starmap(_continue, [(model, IDS)] * 4)
    for text in found:
        np.testing.assert_array_equal(text, expected)


# --- long prompts --------------------------------------------------------------------------------

LONG = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}


@pytest.mark.parametrize("length", [1, 5])
def test_a_token_or_a_short_prompt_copies_no_cache(monkeypatch, length):
    model = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1), rng=0)
    cache = model(np.zeros((2, 3), int)).cache_params
    monkeypatch.setattr(type(cache), "copy", None)
    model(np.ones((2, length), int), cache_params=cache, logits_to_keep=1)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("last", [1, 5, 30])
def test_a_prompt_read_in_pieces_is_the_prompt(monkeypatch, backend, rows, last):
    model = MambaForCausalLM(MambaConfig(**LONG), rng=0, backend=backend)
    ids = np.random.default_rng(1).integers(0, 40, (rows, 50))
    whole = model(ids)
    monkeypatch.setattr("mamba_np.model.PIECE", 12)
    pieces = model(ids, logits_to_keep=last)
    assert pieces.logits.shape == (rows, last, 40)
    assert_allclose(pieces.logits, whole.logits[:, -last:], rtol=1e-5, atol=1e-5)
    for part, expected in zip(pieces.cache_params.memory, whole.cache_params.memory, strict=True):
        assert_allclose(part, expected, rtol=1e-5, atol=1e-5)


def test_an_interrupted_prompt_leaves_the_cache_as_it_was(monkeypatch):
    model = MambaForCausalLM(MambaConfig(**LONG), rng=0)
    ids = np.random.default_rng(1).integers(0, 40, (1, 50))
    cache = model(ids[:, :5]).cache_params
    before = [part.copy() for part in cache.memory]
    calls, embed = [], model._engine.embed

    def stop_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*arguments)

    monkeypatch.setattr(model._engine, "embed", stop_at_third)
    monkeypatch.setattr("mamba_np.model.PIECE", 12)
    with pytest.raises(KeyboardInterrupt):
        model(ids, cache_params=cache, logits_to_keep=1)
    assert all((a == b).all() for a, b in zip(cache.memory, before, strict=True))


def peak_of(call):
    """Return the bytes that Python and NumPy allocate at most during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_prompt():
    model = MambaForCausalLM(MambaConfig(**LONG), rng=0)
    ids = np.random.default_rng(1).integers(0, 40, (1, 40000))
    model(ids[:, :600], logits_to_keep=1)
    short, long = (peak_of(lambda n=n: model(ids[:, :n], logits_to_keep=1)) for n in (10000, 40000))
    assert long - short < 0.1 * short


def test_a_step_allocates_what_it_returns_and_little_else():
    model = MambaForCausalLM(MambaConfig(**{**LONG, "vocab_size": 20000}), rng=0)
    token = np.ones((1, 1), int)
    cache = model(token).cache_params
    step = lambda: model(token, cache_params=cache, logits_to_keep=1)  # noqa: E731
    step()
    assert 4 * 20000 < peak_of(step) < 4 * 20000 + 20000
