"""Traces in files: every bit comes back, and what is no trace is refused by name."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_trace import ENGINES, EVERYTHING, assert_same, odd_model, some_ids

from mamba_np import Trace
from mamba_np.errors import CheckpointError, FileMissingError
from mamba_np.trace import files


@pytest.fixture(scope="module")
def trace():
    return odd_model().trace(some_ids(11), [2, 0], [4, 30, 7], EVERYTHING, every=3)


@pytest.fixture
def path(tmp_path, trace):
    trace.save(tmp_path / "trace.safetensors")
    return tmp_path / "trace.safetensors"


def parts_of(path):
    """Return (tensors, values) of a file, to be changed and written again by ``rewrite``."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    return load_file(path), json.loads(metadata["trace"])


def rewrite(path, tensors, values, **metadata):
    known = {"format": files.FILE_FORMAT, "trace": json.dumps(values)}
    save_file(tensors, path, metadata=known | metadata)


def assert_equal(a, b):
    assert_same(a, b)
    for name in ("ids", "layers", "channels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == np.int64
    for name in ("tokens", "labels", "every", "before", "model", "discretisation"):
        assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
@pytest.mark.parametrize("capture", [EVERYTHING, ("logits",), ("h",), ("B", "delta_mean")])
def test_every_bit_comes_back(tmp_path, engine, dtype, capture):
    trace = odd_model(engine, dtype).trace(some_ids(11), [2, 0], capture=capture, every=3)
    trace.save(tmp_path / "t")
    assert_equal(Trace.load(tmp_path / "t"), trace)
    assert not Trace.load(tmp_path / "t").arrays()[capture[0]].flags.writeable
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_texts_come_back(tmp_path, model):
    trace = model.trace('안녕 "the" 🙂 the\n', capture=("delta_mean",))
    trace.save(tmp_path / "t")
    again = Trace.load(tmp_path / "t")
    assert_equal(again, trace)
    assert "안" in again.labels


def test_a_token_of_a_running_text_comes_back(tmp_path):
    model = odd_model()
    tracer = model.tracer(capture=("h",), every=2)
    cache = tracer(some_ids(3)[None], use_cache=True).cache_params
    tracer([[1]], cache_params=cache, use_cache=True)
    tracer.last.save(tmp_path / "t")
    assert_equal(Trace.load(tmp_path / "t"), tracer.last)
    assert tracer.last.h.shape[1] == 1


def test_the_file_has_the_documented_layout(path, trace):
    tensors, values = parts_of(path)
    for name, array in trace.arrays().items():
        np.testing.assert_array_equal(tensors[name], array)
    assert values["every"] == 3
    assert values["model"] == trace.model
    assert [values["tokens"][i] for i in tensors["token_places"]] == list(trace.tokens)


# --- damage ---------------------------------------------------------------------------------------


def test_missing_files_and_folders(tmp_path, trace):
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(FileMissingError, match=wrong.name):
            Trace.load(wrong)
    with pytest.raises(FileMissingError, match="folder"):
        trace.save(tmp_path / "folder" / "t")


def test_no_half_of_a_file_is_read(path):
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"trace\.safetensors: expected"):
            Trace.load(path)


def test_files_of_other_kinds(tmp_path, path):
    model = odd_model()
    model(some_ids(3)[None]).cache_params.save(tmp_path / "cache")
    with pytest.raises(CheckpointError, match=r"expected the format 'mamba_np\.trace\.1', found"):
        Trace.load(tmp_path / "cache")
    save_file({"delta": np.zeros(3, np.float32)}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"expected the format .*, found None"):
        Trace.load(tmp_path / "plain")
    path.write_bytes(struct.pack("<Q", files.HEADER_LIMIT + 1) + b"{" * 100)
    with pytest.raises(CheckpointError, match="found a header of"):
        Trace.load(path)
    path.write_text("<html>")
    with pytest.raises(CheckpointError, match="expected a saved Trace"):
        Trace.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every: expected an integer"),
        (
            {"every": 2},
            r"h: expected a float of shape \(2, 5, 3, 5\), found F32 of shape \(2, 3, 3, 5\)",
        ),
        ({"before": 1}, "h: expected"),
        ({"before": -1}, "before: expected an integer"),
        ({"model": 3}, "model: expected a text"),
        ({"discretisation": "exact"}, "discretisation: expected one of"),
        ({"discretisation": ["zoh"]}, "discretisation: expected one of"),
        ({"tokens": "abc"}, "tokens: expected a list of texts"),
        ({"labels": [1]}, "labels: expected a list of texts"),
        ({"tokens": ["a"]}, "token_places: expected 0 to 0, found"),
        ({"labels": []}, "label_places: expected 0 to -1, found"),
        ({"more": 1}, "trace: expected every, before"),
    ],
)
def test_headers_that_cannot_be(path, change, message):
    tensors, values = parts_of(path)
    rewrite(path, tensors, values | change)
    with pytest.raises(CheckpointError, match=f"trace.safetensors: {message}"):
        Trace.load(path)


def test_a_token_too_few(path):
    tensors, values = parts_of(path)
    count = len(values["tokens"]) - 1
    rewrite(path, tensors, values | {"tokens": values["tokens"][:count]})
    with pytest.raises(CheckpointError, match=f"token_places: expected 0 to {count - 1}, found"):
        Trace.load(path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "null"])
def test_headers_that_are_no_objects(path, text):
    tensors, values = parts_of(path)
    rewrite(path, tensors, values, trace=text)
    with pytest.raises(CheckpointError, match=r"trace\.safetensors: trace: expected"):
        Trace.load(path)


def _negative(array):
    return array - array.max() - 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", None, "found no ids"),
        ("label_places", None, "found no label_places"),
        ("ids", lambda a: a.astype(np.int32), r"ids: expected I64 of shape \(11\), found I32"),
        ("ids", _negative, "ids: expected 0 to"),
        ("layers", _negative, "layers: expected 0 to"),
        ("token_places", _negative, "token_places: expected 0 to"),
        ("token_places", lambda a: a[:5], r"token_places: expected I64 of shape \(11\),"),
        ("delta", lambda a: a[:, :-1], r"delta: expected a float of shape \(2, 11, 3\),"),
        ("delta", lambda a: a[0], "delta: expected"),
        ("delta", lambda a: a.astype(np.float64), "of float32 or of float64, found F32, F64"),
        ("delta", lambda a: a.astype(np.float16), "of float32 or of float64, found F16, F32"),
        ("C", lambda a: a[..., :2], r"C: expected a float of shape \(2, 11, 5\),"),
        ("A", lambda a: a[:, :2], "A: expected"),
        ("logits", lambda a: a[1:], "logits: expected"),
    ],
)
def test_tensors_that_cannot_be(path, name, change, message):
    tensors, values = parts_of(path)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))
    rewrite(path, tensors, values)
    with pytest.raises(CheckpointError, match=rf"trace\.safetensors: .*{message}"):
        Trace.load(path)


def test_tensors_of_other_names(path):
    tensors, values = parts_of(path)
    rewrite(path, tensors | {"attention": np.zeros(2, np.float32)}, values)
    with pytest.raises(CheckpointError, match="found a tensor 'attention'"):
        Trace.load(path)


def test_a_trace_without_quantities(path):
    tensors, values = parts_of(path)
    rewrite(path, {n: a for n, a in tensors.items() if n in files.INDICES}, values)
    with pytest.raises(CheckpointError, match=r"expected arrays of .*, found none"):
        Trace.load(path)


def test_flipped_bytes_of_the_header_never_surprise(path, rng):
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    refusals = []
    for place in rng.integers(0, 8 + header, 300):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            Trace.load(path)
        except (CheckpointError, FileMissingError) as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all("trace.safetensors" in refusal for refusal in refusals)
