"""Tracers: texts that come in parts, and texts that are being generated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_laws import bytes_of
from test_trace import EVERYTHING, odd_model, oracle, some_ids
from tolerances import assert_close_to_scale, tolerance

from mamba_np import MambaForCausalLM
from mamba_np.errors import CacheError, InputError

RTOL = tolerance("law", "float32")


def close(found, expected):
    """Two traces of the same text agree, whatever the parts it came in."""
    assert found.captured == expected.captured
    for name, array in found.arrays().items():
        assert_close_to_scale(array, expected.arrays()[name], RTOL, name)
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert found.tokens == expected.tokens
    assert found.h_positions.tolist() == expected.h_positions.tolist()


@given(
    engine=st.sampled_from(["cpu", "numpy"]),
    every=st.integers(1, 6),
    cuts=st.sets(st.integers(1, 19)),
    channels=st.none() | st.just([3, 36, 1]),
)
def test_parts_make_the_whole(engine, every, cuts, channels):
    model, ids = odd_model(engine), some_ids(20)
    options = {"capture": EVERYTHING, "every": every, "channels": channels}
    tracer, cache, plain = model.tracer(**options), None, None
    for part in np.split(ids, sorted(cuts)):
        output = tracer(part[None], cache_params=cache, use_cache=True)
        expected = model(part[None], cache_params=plain, use_cache=True)
        np.testing.assert_array_equal(output.logits, expected.logits)
        np.testing.assert_array_equal(tracer.last.logits, output.logits[0])
        cache, plain = output.cache_params, expected.cache_params
        assert bytes_of(cache) == bytes_of(plain)
    assert len(tracer) == 20
    close(tracer.trace, model.trace(ids, **options))
    last = tracer.last
    assert last.before == 20 - len(part)
    assert [last.before + p for p in last.h_positions] == [
        p for p in tracer.trace.h_positions if p >= last.before
    ]
    assert last.h.shape[1] == len(last.h_positions)


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3, "temperature": 2.0}])
def test_a_generated_text_is_the_same_and_traced(engine, options):
    model, prompt = odd_model(engine), some_ids(5)[None]
    options = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0} | options
    tracer = model.tracer(capture=EVERYTHING, every=4)
    found = tracer.generate(prompt, **options)
    np.testing.assert_array_equal(found, model.generate(prompt, **options))
    trace = tracer.trace
    np.testing.assert_array_equal(trace.ids, found[0, :-1])  # nobody has read the last one
    close(trace, model.trace(found[0, :-1], capture=EVERYTHING, every=4))
    expected = oracle(model, found[0, :-1])
    for name in ("delta", "y", "h", "residual"):
        wanted = expected[name][:, 3::4] if name == "h" else expected[name]
        assert_close_to_scale(getattr(trace, name), wanted, RTOL, name)


@pytest.mark.parametrize("capture", [("delta",), ("logits", "h")])
def test_scores_of_a_generated_text_are_the_same_bits(model, capture):
    prompt = some_ids(600)[None]
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    found = model.tracer(capture=capture).generate(prompt, **options)
    plain = model.generate(prompt, **options)
    np.testing.assert_array_equal(found.sequences, plain.sequences)
    np.testing.assert_array_equal(found.logits, plain.logits)
    assert bytes_of(found.cache_params) == bytes_of(plain.cache_params)


def test_a_stream_can_be_watched(model, tokenizer):
    tracer = model.tracer(capture=("delta_mean",))
    seen = []
    for _ in tracer.stream(**tokenizer("Once upon", return_tensors="np"), max_new_tokens=6):
        seen.append(tracer.last)
    text = tracer.trace
    assert [len(part) for part in seen] == [len(seen[0])] + [1] * 5
    whole = np.concatenate([part.delta_mean for part in seen], axis=1)
    np.testing.assert_array_equal(whole, text.delta_mean)
    assert sum((part.labels for part in seen), ()) == text.labels
    assert tokenizer.decode(text.ids).startswith("Once upon")


def test_a_token_that_is_read_alone_leaves_its_state():
    model = odd_model()
    cache = model(some_ids(4)[None]).cache_params
    trace = model.trace([7], capture=("h", "x", "delta", "B", "y", "C"), cache_params=cache)
    states = np.concatenate(cache.ssm_states)
    assert_close_to_scale(trace.h[:, 0], states, tolerance("step", "float32"))
    y = (states * trace.C[:, 0, None]).sum(-1)
    assert_close_to_scale(trace.y[:, 0], y, tolerance("step", "float32"))


def test_some_logits_of_a_call():
    model, ids = odd_model(), some_ids(9)[None]
    for keep in (1, 3, 0, [2, 5]):
        for capture in (("delta",), ("logits",)):
            tracer = model.tracer(capture=capture)
            found = tracer(ids, logits_to_keep=keep).logits
            np.testing.assert_array_equal(found, model(ids, logits_to_keep=keep).logits)
            assert len(tracer.trace) == 9
    found = model.tracer()(ids, return_dict=False)
    np.testing.assert_array_equal(found[0], model(ids).logits)


def test_what_a_tracer_refuses():
    model, ids = odd_model(), some_ids(3)[None]
    tracer = model.tracer()
    with pytest.raises(InputError, match="expected a tracer that has read something"):
        _ = tracer.trace
    for options, message in (
        ({"attention_mask": [[0, 1, 1]]}, "attention_mask: expected no masked token"),
        ({"inputs_embeds": np.zeros((1, 3, 12))}, "inputs_embeds: expected none in a trace"),
        ({"output_hidden_states": True}, "output_hidden_states: expected none"),
        ({"logits_to_keep": -1}, "logits_to_keep: expected 0 or more"),
        ({"input_ids": [[1], [2]]}, "found a batch of 2"),
        ({"input_ids": [[99]]}, "input_ids: expected ids from 0 to 22"),
    ):
        with pytest.raises(InputError, match=message):
            tracer(**{"input_ids": ids} | options)
    assert len(tracer) == 0
    cache = tracer(ids, attention_mask=[[1, 1, 1]], use_cache=True).cache_params
    with pytest.raises(InputError, match="state after the 3 tokens traced so far, found None"):
        tracer(ids)
    with pytest.raises(CacheError):
        tracer(ids, cache_params=odd_model(hidden_size=16).new_cache())
    assert len(tracer) == 3
    tracer(ids, cache_params=cache)
    assert len(tracer.trace) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "found a batch of 2"),
        ({"num_return_sequences": 2, "do_sample": True}, "found a batch of 2"),
        ({"use_cache": False}, "expected the state after the 3 tokens"),
    ],
)
def test_generation_that_reads_several_texts(options, message):
    tracer = odd_model().tracer()
    with pytest.raises(InputError, match=message):
        tracer.generate(some_ids(3)[None], max_new_tokens=3, eos_token_id=None, **options)


def test_the_limit_holds_for_the_whole_text():
    model = odd_model()
    tracer = model.tracer(capture=("delta",), limit=22_000)
    with pytest.raises(InputError, match=r"limit: .* for \d\d tokens"):
        tracer.generate(some_ids(3)[None], max_new_tokens=100, eos_token_id=None)
    assert 10 < len(tracer) < 60
    assert tracer.trace.nbytes <= 22_000


def test_a_folder_without_a_tokenizer(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path)
    loaded = MambaForCausalLM.from_pretrained(tmp_path)
    assert loaded.trace([5]).labels == ("5",)
    with pytest.raises(InputError, match="pass tokenizer="):
        loaded.trace("Once")
    tokenizer.save_pretrained(tmp_path)
    assert "".join(loaded.trace("Once").labels) == "Once"


def test_a_model_without_files_has_no_tokenizer(model, tokenizer):
    other = MambaForCausalLM(model.config, params=model.params)
    assert other.trace([5, 6]).labels == ("5", "6")
    trace = other.trace("Once", tokenizer=tokenizer)
    assert "".join(trace.labels) == "Once"
    assert other.tracer(tokenizer=tokenizer).tokenizer is tokenizer
    changed = model.__class__.from_pretrained(model._loaded[1].name_or_path).make_writeable()
    assert changed.trace("Once").labels == trace.labels
