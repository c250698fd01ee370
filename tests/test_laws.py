"""The laws: what must hold for every model, every sequence, every way to cut, pad and batch it.

Models are small and odd, with random parameters everywhere (biases, norms and D too), and the
oracle is the judge wherever a law alone could hold for the wrong numbers.
"""

import contextlib
import copy
import itertools
import pickle
from unittest import mock

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_scale, tolerance

from mamba_np import MambaCache, MambaConfig, MambaForCausalLM, MambaModel, reference
from mamba_np.errors import CacheError, InputError
from mamba_np.kernels import cpu
from mamba_np.params import convert, map_arrays

DTYPES = ("float64", "float32")

configs = st.builds(
    MambaConfig,
    vocab_size=st.integers(2, 19),
    hidden_size=st.integers(6, 12),
    intermediate_size=st.sampled_from([1, 5, 7, 9, 13, 18]),
    state_size=st.integers(1, 5),
    conv_kernel=st.integers(1, 5),
    time_step_rank=st.integers(1, 3),
    num_hidden_layers=st.integers(1, 3),
    use_bias=st.booleans(),
    use_conv_bias=st.booleans(),
    tie_word_embeddings=st.booleans(),
    hidden_act=st.sampled_from(["silu", "gelu", "relu"]),
    use_associative_scan=st.booleans(),
    layer_norm_epsilon=st.sampled_from([1e-5, 1e-2]),
    time_step_max=st.sampled_from([0.1, 1.5]),
)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)


def make_model(config, seed=0, dtype="float64", cls=MambaForCausalLM):
    """Return a model none of whose parameters is all ones, all zeros or the same in each layer."""
    rng = np.random.default_rng(seed)

    def shake(_, array):
        return (array + 0.2 * rng.standard_normal(array.shape)).astype(array.dtype)

    model = cls(config, rng=rng, dtype=dtype)
    model.params = map_arrays(shake, model.params)
    return model


def oracle(model, *args, **options):
    tensors = {name: a.astype(np.float64) for name, a in model.state_dict().items()}
    return naive.forward(tensors, model.config.to_dict(), *args, **options)


def close(found, expected, model, name):
    """Compare with the tolerance of laws, by the dtype in which the model computes."""
    assert found.dtype == model.compute_dtype, f"{name}: dtype {found.dtype}"
    assert_close_to_scale(found, expected, tolerance("law", model.compute_dtype), name)


def same_states(found, expected, model, label="cache"):
    for kind in ("conv_states", "ssm_states"):
        pairs = zip(getattr(found, kind), getattr(expected, kind), strict=True)
        for i, (a, b) in enumerate(pairs):
            close(a, b, model, f"{label}: {kind} of layer {i}")


def bytes_of(cache):
    return [np.array(s).tobytes() for s in (*cache.conv_states, *cache.ssm_states)]


@st.composite
def situations(draw, max_rows=3, max_length=14):
    """Draw (model, ids): any model and any batch.

    float32 only where there are several channels and several states: a single one may lose its
    digits when the terms of its sum cancel (a single state's B is one number, shared by all
    channels), and no tolerance to the scale of that one number can be promised.
    """
    config = draw(configs)
    several = config.intermediate_size >= 7 and config.state_size >= 3
    dtype = draw(dtypes) if several else "float64"
    model = make_model(config, draw(seeds), dtype)
    shape = draw(st.integers(1, max_rows)), draw(st.integers(1, max_length))
    rng = np.random.default_rng(draw(seeds))
    return model, rng.integers(model.config.vocab_size, size=shape)


@st.composite
def cuts(draw, length):
    """Draw the pieces (start, stop) of a sequence."""
    inside = draw(st.sets(st.integers(1, length - 1))) if length > 1 else set()
    return list(itertools.pairwise([0, *sorted(inside), length]))


@st.composite
def masks(draw, shape):
    """Draw a mask (B, L): any pattern, with empty and full rows likely."""
    pattern = st.lists(st.integers(0, 1), min_size=shape[1], max_size=shape[1])
    constant = st.sampled_from([[0] * shape[1], [1] * shape[1]])
    return np.array([draw(pattern | constant) for _ in range(shape[0])])


small_blocks = st.integers(1, 6)


@contextlib.contextmanager
def blocks_of(tokens):
    """Make the engines take their input in pieces of so many tokens."""
    patches = (mock.patch.object(engine, "CHUNK", tokens) for engine in (reference, cpu))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


# --- the oracle --------------------------------------------------------------------------------


@given(situations())
def test_any_model_computes_what_the_oracle_computes(situation):
    model, ids = situation
    out, expected = model(ids, output_hidden_states=True), oracle(model, ids)
    close(out.logits, expected.logits, model, "logits")
    same_states(out.cache_params, expected, model)
    for i, (a, b) in enumerate(zip(out.hidden_states, expected.hidden_states, strict=True)):
        close(a, b, model, f"hidden_states {i}")


# --- the split law -----------------------------------------------------------------------------


@given(st.data(), situations(), small_blocks)
def test_any_split_gives_what_one_pass_gives(data, situation, tokens):
    model, ids = situation
    whole, cache, logits = model(ids), None, []
    with blocks_of(tokens):
        for start, stop in data.draw(cuts(ids.shape[1])):
            out = model(ids[:, start:stop], cache_params=cache)
            assert cache is None or out.cache_params is cache  # advanced in place
            cache = out.cache_params
            logits.append(out.logits)
    close(np.concatenate(logits, axis=1), whole.logits, model, "logits")
    same_states(cache, whole.cache_params, model)


@given(situations(), small_blocks)
def test_blocks_inside_the_model_change_nothing(situation, tokens):
    model, ids = situation
    whole = model(ids, output_hidden_states=True)
    with blocks_of(tokens):
        out = model(ids, output_hidden_states=True)
    close(out.logits, whole.logits, model, "logits")
    same_states(out.cache_params, whole.cache_params, model)
    for a, b in zip(out.hidden_states, whole.hidden_states, strict=True):
        close(a, b, model, "hidden states")


# --- the padding law ---------------------------------------------------------------------------


@given(st.data(), situations(), small_blocks)
def test_masked_tokens_are_as_if_absent(data, situation, tokens):
    model, ids = situation
    mask = data.draw(masks(ids.shape))
    expected = oracle(model, ids, attention_mask=mask)
    junk = np.where(mask, ids, -7)  # whatever stands under the mask
    with blocks_of(tokens):
        out = model(junk, attention_mask=mask, output_hidden_states=True)
    seen = mask == 1
    assert out.logits.shape == expected.logits.shape
    close(out.logits[seen], expected.logits[seen], model, "logits")
    assert not out.logits[~seen].any()
    for a, b in zip(out.hidden_states, expected.hidden_states, strict=True):
        close(a[seen], b[seen], model, "hidden states")
    same_states(out.cache_params, expected, model)


@given(st.data(), situations())
def test_masks_and_splits_together(data, situation):
    model, ids = situation
    mask = data.draw(masks(ids.shape))
    expected = oracle(model, ids, attention_mask=mask)
    cache, logits = None, []
    for start, stop in data.draw(cuts(ids.shape[1])):
        # The mask of the piece alone, or of all that was read so far: both are usual.
        covered = data.draw(st.booleans()) and cache is not None
        piece = mask[:, 0 if covered else start : stop]
        out = model(ids[:, start:stop], attention_mask=piece, cache_params=cache)
        cache = out.cache_params
        logits.append(out.logits)
    seen = mask == 1
    close(np.concatenate(logits, axis=1)[seen], expected.logits[seen], model, "logits")
    same_states(cache, expected, model)


@given(situations())
def test_a_batch_of_nothing_but_padding_leaves_the_cache_as_it_was(situation):
    model, ids = situation
    cache = model(ids).cache_params
    before = bytes_of(cache)
    out = model(ids, attention_mask=np.zeros_like(ids), cache_params=cache)
    assert out.logits.shape == (*ids.shape, model.config.vocab_size)
    assert not out.logits.any()
    assert bytes_of(cache) == before


@given(st.data(), situations())
def test_masks_of_embeddings(data, situation):
    model, ids = situation
    mask = data.draw(masks(ids.shape))
    embeds = model.backbone.embeddings[ids]
    embeds[mask == 0] = np.nan  # whatever stands under the mask
    out = model(inputs_embeds=embeds, attention_mask=mask)
    expected = oracle(model, ids, attention_mask=mask)
    close(out.logits[mask == 1], expected.logits[mask == 1], model, "logits")
    same_states(out.cache_params, expected, model)


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint8, np.int64, np.float32])
def test_dtypes_of_masks(kind):
    model = make_model(MambaConfig(vocab_size=5, hidden_size=6, num_hidden_layers=1))
    ids, mask = np.array([[1, 2, 3]]), np.array([[1, 0, 1]])
    expected = model(ids, attention_mask=mask).logits
    assert np.array_equal(model(ids, attention_mask=mask.astype(kind)).logits, expected)
    assert np.array_equal(model(ids, attention_mask=mask.tolist()).logits, expected)


# --- the batch law -----------------------------------------------------------------------------


@given(st.data(), situations())
def test_rows_do_not_depend_on_each_other(data, situation):
    model, ids = situation
    mask = data.draw(st.none() | masks(ids.shape))
    together = model(ids, attention_mask=mask)
    for row in range(len(ids)):
        only = None if mask is None else mask[row : row + 1]
        alone = model(ids[row : row + 1], attention_mask=only)
        close(alone.logits, together.logits[row : row + 1], model, f"logits of row {row}")
        same_states(alone.cache_params, together.cache_params.select([row]), model, f"row {row}")


@given(st.data(), situations())
def test_rows_may_come_in_any_order_and_repeat(data, situation):
    model, ids = situation
    order = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=5))
    whole, out = model(ids), model(ids[order])
    close(out.logits, whole.logits[order], model, "logits")
    same_states(out.cache_params, whole.cache_params.select(order), model)


# --- the state law -----------------------------------------------------------------------------


def continued_like(found, model, ids, original):
    """Going on from ``found`` gives, bit for bit, what going on from ``original`` gives."""
    first, second = model(ids, cache_params=found), model(ids, cache_params=original)
    assert np.array_equal(first.logits, second.logits)
    assert bytes_of(found) == bytes_of(original)


WAYS = {
    "copy": lambda cache, _: cache.copy(),
    "select all": lambda cache, _: cache.select(list(range(cache.batch_size))),
    "select by mask": lambda cache, _: cache.select(np.ones(cache.batch_size, bool)),
    "pickle": lambda cache, _: pickle.loads(pickle.dumps(cache)),
    "deepcopy": lambda cache, _: copy.deepcopy(cache),
    "file": lambda cache, path: (cache.save(path), MambaCache.load(path))[1],
}


@pytest.mark.parametrize("way", WAYS)
@given(situation=situations())
@settings(max_examples=15)
def test_a_state_goes_on_the_same_elsewhere(way, situation, tmp_path_factory):
    model, ids = situation
    cache = model(ids).cache_params
    path = tmp_path_factory.mktemp("cache") / "state.safetensors"
    twin = WAYS[way](cache, path)
    assert bytes_of(twin) == bytes_of(cache)
    for state in (*twin.conv_states, *twin.ssm_states):
        state += 1  # its own memory:
    assert bytes_of(twin) != bytes_of(cache)
    for state in (*twin.conv_states, *twin.ssm_states):
        state -= 1
    for mine, other in zip(
        (*twin.conv_states, *twin.ssm_states), (*cache.conv_states, *cache.ssm_states), strict=True
    ):
        mine[:] = other
    continued_like(twin, model, ids, cache)


@given(situations())
def test_selected_rows_go_on_alone(situation):
    model, ids = situation
    cache = model(ids).cache_params
    row = len(ids) - 1
    alone = cache.select([row])
    out = model(ids[[row]], cache_params=alone)
    both = model(ids, cache_params=cache)
    close(out.logits, both.logits[[row]], model, "logits")
    same_states(alone, cache.select([row]), model)


@given(situations())
def test_reset_is_a_new_cache(situation):
    model, ids = situation
    first = model(ids)
    logits, cache = first.logits, first.cache_params
    after = bytes_of(cache)
    cache.reset()
    assert not any(np.any(s) for s in (*cache.conv_states, *cache.ssm_states))
    again = model(ids, cache_params=cache)
    assert np.array_equal(again.logits, logits)
    assert bytes_of(cache) == after
    explicit = MambaCache(model.config, len(ids), model.compute_dtype)
    assert np.array_equal(model(ids, cache_params=explicit).logits, logits)
    assert bytes_of(explicit) == after


@given(situations())
def test_states_can_be_edited(situation):
    # The arrays of a cache are the state itself: writing zeros is forgetting.
    model, ids = situation
    cache = model(ids).cache_params
    for state in (*cache.conv_states, *cache.ssm_states):
        state[...] = 0
    assert np.array_equal(model(ids, cache_params=cache).logits, model(ids).logits)


@given(situations())
def test_without_use_cache_a_cache_is_read_and_left_alone(situation):
    model, ids = situation
    cache = model(ids).cache_params
    before = bytes_of(cache)
    out = model(ids, cache_params=cache, use_cache=False)
    assert out.cache_params is None
    assert bytes_of(cache) == before
    assert np.array_equal(out.logits, model(ids, cache_params=cache).logits)
    assert model(ids, use_cache=False).cache_params is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_error_on_the_way_leaves_the_cache_as_it_was(error, call, monkeypatch):
    config = MambaConfig(vocab_size=7, hidden_size=6, num_hidden_layers=2)
    model, ids = make_model(config), np.array([[1, 2, 3, 4]])
    cache = model(ids).cache_params
    before, calls, block = bytes_of(cache), itertools.count(1), reference.block

    def break_down(*args, **options):
        if next(calls) == call:
            raise error
        return block(*args, **options)

    with monkeypatch.context() as patch, blocks_of(2):  # two layers, two pieces: four calls
        patch.setattr(reference, "block", break_down)
        with pytest.raises(error):
            model(ids, cache_params=cache)
    assert bytes_of(cache) == before
    continued_like(cache, model, ids, cache.copy())


BAD_CALLS = {
    "ids": {"input_ids": [[1, 99]]},
    "negative ids": {"input_ids": [[-1, 1]]},
    "mask": {"input_ids": [[1, 2]], "attention_mask": [[1, 2]]},
    "labels": {"input_ids": [[1, 2]], "labels": [[1, 7]]},
    "logits_to_keep": {"input_ids": [[1, 2]], "logits_to_keep": -1},
    "both": {"input_ids": [[1, 2]], "inputs_embeds": np.ones((1, 2, 6))},
    "neither": {},
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_refused_call_leaves_the_cache_as_it_was(name):
    model = make_model(MambaConfig(vocab_size=7, hidden_size=6, num_hidden_layers=2))
    cache = model([[1, 2, 3]]).cache_params
    before = bytes_of(cache)
    with pytest.raises(InputError, match=r"expected .*found"):
        model(**BAD_CALLS[name], cache_params=cache)
    assert bytes_of(cache) == before


def test_caches_of_other_models_and_batches_are_refused():
    options = {"vocab_size": 7, "hidden_size": 6, "num_hidden_layers": 2}
    model = make_model(MambaConfig(**options))
    for other in (
        model([[1], [2]]).cache_params,  # another batch
        make_model(MambaConfig(**options | {"state_size": 3}))([[1]]).cache_params,
        make_model(MambaConfig(**options | {"num_hidden_layers": 1}))([[1]]).cache_params,
        make_model(MambaConfig(**options), seed=1)([[1]]).cache_params,  # other weights
        make_model(MambaConfig(**options), dtype="float32")([[1]]).cache_params,
    ):
        before = bytes_of(other)
        with pytest.raises(CacheError, match=r"cache_params.*: expected .*found"):
            model([[1]], cache_params=other)
        assert bytes_of(other) == before


# --- the dtype law -----------------------------------------------------------------------------


@given(situations(), st.sampled_from(["bfloat16", "float16"]))
def test_sixteen_bit_weights_compute_as_their_float32_values(situation, dtype):
    model, ids = situation
    narrow, wide = (MambaForCausalLM(model.config, params=p) for p in (
        convert(model.params, dtype), convert(convert(model.params, dtype), "float32")
    ))  # fmt: skip
    assert (narrow.dtype.name, wide.dtype.name) == (dtype, "float32")
    found, expected = narrow(ids, labels=ids), wide(ids, labels=ids)
    close(found.logits, expected.logits, wide, "logits")
    same_states(found.cache_params, expected.cache_params, wide)
    assert_close_to_scale(expected.logits, oracle(narrow, ids).logits, 2e-5, "oracle")


# --- arguments that must not change the numbers --------------------------------------------------


@given(st.data(), situations())
def test_kept_logits_are_a_part_of_all(data, situation):
    model, ids = situation
    L = ids.shape[1]
    mask = data.draw(st.none() | masks(ids.shape))
    whole = model(ids, attention_mask=mask, labels=ids)
    k = data.draw(st.integers(1, L + 2))
    positions = data.draw(st.lists(st.integers(-L, L - 1), min_size=1, max_size=4))
    for keep, index in ((0, slice(None)), (k, slice(-k, None)), (np.array(positions), positions)):
        for labels in (None, ids):
            out = model(ids, attention_mask=mask, labels=labels, logits_to_keep=keep)
            close(out.logits, whole.logits[:, index], model, f"logits of {keep}")
            if labels is not None:
                assert out.loss == whole.loss or np.isnan(out.loss)
            same_states(out.cache_params, whole.cache_params, model)


@given(situations())
def test_embeddings_instead_of_ids(situation):
    model, ids = situation
    by_ids = model(ids)
    by_embeddings = model(inputs_embeds=model.backbone.embeddings[ids])
    assert np.array_equal(by_ids.logits, by_embeddings.logits)
    assert bytes_of(by_ids.cache_params) == bytes_of(by_embeddings.cache_params)


@given(situations())
def test_looking_changes_nothing(situation):
    model, ids = situation
    plain = model(ids)
    looking = model(ids, output_hidden_states=True, labels=ids, cache_position=[0])
    as_tuple = model(ids, output_hidden_states=True, labels=ids, return_dict=False)
    assert np.array_equal(plain.logits, looking.logits)
    assert np.array_equal(plain.logits, as_tuple[1])
    assert as_tuple[0] == looking.loss or np.isnan(looking.loss)
    assert bytes_of(as_tuple[2]) == bytes_of(looking.cache_params) == bytes_of(plain.cache_params)
    assert len(as_tuple[3]) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("masked", [False, True])
def test_looking_at_one_token_changes_nothing(rows, masked):
    """Whichever kernels a single token goes through, and whoever is left out."""
    config = MambaConfig(vocab_size=9, hidden_size=24, state_size=3, num_hidden_layers=3)
    model, rng = make_model(config, dtype="float32"), np.random.default_rng(rows)
    cache = model(rng.integers(9, size=(rows, 5))).cache_params
    ids, mask = rng.integers(9, size=(rows, 1)), np.ones((rows, 1), int)
    mask[::2] = not masked
    plain, looking = (
        model(ids, mask, cache_params=cache.copy(), output_hidden_states=look)
        for look in (False, True)
    )
    assert np.array_equal(plain.logits, looking.logits)
    assert bytes_of(plain.cache_params) == bytes_of(looking.cache_params)
    peer = MambaForCausalLM(config, params=model.params, backend="numpy")
    expected = peer(ids, mask, cache_params=cache.copy(), output_hidden_states=True).hidden_states
    for i, (a, b) in enumerate(zip(looking.hidden_states, expected, strict=True)):
        close(a, b, model, f"hidden state {i}")


@given(situations())
def test_calls_change_no_argument_and_no_parameter(situation):
    model, ids = situation
    before = {name: a.tobytes() for name, a in model.state_dict().items()}
    frozen, mask = ids.copy(), np.ones_like(ids)
    mask[:, ::2] = 0
    for array in (frozen, mask):
        array.flags.writeable = False
    model(frozen, attention_mask=mask, labels=frozen)
    assert {name: a.tobytes() for name, a in model.state_dict().items()} == before


@given(situations())
def test_strided_ids_of_any_integer_dtype(situation):
    model, ids = situation
    expected = model(ids).logits
    for kind in (np.int8, np.uint16, np.int32, ">i8"):
        wide = np.zeros((2 * ids.shape[0], 3 * ids.shape[1]), kind)
        view = wide[::-2, ::3]
        view[...] = ids
        assert np.array_equal(model(view).logits, expected)
    assert np.array_equal(model(ids.tolist()).logits, expected)


# --- the loss ----------------------------------------------------------------------------------


def close_loss(loss, result, labels, model):
    """Compare to the scale of the logits: a small loss is the difference of large numbers."""
    expected = naive.cross_entropy(result.logits, labels)
    assert np.shape(loss) == ()
    assert loss.dtype == np.float64  # whatever the model's dtype
    if np.isnan(expected):
        assert np.isnan(loss)  # nothing to predict, as in torch
    else:
        scale = max(1.0, np.abs(result.logits).max())
        assert abs(loss - expected) <= tolerance("law", model.compute_dtype) * scale


@given(st.data(), situations())
def test_the_loss_is_the_oracles_cross_entropy(data, situation):
    model, ids = situation
    rng = np.random.default_rng(data.draw(seeds))
    labels = np.where(rng.random(ids.shape) < 0.3, -100, ids)
    close_loss(model(ids, labels=labels).loss, oracle(model, ids), labels, model)


@given(st.data(), situations(max_rows=1))
def test_the_loss_of_a_masked_row_is_that_of_its_tokens(data, situation):
    model, ids = situation
    mask = data.draw(masks(ids.shape))
    loss = model(ids, attention_mask=mask, labels=ids).loss
    kept = ids[mask == 1][None]
    if kept.size:
        close_loss(loss, oracle(model, kept), kept, model)
    else:
        assert np.isnan(loss)


# --- the parts of the model ----------------------------------------------------------------------


@given(situations())
def test_the_blocks_one_by_one_are_the_model(situation):
    model, ids = situation
    backbone = model.backbone
    out = backbone(ids, output_hidden_states=True)
    cache = model.new_cache(len(ids))
    x = backbone.embeddings[ids]
    for i, block in enumerate(backbone.layers):
        normed = reference.rms_norm(x, block.layer.norm, model.config.layer_norm_epsilon)
        mixed = block.mixer(normed)
        after = block(x, cache_params=cache)
        close(after, x + mixed, model, f"x + mixer of layer {i}")
        close(after, out.hidden_states[i], model, f"output of layer {i}")
        x = after
    same_states(cache, out.cache_params, model)


@given(situations())
def test_the_headless_model_gives_what_the_head_reads(situation):
    model, ids = situation
    headless = MambaModel(model.config, params=model.params)
    out, full = headless(ids), model(ids, output_hidden_states=True)
    assert np.array_equal(out.last_hidden_state, full.hidden_states[-1])
    assert len(out.to_tuple()) == 2
    assert bytes_of(out.cache_params) == bytes_of(full.cache_params)


# --- pickling ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A function that saves a random model in a dtype and loads it from its files."""

    def save(dtype="float32", load_as=None):
        config = MambaConfig(vocab_size=50, hidden_size=40, num_hidden_layers=2, use_bias=True)
        folder = tmp_path / f"model-{dtype}"
        make_model(config, dtype=dtype).save_pretrained(folder)
        return MambaForCausalLM.from_pretrained(folder, dtype=load_as or dtype)

    return save


LOADS = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", "float16"),
    ("float32", "float64"),
]


@pytest.mark.parametrize(("stored", "dtype"), LOADS)
def test_a_loaded_model_pickles_by_its_files(saved, stored, dtype):
    model, ids = saved(stored, dtype), np.array([[1, 2, 3]])
    data = pickle.dumps(model)
    assert len(data) < 20_000 < 4 * model.num_parameters()
    twin = pickle.loads(data)
    assert twin.dtype == model.dtype == dtype
    assert np.array_equal(twin(ids).logits, model(ids).logits)
    cache = pickle.loads(pickle.dumps(model(ids).cache_params))
    continued_like(cache, twin, ids, model(ids).cache_params)


@pytest.mark.parametrize(("stored", "dtype"), LOADS)
def test_the_parameters_of_a_loaded_model_cannot_change_unnoticed(saved, stored, dtype):
    # Otherwise a changed model would travel as its unchanged files.
    model = saved(stored, dtype)
    for name, array in model.state_dict().items():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        assert not array.flags.writeable, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_changed_model_pickles_by_value(saved, dtype):
    model, ids = saved(dtype), np.array([[1, 2, 3]])
    before = model(ids).logits
    model.make_writeable()
    model.params.layers[0].D[...] += 1
    model.params.embeddings[3] = 0
    after = model(ids).logits
    assert not np.array_equal(before, after)
    data = pickle.dumps(model)
    assert len(data) > model.num_parameters()
    assert np.array_equal(pickle.loads(data)(ids).logits, after)


@given(situations())
@settings(max_examples=10)
def test_a_new_model_pickles_by_value(situation):
    model, ids = situation
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(twin(ids).logits, model(ids).logits)
        assert twin.config == model.config
        assert twin.params.tied == model.params.tied


def test_a_pickled_option_is_kept(saved):
    model = saved()
    model.generation_config.max_new_tokens = 3
    model.config.use_associative_scan = False
    twin = pickle.loads(pickle.dumps(model))
    assert twin.generation_config.max_new_tokens == 3
    assert twin.config.use_associative_scan is False


def test_a_channel_that_forgets_at_once_obeys_the_padding_law():
    # exp(A_log) alone would be infinite, and a masked step 0 * infinity.
    model = MambaForCausalLM(
        MambaConfig(vocab_size=11, hidden_size=6, state_size=3, num_hidden_layers=2), rng=0
    )
    model.params.layers[0].A_log[:] = 1000
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    both = model(ids, attention_mask=[[1] * 4, [1, 1, 0, 0]]).cache_params
    alone = model(ids[1:, :2]).cache_params
    for found, expected in zip(both.ssm_states, alone.ssm_states, strict=True):
        assert np.isfinite(found).all()
        assert_close_to_scale(found[1:], expected, tolerance("law", "float32"))
