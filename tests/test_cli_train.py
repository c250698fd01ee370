"""``mamba-np train`` and ``lora``: what they write, print, resume and refuse."""

import json
import os
import signal

import numpy as np
import pytest
from cli_runner import error_of, output_of, run

from mamba_np import MambaForCausalLM
from mamba_np.lora import PeftModel
from mamba_np.threads import get_num_threads, set_num_threads
from mamba_np.training import Trainer

TEXTS = [f"Once upon a time there was a cat number {i}." for i in range(6)]
LOGS = {"loss", "eval_loss", "train_runtime"}
QUICK = ("--batch-size", 2, "--lr", 1e-3, "--log-every", 1)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def base(model_path):
    return model_path("base_silu")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def trained(*args):
    """Return what a command that trains prints on stdout; stderr tells of the run."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert {line.split()[0] for line in result.stderr.splitlines()} <= LOGS
    return result.stdout


def weights(folder):
    arrays = MambaForCausalLM.from_pretrained(folder).state_dict()
    return {name: array.tobytes() for name, array in arrays.items()}


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_train_writes_a_model_that_speaks(base, data, tmp_path):
    out = tmp_path / "out"
    before = (base / "model.safetensors").read_bytes()
    result = run("train", data, "--out", out, "-m", base, *QUICK)
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["loss"] * 3 + ["train_runtime"]
    assert [line.split()[-2:] for line in lines] == [["step", str(i)] for i in (1, 2, 3, 3)]
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{out}: ")
    assert "3 steps in" in line
    assert {"model.safetensors", "tokenizer.json", "checkpoint-3"} <= files(out)
    assert weights(out) == weights(out / "checkpoint-3") != weights(base)
    assert (base / "model.safetensors").read_bytes() == before
    assert output_of("generate", "Once", "-m", out, "-n", 3).startswith("Once")


def test_train_as_json_with_an_evaluation(base, data, tmp_path):
    (data.parent / "valid.txt").write_text(" ".join(TEXTS[:2]))
    options = ("-m", base, "--epochs", 2, "--length", 16, "--pack", *QUICK)
    found = json.loads(trained("train", data.parent, "--out", tmp_path / "a", *options, "--json"))
    history = found["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert found["steps"] == len(losses)
    assert found["loss"] == pytest.approx(np.mean(losses))
    assert losses[-1] < losses[0]
    assert found["eval_loss"] == history[-1]["eval_loss"]
    assert found["epochs"] == 2.0
    options = ("-m", base, "--steps", 4, "--valid", data, "--eval-every", 2, *QUICK)
    found = json.loads(trained("train", data, "--out", tmp_path / "b", *options, "--json"))
    history = found["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4]


def test_train_a_new_model(base, data, tmp_path):
    config = tmp_path / "small.json"
    values = json.loads((base / "config.json").read_text()) | {"hidden_size": 8}
    values = {k: v for k, v in values.items() if k not in ("intermediate_size", "time_step_rank")}
    config.write_text(json.dumps(values))
    options = ("--config", config, "--tokenizer", base, *QUICK)
    trained("train", data, "--out", tmp_path / "a", *options)
    trained("train", data, "--out", tmp_path / "b", *options)
    trained("train", data, "--out", tmp_path / "c", *options, "--seed", 1)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["hidden_size"] == 8


@pytest.mark.parametrize("command", ["train", "lora"])
def test_an_interrupted_run_goes_on(base, data, tmp_path, monkeypatch, command):
    options = ("-m", base, "--epochs", 2, "--save-every", 1, "--keep", 1, *QUICK)
    trained(command, data, "--out", tmp_path / "whole", *options)
    step, seen = Trainer._step, []

    def interrupted(self, *args):
        step(self, *args)
        seen.append(self.state.global_step)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        result = run(command, data, "--out", tmp_path / "parts", *options)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[4:] == ["interrupted after step 4; --resume: checkpoint-4"]
    assert result.stdout == ""
    assert files(tmp_path / "parts") == {"checkpoint-4"}
    message = error_of(command, data, "--out", tmp_path / "parts", *options)
    assert "found checkpoint-4 in it; --resume goes on" in message
    trained(command, data, "--out", tmp_path / "parts", *options, "--resume")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    name = "model.safetensors" if command == "train" else "adapter_model.safetensors"
    whole, parts = ((tmp_path / part / name).read_bytes() for part in ("whole", "parts"))
    assert whole == parts


def test_resume_begins_where_there_is_nothing_yet(base, data, tmp_path):
    trained("train", data, "--out", tmp_path / "a", "-m", base, *QUICK, "--resume")
    assert "checkpoint-3" in files(tmp_path / "a")
    (tmp_path / "b" / ".checkpoint-3.part").mkdir(parents=True)  # killed while it was written
    trained("train", data, "--out", tmp_path / "b", "-m", base, *QUICK, "--resume")
    assert weights(tmp_path / "b") == weights(tmp_path / "a")


def test_resume_does_not_write_over_something_else(base, data, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("mine")
    message = error_of("train", data, "--out", tmp_path / "a", "-m", base, *QUICK, "--resume")
    assert message.startswith(f"{tmp_path / 'a'}: expected a checkpoint to go on from, or an empty")
    assert message.endswith("found config.json")


def test_lora_writes_an_adapter_that_can_be_merged(base, data, tmp_path):
    out = tmp_path / "adapter"
    options = ("--rank", 2, "--alpha", 6, "--target", "in_proj, out_proj", *QUICK)
    found = json.loads(trained("lora", data, "--out", out, "-m", base, *options, "--json"))
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    assert config["target_modules"] == ["in_proj", "out_proj"]
    assert not (out / "model.safetensors").exists()
    model = PeftModel.from_pretrained(MambaForCausalLM.from_pretrained(base), out)
    assert found["parameters"] == sum(a.size for a in model.state_dict().values())
    assert any(array.any() for name, array in model.state_dict().items() if "lora_B" in name)
    output_of("merge", base, out, tmp_path / "merged")
    assert weights(tmp_path / "merged") != weights(base)


def test_texts_of_another_key(base, data, tmp_path):
    data.write_text('{"quote": "Be yourself; everyone else is taken."}\n')
    trained("lora", data, "--out", tmp_path / "a", "-m", base, "--text-field", "quote", *QUICK)
    message = error_of("lora", data, "--out", tmp_path / "b", "-m", base)
    assert message.startswith(f"{data}:1: expected")
    assert message.endswith("found the keys 'quote'")
    assert not (tmp_path / "b").exists()


def test_threads(base, data, tmp_path):
    before = get_num_threads()
    try:
        trained("train", data, "--out", tmp_path / "a", "-m", base, "--threads", 1, *QUICK)
        assert get_num_threads() == 1
    finally:
        set_num_threads(before)


def test_what_cannot_be_done_is_said_before_any_work(base, data, tmp_path):
    out = tmp_path / "out"
    assert "expected a new or empty folder" in error_of("train", data, "--out", data.parent)
    assert "found a file" in error_of("train", data, "--out", data)
    options = ("--out", base, "-m", base, "--resume")
    assert "expected another folder than that of the model" in error_of("train", data, *options)
    assert "gone.jsonl" in error_of("train", tmp_path / "gone.jsonl", "--out", out, "-m", base)
    assert "--eval-every" in error_of("train", data, "--out", out, "--eval-every", 2, code=2)
    assert "--config" in error_of("train", data, "--out", out, "--config", "c.json", code=2)
    assert "Missing option '--out'" in error_of("lora", data, code=2)
    message = error_of("lora", data, "--out", out, "-m", base, "--target", "in_projj")
    assert message.startswith("target_modules: expected some of embeddings")
    message = error_of("train", data, "--out", out, "-m", base, "--lr", -1)
    assert message.startswith("learning_rate: expected a finite number")
    assert not out.exists()
