"""Options and helpers that several commands share."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import click

from ..bundled import bundled_model_path

DTYPES = ("float32", "float64", "bfloat16", "float16")

NEOX = "EleutherAI/gpt-neox-20b"
"""Where the tokenizer of the models of the paper is; their own repositories have none."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class ModelChoice:
    """Which model to use: a folder or hub id, and which copy of it."""

    name: str
    hub: dict[str, Any]
    """Keyword options of every ``from_pretrained``."""
    is_default: bool = False
    """Whether it is the bundled model because none was named."""


def chosen_model(name: str | None, options: dict[str, Any]) -> ModelChoice:
    """Return the named model, or the bundled one; takes the hub's options out of ``options``."""
    hub = {
        "revision": options.pop("revision"),
        "token": options.pop("token"),
        "cache_dir": options.pop("cache_dir"),
        "local_files_only": options.pop("offline"),
    }
    if name is None:
        return ModelChoice(str(bundled_model_path()), hub, is_default=True)
    return ModelChoice(name, hub)


def load_model(model: ModelChoice, dtype: str, backend: str) -> Any:
    """Return the MambaForCausalLM that was chosen."""
    from ..model import MambaForCausalLM

    return MambaForCausalLM.from_pretrained(model.name, dtype=dtype, backend=backend, **model.hub)


def load_tokenizer(model: ModelChoice, tokenizer: str | None) -> Any:
    """Return the tokenizer of a model, or the one named in its place."""
    from ..errors import FileMissingError
    from ..tokenizer import AutoTokenizer

    if tokenizer is not None:  # the revision is the model's
        return AutoTokenizer.from_pretrained(tokenizer, **model.hub | {"revision": None})
    try:
        return AutoTokenizer.from_pretrained(model.name, **model.hub)
    except FileMissingError as error:
        raise FileMissingError(f"{error}; add --tokenizer {NEOX}") from None


# --- options ---------------------------------------------------------------------------------


def option_group(*decorators: Decorator) -> Decorator:
    """Return one decorator that stands for several, the first of them outermost."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    ctx.meta["debug"] = wanted  # shared with the group, which reports errors


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    envvar="MAMBA_NP_DEBUG",
    callback=_set_debug,
    help="Show the traceback of an error.",
)

hub_options = option_group(
    click.option("--revision", metavar="NAME", help="Branch, tag or commit of a hub repository."),
    click.option("--token", metavar="TOKEN", help="Access token of the hub [default: HF_TOKEN]."),
    click.option("--cache-dir", metavar="FOLDER", help="Where downloads are kept."),
    click.option("--offline", is_flag=True, help="Use only files that are already here."),
    debug_option,
)

model_options = option_group(
    click.option(
        "-m", "--model", metavar="MODEL", help="Folder or hub id [default: the bundled model]."
    ),
    click.option(
        "--tokenizer", metavar="MODEL", help="Folder or hub id to take the tokenizer from."
    ),
    click.option(
        "--dtype",
        type=click.Choice((*DTYPES, "int8")),
        default="float32",
        show_default=True,
        help="How weights are held in memory; float64 also computes in float64.",
    ),
    click.option(
        "--backend",
        metavar="NAME",
        default="auto",
        show_default=True,
        help="Engine that computes: auto, numpy, cpu or cuda.",
    ),
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


# --- input and output ------------------------------------------------------------------------


def stdin_is_piped() -> bool:
    """Return whether stdin is open and something else than a terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


@contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
    """Open a text as bytes: a file, a pipe (such as the shell's ``<(...)``), or stdin for "-".

    Raises InputError for a stdin that is closed, FileMissingError for what cannot be opened.
    """
    from ..errors import FileMissingError, InputError

    if path == "-":
        if sys.stdin is None:
            raise InputError("stdin: expected text, found it closed")
        yield sys.stdin.buffer
        return
    if os.path.isdir(path):
        raise FileMissingError(f"{path}: expected a file, found a folder")
    try:
        stream = open(path, "rb")  # noqa: SIM115 - an error in the caller's block is not ours
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileMissingError(f"{path}: cannot be opened: {reason}") from error
    with stream:
        yield stream


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; numbers that JSON does not have become null."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def peak_memory() -> int | None:
    """Return the largest memory this process had resident so far, in bytes, where that is known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def dtype_name(tensor: Any) -> str:
    """Return NumPy's name of a stored tensor's dtype; an unknown dtype stays as it is."""
    from ..checkpoint.tensors import STORED

    return STORED[tensor.dtype].name if tensor.dtype in STORED else tensor.dtype


def format_bytes(count: float) -> str:
    """Return a number of bytes with a unit and three digits: 1930216 is "1.93 MB"."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count * 1.0005)) // 3, 4)  # 999,600 rounds up to 1.00 MB
    digits = f"{count / 1000**power:#.3g}".removesuffix(".")
    return f"{digits} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
