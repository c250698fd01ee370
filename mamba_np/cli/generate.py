"""``mamba-np generate``: continue a prompt, printing the text as it is made."""

import contextlib
import os
import sys
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
    open_text,
    option_group,
    print_json,
    stdin_is_piped,
)

SEPARATOR = "\n---\n"
"""Printed between several texts."""

BUNDLED_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "seed": 0}
"""How the bundled model writes unless told otherwise; the seed makes it repeatable."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")  # any of them asks for sampling
PASSED_ON = (
    *SAMPLING, "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams",
    "num_return_sequences",
)  # fmt: skip

prompt_options = option_group(
    click.argument("prompt", required=False),
    click.option("-p", "--prompt", "prompt_option", metavar="TEXT", help="The same as PROMPT."),
    click.option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin."),
    click.option(
        "--state-in", metavar="FILE", help="Go on from a saved state; PROMPT is what comes next."
    ),
    click.option("--state-out", metavar="FILE", help="Save the state after the last token."),
)

length_options = option_group(
    click.option(
        "-n",
        "--max-new-tokens",
        "--max-tokens",
        type=click.IntRange(min=0),
        metavar="N",
        default=128,
        show_default=True,
        help="How many tokens to make at most; 0 only reads the prompt.",
    ),
    click.option("--min-new-tokens", type=int, metavar="N", help="Not to end before N tokens."),
    click.option(
        "--stop", multiple=True, metavar="STRING", help="End after this string; can be repeated."
    ),
    click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-text token."),
)

sampling_options = option_group(
    click.option(
        "--do-sample/--greedy",
        default=None,
        help="Draw each token, or take the likeliest. Options of sampling imply the first.",
    ),
    click.option(
        "--temperature", "--temp", type=float, metavar="T", help="Below 1 is safer, above wilder."
    ),
    click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens."),
    click.option(
        "--top-p", type=float, metavar="P", help="Draw from the fewest that hold probability P."
    ),
    click.option(
        "--min-p", type=float, metavar="P", help="Leave out those below P times the likeliest."
    ),
    click.option("--seed", type=int, metavar="N", help="The same seed makes the same text."),
    click.option(
        "--repetition-penalty", type=float, metavar="X", help="Above 1: avoid what was said."
    ),
    click.option(
        "--no-repeat-ngram-size", type=int, metavar="N", help="Repeat no N tokens in a row."
    ),
    click.option("--num-beams", type=int, metavar="N", help="Beam search with N beams."),
    click.option("--num-return-sequences", type=int, metavar="N", help="Make N texts."),
)

output_options = option_group(
    click.option("--echo/--no-echo", default=True, help="Print the prompt first [default: echo]."),
    json_option,
    click.option(
        "--stats/--no-stats",
        default=None,
        help="Print speed and memory on stderr [default: when that is a terminal].",
    ),
)


HELP = """Continue PROMPT, printing the text as it is made.

Without PROMPT, -p or -f the prompt is read from stdin when something is piped into it. An
empty prompt starts a text from nothing.

The bundled model draws with temperature 0.7, top-p 0.9 and seed 0 unless told otherwise. Any
other model takes the likeliest token (or what its generation_config.json says) unless an
option of sampling is given.

\b
Examples:
  mamba-np generate "Once upon a time"
  mamba-np generate "The king said" --seed 3 --temperature 0.9 -n 200
  mamba-np generate -m state-spaces/mamba-130m-hf --greedy < prompt.txt
"""


@click.command("generate", help=HELP, short_help="Continue a prompt.")
@prompt_options
@model_options
@length_options
@sampling_options
@output_options
@hub_options
def command(model: str | None, **options: Any) -> None:
    """Run ``mamba-np generate``."""
    chosen = chosen_model(model, options)
    prompt = read_prompt(options)
    settings = generation_settings(options, is_bundled=chosen.is_default)
    one_text = settings.get("num_beams", 1) == settings.get("num_return_sequences", 1) == 1
    if options["state_out"] is not None:
        if not one_text:
            raise click.UsageError(
                "--state-out needs one text: no beams, no --num-return-sequences."
            )
        check_writable("--state-out", options["state_out"])

    from .session import Printer, Session

    network = load_model(chosen, options["dtype"], options["backend"])
    tokenizer = load_tokenizer(chosen, options["tokenizer"])
    session = Session(network, tokenizer, prompt, options["state_in"])
    echo = prompt if options["echo"] else ""
    with Printer(session.decoder(), None if options["as_json"] else sys.stdout) as printer:
        session.run(settings, printer, echo if one_text else "")
        if not one_text:
            printer.write(SEPARATOR.join(echo + text for text in session.texts()))
    finish(session, chosen.name, options)


def finish(session: Any, model: str, options: dict[str, Any]) -> None:
    """Save the state and report, as the options say; pass on an interruption."""
    if options["state_out"] is not None and not session.interrupted:
        session.save_state(options["state_out"])
    if options["as_json"]:
        print_json({"model": model, **session.report()})
    if options["stats"] or (options["stats"] is None and sys.stderr.isatty()):
        click.echo(session.stats_line(), err=True)
    if session.interrupted:
        raise KeyboardInterrupt


def check_writable(name: str, path: str) -> None:
    """Raise FileMissingError where a file cannot be written, before there is work to lose."""
    from ..errors import FileMissingError

    target = Path(path).resolve()  # a link is followed
    if target.exists() and not target.is_file():
        found = "a folder" if target.is_dir() else "not a regular file"
        raise FileMissingError(f"{name}: {path}: expected a file to write, found {found}")
    if not target.parent.is_dir():
        raise FileMissingError(f"{name}: {path}: expected a folder {target.parent}, found none")
    if not os.access(target.parent, os.W_OK):
        raise FileMissingError(f"{name}: {path}: cannot be written: {target.parent} is read-only")


def read_prompt(options: dict[str, Any]) -> str:
    """Return the prompt from wherever it was given; "" only where that is what was given.

    Raises UsageError for none and for several, InputError for bytes that are not UTF-8.
    """
    given = {
        "PROMPT": options.pop("prompt"),
        "--prompt": options.pop("prompt_option"),
        "--file": options.pop("file"),
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise click.UsageError(f"Expected one prompt, found {' and '.join(names)}.")
    if not names:
        if not stdin_is_piped():
            if options["state_in"] is not None:
                return ""
            raise click.UsageError(
                "No prompt: give PROMPT, --prompt, --file, or pipe it into stdin."
            )
        return read_text_file("-")
    if names == ["--file"]:
        return read_text_file(given["--file"])
    return check_unicode(names[0], given[names[0]])


def read_text_file(path: str) -> str:
    """Return a prompt from a file or stdin, without the line break that ends it."""
    from ..errors import InputError

    name = "stdin" if path == "-" else path
    try:
        with open_text(path) as stream:
            text = stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: expected text in UTF-8, found byte 0x{error.object[error.start]:02x} at "
            f"offset {error.start} ({error.reason})"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def check_unicode(name: str, text: str) -> str:
    """Return an argument's text; raises InputError where the shell passed bytes not in UTF-8."""
    from ..errors import InputError

    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        with contextlib.suppress(UnicodeError):  # fine bytes that the locale has no characters for
            return os.fsencode(text).decode("utf-8")
        raise InputError(
            f"{name}: expected text in UTF-8, found other bytes at character {error.start}"
        ) from None


def generation_settings(options: dict[str, Any], *, is_bundled: bool) -> dict[str, Any]:
    """Return the keyword arguments of ``generate`` that the options ask for."""
    settings = {name: options[name] for name in PASSED_ON if options[name] is not None}
    if settings.get("temperature") == 0:  # the limit of ever safer draws, as other tools have it
        settings = {k: v for k, v in settings.items() if k not in SAMPLING}
        options = options | {"do_sample": False}
    draws = [name for name in SAMPLING if name in settings]
    shaping = [name for name in draws if name != "seed"]
    do_sample = options["do_sample"]
    if do_sample is False and shaping:
        flag = shaping[0].replace("_", "-")
        raise click.UsageError(f"--greedy takes the likeliest token; --{flag} is for sampling.")
    if do_sample is None and (draws or (is_bundled and (options["num_beams"] or 1) == 1)):
        do_sample = True
    if do_sample is not None:
        settings["do_sample"] = do_sample
    if do_sample and is_bundled:
        settings = BUNDLED_SAMPLING | settings
    settings["max_new_tokens"] = options["max_new_tokens"]
    if options["stop"]:
        settings["stop_strings"] = [check_unicode("--stop", stop) for stop in options["stop"]]
    if options["ignore_eos"]:
        settings["eos_token_id"] = None
    return settings
