"""Checkpoints: every layout, dialect and dtype is read to the bit, and what is written is read.

The judges are tests/naive.py, which reads files in its own way, and safetensors' own reader.
"""

import json
import math
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forge
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import mamba_np.checkpoint.save
import mamba_np.checkpoint.tensors
from mamba_np.checkpoint import headers, read_params, save_params, state_dict, stored_dtype
from mamba_np.config import MambaConfig
from mamba_np.errors import CheckpointError, FileMissingError, InputError, NonFiniteError
from mamba_np.init import init_params
from mamba_np.params import (
    DTYPES,
    MATRICES,
    Params,
    as_dtype,
    convert,
    field_dtype,
    map_arrays,
)

MODELS = ("base_silu", "sharded_bf16", "original_bin")
BF16 = np.dtype(ml_dtypes.bfloat16)


def config_of(folder):
    return MambaConfig.from_file(folder / "config.json")


def load(folder, dtype="float32", **options):
    return read_params(folder, config_of(folder), dtype, **options)


def fields(params):
    """Return [(field, array)] of all parameters."""
    found = []
    map_arrays(lambda name, array: found.append((name, array)) or array, params)
    return found


def origin(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def assert_same(params, arrays):
    """Fail unless the parameters are exactly these arrays, by Hugging Face's names."""
    found = state_dict(params)
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name].astype(array.dtype), err_msg=name)


@pytest.fixture
def tiny(tmp_path):
    """A function from options of ``forge.write_model`` to a folder."""
    return lambda *arguments, **changes: forge.write_model(tmp_path / "m", *arguments, **changes)


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_reference_checkpoints_are_read_exactly(model_path, oracle_weights, name, dtype):
    tensors, _ = oracle_weights(name)
    tensors, params = dict(tensors), load(model_path(name), dtype)
    if params.tied:
        tensors.pop("lm_head.weight", None)
    assert_same(params, tensors)
    for field, array in fields(params):
        assert array.dtype == field_dtype(field, DTYPES[dtype])
        assert not array.flags.writeable


def test_heads_of_the_reference_checkpoints(model_path):
    assert load(model_path("base_silu")).tied
    assert load(model_path("original_bin")).tied
    assert not load(model_path("sharded_bf16")).tied
    assert load(model_path("sharded_bf16"), head=False).lm_head is None


@pytest.mark.parametrize("name", MODELS)
def test_headers_tell_what_is_there_without_reading(model_path, oracle_weights, name):
    tensors, _ = oracle_weights(name)
    found = headers(model_path(name))
    assert tensors.keys() == found.keys()
    for key, tensor in found.items():
        assert tensor.shape == tensors[key].shape, key
        assert tensor.dtype == ("BF16" if name == "sharded_bf16" else "F32")
        assert tensor.file.parent == model_path(name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("base_silu", "float32"), ("sharded_bf16", "bfloat16"), ("original_bin", "float32")],
)
def test_what_is_stored_so_is_mapped(model_path, name, dtype):
    for field, array in fields(load(model_path(name), dtype)):
        if field in MATRICES or dtype == "float32":
            assert isinstance(origin(array), mmap.mmap), field


def test_converted_arrays_are_not_mapped_and_read_only(model_path):
    for _, array in fields(load(model_path("base_silu"), "float64")):
        assert origin(array) is None
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_unaligned_numbers_are_copied(tmp_path):
    arrays = forge.tensors()
    header, data = forge.header_of(arrays)
    text = json.dumps(header).encode()
    text += b" " * ((1 - len(text)) % 4)  # numbers start one byte off
    folder = forge.write_config(tmp_path)
    (folder / "model.safetensors").write_bytes(forge.safetensors_bytes(text, data))
    params = load(folder)
    assert_same(params, arrays)
    assert all(array.flags.aligned and origin(array) is None for _, array in fields(params))


@pytest.mark.parametrize("block", [8, 24, 104])
@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", DTYPES)
def test_conversion_by_blocks(tiny, monkeypatch, block, stored, wanted):
    monkeypatch.setattr(mamba_np.checkpoint.tensors, "BLOCK", block)
    arrays = forge.tensors(dtype=stored)
    assert_same(load(tiny(arrays), wanted), arrays)


def test_a_number_too_large_for_the_dtype_is_refused(tiny):
    arrays = forge.tensors()
    name = "backbone.layers.1.mixer.in_proj.weight"
    arrays[name][3, 2] = 1e6
    folder = tiny(arrays)
    with pytest.raises(NonFiniteError, match=f"{name}.*float16"):
        load(folder, "float16")
    assert load(folder, "bfloat16").layers[1].in_proj[3, 2] == BF16.type(1e6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["mixer.A_log", "mixer.D", "norm.weight", "mixer.dt_proj.bias", "mixer.conv1d.weight"]
)
def test_nan_among_the_sensitive_numbers_is_refused(tiny, name, value):
    arrays = forge.tensors()
    arrays[f"backbone.layers.1.{name}"].flat[-1] = value
    with pytest.raises(NonFiniteError, match=rf"layers\.1\.{name}"):
        load(tiny(arrays))


# --- dialects -----------------------------------------------------------------------------------


def mamba_ssm(name):
    return name.replace("embeddings.", "embedding.")


def bare(name):
    return name.removeprefix("backbone.")


@pytest.mark.parametrize("translate", [mamba_ssm, bare, lambda name: mamba_ssm(bare(name))])
def test_names_of_other_dialects(tiny, translate):
    arrays = forge.tensors()
    folder = tiny({translate(k): v for k, v in arrays.items()})
    assert headers(folder).keys() == arrays.keys()
    params = load(folder)
    assert params.tied
    assert_same(params, arrays)


def test_names_do_not_depend_on_the_dialect_of_the_configuration(tmp_path):
    arrays = forge.tensors()
    folder = forge.write_model(tmp_path, arrays)
    config = {
        "d_model": forge.D,
        "n_layer": 2,
        "vocab_size": forge.V,
        "pad_vocab_size_multiple": 1,
        "ssm_cfg": {"d_state": forge.N, "dt_rank": forge.R},
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(load(folder), arrays)


def test_two_names_of_one_tensor_are_refused(tiny):
    arrays = forge.tensors()
    arrays["norm_f.weight"] = arrays["backbone.norm_f.weight"]
    with pytest.raises(CheckpointError, match=r"'(backbone\.)?norm_f.weight'.*found also"):
        load(tiny(arrays))


def test_a_stored_head_is_shared_if_equal_and_refused_if_not(tmp_path):
    arrays = forge.tensors()
    embeddings = arrays["backbone.embeddings.weight"]
    for head in (embeddings, embeddings.astype(np.float64)):
        folder = forge.write_model(tmp_path / "equal", arrays | {forge.HEAD: head})
        assert load(folder).tied
    head = arrays["backbone.embeddings.weight"].copy()
    head[-1, -1] += 1
    folder = forge.write_model(tmp_path / "other", arrays | {forge.HEAD: head})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*tie_word_embeddings"):
        load(folder)
    assert load(folder, head=False).lm_head is None


def test_an_untied_head(tmp_path):
    arrays = forge.tensors(**{forge.HEAD: (forge.V, forge.D)})
    folder = forge.write_model(tmp_path / "whole", arrays, tie_word_embeddings=False)
    params = load(folder)
    assert not params.tied
    assert_same(params, arrays)
    folder = forge.write_model(tmp_path / "cut", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight'.*expected shape \(11, 6\)"):
        load(folder)


def test_biases_follow_the_configuration(tmp_path):
    extra = {
        f"backbone.layers.{i}.mixer.{name}.bias": (size,)
        for i in range(2)
        for name, size in (("in_proj", 2 * forge.E), ("out_proj", forge.D))
    }
    arrays = forge.tensors(**extra)
    for i in range(2):
        del arrays[f"backbone.layers.{i}.mixer.conv1d.bias"]
    folder = forge.write_model(tmp_path, arrays, use_bias=True, use_conv_bias=False)
    params = load(folder)
    assert params.layers[0].conv_bias is None
    assert_same(params, arrays)


def test_unused_tensors_are_named_in_a_warning(tiny):
    arrays = forge.tensors(**{f"extra.{i}": (2,) for i in range(6)})
    folder = tiny(arrays)
    with pytest.warns(UserWarning, match=r"not used: 'extra\.0', .*'extra\.3' and 2 more"):
        params = load(folder)
    assert len(state_dict(params)) == len(forge.SHAPES)


def test_fewer_layers_than_stored_are_a_warning_and_more_an_error(tmp_path):
    folder = forge.write_model(tmp_path, num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r"not used: 'backbone\.layers\.1\."):
        assert len(load(folder).layers) == 1
    forge.write_config(folder, num_hidden_layers=10**9)
    with pytest.raises(CheckpointError, match=r"1000000000 layers.*found 2.*layers\.2\.norm"):
        load(folder)


# --- which files --------------------------------------------------------------------------------


def test_shards_and_one_file_give_the_same(tmp_path):
    arrays = forge.tensors()
    assert_same(load(forge.write_shards(tmp_path, arrays)), arrays)


def test_one_file_wins_over_shards_and_safetensors_over_pickles(tmp_path):
    arrays = forge.tensors(seed=1)
    folder = forge.write_shards(tmp_path, forge.tensors(seed=2))
    forge.write_model(folder, arrays)
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert_same(load(folder), arrays)
    (folder / "model.safetensors").unlink()
    assert_same(load(folder), forge.tensors(seed=2))


def test_nothing_to_read_says_what_there_is(tmp_path):
    forge.write_config(tmp_path)
    with pytest.raises(FileMissingError, match=r"model\.safetensors.*found config\.json"):
        headers(tmp_path)
    with pytest.raises(FileMissingError, match="no folder"):
        headers(tmp_path / "absent")


def test_links_inside_the_folder_and_into_a_cache_are_followed(tmp_path):
    arrays = forge.tensors()
    folder = forge.write_model(tmp_path / "inside", arrays)
    (folder / "model.safetensors").rename(folder / "real")
    (folder / "model.safetensors").symlink_to("real")
    assert_same(load(folder), arrays)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    shutil.move(folder / "real", blobs / "0123")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blobs / "0123")
    assert_same(load(folder), arrays)


# --- pytorch_model.bin --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_pickled_checkpoints_of_every_dtype(tmp_path, dtype):
    arrays = forge.tensors(dtype=dtype)
    assert_same(load(forge.write_torch_model(tmp_path, arrays)), arrays)


def test_pickled_state_dict_of_a_module(tmp_path):
    # torch's state_dict() is an OrderedDict with the versions of modules attached to it.
    arrays = forge.tensors()
    items, storages = forge.torch_parts(arrays)
    versions = forge.dict_({"": forge.dict_({"version": forge.number(1)})}, forge.ORDERED_DICT)
    state = forge.dict_({"_metadata": versions})
    body = forge.dict_(items, forge.ORDERED_DICT) + state + b"b"
    folder = forge.write_config(tmp_path)
    forge.write_torch(folder / "pytorch_model.bin", forge.program(body), storages)
    assert_same(load(folder), arrays)


def test_pickled_parameters_and_parts_of_one_storage(tmp_path):
    arrays = forge.tensors()
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    items, start = {}, 0
    for name, array in arrays.items():
        view = forge.pickled_tensor("7", everything.size, array.shape, start=start)
        rebuild = forge.name_("torch._utils", "_rebuild_parameter")
        items[name] = forge.call(rebuild, view, b"\x88", forge.ORDERED_DICT)
        start += array.size
    folder = forge.write_config(tmp_path)
    program = forge.program(forge.dict_(items))
    forge.write_torch(folder / "pytorch_model.bin", program, {"7": everything.tobytes()})
    assert_same(load(folder), arrays)


def test_pickled_shards(tmp_path):
    arrays = forge.tensors()
    folder = forge.write_config(tmp_path)
    weight_map = {}
    for i in range(2):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        mine = dict(list(arrays.items())[i::2])
        items, storages = forge.torch_parts(mine)
        forge.write_torch(folder / file, forge.program(forge.dict_(items)), storages)
        weight_map |= dict.fromkeys(mine, file)
    forge.write_index(folder, weight_map, "pytorch_model.bin.index.json")
    assert_same(load(folder), arrays)


def test_the_older_format_of_pytorch_is_named(tmp_path):
    folder = forge.write_config(tmp_path)
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    (folder / "pytorch_model.bin").write_bytes(magic + bytes(100))
    with pytest.raises(CheckpointError, match=r"older format.*torch\.save"):
        load(folder)


# --- memory -------------------------------------------------------------------------------------

LOADING = """
import json, sys
sys.path.insert(0, sys.argv[1])
import forge
from mamba_np.checkpoint import read_params, state_dict
from mamba_np.config import MambaConfig
import safetensors
config = MambaConfig.from_file(sys.argv[2] + "/config.json")
before = forge.peak_memory()
params = read_params(sys.argv[2], config, sys.argv[3])
grown = forge.peak_memory() - before
print(json.dumps([grown, sum(a.nbytes for a in state_dict(params).values())]))
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """A checkpoint of 68 MB in bfloat16, with its tied head stored a second time."""
    config = MambaConfig(vocab_size=8000, hidden_size=1024, num_hidden_layers=4)
    folder = tmp_path_factory.mktemp("large")
    config.save_pretrained(folder)
    params = convert(init_params(config, 0), "bfloat16")
    untied = Params(params.embeddings, params.layers, params.norm_f, params.embeddings[:])
    save_params(folder, untied)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_little_more_memory_than_the_model(large_model, dtype):
    command = [sys.executable, "-c", LOADING, str(Path(forge.__file__).parent), large_model, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown, weights = json.loads(done.stdout)
    if dtype == "float32":  # converted
        assert weights > 130e6
        assert 0.9 < grown / weights < 1.2  # below 0.9 the measurement would be wrong
    else:  # mapped: only pages that were looked at
        assert grown / weights < 0.5


# --- writing ------------------------------------------------------------------------------------


def stored(folder):
    """Read every tensor of a folder with safetensors' own reader: {name: (file, array)}."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: (path.name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.fixture
def config():
    return MambaConfig(**forge.CONFIG)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", ["5GB", 400])
def test_saved_files_hold_the_parameters(tmp_path, config, rng, dtype, limit):
    params = init_params(config, rng, dtype=dtype)
    files = save_params(tmp_path, params, max_shard_size=limit)
    assert sorted(files) == sorted(tmp_path.iterdir())
    found = {name: array for name, (_, array) in stored(tmp_path).items()}
    assert {name: array.shape for name, array in found.items()} == forge.SHAPES
    for name, array in state_dict(params).items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    again = read_params(tmp_path, config, dtype)
    assert_same(again, state_dict(params))
    mapped = [isinstance(origin(array), mmap.mmap) for _, array in fields(again)]
    assert all(mapped)


def test_shards_and_their_index(tmp_path, config, rng):
    params = init_params(config, rng)
    files = save_params(tmp_path, params, max_shard_size=1000)
    assert files[-1].name == "model.safetensors.index.json"
    index = json.loads(files[-1].read_text())
    arrays, where = state_dict(params), stored(tmp_path)
    assert index["weight_map"] == {name: file for name, (file, _) in where.items()}
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    count = len(files) - 1
    assert [f.name for f in files[:-1]] == [
        f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
    ]
    for file in files[:-1]:
        sizes = [array.nbytes for name, array in arrays.items() if where[name][0] == file.name]
        assert sum(sizes) <= 1000 or len(sizes) == 1


def test_a_model_without_a_head_is_saved_as_transformers_does(tmp_path, config, rng):
    params = init_params(config, rng, head=False)
    save_params(tmp_path, params)
    assert stored(tmp_path).keys() == {bare(name) for name in forge.SHAPES}
    again = read_params(tmp_path, config)
    assert again.tied
    np.testing.assert_array_equal(again.embeddings, params.embeddings)


def test_an_untied_head_is_saved(tmp_path, rng):
    config = MambaConfig(**forge.CONFIG | {"tie_word_embeddings": False})
    params = init_params(config, rng)
    save_params(tmp_path, params)
    np.testing.assert_array_equal(stored(tmp_path)["lm_head.weight"][1], params.lm_head)


def test_views_are_saved_in_order(tmp_path, config, rng):
    params = init_params(config, rng)
    turned = map_arrays(lambda _, a: np.asfortranarray(a) if a.ndim == 2 else a[::-1], params)
    save_params(tmp_path, turned)
    assert_same(read_params(tmp_path, config), state_dict(turned))


@pytest.mark.parametrize(("first", "second"), [(1000, "5GB"), ("5GB", 1000), (1000, 2000)])
def test_files_of_an_earlier_save_are_removed(tmp_path, config, first, second):
    save_params(tmp_path, init_params(config, 1), max_shard_size=first)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"another's")
    params = init_params(config, 2)
    files = save_params(tmp_path, params, max_shard_size=second)
    assert set(tmp_path.iterdir()) == {*files, tmp_path / "adapter_model.safetensors"}
    assert_same(read_params(tmp_path, config), state_dict(params))


@pytest.mark.parametrize("limit", ["5GB", 1000])
def test_saving_over_the_files_that_are_mapped(tmp_path, config, rng, limit):
    save_params(tmp_path, init_params(config, rng), max_shard_size=limit)
    mapped = read_params(tmp_path, config)
    before = {name: array.copy() for name, array in state_dict(mapped).items()}
    reversed_ = map_arrays(lambda _, array: array[::-1], mapped)
    save_params(tmp_path, reversed_, max_shard_size=limit)
    assert_same(mapped, before)
    assert_same(read_params(tmp_path, config), state_dict(reversed_))


def test_a_failed_save_changes_nothing(tmp_path, config, monkeypatch):
    params = init_params(config, 1)
    save_params(tmp_path, params, max_shard_size=1000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, written = mamba_np.checkpoint.save.write_safetensors, []

    def full_disk(path, arrays):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, arrays)

    monkeypatch.setattr(mamba_np.checkpoint.save, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_params(tmp_path, init_params(config, 2), max_shard_size=1000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_save_that_stops_between_two_shards_leaves_no_mixture(tmp_path, config, monkeypatch):
    save_params(tmp_path, init_params(config, 1), max_shard_size=1000)
    replace, done = os.replace, []

    def interrupted(source, target):
        if len(done) == 2:
            raise OSError(5, "Input/output error")
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_params(tmp_path, init_params(config, 2), max_shard_size=1000)
    monkeypatch.undo()
    assert len(done) == 2
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        read_params(tmp_path, config)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ({}, "float32"),
        ({"embeddings": "bfloat16"}, "float32"),
        ({"embeddings": "bfloat16", "in_proj": "float16"}, "float32"),
        ({"x_proj": "float64"}, "float64"),
        (dict.fromkeys(MATRICES, "bfloat16"), "bfloat16"),
    ],
)
def test_the_dtype_of_the_files_holds_every_matrix(tmp_path, config, stored, found):
    def store(field, array):
        return array.astype(as_dtype(stored.get(field, "float32")))

    save_params(tmp_path, map_arrays(store, init_params(config, 1)))
    assert stored_dtype(tmp_path) == as_dtype(found)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("7", 7),
        ("1.5KB", 1500),
        ("2KiB", 2048),
        ("3 MB", 3 * 10**6),
        ("1GiB", 2**30),
        ("4gb", 4 * 10**9),
    ],
)
def test_sizes_of_shards(text, size):
    assert mamba_np.checkpoint.save.parse_size(text) == size


@pytest.mark.parametrize("size", [0, -1, True, None, "", "GB", "-1GB", "1XB", "0.1", 1.5, math.inf])
def test_bad_sizes_of_shards(tmp_path, config, size):
    with pytest.raises(InputError, match="max_shard_size"):
        save_params(tmp_path / "new", init_params(config, 1), max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_saving_refuses_other_dtypes_and_a_file_for_a_folder(tmp_path, config):
    params = init_params(config, 1)
    whole = map_arrays(lambda _, array: array.astype(np.int32), params)
    with pytest.raises(InputError, match=r"embeddings\.weight.*int32"):
        save_params(tmp_path, whole)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        save_params(tmp_path / "file", params)


def test_the_numbers_begin_on_a_cache_line(tmp_path, tiny):
    folder = tiny()
    save_params(tmp_path, load(folder))
    saved = (tmp_path / "model.safetensors").read_bytes()
    assert (8 + int.from_bytes(saved[:8], "little")) % 64 == 0
