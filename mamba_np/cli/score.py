"""``mamba-np score``: perplexity and bits per byte of a text file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import click

from .common import (
    chosen_model,
    format_bytes,
    hub_options,
    json_option,
    load_model,
    load_tokenizer,
    model_options,
    open_text,
    peak_memory,
    print_json,
    stdin_is_piped,
)

HELP = """Measure how well a model predicts a text: perplexity and bits per byte.

FILE is a text in UTF-8 of any length; - is stdin, as is no FILE when something is piped into it.
The text is read piece by piece in constant memory; the model's state is carried on, so each token
is predicted from all before it.

\b
Examples:
  mamba-np score book.txt
  mamba-np score -m state-spaces/mamba-130m-hf --json < book.txt
"""


@click.command("score", help=HELP, short_help="Measure how well a model predicts a text.")
@click.argument("file", metavar="[FILE]", required=False)
@model_options
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    metavar="N",
    default=512,
    show_default=True,
    help="Tokens computed at once: changes speed and memory, not the result.",
)
@click.option(
    "--bos/--no-bos",
    default=True,
    show_default=True,
    help="Read the model's bos token first, so that the first token is scored too.",
)
@click.option(
    "--errors",
    type=click.Choice(["strict", "replace"]),
    default="strict",
    show_default=True,
    help="What to do with bytes that are not UTF-8.",
)
@json_option
@hub_options
def command(file: str | None, model: str | None, **options: Any) -> None:
    """Run ``mamba-np score``."""
    chosen = chosen_model(model, options)
    if file is None and not stdin_is_piped():
        raise click.UsageError("No text: give FILE, or pipe it into stdin.")
    file = "-" if file is None else file
    with open_text(file) as stream:
        network = load_model(chosen, options["dtype"], options["backend"])
        tokenizer = load_tokenizer(chosen, options["tokenizer"])
        started = time.perf_counter()
        result = _score(network, tokenizer, stream, "stdin" if file == "-" else file, options)
    seconds = time.perf_counter() - started
    if options["as_json"]:
        _print_as_json(chosen.name, result, seconds)
    else:
        _print_table(result, seconds)


def _score(
    network: Any, tokenizer: Any, stream: BinaryIO, name: str, options: dict[str, Any]
) -> Any:
    """Return the Score of a stream, showing the progress."""
    from ..errors import InputError
    from ..scoring import score_text

    try:
        with _progress(stream) as progress:
            return score_text(
                network,
                tokenizer,
                stream,
                name=name,
                errors=options["errors"],
                add_bos=options["bos"],
                chunk_size=options["chunk"],
                progress=progress,
            )
    except InputError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        raise InputError(f"{error}; --errors replace reads them as U+FFFD") from error.__cause__


@contextmanager
def _progress(stream: BinaryIO) -> Iterator[Any]:
    """Yield a function that shows the score so far as a bar, or None where no one is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    info = os.fstat(stream.fileno())
    with tqdm(
        total=info.st_size or None, unit="B", unit_scale=True, leave=False, file=sys.stderr
    ) as bar:

        def show(score: Any) -> None:
            bar.set_postfix_str(f"perplexity {score.perplexity:.4g}", refresh=False)
            bar.update(score.bytes - bar.n)

        yield show


def _print_as_json(model: str, result: Any, seconds: float) -> None:
    print_json(
        {
            "model": model,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "bits_per_token": result.bits_per_token,
            "log_likelihood": result.log_likelihood,
            "tokens": result.tokens,
            "bytes": result.bytes,
            "seconds": seconds,
            "tokens_per_second": result.tokens / seconds,
            "peak_memory_bytes": peak_memory(),
        }
    )


def _print_table(result: Any, seconds: float) -> None:
    click.echo(f"perplexity     {result.perplexity:.4f} per token")
    click.echo(f"bits per byte  {result.bits_per_byte:.4f}")
    click.echo(f"tokens         {result.tokens:,}")
    click.echo(f"bytes          {result.bytes:,}")
    click.echo(f"seconds        {seconds:.1f} ({result.tokens / seconds:,.0f} tokens/s)")
    peak = peak_memory()
    if peak is not None:
        click.echo(f"peak memory    {format_bytes(peak)}")
