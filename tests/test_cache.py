"""MambaCache as an object: shapes, views, rows, files. What models do with it: test_laws."""

import json
import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mamba_np import MambaCache, MambaConfig
from mamba_np.errors import CacheError, FileMissingError

CONFIG = MambaConfig(vocab_size=11, hidden_size=6, state_size=3, num_hidden_layers=2, conv_kernel=5)
SIZES = {"E": 12, "K": 5, "N": 3}


@pytest.fixture
def cache(rng):
    """A cache of three rows filled with random states."""
    cache = MambaCache(CONFIG, 3, fingerprint="some model")
    for states in (*cache.conv_states, *cache.ssm_states):
        states[...] = rng.normal(size=states.shape)
    return cache


def assert_equal(a, b):
    for x, y in zip(a.conv_states + a.ssm_states, b.conv_states + b.ssm_states, strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.fingerprint == b.fingerprint


def test_shapes_are_those_of_transformers():
    cache = MambaCache(CONFIG, 3)
    assert [s.shape for s in cache.conv_states] == [(3, 12, 5)] * 2
    assert [s.shape for s in cache.ssm_states] == [(3, 12, 3)] * 2
    assert cache.batch_size == 3
    assert cache.dtype == np.float32
    assert cache.nbytes == 2 * 3 * 12 * (5 + 3) * 4
    assert "batch_size=3" in repr(cache)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("bfloat16", "float32"),
        (np.float16, "float32"),
    ],
)
def test_states_are_float32_or_float64(given, kept):
    assert MambaCache(CONFIG, 1, given).dtype == kept


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, True, None])
def test_bad_batch_sizes_are_refused(batch_size):
    with pytest.raises(CacheError, match="batch_size"):
        MambaCache(CONFIG, batch_size)


def test_states_are_views_that_can_be_written(cache):
    cache.ssm_states[1][2, 4, 0] = 42
    assert cache.ssm_states[1][2, 4, 0] == 42


def test_a_copy_is_independent(cache):
    copy = cache.copy()
    assert_equal(copy, cache)
    copy.ssm_states[0][...] = 0
    assert cache.ssm_states[0].any()


@pytest.mark.parametrize("rows", [[0], [2, 0], [1, 1, 1], [-1], np.array([True, False, True]), 1])
def test_select_takes_rows(cache, rows):
    picked = cache.select(rows)
    index = np.atleast_1d(rows)
    np.testing.assert_array_equal(picked.ssm_states[1], cache.ssm_states[1][index])
    np.testing.assert_array_equal(picked.conv_states[0], cache.conv_states[0][index])
    picked.ssm_states[1][...] = 0
    assert cache.ssm_states[1].any()


@pytest.mark.parametrize("rows", [[3], [-4], [], [[0]], [0.5], np.array([True, False])])
def test_select_refuses_rows_that_do_not_exist(cache, rows):
    with pytest.raises(CacheError, match="rows"):
        cache.select(rows)


def test_reset_forgets_in_place(cache):
    states = cache.ssm_states[0]
    cache.reset()
    assert not states.any()
    assert cache.fingerprint is None  # any model may fill it now
    assert not any(s.any() for s in cache.conv_states + cache.ssm_states)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_files_keep_every_bit(tmp_path, rng, dtype):
    cache = MambaCache(CONFIG, 2, dtype, fingerprint="some model")
    for states in (*cache.conv_states, *cache.ssm_states):
        states[...] = rng.normal(size=states.shape)
    cache.save(tmp_path / "state.safetensors")
    assert_equal(MambaCache.load(tmp_path / "state.safetensors"), cache)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_file_has_the_documented_layout(tmp_path, cache):
    cache.save(tmp_path / "state.safetensors")
    tensors = load_file(tmp_path / "state.safetensors")
    np.testing.assert_array_equal(tensors["conv_states"], np.stack(cache.conv_states))
    np.testing.assert_array_equal(tensors["ssm_states"], np.stack(cache.ssm_states))


def test_pickling_keeps_every_bit(cache):
    assert_equal(pickle.loads(pickle.dumps(cache)), cache)


def _tensors(**changes):
    tensors = {
        "conv_states": np.zeros((2, 3, 12, 5), np.float32),
        "ssm_states": np.zeros((2, 3, 12, 3), np.float32),
    }
    return {k: v for k, v in (tensors | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (_tensors(ssm_states=None), "mamba_np.cache.1", "ssm_states"),
        (_tensors(), "something else", "expected the format"),
        (_tensors(), None, "expected the format"),
        (_tensors(conv_states=np.zeros((2, 3, 11, 5), np.float32)), "mamba_np.cache.1", "E, K"),
        (_tensors(conv_states=np.zeros((2, 3), np.float32)), "mamba_np.cache.1", "E, K"),
        (_tensors(ssm_states=np.zeros((2, 3, 12, 3), np.int32)), "mamba_np.cache.1", "I32"),
        (
            _tensors(ssm_states=np.full((2, 3, 12, 3), np.nan, np.float32)),
            "mamba_np.cache.1",
            "NaN",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, tensors, metadata, words):
    path = tmp_path / "state.safetensors"
    save_file(tensors, path, metadata={"format": metadata} if metadata else None)
    with pytest.raises(CacheError, match=r"state\.safetensors") as caught:
        MambaCache.load(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F4", "BF16", "I64"])
def test_other_dtypes_are_refused(tmp_path, kind):
    bits = {"F8_E4M3": 8, "F4": 4, "BF16": 16, "I64": 64}[kind]
    header, end = {"__metadata__": {"format": "mamba_np.cache.1"}}, 0
    for name, width in (("conv_states", 6), ("ssm_states", 4)):
        start, end = end, end + 12 * width * bits // 8
        header[name] = {"dtype": kind, "shape": [1, 1, 12, width], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "state.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    with pytest.raises(CacheError, match=rf"state\.safetensors: .*{kind}"):
        MambaCache.load(path)


def test_a_huge_header_is_refused_unread(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes((2**30).to_bytes(8, "little"))
    with pytest.raises(CacheError, match="a header of 1073741824 bytes"):
        MambaCache.load(path)


def test_assigning_a_state_is_refused_instead_of_lost(cache):
    with pytest.raises(TypeError):
        cache.conv_states[0] = 0


def test_a_saved_state_replaces_what_a_link_leads_to_and_no_special_file(tmp_path, cache):
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    cache.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_equal(MambaCache.load(tmp_path / "real"), cache)
    os.mkfifo(tmp_path / "pipe")
    for target in ("pipe", ".", "no/such/folder/file"):
        with pytest.raises(FileMissingError, match=target):
            cache.save(tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe", "real"]


def test_damaged_and_missing_files_are_refused_by_name(tmp_path):
    (tmp_path / "cut").write_bytes(b"\x10\x00")
    with pytest.raises(CacheError, match="cut"):
        MambaCache.load(tmp_path / "cut")
    with pytest.raises(FileMissingError, match="absent"):
        MambaCache.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("config", "rows", "dtype", "fingerprint", "words"),
    [
        ({"num_hidden_layers": 3}, 3, "float32", "some model", "conv_states"),
        ({}, 2, "float32", "some model", "expected (blocks, B, E, ...) = (2, 2, 12, 5)"),
        ({"state_size": 4}, 3, "float32", "some model", "ssm_states"),
        ({}, 3, "float64", "some model", "expected states of float64, found float32"),
        ({}, 3, "float32", "another", "found that of another one (some model)"),
    ],
)
def test_a_cache_of_another_model_or_batch_is_refused(
    cache, config, rows, dtype, fingerprint, words
):
    other = MambaConfig(**{**CONFIG.to_dict(), "intermediate_size": 12, **config})
    with pytest.raises(CacheError) as caught:
        cache.check(other, rows, np.dtype(dtype), fingerprint)
    assert words in str(caught.value)
