"""Processors, warpers and draws: against naive loops, against transformers, as distributions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_np import equations, sampling
from mamba_np.errors import InputError, NonFiniteError
from mamba_np.generation_config import GenerationConfig
from mamba_np.sampling import ABSENT

seeds = st.integers(0, 2**32 - 1)


def random_scores(seed, rows=3, V=11, ties=False):
    scores = np.random.default_rng(seed).standard_normal((rows, V)) * 3
    return np.round(scores) if ties else scores


def random_history(seed, rows=3, V=11, length=14):
    """Few different ids, so that n-grams repeat; some rows start with absent tokens."""
    rng = np.random.default_rng(seed)
    history = rng.integers(0, min(V, 4), (rows, length))
    history[np.arange(length) < rng.integers(0, length, (rows, 1))] = ABSENT
    return history


# --- the same in plain loops -------------------------------------------------------------------


def naive_repetition_penalty(scores, history, penalty):
    result = scores.copy()
    for row, said in enumerate(history):
        for token in {int(t) for t in said if t != ABSENT}:
            s = scores[row, token]
            result[row, token] = s * penalty if s < 0 else s / penalty
    return result


def naive_no_repeat_ngram(scores, history, size):
    result = scores.copy()
    for row, said in enumerate(history):
        text = [int(t) for t in said if t != ABSENT]
        followers = {}
        for i in range(len(text) - size + 1):
            followers.setdefault(tuple(text[i : i + size - 1]), []).append(text[i + size - 1])
        if len(text) >= size - 1:
            for token in followers.get(tuple(text[len(text) - size + 1 :]), []):
                result[row, token] = -math.inf
    return result


def naive_softmax(row):
    top = max(row)
    weights = [math.exp(s - top) for s in row]
    return [w / sum(weights) for w in weights]


def naive_top_k(scores, k, keep):
    lowest = [sorted(row, reverse=True)[min(max(k, keep), len(row)) - 1] for row in scores]
    return np.array(
        [
            [s if s >= low else -math.inf for s in row]
            for row, low in zip(scores, lowest, strict=True)
        ]
    )


def naive_top_p(scores, p, keep):
    result = scores.copy()
    for row in result:
        probabilities = naive_softmax(row)
        order = sorted(range(len(row)), key=lambda i: (row[i], i))
        below = 0.0
        for i in order[:-keep]:
            below += probabilities[i]
            if below <= 1 - p:
                row[i] = -math.inf
    return result


def naive_min_p(scores, p, keep):
    result = scores.copy()
    for row in result:
        probabilities = naive_softmax(row)
        order = sorted(range(len(row)), key=lambda i: (row[i], i))
        for i in order[:-keep]:
            if probabilities[i] < p * max(probabilities):
                row[i] = -math.inf
    return result


@given(seed=seeds, ties=st.booleans(), penalty=st.floats(0.1, 5))
def test_repetition_penalty_is_the_naive_one(seed, ties, penalty):
    scores, history = random_scores(seed, ties=ties), random_history(seed)
    expected = naive_repetition_penalty(scores, history, penalty)
    np.testing.assert_array_equal(sampling.repetition_penalty(scores, history, penalty), expected)


@given(seed=seeds, size=st.integers(1, 5), length=st.integers(0, 30))
def test_no_repeat_ngram_is_the_naive_one(seed, size, length):
    scores, history = random_scores(seed), random_history(seed, length=max(length, 1))
    history = history[:, :length]
    expected = naive_no_repeat_ngram(scores, history, size)
    np.testing.assert_array_equal(sampling.no_repeat_ngram(scores, history, size), expected)


@given(seed=seeds, ties=st.booleans(), k=st.integers(1, 15), keep=st.integers(1, 4))
def test_top_k_is_the_naive_one(seed, ties, k, keep):
    scores = random_scores(seed, ties=ties)
    np.testing.assert_array_equal(sampling.top_k(scores, k, keep), naive_top_k(scores, k, keep))


@given(seed=seeds, ties=st.booleans(), keep=st.integers(1, 4))
def test_top_p_is_the_naive_one(seed, ties, keep):
    scores = random_scores(seed, ties=ties)
    p = np.random.default_rng(seed).random()  # never on the border between two sums
    np.testing.assert_array_equal(sampling.top_p(scores, p, keep), naive_top_p(scores, p, keep))


@given(seed=seeds, ties=st.booleans(), keep=st.integers(1, 4))
def test_min_p_is_the_naive_one(seed, ties, keep):
    scores = random_scores(seed, ties=ties)
    p = np.random.default_rng(seed).random()
    np.testing.assert_array_equal(sampling.min_p(scores, p, keep), naive_min_p(scores, p, keep))


@given(seed=seeds)
def test_softmax_and_its_logarithm(seed):
    scores = random_scores(seed)
    expected = np.array([naive_softmax(row) for row in scores])
    np.testing.assert_allclose(equations.softmax(scores), expected, rtol=1e-14)
    np.testing.assert_allclose(equations.log_softmax(scores), np.log(expected), rtol=1e-12)


def test_inputs_are_left_alone():
    scores, history, prompt = random_scores(1), random_history(1), random_history(2)
    before = [array.copy() for array in (scores, history, prompt)]
    everything = GenerationConfig(
        repetition_penalty=2.0, no_repeat_ngram_size=2, min_new_tokens=1, eos_token_id=0,
        do_sample=True, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1,
    )  # fmt: skip
    calls = {
        "repetition_penalty": lambda: sampling.repetition_penalty(scores, history, 2.0),
        "no_repeat_ngram": lambda: sampling.no_repeat_ngram(scores, history, 2),
        "forbid": lambda: sampling.forbid(scores, [0]),
        "temperature": lambda: sampling.temperature(scores, 0.5),
        "top_k": lambda: sampling.top_k(scores, 2),
        "top_p": lambda: sampling.top_p(scores, 0.5),
        "min_p": lambda: sampling.min_p(scores, 0.5),
        "Scorer": lambda: sampling.Scorer(everything)(scores, history, prompt, 0),
    }
    for name, call in calls.items():
        result = call()
        assert (result != before[0]).any(), f"{name} did nothing"
        for array, copy in zip((scores, history, prompt), before, strict=True):
            np.testing.assert_array_equal(array, copy, err_msg=name)


# --- borders -----------------------------------------------------------------------------------


def test_top_k_keeps_all_that_tie_with_the_last():
    kept = np.isfinite(sampling.top_k(np.array([[3.0, 1.0, 2.0, 2.0, 0.0]]), 2))
    assert kept.tolist() == [[True, False, True, True, False]]


@pytest.mark.parametrize("k", [5, 6, 10**6])
def test_top_k_of_the_whole_vocabulary_changes_nothing(k):
    scores = random_scores(3, V=5)
    np.testing.assert_array_equal(sampling.top_k(scores, k), scores)


def test_top_p_keeps_the_higher_ids_among_equals():
    kept = np.isfinite(sampling.top_p(np.zeros((1, 10)), 0.35))
    assert np.flatnonzero(kept).tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_strictest_warpers_keep_the_best_tokens(keep):
    scores = random_scores(4)
    best = np.argsort(scores, axis=1)[:, -keep:]
    for warped in (
        sampling.top_p(scores, 0.0, keep),
        sampling.min_p(scores, 1.0, keep),
        sampling.top_k(scores, 1, keep),
    ):
        kept = np.isfinite(warped)
        assert kept.sum(axis=1).tolist() == [keep] * 3
        assert np.take_along_axis(kept, best, axis=1).all()


def test_forbidden_tokens_stay_forbidden():
    scores = random_scores(5)
    scores[:, 3] = -np.inf
    for warped in (
        sampling.top_k(scores, 11),
        sampling.top_p(scores, 0.999999),
        sampling.min_p(scores, 1e-9),
        sampling.repetition_penalty(scores, np.full((3, 1), 3), 1.5),
    ):
        assert np.isneginf(warped[:, 3]).all()


def test_forbid_ignores_ids_outside_the_vocabulary():
    scores = random_scores(6, V=5)
    forbidden = np.isneginf(sampling.forbid(scores, [2, 5, 99]))
    assert np.flatnonzero(forbidden.all(axis=0)).tolist() == [2]
    assert forbidden.sum() == 3


# --- against transformers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.generation import logits_process

    def apply(name, scores, history=None, **options):
        processor = getattr(logits_process, name)(**options)
        ids = torch.zeros((len(scores), 1), dtype=torch.long)
        ids = ids if history is None else torch.from_numpy(history)
        return processor(ids, torch.from_numpy(scores.copy())).numpy()

    return apply


@pytest.mark.parametrize("seed", range(8))
def test_processors_are_those_of_transformers(peers, seed):
    V = 200
    scores, rng = random_scores(seed, V=V), np.random.default_rng(seed)
    said = rng.integers(0, 6, (3, 20))
    for penalty in (0.7, 1.3):
        np.testing.assert_array_equal(
            sampling.repetition_penalty(scores, said, penalty),
            peers("RepetitionPenaltyLogitsProcessor", scores, said, penalty=penalty),
        )
    for size in (1, 2, 3, 20, 21, 22):
        np.testing.assert_array_equal(
            sampling.no_repeat_ngram(scores, said, size),
            peers("NoRepeatNGramLogitsProcessor", scores, said, ngram_size=size),
        )
    np.testing.assert_array_equal(
        sampling.temperature(scores, 0.7), peers("TemperatureLogitsWarper", scores, temperature=0.7)
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_warpers_are_those_of_transformers(peers, seed, keep, ties):
    scores = random_scores(seed, V=200, ties=ties)
    options = {"min_tokens_to_keep": keep}
    for k in (1, 2, 50, 199, 200, 1000):
        np.testing.assert_array_equal(
            sampling.top_k(scores, k, keep), peers("TopKLogitsWarper", scores, top_k=k, **options)
        )
    for p in (0.0, 0.1234567, 0.5123456, 0.9012345, 0.9999):
        np.testing.assert_array_equal(
            np.isfinite(sampling.min_p(scores, p, keep)).sum(axis=1),
            np.isfinite(peers("MinPLogitsWarper", scores, min_p=p, **options)).sum(axis=1),
        )
        ours = sampling.top_p(scores, p, keep)
        theirs = peers("TopPLogitsWarper", scores, top_p=p, **options)
        # torch's sort promises no order among equals: which of them stay is not compared.
        np.testing.assert_array_equal(np.sort(ours, axis=1), np.sort(theirs, axis=1))
        if not ties:
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(
                sampling.min_p(scores, p, keep),
                peers("MinPLogitsWarper", scores, min_p=p, **options),
            )


# --- draws -------------------------------------------------------------------------------------


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    return (((counts - expected)[possible]) ** 2 / expected[possible]).sum()


def test_draws_have_the_distribution():
    # 99.9 % point of chi-square with 9 degrees of freedom: 27.88; the seed is fixed.
    scores = np.append(np.log(np.arange(1, 11) / 55), -np.inf)[None]
    generators = sampling.row_generators(12, 1, 40_000)
    tokens = sampling.draw(np.repeat(scores, 40_000, axis=0), generators)
    counts = np.bincount(tokens, minlength=11)
    assert chi_square(counts, np.append(np.arange(1, 11) / 55, 0.0)) < 27.88


def test_successive_draws_of_one_row_have_the_distribution():
    # 99.9 % point of chi-square with 3 degrees of freedom: 16.27.
    generators = sampling.row_generators(3, 1)
    scores = np.log(np.array([[0.1, 0.2, 0.3, 0.4]]))
    tokens = [int(sampling.draw(scores, generators)[0]) for _ in range(4000)]
    assert chi_square(np.bincount(tokens, minlength=4), np.exp(scores[0])) < 16.27


class Fixed:
    """A generator that always says the same."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.mark.parametrize("value", [0.0, 0.5, np.nextafter(1.0, 0)])
def test_an_impossible_token_is_never_drawn(value):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((200, 30)) * 100
    scores[:, [0, 7, 29]] = -np.inf
    tokens = sampling.draw(scores, [Fixed(value)] * 200)
    assert (equations.softmax(scores)[np.arange(200), tokens] > 0).all()


def test_generators_depend_on_seed_row_and_repeat_only():
    few, many = sampling.row_generators(5, 2, 2), sampling.row_generators(5, 4, 3)
    first = [g.random() for g in few]
    second = [g.random() for g in many]
    assert first == [second[0], second[1], second[3], second[4]]
    assert len(set(second)) == 12
    assert [g.random() for g in sampling.row_generators(6, 2, 2)] != first


def test_a_generator_or_nothing_as_seed():
    one = [g.random() for g in sampling.row_generators(np.random.default_rng(1), 2)]
    same = [g.random() for g in sampling.row_generators(np.random.default_rng(1), 2)]
    assert one == same
    fresh = {sampling.row_generators(None, 1)[0].random() for _ in range(5)}
    assert len(fresh) == 5


# --- checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "found"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_scores_that_are_not_finite_name_token_and_row(value, found):
    scores = random_scores(1)
    scores[2, 4] = value
    with pytest.raises(NonFiniteError, match=rf"logits for new token 7, row 2: .*found {found}"):
        sampling.check_scores(scores, 7, "logits")
    sampling.check_scores(scores, 7, "logits", np.array([True, True, False]))


def test_a_row_without_any_token_left_is_an_error():
    scores = random_scores(1)
    scores[1] = -np.inf
    with pytest.raises(NonFiniteError, match=r"row 1: .*all are -inf"):
        sampling.check_scores(scores, 1, "scores")


def test_one_possible_token_is_enough():
    scores = np.full((1, 5), -np.inf)
    scores[0, 3] = -1e300
    sampling.check_scores(scores, 1, "scores")
    assert sampling.draw(scores, [Fixed(0.99)]).tolist() == [3]


# --- the order of it all -----------------------------------------------------------------------


def test_steps_come_in_the_order_of_transformers():
    config = GenerationConfig(
        do_sample=True, temperature=0.5, top_k=6, top_p=0.9, min_p=0.02, repetition_penalty=1.3,
        no_repeat_ngram_size=2, min_new_tokens=3, eos_token_id=[1, 4],
    )  # fmt: skip
    scores, history = random_scores(8), random_history(8)
    seen = []

    def custom(input_ids, given):
        seen.append((input_ids, given.copy()))
        given[:, 0] += 1  # in place: the caller's array must not change
        return given

    ids = np.zeros((3, 2), np.int64)
    result = sampling.Scorer(config, [custom])(scores, history, ids, new_tokens=2)
    expected = naive_repetition_penalty(scores, history, 1.3)
    expected = naive_no_repeat_ngram(expected, history, 2)
    expected[:, [1, 4]] = -np.inf
    assert seen[0][0] is ids
    np.testing.assert_array_equal(seen[0][1], expected)
    expected[:, 0] += 1
    expected = naive_top_k(expected / 0.5, 6, 1)
    expected = naive_min_p(naive_top_p(expected, 0.9, 1), 0.02, 1)
    np.testing.assert_array_equal(result, expected)


def test_without_sampling_nothing_is_warped():
    config = GenerationConfig(temperature=0.5, top_k=1, top_p=0.1, min_p=0.9)
    scores = random_scores(9)
    result = sampling.Scorer(config)(scores.astype(np.float32), random_history(9), scores, 0)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, scores.astype(np.float32))


def test_ends_are_allowed_once_the_minimum_is_reached():
    config = GenerationConfig(min_new_tokens=3, eos_token_id=2)
    scorer, scores = sampling.Scorer(config), random_scores(10)
    blocked = [np.isneginf(scorer(scores, scores[:, :0], scores, n)[:, 2]).all() for n in range(5)]
    assert blocked == [True, True, True, False, False]


@pytest.mark.parametrize(("eos", "keep"), [(None, 2), (3, 2), ([3, 4], 3)])
def test_beams_keep_tokens_beside_the_ends(eos, keep):
    config = GenerationConfig(do_sample=True, num_beams=2, top_p=0.0, top_k=0, eos_token_id=eos)
    scores = random_scores(11)
    result = sampling.Scorer(config)(scores, scores[:, :0], scores, 0)
    assert np.isfinite(result).sum(axis=1).tolist() == [keep] * 3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"logits_processor\[0\]: expected it to return an array of floats, found NoneType"),
        (np.zeros((3, 11), int), "found int64"),
        (np.zeros((3, 10)), r"expected it to return shape \(3, 11\), found \(3, 10\)"),
    ],
)
def test_what_a_users_processor_returns_is_checked(returned, message):
    scorer = sampling.Scorer(GenerationConfig(), [lambda ids, scores: returned])
    with pytest.raises(InputError, match=message):
        scorer(random_scores(1), random_history(1), random_history(1), 0)
