"""``mamba-np score``: perplexity and bits per byte of a text file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import click

from .common import (
    format_bytes,
    hub_options,
    json_option,
    load_model,
    load_tokenizer,
    model_options,
    peak_memory,
    print_json,
    source_of,
)


@click.command("score", short_help="Measure how well a model predicts a text.")
@click.argument("file", metavar="FILE")
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
def command(file: str, model: str | None, **options: Any) -> None:
    """Measure how well a model predicts a text: perplexity and bits per byte.

    FILE is a text in UTF-8 of any length, or - for stdin. It is read piece by piece in constant
    memory; the model's state is carried on, so each token is predicted from all before it.

    \b
    Examples:
      mamba-np score book.txt
      mamba-np score -m state-spaces/mamba-130m-hf --json - < book.txt
    """
    from ..scoring import score_text

    source = source_of(model, options)
    with _open(file) as stream:
        network = load_model(source, options["dtype"], options["backend"])
        tokenizer = load_tokenizer(source, options["tokenizer"])
        started = time.perf_counter()
        with _progress(stream) as progress:
            result = score_text(
                network,
                tokenizer,
                stream,
                name="stdin" if file == "-" else file,
                errors=options["errors"],
                add_bos=options["bos"],
                chunk_size=options["chunk"],
                progress=progress,
            )
    seconds = time.perf_counter() - started
    (_print_as_json if options["as_json"] else _print_table)(source.name, result, seconds)


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    from ..files import require_regular_file

    with require_regular_file(path).open("rb") as stream:
        yield stream


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


def _print_table(_: str, result: Any, seconds: float) -> None:
    click.echo(f"perplexity     {result.perplexity:.4f} per token")
    click.echo(f"bits per byte  {result.bits_per_byte:.4f}")
    click.echo(f"tokens         {result.tokens:,}")
    click.echo(f"bytes          {result.bytes:,}")
    click.echo(f"seconds        {seconds:.1f} ({result.tokens / seconds:,.0f} tokens/s)")
    peak = peak_memory()
    if peak is not None:
        click.echo(f"peak memory    {format_bytes(peak)}")
