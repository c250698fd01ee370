"""``mamba-np bench``: how fast this machine runs Mamba, and how fast others run it here."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..bench.options import DTYPES, GROUPS, PEERS, QUICK, SCAN, Options
from .common import debug_option

HELP = """Measure this package on this machine, side by side with its peers.

Programs take turns in short blocks, and the report has the medians: a Markdown table on stdout
and, with --out, files with everything. Peers that are not installed are lines that say so. All of
it takes about an hour; the machine should have nothing else to do.

\b
Examples:
  mamba-np bench --only limits,decode
  mamba-np bench --quick --peers none
  mamba-np bench --llama-bench ./llama-bench --out docs/benchmarks
"""


class Names(click.ParamType):
    """A comma list of some of the allowed names; "none" is an empty one, where that may be."""

    name = "NAMES"

    def __init__(self, allowed: tuple[str, ...], *, empty: bool = False):
        self.allowed, self.empty = allowed, empty

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Return the names, in the order in which they were given."""
        if not isinstance(value, str):
            return value
        if self.empty and value == "none":
            return ()
        found = tuple(part.strip() for part in value.split(","))
        if not set(found) <= set(self.allowed):
            self.fail(f"expected some of {','.join(self.allowed)}, found {value!r}", param, ctx)
        return tuple(dict.fromkeys(found))


class Numbers(click.ParamType):
    """A comma list of positive integers."""

    name = "NUMBERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Return the numbers, in the order in which they were given."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"expected positive integers such as 1,2, found {value!r}", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


class Shape(click.ParamType):
    """The three sizes of a scan."""

    name = "L,E,N"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, int]:
        """Return the sizes by their letters."""
        if not isinstance(value, str):
            return value
        sizes = value.split(",")
        if len(sizes) != len(SCAN) or not all(size.isdigit() and int(size) for size in sizes):
            self.fail(f"expected three positive integers L,E,N, found {value!r}", param, ctx)
        return dict(zip(SCAN, map(int, sizes), strict=True))


FOLDER = click.Path(file_okay=False, path_type=Path)
OLD_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("bench", help=HELP, short_help="Measure speeds, beside those of peers.")
@click.option("--only", type=Names(GROUPS), help=f"Some of {','.join(GROUPS)} [default: all].")
@click.option("--quick", is_flag=True, help="Two short blocks each: shows that all works.")
@click.option(
    "-m", "--model", metavar="FOLDER", type=OLD_FOLDER,
    help="A checkpoint [default: random weights in the shape of mamba-130m].",
)  # fmt: skip
@click.option(
    "--work", metavar="FOLDER", type=FOLDER,
    help="Where models are made and kept, up to 2 GB [default: in the temporary folder].",
)  # fmt: skip
@click.option("--out", metavar="FOLDER", type=FOLDER, help="Where to write the report's files.")
@click.option(
    "--llama-bench", metavar="FILE", type=OLD_FILE,
    help="llama.cpp's program of that name, with llama-quantize beside it.",
)  # fmt: skip
@click.option("--peers", type=Names(PEERS, empty=True), help=f"Some of {','.join(PEERS)}, or none.")
@click.option("--backend", metavar="NAME", default="cpu", show_default=True, help="Of ours.")
@click.option("--dtypes", type=Names(DTYPES), help=f"Some of {','.join(DTYPES)} [default: all].")
@click.option("--threads", type=Numbers(), help="Numbers of threads [default: 1,2].")
@click.option("--lengths", type=Numbers(), help="Of prompts [default: 128,512,2048].")
@click.option(
    "--memory-lengths", type=Numbers(), help="Of prompts, for memory [default: 4000,100000]."
)
@click.option("--blocks", type=click.IntRange(1), help="Of each, undisturbed [default: 5].")
@click.option("--seconds", type=click.FloatRange(0), help="Of a block, at least [default: 1.5].")
@click.option("--floats", type=click.IntRange(1), hidden=True)
@click.option("--scan", type=Shape(), hidden=True)
@debug_option
def command(quick: bool, out: Path | None, **given: Any) -> None:
    """Run ``mamba-np bench``."""
    from .. import backend
    from ..bench.report import markdown, write
    from ..bench.run import run

    given["backend"] = backend.resolve(given["backend"])
    chosen = {name: value for name, value in given.items() if value is not None}
    usual: dict[str, Any] = {"threads": tuple(sorted({1, min(2, os.cpu_count() or 1)}))}
    options = Options(**usual | (QUICK if quick else {}) | chosen)
    report = run(options, command_line(click.get_current_context()), _follow)
    click.echo(markdown(report), nl=False)
    for path in write(report, out) if out is not None else ():
        click.echo(f"wrote {path}", err=True)


def _follow(text: str) -> None:
    click.echo(text, err=True)


def command_line(ctx: click.Context) -> str:
    """Return the command as it may be published: of files and folders elsewhere, only names."""
    return shlex.join(["mamba-np", "bench", *_words(ctx)])


def _words(ctx: click.Context) -> Iterator[str]:
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        source = ctx.get_parameter_source(param.name or "")
        if value is None or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        yield param.opts[-1]
        if isinstance(value, Path):
            yield value.name if value.is_absolute() else value.as_posix()
        elif isinstance(value, dict):
            yield ",".join(map(str, value.values()))
        elif isinstance(value, tuple):
            yield ",".join(map(str, value)) or "none"
        elif value is not True:
            yield str(value)
