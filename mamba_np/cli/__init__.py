"""The command line: ``mamba-np generate``, ``score``, ``info`` and others.

What a command computes is a function elsewhere in the package; here are only options, files and
what is printed. Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

import importlib
import io
import os
import signal
import sys
import warnings
from typing import Any

import click

from .. import __version__
from ..errors import MambaError

# Each is a module here, with a function `command`.
COMMANDS = (
    *("generate", "score", "info", "trace", "explain", "convert", "train", "lora", "merge"),
    *("warmup", "bench"),
)

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_TERMINATED = 143  # 128 + SIGTERM

# Not a docstring: "python -OO" takes those away.
HELP = """Mamba language models in NumPy: write text, score text, look into checkpoints.

\b
Examples:
  mamba-np generate "Once upon a time"
  mamba-np generate -m state-spaces/mamba-130m-hf "The capital of France is"
  mamba-np score book.txt
  mamba-np info

Without --model, a small model of children's stories is used that comes with the package.
Run "mamba-np COMMAND --help" for the options of a command.
"""


class Commands(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f".{cmd_name}", __name__).command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; prints what --help and --version ask for."""
        _prepare_streams()
        try:
            return super().make_context(*args, **kwargs)
        except OSError as error:  # of printing
            sys.exit(_report(error))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong becomes one line on stderr and an exit code."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe can still be caught
            return result
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except (MambaError, OSError, MemoryError) as error:
            if ctx.meta.get("debug") and not isinstance(error, BrokenPipeError):
                raise
            ctx.exit(_report(error))


def _prepare_streams() -> None:
    """Make stdout and stderr safe to write to, whatever the shell did to them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: ">&-"
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # characters that the terminal lacks


def _report(error: Exception) -> int:
    """Say in one line what went wrong; return the exit code."""
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    click.echo(f"error: {_one_line(error)}", err=True)
    return 1


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"not enough memory: {text}" if text else "not enough memory"
    return text or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _discard_stdout() -> None:
    """Send to nowhere what is still buffered, or Python complains about it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"mamba-np {__version__}")
    ctx.exit()


@click.group(cls=Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Do what all commands have in common: nothing yet."""


def main() -> None:
    """Run the command line and exit; the entry point of ``mamba-np``."""
    signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name="mamba-np")


def _terminate(number: int, _: Any) -> None:
    """Leave by an exception, so that temporary files are removed; a second signal kills."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(EXIT_TERMINATED)
