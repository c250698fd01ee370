"""How tests call the command line in this process: what it prints, or how it fails."""

import json

from click.testing import CliRunner

from mamba_np.cli import cli

PROMPT = "Once upon a time"


def run(*args, stdin=None):
    """Run a command; stdin is empty unless given."""
    return CliRunner().invoke(cli, [str(a) for a in args], input=stdin, prog_name="mamba-np")


def output_of(*args, stdin=None):
    result = run(*args, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def json_of(*args, stdin=None):
    return json.loads(output_of(*args, "--json", stdin=stdin))


def error_of(*args, stdin=None, code=1):
    """Return the one line on stderr of a command that fails and prints nothing else."""
    result = run(*args, stdin=stdin)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    line, *rest = result.stderr.splitlines()[-1:] if code == 2 else result.stderr.splitlines()
    assert rest == []
    assert line.startswith("Error: " if code == 2 else "error: ")
    return line[len("error: ") :]
