"""``mamba-np generate --state-in`` and ``--state-out``."""

import os
import stat

import numpy as np
import pytest
from cli_runner import PROMPT, error_of, json_of, output_of

from mamba_np import MambaCache


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def test_states_go_on_as_if_never_stopped(tmp_path, tokenizer):
    state, later = tmp_path / "a.state", tmp_path / "b.state"
    greedy = ["generate", "--greedy", "--ignore-eos"]
    whole = json_of(*greedy, PROMPT, "-n", 20)["ids"]
    first = json_of(*greedy, PROMPT, "-n", 8, "--state-out", state)["ids"]
    second = json_of(*greedy, "--state-in", state, "-n", 5, "--state-out", later)["ids"]
    third = json_of(*greedy, "--state-in", later, "-n", 7, "--no-echo")["ids"]
    assert first + second + third == whole
    # The same file again, and more text before going on.
    more = " and then"
    expected = json_of(*greedy, PROMPT + tokenizer.decode(first) + more, "-n", 6)["ids"]
    assert json_of(*greedy, "--state-in", state, more, "-n", 6)["ids"] == expected


def test_a_prompt_can_be_read_alone(tmp_path):
    state = tmp_path / "state"
    assert output_of("generate", PROMPT, "-n", 0, "--state-out", state) == PROMPT + "\n"
    greedy = ["generate", "--greedy", "-n", 10]
    assert json_of(*greedy, "--state-in", state)["ids"] == json_of(*greedy, PROMPT)["ids"]
    output_of("generate", "On", "-n", 0, "--state-out", state)  # one token: nothing to read
    assert json_of(*greedy, "--state-in", state)["ids"] == json_of(*greedy, "On")["ids"]


def test_state_files_are_those_of_the_cache(tmp_path, model, tokenizer):
    written, saved = tmp_path / "written", tmp_path / "saved"
    output_of("generate", PROMPT, "-n", 0, "--state-out", written)
    ids = tokenizer.encode(PROMPT)
    cache = model(np.array([ids[:-1]]), use_cache=True).cache_params
    found = MambaCache.load(written)
    assert found.fingerprint == cache.fingerprint
    for a, b in zip(found.ssm_states, cache.ssm_states, strict=True):
        np.testing.assert_array_equal(a, b)
    cache.save(saved)
    last = tokenizer.decode(ids[-1:])
    assert (
        json_of("generate", last, "--state-in", saved, "-n", 9)["ids"]
        == (json_of("generate", PROMPT, "-n", 9)["ids"])
    )
    assert error_of("generate", "", "--state-in", saved) == (
        f"PROMPT: expected text to follow the state of {saved}, found none"
    )


def test_states_that_do_not_fit_are_refused(tmp_path, model_path):
    state = tmp_path / "state"
    output_of("generate", PROMPT, "-n", 2, "--state-out", state)
    message = error_of(
        "generate", "a", "--no-echo", "-m", model_path("base_silu"), "--state-in", state
    )
    assert message.startswith("cache_params")
    broken = tmp_path / "broken"
    broken.write_bytes(state.read_bytes().replace(b'"next_token":"', b'"next_token":"x'))
    assert str(broken) in error_of("generate", "a", "--state-in", broken)
    state.write_bytes(state.read_bytes()[:-1])
    assert str(state) in error_of("generate", "a", "--state-in", state)
    message = error_of("generate", "a", "--num-beams", 2, "--state-out", tmp_path / "no", code=2)
    assert message.startswith("--state-out needs one text")


def test_states_are_refused_before_there_is_text_to_lose(tmp_path, monkeypatch):
    monkeypatch.setattr("mamba_np.cli.generate.load_model", None)  # not reached
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target, found in (
        (tmp_path, "expected a file to write, found a folder"),
        (pipe, "expected a file to write, found not a regular file"),
        (tmp_path / "no" / "state", f"expected a folder {tmp_path / 'no'}, found none"),
    ):
        message = error_of("generate", PROMPT, "--state-out", target)
        assert message == f"--state-out: {target}: {found}"
    assert "expected a file to write, found a folder" in error_of(
        "generate", "a", "--state-out", ""
    )
    assert stat.S_ISFIFO(pipe.stat().st_mode)
