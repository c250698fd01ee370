"""Labels: every token of a text as something that people can read."""

import itertools

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from mamba_np import AutoTokenizer
from mamba_np.tokenizer.stream import BYTE_ALPHABET
from mamba_np.trace import labels
from mamba_np.trace.labels import REST, labels_of, names_of, texts_of


def spelled(data):
    """Return bytes as a byte-level vocabulary spells them."""
    letters = {byte: letter for letter, byte in BYTE_ALPHABET.items()}
    return "".join(letters[byte] for byte in data)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b" state", b"s"], ["·state", "s"]),
        ([b"\n", b"\t\t", b"\r", b" "], ["↵", "⇥⇥", "⟨0D⟩", "·"]),
        (["선".encode()[:1], "선".encode()[1:2], "선".encode()[2:]], ["선", REST, REST]),
        ([" 선".encode()[:2], "선".encode()[1:] + b" a"], ["·선", f"{REST}·a"]),
        (["🙂".encode()[:3], "🙂".encode()[3:] + "é".encode()[:1], "é".encode()[1:]],
         ["🙂", f"{REST}é", REST]),
        ([b"\xec", b"\x84", b"a"], ["⟨EC⟩", "⟨84⟩", "a"]),
        ([b"a\xff", b"\xf0\x9f"], ["a⟨FF⟩", "⟨F0⟩⟨9F⟩"]),
        ([b"\xc0\x80", b"\xed\xa0\x80"], ["⟨C0⟩⟨80⟩", "⟨ED⟩⟨A0⟩⟨80⟩"]),
        (["a\u200db".encode()], ["a⟨200D⟩b"]),
        ([b"twelve chars"], ["twelve·chars"]),
        ([b"thirteen char"], ["thirteen·ch…"]),
        ([], []),
    ],
)  # fmt: skip
def test_labels_of_bytes(pieces, expected):
    assert labels_of([spelled(piece) for piece in pieces], True) == tuple(expected)


def test_labels_of_tokens_that_are_text():
    assert labels_of(["▁the", "선", "a b"], False) == ("·the", "선", "a·b")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.data())
def test_labels_read_as_the_text_wherever_it_is_cut(text, data):
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))) | {0, len(whole)})
    pieces = [spelled(whole[a:b]) for a, b in itertools.pairwise(cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "WIDTH", 10**6)
        found = labels_of(pieces, True)
    assert len(found) == len(pieces)
    assert all(found)
    expected = "".join(labels.visible(c) for c in text if c != REST)
    assert "".join(found).replace(REST, "") == expected


def test_texts_of_ids(tokenizer):
    text = " 안녕 🙂\n"
    ids = tokenizer(text, return_tensors="np")["input_ids"][0]
    tokens, shown = texts_of(ids, tokenizer)
    assert tokens == tuple(tokenizer.tokenize(text))
    assert "".join(shown).replace(REST, "") == "·안녕·🙂↵"
    assert texts_of(ids[:2], None) == ((str(ids[0]), str(ids[1])),) * 2
    beyond = texts_of(ids[:1] * 0 + len(tokenizer) + 5, tokenizer)
    assert beyond == ((str(len(tokenizer) + 5),),) * 2


def test_names_are_of_each_id_by_itself(tokenizer):
    ids = tokenizer("안", return_tensors="np")["input_ids"][0].tolist()
    assert len(ids) > 1  # parts of one character
    assert texts_of(np.array(ids), tokenizer)[1] == ("안", *[REST] * (len(ids) - 1))
    names = names_of([*ids, len(tokenizer)], tokenizer)
    assert "".join(names) == "".join(f"⟨{b:02X}⟩" for b in "안".encode()) + str(len(tokenizer))
    assert names_of([7, 12], None) == ["7", "12"]


def test_another_kind_of_tokenizer(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"▁a": 0, "b": 1}, unk_token="b"))
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert texts_of(np.array([0, 1, 0]), tokenizer) == (("▁a", "b", "▁a"), ("·a", "b", "·a"))
