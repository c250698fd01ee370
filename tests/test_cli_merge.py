"""``mamba-np merge``: what it writes, copies, warns of and refuses."""

import json
import warnings

import numpy as np
import pytest
from cli_runner import error_of, output_of, run

from mamba_np import MambaForCausalLM
from mamba_np.lora import LoraConfig, PeftModel, get_peft_model


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def base(model_path):
    return model_path("base_silu")


@pytest.fixture
def adapter(fixtures_path):
    return fixtures_path / "lora" / "lora_seed_targets"


def merged_in_python(base, adapter, **options):
    model = MambaForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, adapter).merge_and_unload(**options).state_dict()


def assert_same(folder, arrays):
    found = MambaForCausalLM.from_pretrained(folder).state_dict()
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.filterwarnings("default:merge_and_unload")
def test_merge_as_peft_does_and_say_what_that_means(base, adapter, tmp_path):
    result = run("merge", base, adapter, tmp_path / "new")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: merge_and_unload: the adapter of the embeddings")
    assert result.stdout.startswith(f"{tmp_path / 'new'}: ")
    assert_same(tmp_path / "new", merged_in_python(base, adapter))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "new" / file).read_bytes() == (base / file).read_bytes()


def test_merge_with_a_head_of_its_own(base, adapter, tmp_path):
    output_of("merge", base, adapter, tmp_path / "new", "--untie", "--max-shard-size", "50KB")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 1
    assert_same(tmp_path / "new", merged_in_python(base, adapter, untie=True))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_merge_says_nothing_where_logits_stay(base, tmp_path):
    model = MambaForCausalLM.from_pretrained(base)
    config = LoraConfig(target_modules=["in_proj"], init_lora_weights=False)
    get_peft_model(model, config, rng=0).save_pretrained(tmp_path / "adapter")
    output_of("merge", base, tmp_path / "adapter", tmp_path / "new")
    assert_same(tmp_path / "new", merged_in_python(base, tmp_path / "adapter"))


@pytest.mark.parametrize(("options", "dtype"), [((), "bfloat16"), (("--dtype", "float32"),) * 2])
def test_merge_keeps_the_dtype_unless_told_otherwise(model_path, tmp_path, options, dtype):
    base = model_path("sharded_bf16")
    model = MambaForCausalLM.from_pretrained(base)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config, rng=0).save_pretrained(tmp_path / "adapter")
    output_of("merge", base, tmp_path / "adapter", tmp_path / "new", *options)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["dtype"] == (options[1] if options else dtype)


def test_merge_does_not_overwrite_unasked(base, adapter, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    message = error_of("merge", base, adapter, tmp_path, "--untie")
    assert message.startswith(f"{tmp_path}: expected a new or empty folder, found notes.txt")
    output_of("merge", base, adapter, tmp_path, "--untie", "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "outside the source" in error_of("merge", base, adapter, base / "new")


def test_a_bad_adapter_leaves_nothing_behind(base, model_path, adapter, tmp_path):
    message = error_of("merge", base, tmp_path, tmp_path / "a" / "b")
    assert "adapter_config.json" in message
    message = error_of("merge", model_path("original_bin"), adapter, tmp_path / "a" / "b")
    assert "expected shape" in message or "expected factors" in message
    assert list(tmp_path.iterdir()) == []
