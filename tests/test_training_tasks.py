import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_np.errors import InputError
from mamba_np.training.tasks import accuracy, induction_heads, selective_copying

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 5), st.integers(4, 40), st.integers(3, 20))
def test_induction_heads_have_one_answer(seed, batch, length, vocab_size):
    ids, labels = induction_heads(np.random.default_rng(seed), batch, length, vocab_size)
    assert ids.shape == labels.shape == (batch, length + 1)
    assert ids.min() >= 0
    assert ids.max() == vocab_size - 1
    for row, wanted in zip(ids, labels, strict=True):
        first, last = np.flatnonzero(row == vocab_size - 1)  # twice, and nowhere else
        assert last == length - 1
        assert row[first + 1] == row[-1] == wanted[-1]
        assert (wanted[:-1] == -100).all()


@given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(0, 30), st.integers(3, 20))
def test_selective_copying_asks_for_the_words_in_order(seed, batch, tokens, noise, vocab_size):
    length = tokens + noise
    ids, labels = selective_copying(
        np.random.default_rng(seed), batch, length, vocab_size, tokens=tokens
    )
    assert ids.shape == labels.shape == (batch, length + 1 + tokens)
    assert ids.max() < vocab_size
    for row, wanted in zip(ids, labels, strict=True):
        before, sign, words = row[:length], row[length], row[length + 1 :]
        assert sign == 1
        assert list(before[before != 0]) == list(words)
        assert list(wanted[length + 1 :]) == list(words)
        assert (wanted[: length + 1] == -100).all()


def test_places_are_spread_over_the_whole_length():
    ids, _ = selective_copying(np.random.default_rng(0), 2000, 20, 16, tokens=5)
    share = (ids[:, :20] != 0).mean(axis=0)
    assert abs(share - 0.25).max() < 0.05  # 1 / 4 +- five standard deviations
    ids, _ = induction_heads(np.random.default_rng(0), 4000, 12)
    first = (ids[:, :10] == 15).mean(axis=0)
    assert abs(first - 0.1).max() < 0.03


def test_the_same_seed_gives_the_same_task():
    for task in (induction_heads, selective_copying):
        first, again = (task(np.random.default_rng(3), 2, 30) for _ in range(2))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


def test_accuracy_counts_predictions_alone():
    labels = np.array([[-100, -100, 2, 1]])
    logits = np.full((1, 4, 3), -1.0)
    logits[0, 1, 2] = logits[0, 2, 0] = 1  # right, wrong
    logits[0, 0, 1] = logits[0, 3, 1] = 1  # not asked for
    assert accuracy(logits, labels) == 0.5


@pytest.mark.parametrize(
    ("task", "sizes", "named"),
    [
        (induction_heads, {"length": 3}, "length"),
        (induction_heads, {"vocab_size": 2}, "vocab_size"),
        (selective_copying, {"length": 4, "tokens": 5}, "length"),
        (selective_copying, {"tokens": 0}, "tokens"),
        (selective_copying, {"vocab_size": 2}, "vocab_size"),
    ],
)
def test_sizes_that_make_no_task(task, sizes, named):
    with pytest.raises(InputError, match=named):
        task(np.random.default_rng(0), 2, **{"length": 20} | sizes)
