"""The door of the model: what is refused, with which words, and how masked tokens are packed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mamba_np.config import MambaConfig
from mamba_np.errors import InputError
from mamba_np.inputs import Packing, check_batch, check_labels, check_logits_to_keep, check_mask

CONFIG = MambaConfig(vocab_size=11, hidden_size=4, num_hidden_layers=1)


def batch(input_ids=None, inputs_embeds=None, attention_mask=None, has_past=False):
    dtype = np.dtype(np.float32)
    return check_batch(CONFIG, dtype, input_ids, inputs_embeds, attention_mask, has_past=has_past)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 11]], "found 11 at position (0, 1)"),
        ([[1], [-1]], "found -1 at position (1, 0)"),
        (np.array([[2**64 - 1]], np.uint64), "found 18446744073709551615 at position (0, 0)"),
        ([1, 2, 3], "expected shape (batch, length), neither of them 0, found (3,)"),
        ([[]], "found (1, 0)"),
        (np.zeros((0, 3), int), "found (0, 3)"),
        (3, "found ()"),
        ([[1, 2], [3]], "expected rows of equal length"),
        ([[1.0, 2.0]], "expected integers, found dtype float64"),
        ([[True, False]], "expected integers, found dtype bool"),
        ([["a"]], "expected integers, found dtype <U1"),
        ([[None]], "expected integers, found dtype object"),
    ],
)
def test_bad_ids_are_refused_with_their_position(ids, words):
    with pytest.raises(InputError, match="input_ids") as caught:
        batch(ids)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("embeddings", "words"),
    [
        (np.zeros((1, 2, 5)), "expected shape (batch, length, 4), found (1, 2, 5)"),
        (np.zeros((2, 4)), "found (2, 4)"),
        (np.zeros((1, 0, 4)), "found (1, 0, 4)"),
        (np.zeros((1, 2, 4), int), "expected floats, found dtype int64"),
        (np.zeros((1, 2, 4), complex), "expected floats, found dtype complex128"),
    ],
)
def test_bad_embeddings_are_refused(embeddings, words):
    with pytest.raises(InputError, match="inputs_embeds") as caught:
        batch(inputs_embeds=embeddings)
    assert words in str(caught.value)


def test_exactly_one_input_is_needed():
    with pytest.raises(InputError, match="found neither"):
        batch()
    with pytest.raises(InputError, match="found both"):
        batch([[1]], np.zeros((1, 1, 4)))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 1]], "expected shape (1, 3), found (1, 2)"),
        ([1, 1, 1], "found (3,)"),
        ([[1, 2, 1]], "expected 0 or 1, found 2 at position (0, 1)"),
        ([[1, np.nan, 1]], "found nan at position (0, 1)"),
        ([["a", "b", "c"]], "expected 0 or 1"),
        ([[0, 1, 1, 1]], "found (1, 4)"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(InputError, match="attention_mask") as caught:
        batch([[1, 2, 3]], attention_mask=mask)
    assert words in str(caught.value)


def test_with_a_cache_the_mask_may_cover_the_past():
    mask = check_mask([[0, 1, 1, 0]], (1, 2), has_past=True)
    np.testing.assert_array_equal(mask, [[True, False]])


def test_a_mask_of_ones_is_no_mask():
    assert check_mask(np.ones((2, 3)), (2, 3), has_past=False) is None


def test_ids_under_the_mask_do_not_matter():
    result = batch([[-100, 5, 999]], attention_mask=[[0, 1, 0]])
    np.testing.assert_array_equal(result.ids, [[0, 5, 0]])


@given(npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=6)))
def test_packing_moves_unmasked_positions_to_the_front_and_back(mask):
    packing = Packing.of(mask)
    x = np.arange(1, mask.size + 1).reshape(mask.shape)
    packed = packing.pack(x, fill=0)
    for row, length, original, keep in zip(packed, packing.lengths, x, mask, strict=True):
        np.testing.assert_array_equal(row[:length], original[keep])
        assert not row[length:].any()
    np.testing.assert_array_equal(packing.unpack(packed), np.where(mask, x, 0))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([[1, 11]], "found 11 at position (0, 1)"),
        ([[1, -1]], "found -1 at position (0, 1)"),
        ([[1]], "expected shape (1, 2), found (1, 1)"),
        ([[1.0, 2.0]], "found dtype float64"),
    ],
)
def test_bad_labels_are_refused(labels, words):
    with pytest.raises(InputError, match="labels") as caught:
        check_labels(labels, (1, 2), vocab_size=11)
    assert words in str(caught.value)


@given(st.integers(0, 8))
def test_logits_to_keep_counts_from_the_end(k):
    kept = np.arange(5)[check_logits_to_keep(k, 5)]
    np.testing.assert_array_equal(kept, np.arange(5) if k == 0 else np.arange(5)[-k:])


@pytest.mark.parametrize("bad", [-1, [0, 5], [[0]], 1.5, "all"])
def test_bad_logits_to_keep_is_refused(bad):
    with pytest.raises(InputError, match="logits_to_keep"):
        check_logits_to_keep(bad, 5)
