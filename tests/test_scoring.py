"""Scores of token ids and of texts, against float64 references and laws."""

import io
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_scale, tolerance

from mamba_np.config import MambaConfig
from mamba_np.errors import InputError, NonFiniteError
from mamba_np.model import MambaForCausalLM
from mamba_np.scoring import (
    Score,
    TextReader,
    log_probabilities,
    running_scores,
    score,
    score_text,
    split_text,
)

TEXT = (
    'Once upon a time, there lived a king who didn\'t speak.\n\n  "Why?" asked the queen;  '
    "1,234 people\tand 사람들 wondered…\r\nNobody knew: caf\u00e9, na\u00efve \U0001f980!\n"
)


@pytest.fixture(scope="module")
def tiny():
    config = MambaConfig(
        vocab_size=31, hidden_size=8, state_size=4, num_hidden_layers=2, bos_token_id=3
    )
    return MambaForCausalLM(config, rng=0)


def oracle(logits, targets):
    """The log-probability of each target, in exact sums of Python floats."""
    result = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        top = max(row)
        result.append(row[target] - top - math.log(math.fsum(math.exp(x - top) for x in row)))
    return np.array(result)


# --- the figures -----------------------------------------------------------------------------


def test_score_follows_its_definitions():
    # A fair die of 8 faces, thrown 6 times, each written in 2 bytes.
    result = Score(6 * math.log(1 / 8), tokens=6, bytes=12)
    # rel: some roundings of float64 (2.2e-16 each).
    assert result.perplexity == pytest.approx(8, rel=1e-14)
    assert result.bits_per_token == pytest.approx(3, rel=1e-14)
    assert result.bits_per_byte == pytest.approx(1.5, rel=1e-14)
    assert Score(-1.0, 1).bits_per_byte is None
    assert Score(-1000.0, 1).perplexity == math.inf


@pytest.mark.parametrize("scale", [1e-3, 1, 30, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_probabilities_are_those_of_exact_sums(scale, dtype):
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((130, 700)) * scale).astype(dtype)
    targets = rng.integers(700, size=130)
    expected = oracle(logits, targets)
    found = log_probabilities(logits, targets)
    assert found.dtype == np.float64
    # Exponentials are in the logits' dtype, sums of 700 of them in float64. Relative to each value,
    # but absolute below 1: the difference of a logit and the logarithm of a sum.
    bound = tolerance("step", dtype)
    assert (np.abs(found - expected) <= bound * np.maximum(1, np.abs(expected))).all()
    assert (found <= 0).all()


def test_log_probabilities_refuse_what_is_not_finite():
    logits = np.zeros((3, 5), np.float32)
    for wrong in (np.nan, np.inf):
        logits[1, 2] = wrong
        with pytest.raises(NonFiniteError, match=f"logits: expected .* {wrong} at position 1"):
            log_probabilities(logits, np.array([0, 4, 0]))


@pytest.mark.parametrize("case", ["0", "1"])
def test_score_equals_the_float64_reference(model, refs, case):
    stories = refs("stories")
    ids = stories[f"{case}.input_ids"].reshape(-1)
    logits = stories[f"{case}.logits_f64"].reshape(len(ids), -1)
    expected = oracle(logits[:-1], ids[1:]).sum()
    result = score(model, [ids], add_bos=False)
    assert result.tokens == len(ids) - 1
    assert_close_to_scale(result.log_likelihood, expected, tolerance("model", "float32"))


# --- token ids: laws and errors --------------------------------------------------------------


def test_bos_is_read_first_and_not_scored(tiny):
    ids = np.random.default_rng(0).integers(31, size=20)
    with_bos = score(tiny, [ids])
    by_hand = score(tiny, [np.r_[3, ids]], add_bos=False)
    assert (with_bos.tokens, with_bos.log_likelihood) == (20, by_hand.log_likelihood)
    assert score(tiny, [ids], add_bos=False).tokens == 19


def test_without_a_bos_token_the_first_token_is_not_scored(tiny):
    config = MambaConfig.from_dict(tiny.config.to_dict() | {"bos_token_id": None})
    model = MambaForCausalLM(config, params=tiny.params)
    ids = np.arange(10)
    assert score(model, [ids]) == score(tiny, [ids], add_bos=False)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(2, 60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    chunk_size=st.integers(1, 70),
    add_bos=st.booleans(),
)
def test_neither_pieces_nor_chunks_change_the_score(tiny, length, cuts, chunk_size, add_bos):
    ids = np.random.default_rng(length).integers(31, size=length)
    whole = score(tiny, [ids], add_bos=add_bos)
    pieces = np.split(ids, sorted(min(c, length) for c in cuts))
    found = score(tiny, iter(pieces), add_bos=add_bos, chunk_size=chunk_size)
    assert found.tokens == whole.tokens == length - (not add_bos)
    assert_close_to_scale(found.log_likelihood, whole.log_likelihood, tolerance("law", "float32"))


def test_running_scores_end_in_the_score(tiny):
    ids = np.random.default_rng(1).integers(31, size=25)
    partial = list(running_scores(tiny, [ids], chunk_size=10))
    assert [p.tokens for p in partial] == [10, 20, 25]
    assert partial[-1] == score(tiny, [ids], chunk_size=10)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "expected at least one token to score, found none"),
        ([[]], "expected at least one token to score, found none"),
        ([[1, 31]], "expected ids from 0 to 30, found 31"),
        ([[1], [-1]], "expected ids from 0 to 30, found -1"),
        ([[1.5]], "expected 1-D arrays of integers, found float64 of shape (1,)"),
        (
            [3, 4],
            "expected 1-D arrays of integers, found a single value; pass one sequence as [ids]",
        ),
        ([[[1, 2]]], "expected 1-D arrays of integers, found int64 of shape (1, 2)"),
    ],
)
def test_bad_tokens_are_refused(tiny, tokens, message):
    with pytest.raises(InputError) as error:
        score(tiny, tokens)
    assert str(error.value) == f"tokens: {message}"


def test_a_single_token_needs_a_bos_to_be_scored(tiny):
    assert score(tiny, [[5]]).tokens == 1
    with pytest.raises(InputError, match="at least one token to score"):
        score(tiny, [[5]], add_bos=False)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8"])
def test_bad_chunk_sizes_are_refused(tiny, size):
    with pytest.raises(InputError, match="chunk_size: expected an integer from 1"):
        score(tiny, [[1, 2]], chunk_size=size)


def test_chunk_sizes_can_be_numpy_integers(tiny):
    assert score(tiny, [[1, 2]], chunk_size=np.int64(2)) == score(tiny, [[1, 2]], chunk_size=2)


# --- text ------------------------------------------------------------------------------------


def test_score_text_is_the_score_of_its_tokens(model, tokenizer):
    ids = tokenizer.encode(TEXT)
    expected = score(model, [ids])
    seen = []
    result = score_text(
        model, tokenizer, io.BytesIO(TEXT.encode()), chunk_size=16, progress=seen.append
    )
    assert (result.tokens, result.bytes) == (len(ids), len(TEXT.encode()))
    rtol = tolerance("law", "float32")
    assert_close_to_scale(result.log_likelihood, expected.log_likelihood, rtol)
    assert len(seen) == math.ceil(len(ids) / 16)
    assert seen[-1] == result


@given(
    words=st.lists(
        st.sampled_from(
            ["a", "king", " ", "\n", "\t", "\r\n", "  ", "don't", "3.14", "!?", "é", "왕"]
        )
    ),
    size=st.integers(10, 40),
)
def test_blocks_have_the_tokens_of_the_whole_text(tokenizer, words, size):
    text = "".join(words)
    blocks = list(split_text([text], size))
    assert "".join(blocks) == text
    assert all(0 < len(block) <= size for block in blocks)
    # Where there is no gap within `size` characters, blocks end anywhere: see below.
    assume(all(not a[-1].isspace() and b[0] in " \n" for a, b in itertools.pairwise(blocks)))
    ids = [i for block in blocks for i in tokenizer.encode(block)]
    assert ids == tokenizer.encode(text)


def test_blocks_of_prose_end_between_words(tokenizer):
    text = TEXT * 30
    blocks = list(split_text(iter(text), 100))  # comes in as single characters
    assert len(blocks) >= len(text) / 100
    assert not any(block[-1].isspace() for block in blocks[:-1])
    assert [i for block in blocks for i in tokenizer.encode(block)] == tokenizer.encode(text)


@pytest.mark.parametrize("text", ["x" * 1000, " " * 1000, "\n" * 1000, "왕" * 1000])
def test_text_without_gaps_is_cut_all_the_same(text):
    blocks = list(split_text([text], 64))
    assert "".join(blocks) == text
    assert max(map(len, blocks)) == 64


@settings(deadline=None)
@given(text=st.text(), repeat=st.integers(1, 3000))
def test_reader_returns_the_text(text, repeat):
    data = (text * repeat)[:30000].encode("utf-8", "ignore")
    reader = TextReader(io.BytesIO(data))
    assert "".join(reader) == data.decode()
    assert reader.bytes_read == len(data)


@pytest.mark.parametrize("before", [0, 1, 8190, 8191, 8192, 8193, 20000])
@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (b"\xff rest", "byte 0xff at offset {} (invalid start byte)"),
        (b"\xec\x99 rest", "byte 0xec at offset {} (invalid continuation byte)"),
        (b"\xec\x99", "byte 0xec at offset {} (unexpected end of data)"),
    ],
)
def test_reader_names_the_first_bad_byte(before, bad, found):
    data = b"a" * before + bad
    with pytest.raises(InputError) as error:
        list(TextReader(io.BytesIO(data), "book.txt"))
    assert str(error.value) == f"book.txt: expected text in UTF-8, found {found.format(before)}"
    replaced = "".join(TextReader(io.BytesIO(data), errors="replace"))
    assert replaced == data.decode(errors="replace")


def test_reader_refuses_other_error_handlers():
    with pytest.raises(InputError, match="errors: expected 'strict' or 'replace', found 'ignore'"):
        TextReader(io.BytesIO(b""), errors="ignore")


def test_texts_with_nothing_to_score_are_refused(model, tokenizer):
    with pytest.raises(InputError, match=r"^empty.txt: expected text to score, found no bytes$"):
        score_text(model, tokenizer, io.BytesIO(b""), name="empty.txt")
    with pytest.raises(InputError, match="found a single token without a bos token before it"):
        score_text(model, tokenizer, io.BytesIO(b"a"), add_bos=False)


# --- constant memory -------------------------------------------------------------------------


def ids_in_pieces(count):
    rng = np.random.default_rng(7)
    for start in range(0, count, 1000):
        yield rng.integers(31, size=min(1000, count - start))


def peak_of_score(model, count):
    tracemalloc.start()
    try:
        result = score(model, ids_in_pieces(count))
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_text(tiny):
    score(tiny, ids_in_pieces(600))  # imports and caches
    _, short = peak_of_score(tiny, 2_000)
    result, long = peak_of_score(tiny, 20_000)
    assert result.tokens == 20_000
    assert long < short + 50_000  # the ids alone would be 160 kB


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_tokens_in_bounded_memory(tiny):
    result, peak = peak_of_score(tiny, 1_000_000)
    assert result.tokens == 1_000_000
    assert peak < 4_000_000
    # Uniform random ids: no model can do better than ln(31) per token on average.
    assert math.log(31) < -result.log_likelihood / 1e6 < 2 * math.log(31)
