"""Text to ids and back: against transformers, the recorded samples, laws, and broken files."""

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

import fake_hub
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import mamba_np
from mamba_np import AutoTokenizer, Tokenizer, hub
from mamba_np.errors import (
    FileMissingError,
    InputError,
    MambaError,
    TokenizerError,
    UnsafeFileError,
)
from mamba_np.tokenizer import BatchEncoding, TokenizerSettings
from mamba_np.tokenizer.stages import check_stages
from mamba_np.tokenizer.stream import BYTE_ALPHABET, ByteStream, WindowStream

BASE = Path(__file__).parent / "fixtures" / "models" / "base_silu"
STORIES = Path(mamba_np.__file__).parent / "models" / "stories"
EOT = "<|endoftext|>"

NASTY = [
    "",
    " ",
    "a",
    "Hey how are you doing?",
    "선택적 상태 공간 모델",  # Hangul, composed
    unicodedata.normalize("NFD", "한글 맘바"),  # and as single letters
    "👩‍👩‍👧‍👦 👍🏽 🇰🇷 ❤️",  # emoji joined, coloured, paired, with selector
    "e\u0301 n\u0303 Z\u0351\u036b\u0343",  # combining marks
    "nul\0 in the middle\0",
    "\r\n\t\x0b\x1b[0m",
    "\ufeffbyte order mark",
    "\ufffd already replaced",
    "\u202eright to left\u202c שלום مرحبا",
    "\U0010ffff\U00010000\uffff",
    EOT,
    f"one{EOT}two {EOT} three",
    "<|endoftext|",
    "x" * 5000,
    " " * 3000,
    "the quick brown fox " * 500,
    "1234567890" * 50,
    "don't you'll I'VE",
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def base():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def stories():
    return AutoTokenizer.from_pretrained(STORIES)


BOTH = {"base": AutoTokenizer.from_pretrained(BASE), "stories": Tokenizer.from_pretrained(STORIES)}


def both(test):
    return pytest.mark.parametrize("tokenizer", BOTH.values(), ids=BOTH.keys())(test)


def content():
    """A copy of base_silu's tokenizer.json, to be damaged."""
    return json.loads((BASE / "tokenizer.json").read_text("utf-8"))


def folder_with(path, value=None, config=None, special=None):
    """A folder with the given tokenizer.json (an object or text) and other files."""
    path.mkdir(exist_ok=True)
    value = content() if value is None else value
    text = value if isinstance(value, str) else json.dumps(value)
    (path / "tokenizer.json").write_text(text, "utf-8")
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    if special is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(special))
    return path


def template(special_tokens=True):
    """A post-processor that puts <|endoftext|> before and after each text."""
    token = {"SpecialToken": {"id": EOT, "type_id": 0}}
    known = {EOT: {"id": EOT, "ids": [0], "tokens": [EOT]}}
    return {
        "type": "TemplateProcessing",
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}, token],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": known if special_tokens else {},
    }


# --- against recorded values and transformers ----------------------------------------------------


def test_recorded_samples(base, manifest):
    recorded = manifest["models"]["base_silu"]["tokenizer"]
    assert len(recorded["samples"]) == 8
    for text, ids, decoded in zip(
        recorded["samples"], recorded["ids"], recorded["decoded"], strict=True
    ):
        assert base(text)["input_ids"] == ids
        assert base.encode(text) == ids
        assert base.decode(ids) == decoded
    assert base(recorded["samples"])["input_ids"] == recorded["ids"]
    assert base.batch_decode(recorded["ids"]) == recorded["decoded"]
    assert base.vocab_size == len(base) == recorded["vocab_size"]


@pytest.fixture(scope="module")
def peers():
    """transformers' tokenizers of the same folders, by ours."""
    transformers = pytest.importorskip("transformers")
    return [
        (ours, transformers.AutoTokenizer.from_pretrained(ours_folder))
        for ours, ours_folder in zip(BOTH.values(), (BASE, STORIES), strict=True)
    ]


def nfc(text):
    """transformers 5 gives every GPTNeoXTokenizer an NFC normaliser, even if the file has none."""
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", NASTY)
def test_ids_and_text_as_transformers(peers, text):
    for ours, theirs in peers:
        ids = ours(nfc(text))["input_ids"]
        assert ids == theirs(nfc(text))["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
            ids, skip_special_tokens=True
        )
        assert ours.tokenize(nfc(text)) == theirs.tokenize(nfc(text))


@given(text=texts)
def test_any_text_as_transformers(peers, text):
    for ours, theirs in peers:
        assert dict(ours(nfc(text))) == dict(theirs(nfc(text)))


@given(ids=st.lists(st.integers(0, 2500), max_size=40), skip=st.booleans())
def test_any_ids_decode_as_transformers(peers, ids, skip):
    for ours, theirs in peers:
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
            ids, skip_special_tokens=skip
        )
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "return_tensors": "np"},
        {"padding": "max_length", "max_length": 7},
        {"padding": "max_length", "max_length": 4, "truncation": True, "return_tensors": "np"},
        {"padding": "max_length", "max_length": 2},
        {"truncation": True, "max_length": 3},
        {"truncation": "longest_first", "max_length": 0},
        {"max_length": 3},
        {"max_length": 3, "truncation": False},
        {"padding": "do_not_pad", "truncation": "do_not_truncate"},
        {"padding": True, "return_offsets_mapping": True, "return_tensors": "np"},
        {"return_attention_mask": False},
        {"truncation": True},
    ],
    ids=str,
)
def test_batches_as_transformers(peers, options, side):
    batch = ["state space", "맘", "", "a longer text than the others"]
    for ours, theirs in peers:
        ours.padding_side = theirs.padding_side = side
        ours.truncation_side = theirs.truncation_side = side
        try:
            actual, expected = ours(batch, **options), theirs(batch, **options)
        finally:
            ours.padding_side = ours.truncation_side = "right"
        assert set(actual) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(
                np.asarray(actual[name], object), np.asarray(value, object)
            )
            assert type(actual[name]) is type(value)


@pytest.mark.parametrize("limit", [2, 3, 5, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_special_tokens_around_the_text_survive_truncation(tmp_path, limit, side):
    transformers = pytest.importorskip("transformers")
    config = {"truncation_side": side, "pad_token": EOT, "eos_token": EOT}
    folder = folder_with(tmp_path / "t", {**content(), "post_processor": template()}, config)
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("abcdef", "", f"a{EOT}b{EOT}cdef"):
        options = {"truncation": True, "max_length": limit, "return_offsets_mapping": True}
        assert dict(ours(text, **options)) == {
            k: v for k, v in theirs(text, **options).items() if k != "token_type_ids"
        }
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )
    with pytest.raises(InputError, match="expected room for the 2 special tokens"):
        ours("abc", truncation=True, max_length=1)


def test_what_is_saved_transformers_loads(tmp_path, peers):
    transformers = pytest.importorskip("transformers")
    for ours, _ in peers:
        ours.save_pretrained(tmp_path)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert theirs.pad_token == ours.pad_token
        assert theirs.all_special_tokens == ours.all_special_tokens
        assert theirs("선택 state")["input_ids"] == ours("선택 state")["input_ids"]


@pytest.mark.parametrize(
    ("config", "special"),
    [
        ({"eos_token": EOT, "pad_token": {"__type": "AddedToken", "content": "[PAD]"}}, None),
        ({"eos_token": "a"}, {"eos_token": EOT, "bos_token": {"content": "b"}}),
        ({"eos_token": "a", "added_tokens_decoder": {}}, {"eos_token": EOT}),
        ({"additional_special_tokens": ["<x>", "<y>"], "eos_token": None}, None),
        ({}, {"unk_token": EOT}),
    ],
)
def test_special_tokens_as_transformers(tmp_path, config, special):
    transformers = pytest.importorskip("transformers")
    folder = folder_with(tmp_path / "t", None, config, special)
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    text = "a[PAD]b<x>"
    assert ours.encode(text) == theirs.encode(text)
    ids = list(range(len(ours)))
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
        ids, skip_special_tokens=True
    )


# --- laws ----------------------------------------------------------------------------------------


@given(text=texts)
def test_byte_level_text_survives(text):
    for tokenizer in BOTH.values():
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@both
@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_survives(tokenizer, text):
    encoding = tokenizer(text, return_tensors="np")
    assert encoding.input_ids.dtype == np.int64
    assert encoding.input_ids.shape == encoding.attention_mask.shape
    assert tokenizer.decode(encoding.input_ids[0]) == text
    assert tokenizer.decode(encoding.input_ids[0], skip_special_tokens=True) == text.replace(
        EOT, ""
    )


@given(batch=st.lists(texts, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_a_padded_batch_holds_each_text(batch, side):
    tokenizer = BOTH["base"]
    tokenizer.padding_side = side
    try:
        encoding = tokenizer(batch, padding=True, return_tensors="np")
    finally:
        tokenizer.padding_side = "right"
    for row, mask, text in zip(encoding.input_ids, encoding.attention_mask, batch, strict=True):
        assert row[mask == 1].tolist() == tokenizer.encode(text)
        assert (row[mask == 0] == tokenizer.pad_token_id).all()
        assert (np.diff(mask) * (1 if side == "left" else -1) >= 0).all()


@given(text=texts)
def test_offsets_cover_the_text(text):
    for tokenizer in BOTH.values():
        encoding = tokenizer(text, return_offsets_mapping=True)
        assert len(encoding.offset_mapping) == len(encoding.input_ids)
        covered = {i for start, end in encoding.offset_mapping for i in range(start, end)}
        gaps = set(range(len(text))) - covered
        assert all(text[i].isspace() for i in gaps)  # spaces may be trimmed off tokens


# --- the forms of input and output ---------------------------------------------------------------


def test_encoding_is_a_dict_with_attributes(base):
    encoding = base("state space")
    assert isinstance(encoding, BatchEncoding)
    assert isinstance(encoding, dict)
    assert {**encoding} == {"input_ids": [321, 268, 313], "attention_mask": [1, 1, 1]}
    assert encoding.input_ids is encoding["input_ids"]
    with pytest.raises(AttributeError, match="labels: expected one of this encoding's: input_ids"):
        _ = encoding.labels
    assert pickle.loads(pickle.dumps(encoding)) == encoding


def test_one_text_and_several(base):
    assert base("ab").input_ids == [65, 66]
    assert base(["ab"]).input_ids == [[65, 66]]
    assert base(("ab", "c")).input_ids == [[65, 66], [67]]
    assert base("ab", return_tensors="np").input_ids.shape == (1, 2)
    assert base("", return_tensors="np").input_ids.shape == (1, 0)
    assert base("", return_tensors="np", return_offsets_mapping=True).offset_mapping.shape == (
        (1, 0, 2)
    )
    assert base(["", ""], padding=True, return_tensors="np").attention_mask.shape == (2, 0)
    assert base.encode("ab", return_tensors="np").tolist() == [[65, 66]]


def test_decode_takes_every_form_of_ids(base):
    for ids in ([65, 66], (65, 66), np.array([65, 66]), np.array([65, 66], np.uint8)):
        assert base.decode(ids) == "ab"
    assert base.decode(65) == base.decode(np.int64(65)) == base.decode(np.array(65)) == "a"
    assert base.decode([]) == base.decode(np.array([])) == ""
    rows = np.array([[65, 66], [67, 0]])
    assert base.batch_decode(rows) == ["ab", f"c{EOT}"]
    assert base.batch_decode(rows, skip_special_tokens=True) == ["ab", "c"]
    assert base.batch_decode([[65], []]) == ["a", ""]
    assert base.decode([65, 14], clean_up_tokenization_spaces=True) == "a."


def test_torch_tensors_decode(base):
    torch = pytest.importorskip("torch")
    assert base.decode(torch.tensor([65, 66])) == "ab"
    assert base.batch_decode(torch.tensor([[65], [66]])) == ["a", "b"]


def test_ids_beyond_the_vocabulary_give_no_text(base):
    assert base.decode([65, 323, 66, 50279, 2**32 + 65, 2**62]) == "ab"
    assert base.convert_ids_to_tokens([65, 323, 2**40]) == ["a", None, None]


def test_tokens_and_ids(base):
    assert base.convert_tokens_to_ids("a") == 65
    assert base.convert_tokens_to_ids(["a", EOT, "no such token"]) == [65, 0, base.unk_token_id]
    assert base.convert_ids_to_tokens(65) == base.convert_ids_to_tokens(np.int64(65)) == "a"
    assert base.convert_ids_to_tokens([0, 65], skip_special_tokens=True) == ["a"]
    assert base.get_vocab()["a"] == 65
    assert len(base.get_vocab()) == len(base) == 323
    assert base.tokenize("a state") == ["a", "Ġstate"]


def test_special_tokens(base, stories):
    for tokenizer in (base, stories):
        assert tokenizer.bos_token == tokenizer.eos_token == EOT
        assert tokenizer.pad_token == tokenizer.unk_token == EOT
        assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
        assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0
        assert tokenizer.all_special_tokens == [EOT]
        assert tokenizer.all_special_ids == [0]
    assert base.model_max_length == 2048
    assert base.padding_side == base.truncation_side == "right"
    assert repr(base).startswith("Tokenizer(323 tokens, bos_token='<|endoftext|>'")


def test_special_tokens_can_be_set(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "t"))
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None
    assert tokenizer.all_special_tokens == []
    assert tokenizer.convert_tokens_to_ids("no such token") is None
    tokenizer.eos_token = EOT
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 0
    tokenizer.pad_token_id = 65
    assert tokenizer.pad_token == "a"
    assert tokenizer(["b", "cd"], padding=True).input_ids == [[66, 65], [67, 68]]
    for wrong in ("no such token", 3, ""):
        with pytest.raises(InputError, match="pad_token: expected a token of the vocabulary"):
            tokenizer.pad_token = wrong
    for wrong in (323, [65], 2**40):
        with pytest.raises(InputError, match="eos_token_id: expected an id of the vocabulary"):
            tokenizer.eos_token_id = wrong
    tokenizer.pad_token = None
    tokenizer.eos_token_id = None
    assert tokenizer.all_special_tokens == []


def test_a_special_token_that_is_missing_is_added(tmp_path):
    config = {"pad_token": "[PAD]"}
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "t", None, config))
    assert (tokenizer.pad_token_id, len(tokenizer), tokenizer.vocab_size) == (323, 324, 323)
    assert tokenizer.encode("a[PAD]") == [65, 323]
    assert tokenizer.decode([65, 323], skip_special_tokens=True) == "a"


def test_padding_side(tmp_path):
    folder = folder_with(tmp_path / "t", None, {"pad_token": EOT, "padding_side": "left"})
    assert AutoTokenizer.from_pretrained(folder)(["a", "bc"], padding=True).input_ids == (
        [[0, 65], [66, 67]]
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    assert tokenizer(["a", "bc"], padding=True).attention_mask == [[1, 0], [1, 1]]


def test_a_tokenizer_in_memory():
    model = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_truncation(1)
    backend.enable_padding(length=9)
    tokenizer = Tokenizer(backend, TokenizerSettings(special={"unk_token": "[UNK]"}))
    assert tokenizer("a b zebra").input_ids == [1, 2, 0]
    assert Tokenizer(backend).unk_token is None


def test_saved_tokenizer_is_the_same(tmp_path, stories):
    stories_copy = Tokenizer.from_pretrained(STORIES, padding_side="left")
    stories_copy.pad_token = "z"  # becomes special, as in transformers: not in the text below
    paths = stories_copy.save_pretrained(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ]
    again = AutoTokenizer.from_pretrained(paths[0].parent)
    assert again.get_vocab() == stories.get_vocab()
    assert again.special_tokens_map == stories_copy.special_tokens_map
    assert (again.padding_side, again.model_max_length) == ("left", stories.model_max_length)
    assert again("선택 state").input_ids == stories("선택 state").input_ids
    with pytest.raises(MambaError, match="expected a folder to save into, found a file"):
        again.save_pretrained(paths[0])


def test_saving_over_older_files_wins(tmp_path):
    config, special = {"bos_token": EOT}, {"pad_token": EOT, "eos_token": EOT}
    folder = folder_with(tmp_path / "t", None, config, special)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == EOT
    tokenizer.pad_token = "a"
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).special_tokens_map == {"pad_token": "a"}


def test_pickle(base):
    again = pickle.loads(pickle.dumps(base))
    assert again("맘바", return_tensors="np").input_ids.tolist() == [[168, 101, 247, 168, 109, 243]]
    assert again.pad_token_id == 0


def test_threads(stories):
    expected = [stories(text).input_ids for text in NASTY]
    failures = []

    def work():
        for _ in range(3):
            rows = stories(NASTY).input_ids
            if rows != expected or stories.batch_decode(rows) != NASTY:
                failures.append(rows)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_importing_the_module_does_not_import_tokenizers():
    code = (
        "import sys, mamba_np.tokenizer, mamba_np.streamers;"
        "print([m for m in ('tokenizers', 'huggingface_hub') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"


# --- arguments that cannot be used ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, "text: expected a string or a list of them, found NoneType"),
        (3, {}, "text: expected a string or a list of them, found int"),
        (b"ab", {}, "text: expected a string or a list of them, found bytes"),
        ([], {}, "text: expected at least one text, found an empty list"),
        (["a", 3], {}, r"text\[1\]: expected a string, found int"),
        ([["a"]], {}, r"text\[0\]: expected a string, found list"),
        ("ab\ud800c", {}, r"text: .* lone surrogate '\\ud800' at position 2"),
        (["a", "\udfff"], {}, r"text\[1\]: .* lone surrogate '\\udfff' at position 0"),
        (["a", "bcd"], {"return_tensors": "np"}, "found 1 to 3 tokens; pass padding=True"),
        ("a", {"return_tensors": "pt"}, "expected 'np' .* or None, found 'pt'"),
        ("a", {"return_tensors": "tf"}, "expected 'np' .* or None, found 'tf'"),
        ("a", {"return_tensors": "jax"}, "expected 'np' .* or None, found 'jax'"),
        ("a", {"padding": "left"}, "padding: expected one of False, .* found 'left'"),
        ("a", {"padding": None}, "padding: expected one of False, .* found None"),
        ("a", {"truncation": 3}, "truncation: expected one of None, .* found 3"),
        ("a", {"max_length": -1}, "max_length: expected an integer from 0, found -1"),
        ("a", {"max_length": 2.5}, "max_length: expected an integer from 0, found 2.5"),
        ("a", {"max_length": True}, "max_length: expected an integer from 0, found True"),
        ("a", {"max_length": "9"}, "max_length: expected an integer from 0, found '9'"),
    ],
)
def test_call_refuses(base, text, options, message):
    with pytest.raises(InputError, match=message):
        base(text, **options)


def test_padding_needs_a_length_when_there_is_no_limit(stories):
    with pytest.raises(InputError, match="padding='max_length': expected max_length, found None"):
        stories("a", padding="max_length")


def test_padding_needs_a_pad_token(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "t"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        tokenizer(["a", "bc"], padding=True)


@pytest.mark.parametrize("name", ["padding_side", "truncation_side"])
def test_a_wrong_side_is_refused(base, name):
    tokenizer = pickle.loads(pickle.dumps(base))
    setattr(tokenizer, name, "top")
    with pytest.raises(InputError, match=f"{name}: expected 'left' or 'right', found 'top'"):
        tokenizer(["ab", "c"], padding=True, truncation=True, max_length=1)
    with pytest.raises(InputError, match="padding_side: expected 'left' or 'right', found 'top'"):
        AutoTokenizer.from_pretrained(BASE, padding_side="top")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([65, -1], "ids: expected numbers from 0, found -1 at position 1"),
        (-3, "ids: expected numbers from 0, found -3 at position 0"),
        ([65.0], "ids: expected integers, found float64"),
        (True, "ids: expected integers, found bool"),
        ("65", "ids: expected integers, found <U2"),
        (None, "ids: expected integers, found object"),
        ([2**70], "ids: expected integers, found object"),
        ([[65]], r"found shape \(1, 1\); batch_decode takes several texts"),
        ([[65], [66, 67]], "ids: expected integers, found list"),
    ],
)
def test_decode_refuses(base, ids, message):
    with pytest.raises(InputError, match=message):
        base.decode(ids)
    with pytest.raises(InputError, match=message):
        base.stream_decoder().put(ids)


@pytest.mark.parametrize("sequences", [[65, 66], np.array([65, 66]), 65, "ab", None])
def test_batch_decode_refuses(base, sequences):
    with pytest.raises(InputError, match="sequences: expected a list of lists of ids"):
        base.batch_decode(sequences)


def test_encode_takes_one_text(base):
    with pytest.raises(InputError, match="text: expected one string, found list"):
        base.encode(["a"])


def test_unknown_keywords_are_type_errors(base):
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_fats'"):
        AutoTokenizer.from_pretrained(BASE, use_fats=True)
    with pytest.raises(TypeError, match="text_pair"):
        base("a", text_pair="b")


# --- decoding token by token ---------------------------------------------------------------------


def streamed(decoder, ids):
    pieces = [decoder.put(i) for i in ids]
    return pieces, decoder.flush()


def every_byte(backend):
    """The ids of the 256 one-byte tokens, and of some others."""
    return [backend.token_to_id(character) for character in BYTE_ALPHABET]


BYTE_IDS = every_byte(BOTH["base"].backend_tokenizer)


@both
@given(ids=st.lists(st.integers(0, 2600) | st.sampled_from([2**32, 2**40]), max_size=60))
def test_stream_equals_decode_for_any_ids(tokenizer, ids):
    for skip in (False, True):
        decoder = tokenizer.stream_decoder(skip_special_tokens=skip)
        expected = tokenizer.decode(ids, skip_special_tokens=skip)
        for _ in range(2):  # flush makes it as new
            pieces, rest = streamed(decoder, ids)
            assert "".join(pieces) + rest == expected
        assert decoder.put(ids) + decoder.flush() == expected


@given(
    data=st.lists(
        st.binary(max_size=3)
        | st.characters(exclude_categories=["Cs"]).map(str.encode)
        | st.sampled_from([b"\xed\xa0\x80", b"\xf0\x80", b"\xf4\x90", b"\xe2\x82", b"\xc0\xaf"])
    ).map(b"".join)
)
def test_stream_equals_decode_for_any_bytes(data):
    tokenizer, ids = BOTH["base"], [BYTE_IDS[list(BYTE_ALPHABET.values()).index(b)] for b in data]
    pieces, rest = streamed(tokenizer.stream_decoder(), ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids) == data.decode("utf-8", "replace")
    assert rest in ("", "\ufffd")


@given(text=texts)
def test_stream_never_shows_half_a_character(text):
    for tokenizer in BOTH.values():
        pieces, rest = streamed(tokenizer.stream_decoder(), tokenizer.encode(text))
        assert "".join(pieces) == text
        assert rest == ""


def test_stream_shows_a_character_with_its_last_byte(base):
    pieces, rest = streamed(base.stream_decoder(), base.encode("맘바 a"))
    assert (pieces, rest) == (["", "", "맘", "", "", "바", " ", "a"], "")
    assert streamed(base.stream_decoder(), base.encode("맘바")[:4]) == (
        ["", "", "맘", ""],
        "\ufffd",
    )


def test_stream_skips_special_tokens(base):
    ids = [65, 0, 66]
    assert streamed(base.stream_decoder(), ids)[0] == ["a", EOT, "b"]
    assert streamed(base.stream_decoder(skip_special_tokens=True), ids)[0] == ["a", "", "b"]


def test_stream_of_added_tokens(tmp_path):
    """Text in added tokens stands as it is, unless it could be bytes: decode has it so."""
    backend = tokenizers.Tokenizer.from_file(str(BASE / "tokenizer.json"))
    backend.add_tokens(["  ", "é", "日本", tokenizers.AddedToken("한", normalized=False)])
    tokenizer = Tokenizer(backend)
    added = sorted(backend.get_added_tokens_decoder())
    for ids in ([*added], [*added[::-1], 65], [168, *added], [168, 101, added[-1], 247]):
        pieces, rest = streamed(tokenizer.stream_decoder(), ids)
        assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_stream_costs_the_same_at_every_position(base):
    """Also for bytes that never become a character: nothing is decoded again."""
    for token in (
        65,
        base.backend_tokenizer.token_to_id("ÿ"),
        base.backend_tokenizer.token_to_id("Ģ"),
    ):
        decoder = base.stream_decoder()
        times = []
        for _ in range(20):
            start = time.process_time()
            for _ in range(2000):
                decoder.put(token)
            times.append(time.process_time() - start)
        assert min(times[10:]) < 3 * min(times[:10])


def byte_fallback_backend():
    """A tokenizer in the manner of Llama: spaces as "▁", unknown characters as byte tokens."""
    pieces = ["▁", "a", "b", "▁a", "c", "▁b", "ab"]
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {piece: 256 + number for number, piece in enumerate(["<unk>", "<s>", *pieces])}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    model = tokenizers.models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def word_backend():
    words = ["[UNK]", "state", "space", "mod", "##el", "a", ".", ",", "do", "n't"]
    vocab = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(cleanup=True)
    return backend


FALLBACK, WORDS = Tokenizer(byte_fallback_backend()), Tokenizer(word_backend())


@given(text=st.text(st.sampled_from("a b c é 선 👍 \u0301 .,") | st.characters(codec="utf-8")))
def test_other_decoders_stream_what_came_from_text(text):
    for tokenizer in (FALLBACK, WORDS):
        ids = tokenizer.encode(text)
        decoder = tokenizer.stream_decoder()
        assert isinstance(decoder, WindowStream)
        for _ in range(2):
            pieces, rest = streamed(decoder, ids)
            assert "".join(pieces) + rest == tokenizer.decode(ids)
            assert rest == "" or text.endswith("\ufffd") or not ids


def test_other_decoders_stream_in_time():
    pieces, rest = streamed(FALLBACK.stream_decoder(), FALLBACK.encode("ab 선 a"))
    assert "".join(pieces) == "ab 선 a"
    assert pieces[0] != ""
    assert "선" in pieces
    words, rest = streamed(WORDS.stream_decoder(), WORDS.encode("state space model, a."))
    assert (words, rest) == (["state", " space", " mod", "el", ",", " a", "."], "")


def test_other_decoders_never_hold_back_for_long():
    """Bytes that are no character are shown after a while, and the cost stays the same."""
    decoder = FALLBACK.stream_decoder()
    assert "\ufffd" in "".join(decoder.put(0xFF) for _ in range(20))
    assert len(decoder._new) < WindowStream.LIMIT
    assert FALLBACK.stream_decoder().put([50000, 2**40]) == ""


def test_the_byte_alphabet_is_that_of_the_tokenizers_package():
    assert set(BYTE_ALPHABET) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    byte_level = tokenizers.decoders.ByteLevel()
    for character, byte in BYTE_ALPHABET.items():
        assert byte_level.decode([character]) == bytes([byte]).decode("utf-8", "replace")
    assert isinstance(BOTH["base"].stream_decoder(), ByteStream)


# --- files that cannot be used -------------------------------------------------------------------


def damaged(**changes):
    return content() | changes


def model(**changes):
    whole = content()
    return whole | {"model": whole["model"] | changes}


BROKEN = {
    "empty": ("", "expected JSON, found a syntax error"),
    "not JSON": ("<!DOCTYPE html>", "expected JSON, found a syntax error"),
    "git-lfs pointer": ("version https://git-lfs.github.com/spec/v1\n", "found a syntax error"),
    "cut off": (json.dumps(content())[:-300], "expected JSON, found a syntax error"),
    "deep": ('{"a":' * 100_000 + "1" + "}" * 100_000, "found nesting that is too deep"),
    "a list": ([], "expected a JSON object, found list"),
    "no model": ({"version": "1.0"}, "model: expected an object, found NoneType"),
    "another version": (damaged(version="2.0"), "found: .*version"),
    "unknown model": (model(type="Foo"), "a tokenizer that the tokenizers package can use, found"),
    "vocabulary a list": (model(vocab=["a", "b"]), "tokenizers package can use, found"),
    "negative id": (model(vocab={"a": -1}, merges=[]), "tokenizers package can use, found"),
    "text id": (model(vocab={"a": "1"}, merges=[]), "tokenizers package can use, found"),
    "merge of unknown tokens": (model(merges=[["zzz", "a"]]), "merges: expected 'zzz' \\+ 'a'"),
    "merge to an unknown token": (model(merges=["z z"]), "merges: .* found that 'zz' is none"),
    "merge of three": (model(merges=[["z", "z", "z"]]), "tokenizers package can use, found"),
    "merge of numbers": (model(merges=[[1, 2]]), "tokenizers package can use, found"),
    "prefix longer than a merge": (
        model(continuing_subword_prefix="##############"),
        "merges: expected .* to give a token of the vocabulary",
    ),
    "dropout": (model(dropout=7), "tokenizers package can use, found: Dropout"),
    "unknown decoder": (damaged(decoder={"type": "Nope"}), "tokenizers package can use, found"),
    "bad pattern": (
        damaged(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
        "tokenizers package can use, found",
    ),
    "lone surrogate": (
        json.dumps(content()).replace('"z"', '"\\ud800"', 1),
        "tokenizers package can use, found|is none",
    ),
    "template without its tokens": (
        damaged(post_processor=template(special_tokens=False)),
        "tokenizers package can use, found",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tokenizer_file(tmp_path, case):
    value, message = BROKEN[case]
    folder = folder_with(tmp_path / "t", value)
    with pytest.raises(TokenizerError, match=message) as caught:
        AutoTokenizer.from_pretrained(folder)
    assert str(caught.value).startswith(str(folder / "tokenizer.json"))


def test_merges_the_package_panics_on_are_refused_quietly(tmp_path, capfd):
    """Rust prints a panic; such files do not get that far."""
    for value in (
        model(vocab={"a": 0, "b": 1}, merges=["a b"]),
        model(continuing_subword_prefix="##############"),
    ):
        with pytest.raises(TokenizerError, match="merges"):
            AutoTokenizer.from_pretrained(folder_with(tmp_path / "t", value))
    assert capfd.readouterr() == ("", "")


def test_a_huge_file_is_not_read(tmp_path):
    folder = folder_with(tmp_path / "t")
    with open(folder / "tokenizer.json", "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: expected a JSON file of at most"):
        AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token": 3}, "tokenizer_config.json: pad_token: expected a token's text"),
        ({"eos_token": {"text": "a"}}, "tokenizer_config.json: eos_token: expected a token's text"),
        ({"eos_token": ""}, "tokenizer_config.json: eos_token: expected a token's text"),
        ({"padding_side": "up"}, "padding_side: expected 'left' or 'right', found 'up'"),
        ({"truncation_side": ["left"]}, "truncation_side: expected 'left' or 'right'"),
        (
            {"model_max_length": 0},
            "model_max_length: expected a finite number of at least 1, found 0",
        ),
        ({"model_max_length": "2048"}, "model_max_length: expected a finite number of at least 1"),
        (
            {"model_max_length": float("nan")},
            "model_max_length: expected a finite number of at least 1",
        ),
        ({"model_max_length": 10**400}, "number of at least 1, found an integer of 1329 bits"),
        ({"model_max_length": True}, "model_max_length: expected a finite number of at least 1"),
        ({"additional_special_tokens": "<x>"}, "additional_special_tokens: expected a list"),
        ({"extra_special_tokens": [3]}, "extra_special_tokens: expected a token's text"),
        ([], "tokenizer_config.json: expected a JSON object, found list"),
    ],
)
def test_broken_configuration(tmp_path, config, message):
    folder = folder_with(tmp_path / "t", None, config)
    with pytest.raises(TokenizerError, match=message) as caught:
        AutoTokenizer.from_pretrained(folder)
    assert "tokenizer_config.json" in str(caught.value)


def test_broken_special_tokens_map(tmp_path):
    folder = folder_with(tmp_path / "t", None, {}, {"pad_token": ["a"]})
    with pytest.raises(TokenizerError, match=r"special_tokens_map.json: pad_token: .* \['a'\]"):
        AutoTokenizer.from_pretrained(folder)


def test_no_tokenizer_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileMissingError, match="EleutherAI/gpt-neox-20b") as caught:
        AutoTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        AutoTokenizer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_what_is_no_file_is_refused(tmp_path, kind, name):
    folder = folder_with(tmp_path / "t")
    (folder / name).unlink(missing_ok=True)
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no named pipes on this system")
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(folder / "nothing")
    with pytest.raises(FileMissingError, match=name):
        AutoTokenizer.from_pretrained(folder)


def test_a_text_that_the_tokenizer_cannot_encode(tmp_path):
    whole = model(vocab={"a": 0, EOT: 1}, merges=[], unk_token="missing")
    whole["added_tokens"] = []
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "t", whole))
    with pytest.raises(TokenizerError, match=r"text: .* found: Unk token `missing`"):
        tokenizer("한")


def test_interrupts_pass(monkeypatch, base):
    """Ctrl-C while the package works is no broken tokenizer."""
    from mamba_np.tokenizer.files import refusing

    for problem in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(problem), refusing("a tokenizer"):
            raise problem
    with pytest.raises(TokenizerError, match="a tokenizer, found: no"), refusing("a tokenizer"):
        raise Exception("no")


# --- files that ask for too much -----------------------------------------------------------------


def replace(pattern, text):
    return {"type": "Replace", "pattern": pattern, "content": text}


def charsmap(size, rest=b""):
    return base64.b64encode(size.to_bytes(4, "little") + rest).decode()


def sequence(key, stages):
    return {"type": "Sequence", key: stages}


def padded(**strategy):
    return {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": EOT,
    } | strategy


def many_tokens(count, ids):
    """A template with ``count`` special tokens of ``ids`` ids each, all put before the text."""
    names = [f"<{number}>" for number in range(count)]
    whole = template()
    whole["special_tokens"] = {
        name: {"id": name, "ids": [0] * ids, "tokens": ["a"] * ids} for name in names
    }
    whole["single"] += [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    return whole


A_TO_AA = replace({"String": "a"}, "aa")
TWICE = {**template(), "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
HUNGRY = {
    "24 doublings": ("normalizer", sequence("normalizers", [A_TO_AA] * 24)),
    "40 doublings": ("normalizer", sequence("normalizers", [A_TO_AA] * 40)),
    "nested doublings": (
        "normalizer",
        sequence("normalizers", [sequence("normalizers", [A_TO_AA] * 5)] * 5),
    ),
    "nesting": ("normalizer", json.loads('{"type":"Sequence","normalizers":[' * 200 + "]}" * 200)),
    "a long replacement": ("normalizer", replace({"String": "a"}, "b" * 10**6)),
    "a replacement of nothing": ("normalizer", replace({"String": ""}, "b" * 10**4)),
    "a replacement of a pattern": ("normalizer", replace({"Regex": "a*?"}, "b" * 10**4)),
    "an unknown name": ("normalizer", A_TO_AA | {"type": "Foo", "content": "b" * 10**4}),
    "no type": ("normalizer", {"pattern": {"String": "a"}, "content": "b" * 10**6}),
    "a prefix": ("normalizer", {"type": "Prepend", "prepend": "b" * 2**20}),
    "bytes of bytes": ("pre_tokenizer", sequence("pretokenizers", [BYTES] * 30)),
    "doublings of what is decoded": ("decoder", sequence("decoders", [A_TO_AA] * 30)),
    "a map with a false size": (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    ),
    "a map one byte short": (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": charsmap(8, bytes(7))},
    ),
    "a map that is no base64": (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": "AAAA\u00e9"},
    ),
    "a map to a long text": (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": charsmap(0, b"a" * 10**5)},
    ),
    "a template of many ids": ("post_processor", many_tokens(1, 10_000)),
    "a template of many tokens": ("post_processor", many_tokens(2000, 1)),
    "a long token": ("post_processor", {**template(), "special_tokens": {"a" * 10**5: {}}}),
    "repeated texts": ("post_processor", sequence("processors", [TWICE] * 30)),
    "a stage that is no object": ("pre_tokenizer", sequence("pretokenizers", [["ByteLevel"]])),
}


@pytest.mark.parametrize("case", HUNGRY)
def test_stages_that_ask_for_too_much_are_refused(tmp_path, monkeypatch, case):
    """The package would run out of memory, which no one can catch; it never sees such a file."""
    monkeypatch.setattr(tokenizers, "Tokenizer", None)
    field, value = HUNGRY[case]
    folder = folder_with(tmp_path / "t", damaged(**{field: value}))
    with pytest.raises(TokenizerError) as caught:
        AutoTokenizer.from_pretrained(folder)
    assert str(caught.value).startswith(f"{folder / 'tokenizer.json'}: {field}")
    assert "expected" in str(caught.value)
    assert "tokenizers package" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "padding", [padded(strategy={"Fixed": 10**9}), padded(pad_to_multiple_of=10**9)], ids=str
)
def test_padding_in_the_file_is_never_done(tmp_path, padding):
    """In a process of its own: done, it would end the process."""
    truncation = {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    whole = damaged(padding=padding, truncation=truncation)
    code = (
        "import sys, mamba_np;"
        "print(mamba_np.AutoTokenizer.from_pretrained(sys.argv[1])('ab').input_ids)"
    )
    folder = folder_with(tmp_path / "t", whole)
    result = subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[65, 66]"


USUAL = {
    "llama": [
        sequence(
            "normalizers", [{"type": "Prepend", "prepend": "_"}, replace({"String": " "}, "▁")]
        ),
        None,
    ],
    "albert": [
        sequence(
            "normalizers",
            [
                replace({"String": "``"}, '"'),
                {"type": "NFKD"},
                {"type": "StripAccents"},
                {"type": "Lowercase"},
                replace({"Regex": " {2,}"}, " "),
            ],
        ),
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ],
    "gpt": [{"type": "NFC"}, BYTES],
}


@pytest.mark.parametrize("case", USUAL)
def test_usual_stages_are_no_different_from_the_package(tmp_path, case):
    normalizer, pre_tokenizer = USUAL[case]
    whole = damaged(normalizer=normalizer, pre_tokenizer=pre_tokenizer, post_processor=template())
    folder = folder_with(tmp_path / "t", whole)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = AutoTokenizer.from_pretrained(folder)
    for text in ("a state  space", "ÁB", "", "ﷺ"):
        assert ours.encode(text) == theirs.encode(text).ids


def test_growth_of_albert_with_its_map_is_allowed():
    """Its map is not here; one whose longest text is as long (U+FDFA in NFKC) stands for it."""
    longest = unicodedata.normalize("NFKC", "\ufdfa").encode()
    assert len(longest) == 33
    normalizer, pre_tokenizer = json.loads(json.dumps(USUAL["albert"]))
    precompiled = {"type": "Precompiled", "precompiled_charsmap": charsmap(0, longest + b"\0")}
    normalizer["normalizers"].append(precompiled)
    check_stages(
        Path("x"),
        {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": template()},
    )
    normalizer["normalizers"].append(precompiled)
    with pytest.raises(TokenizerError, match=r"normalizer.normalizers\[6\]: expected stages"):
        check_stages(Path("x"), {"normalizer": normalizer})


LONG = "x" * 2**19


@pytest.mark.parametrize(
    ("value", "config"),
    [
        (model(merges=[[LONG, "a"]]), None),
        (model(type=LONG), None),
        (model(unk_token=[LONG]), None),
        (damaged(normalizer=[LONG]), None),
        (damaged(normalizer={"type": "Sequence", "normalizers": LONG}), None),
        (damaged(decoder={"type": LONG}), None),
        (damaged(normalizer={"type": "Precompiled", "precompiled_charsmap": LONG + "é"}), None),
        (None, {"pad_token": [LONG]}),
        (None, {"pad_token": LONG + "\ud800"}),
        (None, {"padding_side": LONG}),
        (None, {"truncation_side": [[LONG]]}),
        (None, {"model_max_length": LONG}),
        (None, {"extra_special_tokens": LONG}),
    ],
    ids=range(13),
)
def test_messages_are_short(tmp_path, value, config):
    folder = folder_with(tmp_path / "t", value, config)
    with pytest.raises(TokenizerError) as caught:
        AutoTokenizer.from_pretrained(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", ["\ud800", {"content": "a\udfff"}], ids=["text", "object"])
def test_special_tokens_that_are_no_text(tmp_path, name, token):
    folder = folder_with(tmp_path / "t")
    (folder / name).write_text(json.dumps({"bos_token": token}))
    with pytest.raises(TokenizerError, match=f"{name}: bos_token: .* found a lone surrogate"):
        AutoTokenizer.from_pretrained(folder)
    with pytest.raises(TokenizerError, match="special tokens: expected"):
        Tokenizer(word_backend(), TokenizerSettings(special={"bos_token": "\ud800"}))


@pytest.mark.parametrize("name", hub.TOKENIZER_FILES)
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    folder = folder_with(tmp_path / "t", None, {}, {})
    outside = (folder / name).rename(tmp_path / "outside.json")
    (folder / name).symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=f"{name}: expected a file in the model's folder"):
        AutoTokenizer.from_pretrained(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(outside.rename(folder / "inside.json").name)
    assert AutoTokenizer.from_pretrained(folder).encode("a") == [65]


def test_a_saved_file_is_never_too_long_to_be_read(tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    compact = len(tokenizer.backend_tokenizer.to_str(pretty=False).encode())
    indented = tokenizer.save_pretrained(tmp_path)[0].read_bytes()
    assert compact < len(indented)
    monkeypatch.setattr("mamba_np.tokenizer.files.TOKENIZER_LIMIT", len(indented))
    assert tokenizer.save_pretrained(tmp_path)[0].read_bytes() == indented
    monkeypatch.setattr("mamba_np.tokenizer.files.TOKENIZER_LIMIT", compact)
    assert tokenizer.save_pretrained(tmp_path)[0].stat().st_size == compact
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_subfolder(tmp_path):
    shutil.copytree(BASE, tmp_path / "repo" / "inner")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "repo", subfolder="inner")
    assert len(tokenizer) == 323


def test_hub_name(tmp_path):
    cache, options = tmp_path / "cache", {"local_files_only": True}
    fake_hub.publish(cache, "someone/whole", BASE)
    tokenizer = AutoTokenizer.from_pretrained("someone/whole", cache_dir=cache, **options)
    assert tokenizer.encode("state space") == [321, 268, 313]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    fake_hub.publish(cache, "state-spaces/mamba-130m", tmp_path / "bare")
    with pytest.raises(FileMissingError, match="EleutherAI/gpt-neox-20b"):
        AutoTokenizer.from_pretrained("state-spaces/mamba-130m", cache_dir=cache, **options)
