"""The command line in a process of its own: start-up, signals, pipes, encodings."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

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
    options = {"stdin": subprocess.DEVNULL} | options
    return subprocess.Popen(
        [*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


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
    assert re.fullmatch(r"prompt: 4 tokens, .* \| new: \d+ tokens, [^\n]*", stats)
    # It stood after the last character: the same tokens are there without interruption.
    count = int(re.search(r"new: (\d+) tokens", stats)[1])
    assert count < 100_000
    whole = output_of("generate", PROMPT, "--ignore-eos", "-n", count)
    assert whole.strip().startswith((head + rest).decode("utf-8", "ignore").strip("\n\ufffd"))


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_while_scoring_is_quiet():
    with start("score", "-", stdin=subprocess.PIPE) as process:
        # More than a pipe holds: once all is written, the command has read some of it.
        process.stdin.write(b"Once upon a time. " * 5_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_sigterm_runs_the_cleaning_up(tmp_path):
    program = (
        "import sys, time, mamba_np.cli as c\n"
        "from mamba_np.files import replacing\n"
        "def command(*_, **__):\n"
        f"    with replacing({str(tmp_path / 'file')!r}):\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "c.Commands.invoke = command\n"
        "sys.argv = ['mamba-np', 'info']\n"
        "c.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.wait(timeout=60) == 143
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


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


def in_bash(*args, redirection="", **options):
    line = f"{shlex.join([*COMMAND, *args])} {redirection}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize("args", [["--help"], ["--version"], ["score", "--help"]])
def test_help_that_cannot_be_printed(args):
    done = in_bash(*args, redirection=">/dev/full")
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="redirections of POSIX shells")
@pytest.mark.parametrize("args", [["generate", "-f", "-"], ["score", "-"]])
def test_a_closed_stdin_is_named(args):
    done = in_bash(*args, redirection="<&-")
    assert (done.returncode, done.stderr) == (1, "error: stdin: expected text, found it closed\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="process substitution of bash")
def test_texts_can_be_pipes():
    done = in_bash("generate", "-n", "2", "-f", redirection=f"<(echo {PROMPT})")
    assert (done.returncode, done.stdout) == (0, output_of("generate", PROMPT, "-n", 2))
    done = in_bash("score", "--json", redirection=f"<(echo {PROMPT})")
    assert json.loads(done.stdout)["bytes"] == len(PROMPT) + 1


@pytest.mark.skipif(os.name != "posix", reason="locales of POSIX")
def test_prompts_are_utf8_in_any_locale():
    env = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "utf-8",
    }
    args = ["generate", "café", "-n", "0", "--stop", "é"]
    done = subprocess.run([*COMMAND, *args], capture_output=True, env=os.environ | env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "café\n".encode(), b"")


@pytest.mark.parametrize("args", [[], ["generate"], ["score"], ["info"], ["convert"]])
def test_help_is_there_without_docstrings(args):
    line = [sys.executable, "-OO", "-m", "mamba_np", *args, "--help"]
    assert "Examples:" in subprocess.run(line, capture_output=True, text=True).stdout
