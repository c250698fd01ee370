"""Training data: what is read, how it becomes rows and batches, and what is refused where."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_np import AutoTokenizer
from mamba_np.errors import FileMissingError, InputError
from mamba_np.training import (
    DataCollatorForLanguageModeling,
    DataOptions,
    Row,
    batches,
    collate,
    epoch_order,
    load_data,
    pack,
)

EOS = 0
TEXTS = ["Be yourself.", "So many books, so little time.", "Two things are infinite."]


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return AutoTokenizer.from_pretrained(model_path("base_silu"))


def row(ids):
    ids = np.array(ids, np.int32)
    return Row(ids, ids.astype(np.int64))


def lists(rows):
    return [(r.ids.tolist(), r.labels.tolist()) for r in rows]


def whole(rows):
    return [i for r in rows for i in r.ids.tolist()]


# --- examples ----------------------------------------------------------------------------------


def test_texts_end_with_the_eos_token(tokenizer):
    rows = load_data([{"text": text} for text in TEXTS], tokenizer)
    for r, text in zip(rows, TEXTS, strict=True):
        expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert r.ids.tolist() == r.labels.tolist() == expected
        assert r.ids.dtype == np.int32
    ended = [{"text": text + tokenizer.eos_token} for text in TEXTS]
    assert lists(load_data(ended, tokenizer)) == lists(rows)


def test_a_completion_is_predicted_and_its_prompt_is_not(tokenizer):
    prompt, completion = "Who said it?", " Oscar Wilde"
    example = {"prompt": prompt, "completion": completion}
    (r,) = load_data([example], tokenizer)
    assert tokenizer.decode(r.ids) == prompt + completion + tokenizer.eos_token
    predicted = r.labels != -100
    assert tokenizer.decode(r.ids[predicted]) == completion + tokenizer.eos_token
    assert (r.labels[predicted] == r.ids[predicted]).all()
    (r,) = load_data([example], tokenizer, DataOptions(completion_only_loss=False))
    assert (r.labels == r.ids).all()


def test_an_eos_token_of_the_tokenizers_own_is_predicted_too():
    class Ends:
        eos_token_id = EOS

        def __call__(self, texts, return_offsets_mapping):
            offsets = [(0, 1), (1, 2), (0, 0)]  # those of special tokens are empty
            return {"input_ids": [[5, 6, EOS]], "offset_mapping": [offsets]}

    (r,) = load_data([{"prompt": "a", "completion": "b"}], Ends())
    assert lists([r]) == [([5, 6, EOS], [-100, 6, EOS])]


def test_a_token_across_the_edge_belongs_to_the_completion(tokenizer):
    (split,) = load_data([{"prompt": "the ki", "completion": "ng"}], tokenizer)
    predicted = tokenizer.decode(split.ids[split.labels != -100])
    assert predicted.removesuffix(tokenizer.eos_token).endswith("ng")
    assert tokenizer.decode(split.ids) == "the king" + tokenizer.eos_token


def test_ids_are_taken_as_they_are():
    examples = [
        {"input_ids": [5, 6, 7]},
        {"input_ids": np.array([5, 6, 7]), "labels": [-100, 6, -100]},
        {"input_ids": [5, 6, 7, 9], "attention_mask": [1, 0, 1, 1]},
        {"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1]},
    ]
    assert lists(load_data(examples, None)) == [
        ([5, 6, 7], [5, 6, 7]),
        ([5, 6, 7], [-100, 6, -100]),
        ([5, 7, 9], [5, 7, 9]),
        ([5, 6, 7], [-100, -100, 7]),
    ]
    whole = DataOptions(completion_only_loss=False)
    assert lists(load_data(examples[3:], None, whole)) == [([5, 6, 7], [5, 6, 7])]


def test_texts_may_come_from_another_key_or_a_function(tokenizer):
    expected = lists(load_data([{"text": text} for text in TEXTS], tokenizer))
    named = [{"quote": text, "author": "?"} for text in TEXTS]
    assert lists(load_data(named, tokenizer, DataOptions(text_field="quote"))) == expected
    options = DataOptions(formatting_func=lambda example: example["quote"])
    assert lists(load_data(iter(named), tokenizer, options)) == expected

    class OfTorch:
        def __len__(self):
            return len(named)

        def __getitem__(self, i):
            return {"text": TEXTS[i]}

    assert lists(load_data(OfTorch(), tokenizer)) == expected


def test_long_rows_are_cut(tokenizer):
    (long,) = load_data([{"text": TEXTS[1]}], tokenizer)
    (cut,) = load_data([{"text": TEXTS[1]}], tokenizer, DataOptions(max_length=4))
    assert cut.ids.tolist() == long.ids[:4].tolist()
    (same,) = load_data([{"text": TEXTS[1]}], tokenizer, DataOptions(max_length=None))
    assert same.ids.tolist() == long.ids.tolist()


def test_rows_with_nothing_to_predict_are_left_out(tokenizer):
    with pytest.warns(UserWarning, match="1 of 2 rows have no token to predict"):
        (r,) = load_data([{"text": ""}, {"text": "Be"}], tokenizer)
    assert tokenizer.decode(r.ids) == "Be" + tokenizer.eos_token
    with pytest.raises(InputError) as error:
        load_data([{"text": ""}], tokenizer)
    assert str(error.value) == "train_dataset: expected tokens to predict, found none in 1 rows"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("Be yourself.", 'expected {"text": ...}'),
        ({"quote": "x"}, "found the keys 'quote'"),
        ({"text": 3}, "text: expected a string, found 3"),
        ({"prompt": "x", "completion": None}, "completion: expected a string, found None"),
        ({"messages": [{"role": "user"}]}, "base checkpoints have no chat template"),
        ({"input_ids": [1, -2]}, "input_ids: expected a list of integers of at least 0"),
        ({"input_ids": [[1], [1, 2]]}, "input_ids: expected a list of integers"),
        ({"input_ids": [0.5]}, "input_ids: expected a list of integers"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels: expected as many as input_ids, 2, found 1"),
        ({"input_ids": [1, 2], "completion_mask": [1]}, "completion_mask: expected as many as"),
    ],
)
def test_a_bad_example_is_named_with_its_place(tokenizer, tmp_path, example, message):
    with pytest.raises(InputError) as error:
        load_data([{"text": "good"}, example], tokenizer)
    assert str(error.value).startswith("train_dataset[1]: ")
    assert message in str(error.value)
    if isinstance(example, dict):
        path = tmp_path / "bad.jsonl"
        path.write_text("\n".join(['{"text": "good"}', "", json.dumps(example)]))
        with pytest.raises(InputError) as error:
            load_data(path, tokenizer)
        assert str(error.value).startswith(f"{path}:3: ")
        assert message in str(error.value)


def test_options_and_sources_are_checked(tokenizer):
    for options, message in [
        ({"max_length": 1}, "max_length: expected an integer from 2"),
        ({"max_length": None, "packing": True}, "max_length: expected an integer for packing"),
        ({"packing": 1}, "packing: expected true or false"),
        ({"completion_only_loss": "yes"}, "completion_only_loss: expected true or false"),
        ({"formatting_func": "text"}, "formatting_func: expected a function"),
        ({"formatting_func": str, "completion_only_loss": True}, "completion_only_loss: expected"),
    ]:
        with pytest.raises(InputError, match=message):
            DataOptions(**options)
    for source in (3, {"text": "x"}):
        with pytest.raises(InputError, match=r"train_dataset: expected a file \.jsonl or \.txt"):
            load_data(source, tokenizer)
    with pytest.raises(InputError, match="processing_class: expected a tokenizer"):
        load_data([{"text": "x"}], None)
    with pytest.raises(InputError, match="expected prompt and completion"):
        load_data([{"text": "x"}], tokenizer, DataOptions(completion_only_loss=True))
    with pytest.raises(InputError, match="packing: expected a tokenizer with an eos token"):
        load_data([{"input_ids": [1, 2]}], None, DataOptions(packing=True))


# --- files -------------------------------------------------------------------------------------


def test_a_folder_has_splits(tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (tmp_path / "valid.txt").write_text(" ".join(TEXTS))
    expected = lists(load_data([{"text": text} for text in TEXTS], tokenizer))
    assert lists(load_data(tmp_path, tokenizer)) == expected
    assert lists(load_data(str(tmp_path / "train.jsonl"), tokenizer)) == expected
    (stream,) = load_data(tmp_path, tokenizer, split="valid")
    assert tokenizer.decode(stream.ids) == " ".join(TEXTS)
    with pytest.raises(FileMissingError, match=r"expected test\.jsonl or test\.json or test\.txt"):
        load_data(tmp_path, tokenizer, split="test")


def test_a_text_is_one_stream(tokenizer, tmp_path):
    text = "\n".join(TEXTS * 300)
    assert len(text) > 8192 * 2
    (tmp_path / "book.txt").write_text(text)
    rows = load_data(tmp_path / "book.txt", tokenizer, DataOptions(max_length=64))
    ids = tokenizer(text)["input_ids"]
    assert {len(r.ids) for r in rows[:-1]} == {64}
    assert whole(rows) == ids[: len(whole(rows))]
    assert len(ids) - len(whole(rows)) <= 1  # a last token alone predicts nothing
    for options in ({"completion_only_loss": True}, {"formatting_func": str}):
        with pytest.raises(InputError, match=rf"^{next(iter(options))}: expected data of examples"):
            load_data(tmp_path / "book.txt", tokenizer, DataOptions(**options))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text"\n',
            ":2: expected a JSON object on each line, found a syntax error",
        ),
        ("a.json", b'[\n{"text": "x"}]', ":1: expected a JSON object on each line, found a syntax"),
        ("a.jsonl", b"[1]\n", ":1: expected a JSON object on each line, found [1]"),
        ("a.jsonl", b"null\n", ":1: expected a JSON object on each line, found None"),
        ("a.jsonl", b'\n{"text": "\xff"}\n', ":2: expected UTF-8"),
        ("a.jsonl", b"[" * 100_000, ":1: expected plain JSON, found nesting that is too deep"),
        ("a.jsonl", b"", ": expected tokens to predict, found none in 0 rows"),
        ("a.txt", b"abc \xff", ": expected text in UTF-8, found byte 0xff at offset 4"),
        ("a.txt", b"", ": expected tokens to predict, found none in 0 rows"),
        ("a.csv", b"", ": expected a file .jsonl or .txt"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tokenizer, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_data(path, tokenizer)
    assert str(error.value).startswith(f"{path}{message}")


def test_a_file_that_is_not_there(tokenizer, tmp_path):
    with pytest.raises(FileMissingError, match=r"gone\.jsonl"):
        load_data(tmp_path / "gone.jsonl", tokenizer)


# --- packing -----------------------------------------------------------------------------------

IDS = st.lists(st.integers(1, 9), max_size=12)


@given(texts=st.lists(IDS, max_size=8), length=st.integers(1, 9))
def test_packing_keeps_every_token_and_adds_separators_alone(texts, length):
    rows = pack([row(ids) for ids in texts], length, EOS)
    expected = [i for ids in texts if ids for i in [*ids, EOS]]
    assert whole(rows) == expected
    assert all((r.ids == r.labels).all() for r in rows)
    assert [len(r.ids) for r in rows[:-1]] == [length] * max(0, len(rows) - 1)


def test_packing_keeps_what_is_not_predicted():
    rows = pack([Row(np.array([5, 6], np.int32), np.array([-100, 6])), row([7, EOS])], 3, EOS)
    assert lists(rows) == [([5, 6, EOS], [-100, 6, EOS]), ([7, EOS], [7, EOS])]


def test_packed_data(tokenizer):
    options = DataOptions(max_length=8, packing=True)
    rows = load_data([{"text": text} for text in TEXTS], tokenizer, options)
    text = tokenizer.decode(whole(rows))
    assert (text + tokenizer.eos_token).startswith("".join(t + tokenizer.eos_token for t in TEXTS))


# --- order and batches -------------------------------------------------------------------------


@given(count=st.integers(1, 30), seed=st.integers(0, 99), epoch=st.integers(0, 5), data=st.data())
def test_the_batches_of_an_epoch_are_a_permutation(count, seed, epoch, data):
    size, start = data.draw(st.integers(1, 7)), data.draw(st.integers(0, count))
    rows = [row([i + 1, i + 1]) for i in range(count)]
    order = epoch_order(count, seed, epoch)
    found = [b["input_ids"][:, 0] for b in batches(rows, order, size)]
    assert sorted(np.concatenate(found).tolist()) == list(range(1, count + 1))
    rest = [b["input_ids"][:, 0].tolist() for b in batches(rows, order, size, start=start)]
    seen = np.concatenate(found)
    assert [i for part in rest for i in part] == seen[start:].tolist()
    assert np.array_equal(order, epoch_order(count, seed, epoch))


def test_epochs_and_seeds_have_their_own_orders():
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    with pytest.raises(InputError, match="seed: expected an integer"):
        epoch_order(3, -1, 0)


def test_a_batch_is_filled_at_its_right():
    batch = collate([row([5, 6, 7]), row([8])], pad_token_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "attention_mask" not in collate([row([5, 6]), row([7, 8])])
    with pytest.raises(InputError, match="rows: expected at least one"):
        collate([])


def test_the_collator_of_transformers(tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collator([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}])
    assert batch["labels"].tolist() == [[5, 6, 7], [-100, 9, -100]]
    with pytest.raises(InputError, match="mlm: expected False"):
        DataCollatorForLanguageModeling(tokenizer, mlm=True)
    with pytest.raises(InputError, match=r"features\[0\]: labels: expected as many"):
        collator([{"input_ids": [5, 6], "labels": [5]}])
    with pytest.raises(InputError, match=r"features\[1\]: expected input_ids, found \{'text'"):
        collator([{"input_ids": [5, 6]}, {"text": "x"}])
