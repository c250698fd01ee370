"""``mamba-np explain``: where the prediction of the next token came from."""

from typing import Any

import click

from .common import (
    chosen_model,
    hub_options,
    json_option,
    load_model,
    load_tokenizer,
    model_options,
    print_json,
)
from .generate import check_unicode, read_prompt
from .tables import columns, finite, of_next, padded, percent, signed_bar
from .trace import ids_of, text_options

LIKELIEST = 5
BAR = 20

HELP = """Show where the prediction of the token after PROMPT came from.

Prints the likeliest next tokens; the logit of the likeliest, or of --next, as a sum of shares of
the tokens read (MambaLRP) and of the biases; and what each layer would predict, were it the last.
Without PROMPT, -p or -f the text is read from stdin when something is piped into it.

\b
Examples:
  mamba-np explain "Once upon a time there was a"
  mamba-np explain "Once upon a time there was a" --next " king"
  mamba-np explain -m state-spaces/mamba-130m-hf "The capital of France is" --json
"""


@click.command("explain", help=HELP, short_help="Show where a prediction came from.")
@text_options
@model_options
@click.option(
    "--next",
    "wanted",
    metavar="TOKEN",
    help="Explain this next token, written as text (a middle dot at its beginning is a space) or "
    "as #ID [default: the likeliest].",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    default=40,
    show_default=True,
    help="Show the shares of the N tokens with the largest, the others as one sum.",
)
@json_option
@hub_options
def command(model: str | None, **options: Any) -> None:
    """Run ``mamba-np explain``."""
    from ..checks import integer
    from ..errors import InputError

    chosen = chosen_model(model, options)
    text = read_prompt(options | {"state_in": None})
    network = load_model(chosen, options["dtype"], options["backend"])
    tokenizer = load_tokenizer(chosen, options["tokenizer"])
    ids = ids_of(text, tokenizer)
    wanted, high = options["wanted"], network.config.vocab_size - 1
    if wanted is not None:
        wanted = token_of(check_unicode("--next", wanted), tokenizer)
        wanted = integer("--next", wanted, low=0, high=high, error=InputError)
    found = explanation(network, tokenizer, ids, wanted)
    if options["as_json"]:
        print_json({"model": chosen.name, "text": text, **found})
    else:
        _print(found, options["top"])


def token_of(text: str, tokenizer: Any) -> int:
    """Return the id of one token: "#12", or a text; raises InputError if that is none or several.

    Labels are texts as well: "·king" is " king", unless "·king" is a token.
    """
    from ..errors import InputError

    if text.startswith("#") and text[1:].isascii() and text[1:].isdigit() and len(text) < 12:
        return int(text[1:])
    for spelt in (text, text.replace("·", " ", 1)):
        ids = tokenizer(spelt, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            return int(ids[0])
    parts = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids))) or "none"
    raise InputError(f"--next: expected a text of one token, or #ID, found {text!r}: {parts}")


def explanation(
    network: Any, tokenizer: Any, ids: list[int], token: int | None = None
) -> dict[str, Any]:
    """Return what is printed, as JSON holds it. Raises InputError for a token out of range."""
    import numpy as np

    from .. import equations as eq
    from ..analysis import logit_lens, relevance
    from ..trace.labels import names_of, texts_of

    shares = relevance(network, ids, token)
    last = _last_token(network, tokenizer, ids)
    logits = last.need("logits")[0]
    p = eq.softmax(logits)
    best = (-p).argsort(kind="stable")[:LIKELIEST].tolist()
    lens = logit_lens(network, last, min(LIKELIEST, len(p)))
    said = [names_of(guesses, tokenizer) for guesses in lens.ids[:, 0].tolist()]
    labels = texts_of(np.array(ids), tokenizer)[1]
    return {
        "next": [
            entry | {"logit": finite(logits[entry["id"]])}
            for entry in of_next(best, p[best], names_of(best, tokenizer))
        ],
        "explained": {
            "id": shares.token,
            "token": names_of([shares.token], tokenizer)[0],
            "probability": finite(p[shares.token]),
            "logit": finite(shares.logit),
        },
        "shares": [
            {"id": int(i), "token": label, "share": finite(share)}
            for i, label, share in zip(ids, labels, shares.tokens, strict=True)
        ],
        "bias": finite(shares.bias),
        "total": finite(float(shares.tokens.sum(dtype="float64")) + shares.bias),
        "layers": {
            str(layer): of_next(lens.ids[row, 0], lens.probabilities[row, 0], names)
            for row, (layer, names) in enumerate(zip(last.layers.tolist(), said, strict=True))
        },
    }


def _last_token(network: Any, tokenizer: Any, ids: list[int]) -> Any:
    """Return the trace of a text's last token alone, so that a long text takes no more memory."""
    cache = network.new_cache()
    if len(ids) > 1:
        network([ids[:-1]], cache_params=cache, logits_to_keep=1)
    capture = ("residual", "logits")
    return network.trace(ids[-1:], capture=capture, cache_params=cache, tokenizer=tokenizer)


# --- what is printed -----------------------------------------------------------------------------


def _print(found: dict[str, Any], top: int) -> None:
    explained = found["explained"]
    click.echo("Likeliest next tokens")
    for entry in found["next"]:
        click.echo(
            f"  {padded(entry['token'], 13)} {percent(_number(entry['probability']))}   "
            f"logit {_number(entry['logit']):8.3f}"
        )
    click.echo(
        f"\nWhere the logit {_number(explained['logit']):.3f} of {explained['token']} comes from "
        f"(probability {percent(_number(explained['probability'])).strip()})"
    )
    for line in share_lines(found, top):
        click.echo(f"  {line}".rstrip())
    click.echo("\nWhat each layer would say, were it the last")
    for layer, guesses in found["layers"].items():
        text = "  ".join(
            f"{guess['token']} {percent(_number(guess['probability'])).strip()}"
            for guess in guesses
        )
        click.echo(f"  {layer:>3}  {text}")


def share_lines(found: dict[str, Any], top: int) -> list[str]:
    """Return the shares as lines with bars: tokens in their order, the rest, biases, the total."""
    values = [_number(entry["share"]) for entry in found["shares"]]
    by_size = sorted(range(len(values)), key=lambda t: (-abs(values[t]), t))
    kept = sorted(by_size[:top])
    rows = [(f"{t:>4}", found["shares"][t]["token"], values[t]) for t in kept]
    others = len(values) - len(kept)
    if others:
        rest = sum(values) - sum(values[t] for t in kept)
        rows.append(("", f"{others} other{'s' if others > 1 else ''}", rest))
    rows.append(("", "biases", _number(found["bias"])))
    most = max((abs(value) for _, _, value in rows), default=0.0) or 1.0
    width = max(13, *(columns(name) for _, name, _ in rows))
    lines = [
        f"{place:4}  {padded(name, width)} {value:+9.3f}  {signed_bar(value / most, BAR)}"
        for place, name, value in rows
    ]
    total = f"{'':4}  {padded('total', width)} {_number(found['total']):+9.3f}"
    return [*lines, total]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
