"""``mamba-np convert``: what it writes, copies and refuses."""

import errno
import json
import shutil

import numpy as np
import pytest
from cli_runner import PROMPT, error_of, json_of, output_of
from safetensors.numpy import load_file, save_file

from mamba_np import MambaForCausalLM
from mamba_np.bundled import bundled_model_path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def arrays_of(folder):
    return MambaForCausalLM.from_pretrained(folder, dtype="float64").state_dict()


@pytest.mark.parametrize("name", ["base_silu", "sharded_bf16", "original_bin"])
def test_convert_keeps_every_number(name, model_path, tmp_path):
    source, dest = model_path(name), tmp_path / "new"
    output_of("convert", source, dest)
    before, after = arrays_of(source), arrays_of(dest)
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])
    config = json.loads((dest / "config.json").read_text())
    assert config["hidden_size"] == MambaForCausalLM.from_pretrained(source).config.hidden_size
    assert config["architectures"] == ["MambaForCausalLM"]
    assert "d_model" not in config
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (dest / file).exists() == (source / file).exists()
        if (source / file).exists():
            assert (dest / file).read_bytes() == (source / file).read_bytes()


def test_convert_keeps_the_stored_dtype_unless_told_otherwise(tmp_path, model_path):
    output_of("convert", bundled_model_path(), tmp_path / "same")
    assert json_of("info", tmp_path / "same")["stored"]["bfloat16"]["parameters"] > 900_000
    output_of("convert", model_path("base_silu"), tmp_path / "half", "--dtype", "float16")
    assert json_of("info", tmp_path / "half")["stored"].keys() == {"float16", "float32"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_converted_models_write_the_same_text(tmp_path):
    output_of("convert", bundled_model_path(), tmp_path / "new", "--max-shard-size", "500KB")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 1
    greedy = ["generate", PROMPT, "--greedy", "-n", 30]
    assert output_of(*greedy, "-m", tmp_path / "new") == output_of(*greedy)


def test_convert_does_not_overwrite_unasked(tmp_path, model_path):
    (tmp_path / "notes.txt").write_text("mine")
    source = model_path("base_silu")
    message = error_of("convert", source, tmp_path)
    assert message.startswith(f"{tmp_path}: expected a new or empty folder, found notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    output_of("convert", source, tmp_path, "--force", "--max-shard-size", "50KB")
    output_of("convert", source, tmp_path, "--force")  # no shard of the first time is left
    assert [p.name for p in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "expected a folder" in error_of("convert", source, tmp_path / "notes.txt")


def test_convert_refuses_to_write_into_the_source(tmp_path, model_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_path("base_silu"), copy)
    before = sorted(copy.iterdir())
    for dest in (copy, copy / "new", copy / "a" / ".." / "new"):
        message = error_of("convert", copy, dest, "--force")
        assert message == f"{dest}: expected a folder outside the source {copy}"
    assert sorted(copy.iterdir()) == before


def test_a_failed_convert_leaves_no_folder(tmp_path, model_path, monkeypatch):
    source, dest = model_path("base_silu"), tmp_path / "a" / "b"
    message = error_of("convert", source, dest, "--max-shard-size", "much")
    assert message.startswith("max_shard_size: expected bytes")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mamba_np.pretrained.save_params", full)
    assert "No space left" in error_of("convert", source, dest)
    assert list(tmp_path.iterdir()) == []


def test_convert_copies_no_link_that_leads_out_of_the_source(tmp_path, model_path):
    copy, secret = tmp_path / "copy", tmp_path / "secret.json"
    shutil.copytree(model_path("base_silu"), copy)
    secret.write_text("{}")
    (copy / "tokenizer_config.json").unlink(missing_ok=True)
    (copy / "tokenizer_config.json").symlink_to(secret)
    message = error_of("convert", copy, tmp_path / "new")
    assert "expected a file in the model's folder" in message
    assert not (tmp_path / "new").exists()


def test_convert_rounds_no_matrix_of_a_mixed_checkpoint(tmp_path, model_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_path("base_silu"), copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in tensors if "embeddings" in n)
    tensors[name] = tensors[name].astype(np.float16)
    save_file(tensors, copy / "model.safetensors")
    output_of("convert", copy, tmp_path / "new")
    before, after = arrays_of(copy), arrays_of(tmp_path / "new")
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])
