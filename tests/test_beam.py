"""Beam search against exhaustive search on a toy model, and its rules one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_model import ToyModel

from mamba_np.beam import _highest
from mamba_np.errors import InputError, NonFiniteError

PROMPT = [[1, 2, 0]]


def all_texts(model, prompt, limit, eos):
    """Every text there is: ((tokens), sum of log-probabilities), ended by eos or by length."""
    V = model.config.vocab_size
    texts = {}
    for tokens in itertools.product(range(V), repeat=limit):
        end = min((tokens.index(e) + 1 for e in eos if e in tokens), default=limit)
        texts.setdefault(tokens[:end], None)
    for tokens in texts:
        log_probs = model.log_probs([*prompt, *tokens])[len(prompt) - 1 : -1]
        texts[tokens] = sum(log_probs[i, token] for i, token in enumerate(tokens))
    return texts


def best_texts(texts, penalty, count):
    ranked = sorted(texts.items(), key=lambda item: -item[1] / len(item[0]) ** penalty)
    return [(list(t), s / len(t) ** penalty) for t, s in ranked[:count]]


@pytest.mark.parametrize("early_stopping", [False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("eos", [[], [0], [0, 3]])
def test_enough_beams_find_the_best_of_all_texts(eos, penalty, early_stopping):
    model, limit = ToyModel(vocab_size=4, seed=3), 4
    expected = best_texts(all_texts(model, PROMPT[0], limit, eos), penalty, 5)
    output = model.generate(
        PROMPT, num_beams=200, num_return_sequences=5, max_new_tokens=limit, pad_token_id=9,
        eos_token_id=eos or None, length_penalty=penalty, early_stopping=early_stopping,
        return_dict_in_generate=True,
    )  # fmt: skip
    found = [[t for t in row[3:].tolist() if t != 9] for row in output.sequences]
    assert found == [tokens for tokens, _ in expected]
    np.testing.assert_allclose(output.sequences_scores, [s for _, s in expected], rtol=1e-12)
    ends = ["eos" if row[-1] in eos else "length" for row in found]
    assert output.finish_reasons == ends


@given(seed=st.integers(0, 10**6), beams=st.integers(2, 5), eos=st.sampled_from([None, 0, [0, 2]]))
def test_cache_and_recomputation_agree(seed, beams, eos):
    options = {
        "num_beams": beams, "max_new_tokens": 6, "eos_token_id": eos, "pad_token_id": 0,
        "num_return_sequences": 2, "return_dict_in_generate": True,
    }  # fmt: skip
    model = ToyModel(seed=seed)
    ids, mask = [[1, 2, 3], [0, 5, 6]], [[1, 1, 1], [0, 1, 1]]
    cached = model.generate(ids, attention_mask=mask, **options)
    calls = len(model.calls)
    assert set(model.calls[1:calls]) <= {(2 * beams, 1)}
    full = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    np.testing.assert_array_equal(cached.sequences, full.sequences)
    np.testing.assert_array_equal(cached.beam_indices, full.beam_indices)
    np.testing.assert_allclose(cached.sequences_scores, full.sequences_scores, rtol=1e-12)


@given(
    seed=st.integers(0, 10**6),
    early_stopping=st.sampled_from([True, False, "never"]),
    do_sample=st.booleans(),
)
def test_a_row_gives_what_it_gives_alone(seed, early_stopping, do_sample):
    options = {
        "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 7, "eos_token_id": [0, 4],
        "pad_token_id": 9, "early_stopping": early_stopping, "do_sample": do_sample, "seed": 3,
        "return_dict_in_generate": True,
    }  # fmt: skip
    model = ToyModel(seed=seed, sharpness=1.0)
    row = [3, 1, 5]
    alone = model.generate([row], **options)
    both = model.generate([row, [6, 6, 2]], **options)
    texts = [[t for t in text.tolist() if t != 9] for text in both.sequences[:3]]
    assert texts == [[t for t in text.tolist() if t != 9] for text in alone.sequences]
    np.testing.assert_array_equal(both.sequences_scores[:3], alone.sequences_scores)


def test_scores_follow_from_the_records():
    model = ToyModel(seed=5)
    output = model.generate(
        [[1, 2], [3, 4]], num_beams=3, num_return_sequences=2, max_new_tokens=6, eos_token_id=2,
        pad_token_id=2, length_penalty=1.5, repetition_penalty=1.2, output_scores=True,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert output.scores[0].shape == output.logits[0].shape == (6, 7)
    for text, beams, score in zip(
        output.sequences[:, 2:], output.beam_indices, output.sequences_scores, strict=True
    ):
        length = (beams >= 0).sum()
        assert (beams[length:] == -1).all()
        total = sum(output.scores[i][beams[i], text[i]] for i in range(length))
        assert total / length**1.5 == pytest.approx(score, rel=1e-12)
    assert output.cache_params is None


def test_one_beam_is_not_worse_than_greedy():
    for seed in range(20):
        model = ToyModel(seed=seed)
        greedy = model.generate(PROMPT, max_new_tokens=5)[0, 3:]
        steps = model.log_probs([*PROMPT[0], *greedy])[2:-1]
        output = model.generate(
            PROMPT, num_beams=4, max_new_tokens=5, length_penalty=0.0, return_dict_in_generate=True
        )
        assert output.sequences_scores[0] >= steps[np.arange(5), greedy].sum() - 1e-12


def test_early_stopping_stops_with_as_many_texts_as_beams():
    model = ToyModel(vocab_size=5, seed=1, sharpness=0.2)  # nearly uniform: ends come all the time
    calls = {}
    for rule in (True, "never"):
        model.calls.clear()
        model.generate(
            PROMPT, num_beams=2, max_new_tokens=40, eos_token_id=[0, 1], early_stopping=rule,
            length_penalty=3.0,
        )  # fmt: skip
        calls[rule] = len(model.calls)
    assert calls[True] < calls["never"] == 40


def test_fewer_texts_than_asked_for_are_filled_up():
    model = ToyModel(vocab_size=2)
    output = model.generate(
        [[1]], num_beams=4, num_return_sequences=4, max_new_tokens=1, pad_token_id=0,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert sorted(output.sequences[:2, 1].tolist()) == [0, 1]
    assert output.sequences_scores[2:].tolist() == [-np.inf] * 2
    assert (output.beam_indices[2:] == -1).all()


def test_sampled_beams_are_drawn_without_replacement_by_probability():
    # One new token, two beams: the first candidate drawn has the model's own distribution.
    # 99.9 % point of chi-square with 4 degrees of freedom: 18.47; the seed is fixed.
    model = ToyModel(vocab_size=5, seed=2, sharpness=0.5)
    rows = 1500
    output = model.generate(
        np.repeat(PROMPT, rows, axis=0), num_beams=2, num_return_sequences=2, max_new_tokens=1,
        do_sample=True, top_k=0, seed=1, return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    pairs = output.sequences[:, -1].reshape(rows, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    p = np.exp(model.log_probs(PROMPT[0])[-1])
    # The chance that a token is one of two drawn without replacement.
    included = np.array([p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(5) if j != i)
                         for i in range(5)])  # fmt: skip
    counts = np.bincount(pairs.ravel(), minlength=5)
    variance = rows * included * (1 - included)
    assert (((counts - rows * included) ** 2 / variance).sum()) < 18.47
    assert (output.sequences_scores[::2] >= output.sequences_scores[1::2]).all()


def test_sampling_with_a_seed_repeats_itself():
    model = ToyModel(sharpness=0.3)
    options = {"num_beams": 3, "do_sample": True, "max_new_tokens": 8}
    first = model.generate(PROMPT, seed=4, **options)
    np.testing.assert_array_equal(first, model.generate(PROMPT, seed=4, **options))
    others = [model.generate(PROMPT, seed=s, **options).tolist() for s in range(5, 12)]
    assert any(other != first.tolist() for other in others)


def test_stop_strings_and_criteria_end_beams():
    class Letters:
        def decode(self, ids, skip_special_tokens):
            return "".join(chr(97 + i) for i in ids)

    reasons = set()
    for seed in range(8):
        output = ToyModel(seed=seed, sharpness=1.0).generate(
            PROMPT, num_beams=3, num_return_sequences=3, max_new_tokens=8, pad_token_id=99,
            stop_strings=["b", "gd"], tokenizer=Letters(), return_dict_in_generate=True,
        )  # fmt: skip
        reasons.update(output.finish_reasons)
        for text, reason in zip(output.sequences[:, 3:], output.finish_reasons, strict=True):
            letters = Letters().decode([t for t in text.tolist() if t != 99], False)
            ended = letters.endswith("b") or letters.endswith("gd")
            assert ended == (reason == "stop")
            assert "b" not in letters[:-1]
            assert "gd" not in letters[:-1]
    assert reasons == {"stop", "length"}


def test_criteria_see_whole_texts():
    seen = []

    def at_five(ids, scores):
        seen.append(ids.shape)
        assert ids[:, :3].tolist() == PROMPT * len(ids)
        return ids.shape[1] >= 5

    output = ToyModel().generate(
        PROMPT, num_beams=2, max_new_tokens=10, stopping_criteria=[at_five], pad_token_id=0
    )
    assert output.shape == (1, 5)
    assert seen == [(4, 4), (4, 5)]


def test_processors_that_forbid_everything_are_an_error():
    def forbid(ids, scores):
        return np.full_like(scores, -np.inf)

    with pytest.raises(NonFiniteError, match="new token 1, row 0"):
        ToyModel().generate(PROMPT, num_beams=2, max_new_tokens=3, logits_processor=[forbid])


def test_logits_that_are_not_finite_are_an_error():
    model = ToyModel()
    model.edit = lambda logits, call: logits * np.nan if call == 3 else logits
    with pytest.raises(NonFiniteError, match="logits for new token 3, row 0"):
        model.generate(PROMPT, num_beams=2, max_new_tokens=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences: .*num_beams = 2"),
        ({"num_beams": 0}, "num_beams: expected an integer from 1"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping: .*found 'always'"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty: .*found nan"),
        ({"num_beams": 2, "streamer": object()}, "streamer: expected none"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        ToyModel().generate(PROMPT, max_new_tokens=2, **options)


def test_beams_cannot_be_streamed():
    with pytest.raises(InputError, match="num_beams: expected 1 for streaming"):
        ToyModel().stream(PROMPT, num_beams=2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_the_highest_values_come_in_order(rows):
    values = np.array(rows, float)
    for count in range(1, 7):
        found = _highest(values, count)
        kept = np.sort(np.take_along_axis(values, found, axis=1), axis=1)[:, ::-1]
        np.testing.assert_array_equal(kept, np.take_along_axis(values, found, axis=1))
        np.testing.assert_array_equal(kept, np.sort(values, axis=1)[:, ::-1][:, :count])
