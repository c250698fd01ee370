"""The command line but for ``generate`` and ``convert``: what it prints and refuses."""

import io
import re
import shutil
import sys
import time

import numpy as np
import pytest
from cli_runner import PROMPT, error_of, json_of, output_of, run
from safetensors.numpy import load_file, save_file
from tolerances import tolerance

from mamba_np import AutoTokenizer, MambaForCausalLM, __version__
from mamba_np.bundled import bundled_model_path
from mamba_np.cli import COMMANDS
from mamba_np.cli.common import format_bytes
from mamba_np.cli.score import _progress
from mamba_np.errors import FileMissingError
from mamba_np.scoring import Score, score_text


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


# --- the group -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    text = output_of(name, "--help")
    assert f"Usage: mamba-np {name} " in text
    assert f"\n    mamba-np {name}" in text.split("Examples:")[1]
    assert output_of(name, "-h") == text


def test_group_help_names_every_command():
    text = output_of("--help")
    listed = re.findall(r"^  (\w+)  ", text.split("Commands:")[1], re.MULTILINE)
    assert tuple(listed) == COMMANDS


def test_version():
    assert output_of("--version") == f"mamba-np {__version__}\n"


@pytest.mark.parametrize(
    "args", [["nope"], ["generate", "--nope"], ["score", "a", "b"], ["convert", "a"]]
)
def test_wrong_usage_exits_with_2(args):
    assert error_of(*args, code=2)


# --- errors ----------------------------------------------------------------------------------


def test_errors_are_one_line_and_debug_shows_the_traceback(tmp_path, monkeypatch):
    args = ["generate", "a", "-m", str(tmp_path)]
    assert str(tmp_path) in error_of(*args)
    assert isinstance(run(*args, "--debug").exception, FileMissingError)
    monkeypatch.setenv("MAMBA_NP_DEBUG", "1")
    assert isinstance(run(*args).exception, FileMissingError)
    monkeypatch.setenv("MAMBA_NP_DEBUG", "0")
    assert error_of(*args)


def test_a_model_without_tokenizer_can_borrow_one(model_path):
    folder = model_path("sharded_bf16")
    assert error_of("generate", "a", "-m", folder).endswith(
        "; add --tokenizer EleutherAI/gpt-neox-20b"
    )
    # The ids of "!!" are low enough for the small vocabulary of this model.
    report = json_of("generate", "!!", "-m", folder, "--tokenizer", bundled_model_path(), "-n", 2)
    ids = AutoTokenizer.from_pretrained(bundled_model_path()).encode("!!")
    assert report["prompt_ids"] == ids
    model = MambaForCausalLM.from_pretrained(folder)
    assert report["ids"] == model.generate([ids], max_new_tokens=2)[0, len(ids) :].tolist()


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_on_stderr(tmp_path, model_path):
    folder = tmp_path / "model"
    shutil.copytree(model_path("base_silu"), folder)
    tensors = load_file(folder / "model.safetensors") | {"rotary": np.zeros(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    result = run("generate", "a", "-m", folder, "-n", 1)
    assert result.exit_code == 0
    assert result.stderr == f"warning: {folder}: tensors that are not used: 'rotary'\n"


def test_errors_after_some_text_start_on_a_line_of_their_own(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(MambaForCausalLM, "__call__", fail)
    result = run("generate", PROMPT)
    assert (result.exit_code, result.stdout) == (1, PROMPT + "\n")
    assert result.stderr == "error: not enough memory\n"


# --- score -----------------------------------------------------------------------------------

BOOK = "Once upon a time there was a king. He was “old”, and he didn't speak.\n\n" * 10


def test_score_prints_what_the_library_finds(tmp_path, model, tokenizer):
    file = tmp_path / "book.txt"
    file.write_text(BOOK, "utf-8")
    expected = score_text(model, tokenizer, io.BytesIO(BOOK.encode()))
    # Chunks of another size: only the order of float32 sums differs.
    same = pytest.approx(expected.log_likelihood, rel=tolerance("law", "float32"))
    report = json_of("score", file, "--chunk", 100)
    assert (report["tokens"], report["bytes"]) == (expected.tokens, len(BOOK.encode()))
    assert report["log_likelihood"] == same
    score = Score(report["log_likelihood"], report["tokens"], report["bytes"])
    assert (report["perplexity"], report["bits_per_byte"]) == (
        score.perplexity,
        score.bits_per_byte,
    )
    assert report["tokens_per_second"] == expected.tokens / report["seconds"]
    piped = json_of("score", "-", stdin=BOOK.encode())
    assert piped["log_likelihood"] == same
    lines = dict(
        line.split(maxsplit=2)[:2] if not line.startswith("bits") else ("bits", line.split()[3])
        for line in output_of("score", file).splitlines()
    )
    # Four digits after the point are printed.
    assert float(lines["perplexity"]) == pytest.approx(expected.perplexity, abs=1e-4)
    assert float(lines["bits"]) == pytest.approx(expected.bits_per_byte, abs=1e-4)
    assert lines["tokens"] == f"{expected.tokens:,}"


def test_score_without_bos_leaves_out_the_first_token():
    with_bos, without = (json_of("score", "-", f, stdin=BOOK) for f in ("--bos", "--no-bos"))
    assert without["tokens"] == with_bos["tokens"] - 1
    assert without["bytes"] == with_bos["bytes"]


def test_score_in_float64(model):
    wide, narrow = (json_of("score", "-", "--dtype", d, stdin=BOOK) for d in ("float64", "float32"))
    rtol = tolerance("model", "float32")
    assert wide["log_likelihood"] == pytest.approx(narrow["log_likelihood"], rel=rtol)
    assert wide["log_likelihood"] != narrow["log_likelihood"]


def test_score_refuses_what_is_no_text(tmp_path):
    file = tmp_path / "book.txt"
    file.write_bytes(b"Once upon\xff a time")
    assert error_of("score", file) == (
        f"{file}: expected text in UTF-8, found byte 0xff at offset 9 (invalid start byte)"
        "; --errors replace reads them as U+FFFD"
    )
    assert json_of("score", file, "--errors", "replace")["bytes"] == 17
    file.write_bytes(b"")
    assert error_of("score", file) == f"{file}: expected text to score, found no bytes"
    assert error_of("score", "-", stdin="") == "stdin: expected text to score, found no bytes"
    assert "expected a file, found a folder" in error_of("score", tmp_path)
    assert "cannot be opened" in error_of("score", tmp_path / "none.txt")
    assert error_of("score", file, "--chunk", 0, code=2)


def test_score_needs_a_text(monkeypatch):
    assert json_of("score", stdin=BOOK)["tokens"] == json_of("score", "-", stdin=BOOK)["tokens"]
    monkeypatch.setattr("mamba_np.cli.score.stdin_is_piped", lambda: False)
    assert error_of("score", code=2) == "No text: give FILE, or pipe it into stdin."


@pytest.mark.parametrize(
    "args", [["info"], ["info", "-m"], ["score", "-", "-m"], ["generate", "-m"]]
)
def test_an_empty_name_is_not_the_bundled_model(args):
    assert "expected the folder of a model" in error_of(*args, "", stdin=BOOK)


def test_progress_is_shown_on_terminals_alone(tmp_path, monkeypatch):
    file = tmp_path / "book.txt"
    file.write_bytes(b"x" * 1000)
    with file.open("rb") as stream:
        with _progress(stream) as show:
            assert show is None
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        with _progress(stream) as show:
            show(Score(-100.0, 50, 400))
            time.sleep(0.15)  # bars are drawn ten times a second at most
            show(Score(-200.0, 100, 1000))
    assert "perplexity 7.389" in terminal.getvalue()
    assert "1.00k/1.00k" in terminal.getvalue()


# --- info ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories", "base_silu", "sharded_bf16", "original_bin"])
def test_info_agrees_with_the_loaded_model(name, model_path):
    folder = bundled_model_path() if name == "stories" else model_path(name)
    facts = json_of("info", folder)
    for dtype, expected in facts["weights_bytes"].items():
        model = MambaForCausalLM.from_pretrained(folder, dtype=dtype)
        assert sum(a.nbytes for a in model.state_dict().values()) == expected
    assert facts["parameters"] == model.num_parameters()
    assert sum(facts["parameters_by_group"].values()) == facts["parameters"]
    assert "other" not in facts["parameters_by_group"]
    model = MambaForCausalLM.from_pretrained(folder, dtype="float64")
    assert facts["state_bytes_per_sequence"]["float64"] == model.new_cache().nbytes
    assert facts["config"] == model.config.to_dict()
    assert facts["files"]
    for file, size in facts["files"].items():
        assert (folder / file).stat().st_size == size


def test_info_of_the_bundled_model_as_a_table():
    text = output_of("info")
    assert re.search(r"^  hidden_size +192$", text, re.MULTILINE)
    assert re.search(r"^  total +2,296,896$", text, re.MULTILINE)
    assert re.search(r"^  bfloat16 +2,242,560  in \d+ tensors$", text, re.MULTILINE)
    assert re.search(r"^  model.safetensors +4\.71 MB$", text, re.MULTILINE)
    assert output_of("info", bundled_model_path()) == output_of("info", "-m", bundled_model_path())


def test_info_reads_headers_only(monkeypatch, model_path):
    monkeypatch.setattr("mamba_np.checkpoint.read_params", None)
    assert output_of("info", model_path("sharded_bf16"))


def test_info_refuses_what_is_no_model(tmp_path):
    assert str(tmp_path) in error_of("info", tmp_path)
    assert (
        error_of("info", "a", "-m", "b", code=2) == "Expected one model, found MODEL and --model."
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (1_930_216, "1.93 MB"),
        (19_302_160, "19.3 MB"),
        (193_021_600, "193 MB"),
        (5_000_000_000, "5.00 GB"),
        (2.5e15, "2.50e+03 TB"),
    ],
)
def test_format_bytes(count, expected):
    assert format_bytes(count) == expected
