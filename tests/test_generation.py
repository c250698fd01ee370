"""generate: reference texts, the laws of padding, batches, caches and seeds, and bad arguments."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_scale, tolerance
from toy_model import ToyModel

from mamba_np.config import MambaConfig
from mamba_np.errors import ConfigError, FileMissingError, InputError, NonFiniteError
from mamba_np.generation import GenerateOutput, GenerationConfig
from mamba_np.model import MambaForCausalLM

PROMPT = [[1, 2, 3]]
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module")
def base(model_path):
    return MambaForCausalLM.from_pretrained(model_path("base_silu"))


# --- texts that transformers wrote -------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["base_silu", "sharded_bf16", "original_bin"])
def test_greedy_texts_are_the_references(name, dtype, model_path, refs, manifest):
    model, ref = MambaForCausalLM.from_pretrained(model_path(name), dtype=dtype), refs(name)
    k, new = manifest["prefill"], manifest["new_tokens"]
    prompt, mask = ref["in.input_ids"][:, :k], ref["in.mask_left"][:, :k]
    options = {"max_new_tokens": new, "eos_token_id": None}
    np.testing.assert_array_equal(model.generate(prompt, **options), ref["gen.greedy"])
    padded = np.where(mask == 1, prompt, 0)
    texts = model.generate(padded, attention_mask=mask, **options)
    np.testing.assert_array_equal(texts, ref["gen.greedy_left_padded"])
    eos = manifest["models"][name]["greedy_eos_token"]
    texts = model.generate(prompt, max_new_tokens=new, eos_token_id=eos, pad_token_id=0)
    np.testing.assert_array_equal(texts, ref["gen.greedy_eos"])


def test_the_bundled_model_writes_the_reference_texts(refs):
    from mamba_np.bundled import bundled_model_path

    model, ref = MambaForCausalLM.from_pretrained(bundled_model_path()), refs("stories")
    for i in range(2):
        text = model.generate(ref[f"{i}.input_ids"], max_new_tokens=40, eos_token_id=None)
        np.testing.assert_array_equal(text, ref[f"{i}.greedy40"])


# --- laws, on a trained checkpoint -------------------------------------------------------------


def pad(rows, sides, fill):
    """Rows of ids as one batch, with padding where ``sides`` says: left, right or in holes."""
    width = max(len(row) for row in rows) + 2
    ids, mask = np.full((len(rows), width), fill), np.zeros((len(rows), width), int)
    for i, (row, side) in enumerate(zip(rows, sides, strict=True)):
        places = {
            "left": np.arange(width - len(row), width),
            "right": np.arange(len(row)),
            "holes": np.sort(np.random.default_rng(len(row)).permutation(width)[: len(row)]),
        }[side]
        ids[i, places], mask[i, places] = row, 1
    return ids, mask


rows_of_ids = st.lists(
    st.lists(st.integers(0, 322), min_size=1, max_size=7), min_size=1, max_size=4
)
sides = st.lists(st.sampled_from(["left", "right", "holes"]), min_size=4, max_size=4)
options = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.just(1.4),
        "no_repeat_ngram_size": st.sampled_from([1, 2, 3]),
        "eos_token_id": st.sampled_from([260, [260, 13, 221]]),
        "min_new_tokens": st.just(4),
        "do_sample": st.just(True),
        "num_beams": st.just(2),
    },
)


@settings(max_examples=15)
@given(rows=rows_of_ids, sides=sides, options=options, fill=st.integers(0, 322))
def test_padding_on_any_side_changes_nothing(model_path, rows, sides, options, fill):
    model = float64_model(model_path)
    ids, mask = pad(rows, sides[: len(rows)], fill)
    options = {"max_new_tokens": 8, "pad_token_id": 7, "top_k": 5, **options}
    together = model.generate(ids, attention_mask=mask, seed=0, **options)
    np.testing.assert_array_equal(together[:, : ids.shape[1]], ids)
    if options.get("do_sample"):  # a row's draws depend on its place: keep the place
        rows_alone = [[*rows[:i], row] for i, row in enumerate(rows)]
    else:
        rows_alone = [[row] for row in rows]
    for i, few in enumerate(rows_alone):
        alone_ids, alone_mask = pad(few, ["left"] * len(few), 0)
        alone = model.generate(alone_ids, attention_mask=alone_mask, seed=0, **options)
        a, b = alone[-1, alone_ids.shape[1] :], together[i, ids.shape[1] :]
        shorter = min(len(a), len(b))
        np.testing.assert_array_equal(a[:shorter], b[:shorter])
        assert (np.append(a[shorter:], b[shorter:]) == 7).all()


_MODELS = {}


def float64_model(model_path):
    if not _MODELS:
        path = model_path("base_silu")
        _MODELS["base_silu"] = MambaForCausalLM.from_pretrained(path, dtype="float64")
    return _MODELS["base_silu"]


@settings(max_examples=15)
@given(rows=rows_of_ids, sides=sides, options=options)
def test_the_cache_saves_work_and_nothing_else(model_path, rows, sides, options):
    model = float64_model(model_path)
    ids, mask = pad(rows, sides[: len(rows)], 0)
    options = {"max_new_tokens": 6, "pad_token_id": 7, "seed": 1, **options}
    cached = model.generate(ids, attention_mask=mask, **options)
    full = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    np.testing.assert_array_equal(cached, full)


@settings(max_examples=10)
@given(seed=seeds, split=st.integers(1, 11), use_cache=st.booleans())
def test_a_prompt_can_come_in_parts(model_path, seed, split, use_cache):
    model = float64_model(model_path)
    ids = np.random.default_rng(seed).integers(0, 323, (2, 12))
    whole = model.generate(ids, max_new_tokens=6, eos_token_id=None)
    cache = model(ids[:, :split], use_cache=True).cache_params
    options = {"max_new_tokens": 6, "eos_token_id": None, "use_cache": use_cache}
    rest = model.generate(ids[:, split:], cache_params=cache, **options)
    np.testing.assert_array_equal(rest, whole[:, split:])


def test_a_conversation_goes_on_from_the_returned_cache(base):
    ids = np.array([[5, 9, 100], [44, 260, 13]])
    options = {"eos_token_id": None, "return_dict_in_generate": True}
    whole = base.generate(ids, max_new_tokens=12, eos_token_id=None)
    first = base.generate(ids, max_new_tokens=5, **options)
    rest = base.generate(
        first.sequences[:, -1:], cache_params=first.cache_params, max_new_tokens=7, **options
    )
    np.testing.assert_array_equal(rest.sequences[:, 1:], whole[:, 8:])
    assert rest.cache_params is first.cache_params  # advanced in place


def test_a_finished_row_keeps_its_state(base):
    ids = np.array([[5, 9, 100], [44, 260, 13]])
    free = base.generate(ids, max_new_tokens=12, eos_token_id=None)[:, 3:]
    eos = next(t for t in free[0] if t not in free[1])
    both = base.generate(
        ids, max_new_tokens=12, eos_token_id=int(eos), return_dict_in_generate=True
    )
    assert both.finish_reasons == ["eos", "length"]
    alone = base.generate(
        ids[:1], max_new_tokens=12, eos_token_id=int(eos), return_dict_in_generate=True
    )
    for a, b in zip(alone.cache_params.ssm_states, both.cache_params.ssm_states, strict=True):
        assert_close_to_scale(b[0], a[0], tolerance("law", "float32"))


def test_embeddings_give_the_new_tokens_of_their_ids(base):
    ids, mask = pad([[5, 9, 100], [44]], ["right", "holes"], 0)
    embeds = base.state_dict()["backbone.embeddings.weight"][ids]
    expected = base.generate(ids, attention_mask=mask, max_new_tokens=9, pad_token_id=0)
    found = base.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=9, pad_token_id=0
    )
    np.testing.assert_array_equal(found, expected[:, ids.shape[1] :])


# --- one token at a time -----------------------------------------------------------------------


def test_the_prompt_is_one_call_and_each_token_another():
    model = ToyModel()
    model.generate([[1, 2, 3], [4, 5, 6]], max_new_tokens=4)
    assert model.calls == [(2, 3), (2, 1), (2, 1), (2, 1)]
    model.calls.clear()
    model.generate(PROMPT, max_new_tokens=3, do_sample=True, num_return_sequences=5)
    assert model.calls == [(1, 3), (5, 1), (5, 1)]


def test_one_loop_more_than_the_first_room():
    text = ToyModel().generate(PROMPT, max_new_tokens=700)
    assert text.shape == (1, 703)
    assert text.dtype == np.int64
    expected = ToyModel().log_probs(text[0, :-1]).argmax(-1)[2:]
    np.testing.assert_array_equal(text[0, 3:], expected)


def test_processors_see_the_text_and_cannot_change_it():
    seen = []

    def record(ids, scores):
        assert not ids.flags.writeable
        seen.append(ids.copy())
        return scores

    mask = [[0, 1, 1], [1, 1, 0]]
    text = ToyModel().generate(
        [[6, 1, 2], [3, 4, 6]], attention_mask=mask, max_new_tokens=3, logits_processor=[record]
    )
    assert [ids.shape for ids in seen] == [(2, 3), (2, 4), (2, 5)]
    np.testing.assert_array_equal(seen[-1], text[:, :5])


def test_masked_tokens_are_not_repetitions():
    model = ToyModel(seed=3)
    first = int(model.generate([[1, 2]], max_new_tokens=1)[0, -1])
    masked = model.generate(
        [[first, 1, 2]], attention_mask=[[0, 1, 1]], max_new_tokens=1, no_repeat_ngram_size=1
    )
    said = model.generate([[first, 1, 2]], max_new_tokens=1, no_repeat_ngram_size=1)
    assert masked[0, -1] == first
    assert said[0, -1] != first


# --- sampling ----------------------------------------------------------------------------------


def chi_square(tokens, probabilities):
    counts, expected = np.bincount(tokens, minlength=7), probabilities * len(tokens)
    assert (counts[expected == 0] == 0).all()
    return ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()


def test_samples_have_the_models_distribution():
    # 99.9 % points of chi-square with 6 and 2 degrees of freedom: 22.46 and 13.82.
    model = ToyModel(sharpness=0.7)
    p = np.exp(model.log_probs(PROMPT[0])[-1])
    draw = {"max_new_tokens": 1, "do_sample": True, "num_return_sequences": 8000, "seed": 7}
    tokens = model.generate(PROMPT, top_k=0, **draw)[:, -1]
    assert chi_square(tokens, p) < 22.46
    sharpened = np.where(p >= np.sort(p)[-3], p**2, 0)
    tokens = model.generate(PROMPT, top_k=3, temperature=0.5, **draw)[:, -1]
    assert chi_square(tokens, sharpened / sharpened.sum()) < 13.82


def test_the_same_seed_gives_the_same_text():
    model = ToyModel(sharpness=0.5)
    options = {"do_sample": True, "max_new_tokens": 30}
    first = model.generate(PROMPT, seed=1, **options)
    np.testing.assert_array_equal(first, model.generate(PROMPT, seed=1, **options))
    assert (first != model.generate(PROMPT, seed=2, **options)).any()
    config = GenerationConfig(seed=1, **options)
    np.testing.assert_array_equal(first, model.generate(PROMPT, config))
    generators = [np.random.default_rng(3) for _ in range(2)]
    texts = [model.generate(PROMPT, seed=g, **options) for g in generators]
    np.testing.assert_array_equal(*texts)
    assert (model.generate(PROMPT, **options) != model.generate(PROMPT, **options)).any()


def test_more_samples_begin_with_the_fewer():
    model = ToyModel(sharpness=0.5)
    options = {"do_sample": True, "max_new_tokens": 9, "seed": 5}
    ids = [[1, 2], [3, 4]]
    one = model.generate(ids, **options)
    three = model.generate(ids, num_return_sequences=3, **options)
    assert three.shape == (6, 11)
    np.testing.assert_array_equal(three[:, :2], np.repeat(ids, 3, axis=0))
    np.testing.assert_array_equal(three[[0, 3]], one)
    assert len({tuple(row) for row in three.tolist()}) == 6


def test_cold_samples_are_the_likeliest_tokens():
    model = ToyModel()
    greedy = model.generate(PROMPT, max_new_tokens=9)
    for options in ({"temperature": 1e-5}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        text = model.generate(PROMPT, max_new_tokens=9, do_sample=True, seed=0, **options)
        np.testing.assert_array_equal(text, greedy)


# --- where texts end ---------------------------------------------------------------------------


class Letters:
    """A tokenizer of one letter a token; token 6 is only half a letter."""

    def decode(self, ids, skip_special_tokens=False):
        assert not skip_special_tokens
        assert len(ids) <= 20  # the window, however long the text
        return "".join("abcdef\ufffd"[i] for i in ids)


def greedy_letters(model, **options):
    ids = model.generate(PROMPT, max_new_tokens=200, **options)[0, 3:]
    return "".join("abcdef\ufffd"[i] for i in ids)


@pytest.mark.parametrize("seed", range(6))
def test_a_stop_string_ends_the_text_with_its_last_token(seed):
    model = ToyModel(seed=seed)
    letters = greedy_letters(model)
    for stop in (letters[3:5], [letters[5:9], "zzz"], letters[0]):
        strings = [stop] if isinstance(stop, str) else stop
        end = min(letters.find(s) + len(s) for s in strings if s in letters)
        assert greedy_letters(model, stop_strings=stop, tokenizer=Letters()) == letters[:end]


def test_a_stop_string_in_the_prompt_does_not_count():
    model = ToyModel()
    letters = greedy_letters(model)
    prompt = "bcd"
    assert prompt not in letters
    assert greedy_letters(model, stop_strings=prompt, tokenizer=Letters()) == letters
    across = "d" + letters[0]
    if across not in letters:
        assert greedy_letters(model, stop_strings=across, tokenizer=Letters()) == letters


def test_reasons_say_why_each_row_ended():
    model = ToyModel(seed=1)
    ids = [[0], [1], [2], [3]]
    free = model.generate(ids, max_new_tokens=6)[:, 1:]

    def third_row(ids, scores):
        return np.array([False, False, True, False]) & (ids.shape[1] >= 3)

    stop = "".join("abcdef\ufffd"[i] for i in free[1, :2])
    output = model.generate(
        ids, max_new_tokens=6, eos_token_id=int(free[0, 0]), pad_token_id=99, tokenizer=Letters(),
        stop_strings=stop, stopping_criteria=[third_row], return_dict_in_generate=True,
    )  # fmt: skip
    lengths = (output.sequences[:, 1:] != 99).sum(axis=1)
    for row, (reason, length) in enumerate(zip(output.finish_reasons, lengths, strict=True)):
        text = free[row, :length].tolist()
        assert output.sequences[row, 1 : 1 + length].tolist() == text
        letters = "".join("abcdef\ufffd"[i] for i in text)
        if text[-1] == free[0, 0]:
            assert reason == "eos"
        elif letters.endswith(stop) or (row == 2 and length == 2):
            assert reason == "stop"
        else:
            assert (reason, length) == ("length", 6)
    assert {"eos", "stop"} <= set(output.finish_reasons)


def test_any_of_several_ends():
    model = ToyModel(seed=2)
    free = model.generate(PROMPT, max_new_tokens=30)[0, 3:].tolist()
    ends = [free[9], free[4]]
    text = model.generate(PROMPT, max_new_tokens=30, eos_token_id=ends)[0, 3:].tolist()
    first = min(free.index(e) for e in ends)
    assert text == free[: first + 1]


@pytest.mark.parametrize("minimum", [0, 1, 5, 50])
def test_ends_wait_for_the_minimum(minimum):
    model = ToyModel(sharpness=0.1)
    text = model.generate(
        PROMPT, max_new_tokens=9, min_new_tokens=minimum, eos_token_id=list(range(6))
    )
    assert text.shape[1] - 3 >= min(minimum, 9)
    assert (text[0, 3 : 3 + minimum - 1] == 6).all()


def test_the_filler_is_pad_or_else_the_first_end():
    model = ToyModel(seed=1)
    ids = [[0], [1], [2], [3]]
    eos = int(model.generate(ids, max_new_tokens=6)[0, 1])
    for extra, fill in (({"pad_token_id": 5}, 5), ({}, eos)):
        texts = model.generate(ids, max_new_tokens=6, eos_token_id=[eos, 100], **extra)
        assert texts[0, 2:].tolist() == [fill] * 5


def test_lengths():
    model = ToyModel()
    assert model.generate(PROMPT).shape == (1, 23)  # 20 new tokens by default
    assert model.generate(PROMPT, max_length=10).shape == (1, 10)
    assert model.generate(PROMPT, max_length=10, max_new_tokens=2).shape == (1, 5)
    assert model.generate(inputs_embeds=np.ones((1, 4, 6)), max_length=10).shape == (1, 6)
    assert ToyModel(bos_token_id=4).generate(max_new_tokens=2).shape == (1, 3)
    assert ToyModel(bos_token_id=4).generate(max_new_tokens=2)[0, 0] == 4


# --- streaming ---------------------------------------------------------------------------------


class Recorder:
    """A streamer that keeps what it gets, and fails at the given put."""

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.got, self.ended, self.fail_at, self.error = [], 0, fail_at, error

    def put(self, value):
        if len(self.got) == self.fail_at:
            raise self.error
        self.got.append(np.array(value))

    def end(self):
        self.ended += 1


def test_the_reader_of_a_streamer_gets_the_error_that_ended_the_text():
    class Failing(Recorder):
        def fail(self, error):
            self.failure = error

    streamer = Failing(fail_at=2, error=RuntimeError("no paper"))
    with pytest.raises(RuntimeError, match="no paper"):
        ToyModel().generate(PROMPT, max_new_tokens=5, streamer=streamer)
    assert streamer.failure is streamer.error
    assert streamer.ended == 1


def test_a_streamer_gets_the_prompt_then_every_token():
    streamer, model = Recorder(), ToyModel()
    text = model.generate(PROMPT, max_new_tokens=5, streamer=streamer)
    np.testing.assert_array_equal(streamer.got[0], PROMPT)
    assert [got.shape for got in streamer.got[1:]] == [(1,)] * 5
    np.testing.assert_array_equal(np.concatenate(streamer.got[1:]), text[0, 3:])
    assert streamer.ended == 1


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_an_interrupt_passes_through_after_end(fail_at):
    streamer = Recorder(fail_at)
    with pytest.raises(KeyboardInterrupt):
        ToyModel().generate(PROMPT, max_new_tokens=5, streamer=streamer)
    assert streamer.ended == 1


def test_an_error_of_the_model_ends_the_streamer_too():
    model, streamer = ToyModel(), Recorder()
    model.edit = lambda logits, call: logits * (np.nan if call == 2 else 1)
    with pytest.raises(NonFiniteError, match=r"token 2, row 0: .*found NaN"):
        model.generate(PROMPT, max_new_tokens=5, streamer=streamer)
    assert (len(streamer.got), streamer.ended) == (2, 1)


def test_stream_yields_what_generate_returns():
    model = ToyModel(seed=1)
    ids = [[0], [1], [2]]
    options = {"max_new_tokens": 6, "eos_token_id": [0, 3], "pad_token_id": 5}
    text = model.generate(ids, **options)
    stream = model.stream(ids, **options)
    assert stream.finish_reasons == [""] * 3
    steps = []
    for tokens in stream:
        steps.append(tokens)
        np.testing.assert_array_equal(stream.sequences[:, 1:], np.array(steps).T)
    np.testing.assert_array_equal(stream.sequences, text)
    assert set(stream.finish_reasons) <= {"eos", "length"}
    assert next(stream, None) is None


def test_a_stream_is_lazy_and_checks_at_once():
    model = ToyModel()
    stream = model.stream(PROMPT, max_new_tokens=10**9)
    assert model.calls == []
    first = [next(stream) for _ in range(3)]
    assert len(model.calls) == 3
    assert stream.sequences.shape == (1, 6)
    assert stream.cache_params is not None
    expected = model.generate(PROMPT, max_new_tokens=3)[0, 3:]
    np.testing.assert_array_equal(np.concatenate(first), expected)
    with pytest.raises(InputError, match="max_new_tokens"):
        model.stream(PROMPT, max_new_tokens=0)


# --- the dictionary output ---------------------------------------------------------------------


def test_the_output_holds_what_was_asked_for():
    model, ids = ToyModel(), [[1, 2], [3, 4]]
    plain = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True)
    assert isinstance(plain, GenerateOutput)
    assert plain.keys() == ("sequences", "cache_params", "finish_reasons")
    full = model.generate(
        ids, max_new_tokens=3, return_dict_in_generate=True, output_scores=True,
        output_logits=True, output_hidden_states=True, repetition_penalty=1.5, use_cache=True,
    )  # fmt: skip
    assert full["sequences"] is full[0] is full.sequences
    assert [s.shape for s in full.scores] == [s.shape for s in full.logits] == [(2, 7)] * 3
    assert len(full.hidden_states) == 3
    assert len(full.hidden_states[0]) == 2
    for step in range(3):
        np.testing.assert_array_equal(full.scores[step].argmax(-1), full.sequences[:, 2 + step])
        assert (full.scores[step] != full.logits[step]).any()
    without = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, use_cache=False)
    assert without.cache_params is None


def test_logits_in_the_output_are_the_models(base):
    ids = np.array([[5, 9, 100, 7]])
    output = base.generate(
        ids, max_new_tokens=3, eos_token_id=None, return_dict_in_generate=True, output_logits=True
    )
    expected = base(output.sequences[:, :-1]).logits[0, 3:]
    found = np.concatenate(output.logits)
    assert_close_to_scale(found, expected, tolerance("law", "float32"), "logits")


# --- GenerationConfig --------------------------------------------------------------------------


def test_defaults_are_those_of_transformers():
    config = GenerationConfig()
    expected = {
        "max_length": 20, "max_new_tokens": None, "do_sample": False, "num_beams": 1,
        "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0, "length_penalty": 1.0, "early_stopping": False,
        "num_return_sequences": 1, "use_cache": True, "return_dict_in_generate": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.to_dict() == {}


def test_files_keep_what_they_hold(tmp_path, model_path):
    values = {"top_k": 7, "eos_token_id": [1, 2], "_from_model_config": True, "typical_p": 0.5}
    (tmp_path / "generation_config.json").write_text(json.dumps({**values, "min_p": None}))
    config = GenerationConfig.from_pretrained(tmp_path, top_p=0.5)
    assert (config.top_k, config.eos_token_ids, config.top_p) == (7, (1, 2), 0.5)
    assert config.typical_p == 0.5
    config.save_pretrained(tmp_path / "new")
    again = GenerationConfig.from_pretrained(tmp_path / "new")
    assert again.to_dict() == config.to_dict() == {**values, "top_p": 0.5}
    assert again == config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))
    assert GenerationConfig.from_pretrained(model_path("base_silu")).pad_token_id == 0


def test_files_that_are_wrong_are_named(tmp_path):
    with pytest.raises(FileMissingError):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: temperature: .*'hot'"):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_models_configuration_gives_its_special_ids():
    config = MambaConfig(bos_token_id=1, eos_token_id=[2, 3], pad_token_id=None)
    generation = GenerationConfig.from_model_config(config)
    assert generation.to_dict() == {"bos_token_id": 1, "eos_token_id": [2, 3]}
    assert generation.fill_token_id == 2


def test_the_nearest_value_wins():
    model = ToyModel(max_new_tokens=4, eos_token_id=None)
    assert model.generate(PROMPT).shape == (1, 7)
    passed = GenerationConfig(max_new_tokens=3)
    assert model.generate(PROMPT, passed).shape == (1, 6)
    assert model.generate(PROMPT, passed, max_new_tokens=2).shape == (1, 5)
    assert model.generate(PROMPT, GenerationConfig(top_k=3)).shape == (1, 7)
    assert model.generate(PROMPT, max_length=5).shape == (1, 5)
    assert (passed.max_new_tokens, model.generation_config.max_new_tokens) == (3, 4)


def test_a_default_that_was_given_wins_over_the_models():
    model = ToyModel(do_sample=True, temperature=0.0, max_new_tokens=2)
    with pytest.raises(InputError, match="temperature"):
        model.generate(PROMPT)
    assert model.generate(PROMPT, GenerationConfig(do_sample=False)).shape == (1, 5)
    model.generation_config.do_sample = False
    assert model.generate(PROMPT).shape == (1, 5)


def test_none_switches_an_option_off():
    model = ToyModel(eos_token_id=list(range(7)), top_k=1, max_new_tokens=30)
    assert model.generate(PROMPT).shape == (1, 4)
    options = {"do_sample": True, "seed": 0, "temperature": 30.0, "eos_token_id": None}
    assert len(set(model.generate(PROMPT, top_k=None, **options)[0, 3:].tolist())) > 3
    config = GenerationConfig(top_k=None)
    assert (config.top_k, config.to_dict()) == (50, {})


BAD_FIELDS = {
    "max_length": [0, -1, 1.5, "9", True, 2**31],
    "max_new_tokens": [0, -5, 2.0, float("inf")],
    "min_new_tokens": [-1, "x"],
    "do_sample": [1, "yes"],
    "num_beams": [0, 1.0],
    "num_return_sequences": [0],
    "temperature": [-1, float("nan"), float("inf"), "1", True],
    "top_k": [-1, 0.5],
    "top_p": [-0.1, 1.1, float("nan")],
    "min_p": [-0.1, 2],
    "repetition_penalty": [0, -1.0, "a"],
    "no_repeat_ngram_size": [-1, 2.5],
    "length_penalty": [float("inf"), "long"],
    "early_stopping": [1, "sometimes"],
    "bos_token_id": [-1, [1]],
    "eos_token_id": [-1, [], [1, -2], "</s>"],
    "pad_token_id": [-1, 0.0],
    "stop_strings": ["", [], ["a", ""], 5, [b"a"]],
    "seed": [-1, 0.5],
    "use_cache": [0, "no"],
    "return_dict_in_generate": [1],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, bad in BAD_FIELDS.items() for value in bad]
)
def test_bad_values_name_the_field(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: expected .*found"):
        GenerationConfig(**{name: value})
    with pytest.raises(InputError, match=rf"^{name}: expected .*found"):
        ToyModel().generate(PROMPT, **{name: value})


# --- bad arguments -----------------------------------------------------------------------------


BAD_CALLS = [
    ({"input_ids": np.zeros((2, 0), int)}, r"input_ids: expected shape .* found \(2, 0\)"),
    ({"input_ids": [1, 2]}, r"input_ids: expected shape .* found \(2,\)"),
    ({"input_ids": [[1], [1, 2]]}, "input_ids: expected rows of equal length"),
    ({"input_ids": [[1.0, 2.0]]}, "input_ids: expected integers, found dtype float64"),
    ({"input_ids": [[1, 2], [3, 9]]}, r"input_ids: .*from 0 to 6, found 9 at position \(1, 1\)"),
    ({"input_ids": [[1, -1]]}, r"found -1 at position \(0, 1\)"),
    ({"input_ids": None}, "input_ids: expected ids, or a bos_token_id"),
    ({"input_ids": PROMPT, "inputs_embeds": np.ones((1, 3, 6))}, "exactly one of .* found both"),
    ({"input_ids": None, "cache_params": object()}, "exactly one of .* found neither"),
    ({"input_ids": None, "inputs_embeds": np.ones((3, 6))}, "inputs_embeds: expected shape"),
    ({"attention_mask": [[1, 1]]}, r"attention_mask: expected shape \(1, 3\), found \(1, 2\)"),
    ({"attention_mask": [[1, 2, 1]]}, r"attention_mask: expected 0 or 1, found 2"),
    (
        {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[0, 1], [0, 0]]},
        "attention_mask: expected a token in every row, found none in row 1",
    ),
    ({"max_length": 3}, "max_length: expected more than the prompt's 3 tokens, found 3"),
    ({"num_return_sequences": 2}, "num_return_sequences: .*without sampling"),
    ({"do_sample": True, "temperature": 0.0}, "temperature: .*set do_sample=False"),
    ({"do_sample": True, "temperature": 1e-200}, "temperature: .*found 1e-200"),
    ({"stop_strings": "a"}, "tokenizer: expected the model's tokenizer with stop_strings"),
    ({"seed": "x"}, "seed: expected an integer"),
    ({"seed": True}, "seed: expected an integer"),
    ({"generation_config": {"top_k": 3}}, "generation_config: expected a GenerationConfig"),
    ({"logits_processor": len}, "logits_processor: expected a list of functions"),
    ({"logits_processor": [None]}, r"logits_processor\[0\]: expected a function"),
    ({"stopping_criteria": [3]}, r"stopping_criteria\[0\]: expected a function, found int"),
    ({"stopping_criteria": [lambda i, s: 1]}, r"stopping_criteria\[0\]: expected a bool .*found 1"),
    (
        {"stopping_criteria": [lambda i, s: np.array([True, False])]},
        r"stopping_criteria\[0\]: expected a bool or an array of 1 bools",
    ),
    ({"logits_processor": [lambda i, s: s[:, 1:]]}, r"expected it to return shape \(1, 7\)"),
    ({"input_ids": [[1], [2]], "eos_token_id": None, "stopping_criteria": [len]}, "pad_token_id"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    arguments = {"input_ids": PROMPT, "max_new_tokens": 2, **arguments}
    if "max_length" in arguments:
        del arguments["max_new_tokens"]
    with pytest.raises(InputError, match=message):
        ToyModel().generate(**arguments)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("max_new_token", "max_new_tokens"), ("temprature", "temperature"), ("eos_id", None)],
)
def test_an_unknown_option_is_a_type_error_that_helps(name, nearest):
    with pytest.raises(TypeError, match=rf"no option {name!r}") as raised:
        ToyModel().generate(PROMPT, **{name: 1})
    hint = f"did you mean {nearest!r}?"
    assert (hint in str(raised.value)) == (nearest is not None)


@pytest.mark.parametrize(("value", "found"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_logits_that_are_not_finite_name_token_and_row(value, found):
    model = ToyModel()

    def edit(logits, call):
        if call == 3:
            logits[1, -1, 2] = value
        return logits

    model.edit = edit
    with pytest.raises(NonFiniteError, match=rf"logits for new token 3, row 1: .*{found}"):
        model.generate([[1], [2]], max_new_tokens=5)


def test_processors_may_forbid_but_not_everything():
    def only(token):
        return lambda ids, scores: np.where(np.arange(7) == token, scores, -np.inf)

    text = ToyModel().generate(PROMPT, max_new_tokens=3, logits_processor=[only(5)])
    assert text[0, 3:].tolist() == [5, 5, 5]
    with pytest.raises(NonFiniteError, match=r"processed scores for new token 1, row 0: .*all are"):
        ToyModel().generate(PROMPT, max_new_tokens=3, logits_processor=[only(5), only(4)])


def test_a_processor_may_give_up_on_a_finished_row():
    def nothing_after_five(ids, scores):
        return np.where((ids[:, -1:] == 5) & (ids[:, :1] == 0), -np.inf, scores)

    for do_sample in (False, True):
        texts = ToyModel(seed=4).generate(
            [[0, 1], [1, 1]], max_new_tokens=4, do_sample=do_sample, seed=0, pad_token_id=5,
            logits_processor=[nothing_after_five], stopping_criteria=[lambda i, s: i[:, 0] == 0],
        )  # fmt: skip
        assert texts[0, 3:].tolist() == [5, 5, 5]
