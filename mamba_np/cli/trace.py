"""``mamba-np trace``: what went on inside a model while it read a text."""

from pathlib import Path
from typing import Any

import click

from .common import (
    chosen_model,
    hub_options,
    json_option,
    load_model,
    load_tokenizer,
    model_options,
    option_group,
    print_json,
)
from .generate import check_writable, read_prompt
from .tables import Layers, bar, finite, of_next, padded, percent

PAGES, TRACES = (".html", ".htm"), (".safetensors",)
BAR = 16
LIKELIEST = 3

HELP = """Show what goes on inside a model while it reads PROMPT.

Without --out, a table with a line for each token: its step size delta (geometric mean over channels
and layers), which says how much the token writes into the state and how much of the rest is
forgotten, and the likeliest next token. Without PROMPT, -p or -f the text is read from stdin when
something is piped into it.

With --out FILE.html, a page to explore all of it: one file, which needs no network. With --out
FILE.safetensors, the numbers themselves, for Trace.load.

\b
Examples:
  mamba-np trace "Once upon a time there was a king."
  mamba-np trace -f story.txt --out report.html
  mamba-np trace "The king said" --layers 0,3-5 --out trace.safetensors
"""


text_options = option_group(
    click.argument("prompt", required=False),
    click.option("-p", "--prompt", "prompt_option", metavar="TEXT", help="The same as PROMPT."),
    click.option("-f", "--file", metavar="FILE", help="Read the text from a file; - is stdin."),
)


@click.command("trace", help=HELP, short_help="Show what goes on inside while a text is read.")
@text_options
@model_options
@click.option("--out", metavar="FILE", help="Write a page (.html) or the trace (.safetensors).")
@click.option(
    "--layers", type=Layers(), metavar="N,N-N", help="Which layers, from 0 [default: all]."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=256,
    show_default=True,
    help="Read the first N tokens.",
)
@json_option
@hub_options
def command(model: str | None, **options: Any) -> None:
    """Run ``mamba-np trace``."""
    chosen = chosen_model(model, options)
    out = options["out"]
    text = read_prompt(options | {"state_in": None})
    if out is not None:
        if Path(out).suffix.lower() not in PAGES + TRACES:
            raise click.UsageError(
                f"--out: expected a name that ends with {', '.join(PAGES + TRACES)}, found {out!r}."
            )
        if options["as_json"]:
            raise click.UsageError("Expected one output, found --out and --json.")
        check_writable("--out", out)
    network = load_model(chosen, options["dtype"], options["backend"])
    tokenizer = load_tokenizer(chosen, options["tokenizer"])
    ids = ids_of(text, tokenizer, options["max_tokens"])
    if out is None:
        found = table_of(network, tokenizer, ids, options["layers"])
        if options["as_json"]:
            print_json({"model": chosen.name, "tokens": found})
        else:
            _print_table(found)
        return
    trace = _traced(network, tokenizer, ids, options["layers"])
    if Path(out).suffix.lower() in PAGES:
        from ..report import save_report

        save_report(out, trace, network, tokenizer)
    else:
        trace.save(out)
    size = Path(out).stat().st_size
    click.echo(f"{out}: {len(trace)} tokens, {len(trace.layers)} layers, {size:,} bytes")


def ids_of(text: str, tokenizer: Any, limit: int | None = None) -> list[int]:
    """Return a text's first ids, with a warning for the rest; raises InputError for no text."""
    from ..errors import InputError

    ids = tokenizer(text)["input_ids"]
    if not ids:
        raise InputError("text: expected at least one token, found an empty text")
    if limit is not None and len(ids) > limit:
        click.echo(
            f"warning: the first {limit} of {len(ids):,} tokens are read; --max-tokens reads more",
            err=True,
        )
    return ids[:limit]


def _traced(network: Any, tokenizer: Any, ids: list[int], layers: list[int] | None) -> Any:
    """Return a trace with all that a page shows; raises InputError if it would be too large."""
    from ..errors import InputError
    from ..report import CAPTURE
    from ..trace import LIMIT, Trace

    size = Trace.estimate(network, len(ids), layers, None, CAPTURE, tokenizer=tokenizer)
    if size > LIMIT:
        raise InputError(
            f"--max-tokens: expected a trace of at most {LIMIT:,} bytes, found {size:,} for "
            f"{len(ids):,} tokens; choose fewer, or some layers with --layers"
        )
    return network.trace(ids, layers, capture=CAPTURE, tokenizer=tokenizer)


def table_of(
    network: Any, tokenizer: Any, ids: list[int], layers: list[int] | None
) -> list[dict[str, Any]]:
    """Return what the table shows of each token, as JSON holds it."""
    import numpy as np

    from .. import equations as eq
    from ..trace.labels import names_of

    capture = ("delta_geometric_mean", "logits")
    trace = network.trace(ids, layers, capture=capture, tokenizer=tokenizer)
    by_layer = trace.need("delta_geometric_mean").astype(np.float64)  # (n L)
    over_layers, p = eq.geometric_mean(by_layer.T), eq.softmax(trace.need("logits"))
    best = np.argsort(-p, axis=-1, kind="stable")[:, :LIKELIEST]
    return [
        {
            "id": int(trace.ids[t]),
            "token": trace.labels[t],
            "delta": finite(over_layers[t]),
            "delta_by_layer": {
                str(layer): finite(value)
                for layer, value in zip(trace.layers.tolist(), by_layer[:, t], strict=True)
            },
            "next": of_next(best[t], p[t, best[t]], names_of(best[t].tolist(), tokenizer)),
        }
        for t in range(len(trace))
    ]


def _print_table(tokens: list[dict[str, Any]]) -> None:
    known = [token["delta"] for token in tokens if token["delta"]]
    low, high = min(known, default=0.0), max(known, default=0.0)
    head = f"{'#':>5}  {'token':<13} {'delta':>8}  {'':{BAR}}  likeliest next"
    click.echo(head)
    for place, token in enumerate(tokens):
        delta = token["delta"] or 0.0
        share = (delta - low) / (high - low) if high > low else 0.0
        best = token["next"][0]
        chance = float("nan") if best["probability"] is None else best["probability"]
        click.echo(
            f"{place:>5}  {padded(token['token'], 13)} {delta:>8.3g}  "
            f"{padded(bar(share, BAR), BAR)}  {percent(chance)}  {best['token']}"
        )
    click.echo(f"\nBars go from the smallest delta, {low:.3g}, to the largest, {high:.3g}.")
