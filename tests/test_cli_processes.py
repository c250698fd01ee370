"""The command line in a process of its own: start-up, signals, pipes, encodings."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from cli_runner import PROMPT, output_of

COMMAND = [sys.executable, "-m", "mamba_np"]


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = "numpy,tokenizers,huggingface_hub,safetensors,tqdm,ml_dtypes"
    program = (
        "import sys, mamba_np.cli as c\n"
        "try: c.cli(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]"
    before = os.times()
    subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
    after = os.times()
    # Processor time: how long one waits for it depends on what else the machine does.
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system <= 0.2


def start(*args, **options):
    return subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", "Café 왕 said"), ("latin-1", "Café ? said")]
)
def test_stdin_is_utf8_and_stdout_what_the_terminal_has(encoding, expected):
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [*COMMAND, "generate", "-n", "3"],
        input="Café 왕 said".encode(),
        capture_output=True,
        env=env,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).startswith(expected)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_keeps_the_text_and_prints_stats():
    with start("generate", PROMPT, "-n", "1000000", "--ignore-eos", "--stats") as process:
        head = process.stdout.read(len(PROMPT) + 40)
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert head.decode().startswith(PROMPT)
    assert rest.endswith(b"\n")
    stats = stderr.decode().strip()
    assert re.fullmatch(r"prompt: 5 tokens, .* \| new: \d+ tokens, [^\n]*", stats)
    # It stood after the last character: the same tokens are there without interruption.
    count = int(re.search(r"new: (\d+) tokens", stats)[1])
    assert count < 100_000
    whole = output_of("generate", PROMPT, "--ignore-eos", "-n", count)
    assert whole.strip().startswith((head + rest).decode("utf-8", "ignore").strip("\n\ufffd"))


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_while_scoring_is_quiet(tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("Once upon a time. " * 100_000)
    with start("score", str(file)) as process:
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_closed_pipe_ends_quietly():
    with start("generate", PROMPT, "-n", "1000000", "--ignore-eos") as process:
        process.stdout.read(30)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert stderr == b""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize(
    ("redirection", "code", "stdout", "stderr"),
    [
        ("2>&-", 0, f"{PROMPT}\n", ""),
        (">&-", 0, "", ""),
        (">/dev/full", 1, "", "error: [Errno 28] No space left on device\n"),
    ],
)
def test_streams_that_cannot_be_written(redirection, code, stdout, stderr):
    line = f"{shlex.join([*COMMAND, 'generate', PROMPT, '-n', '0'])} {redirection}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)
