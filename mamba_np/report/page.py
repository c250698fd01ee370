"""The page itself: templates filled in, in one string that needs nothing from elsewhere."""

import base64
import dataclasses
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import replacing
from ..trace import Trace
from .contents import contents, scale

TEMPLATES = Path(__file__).parent / "templates"

FRAME_TOKENS = 256
"""Tokens of a trace that a notebook shows; a page has all of them."""

FRAME_WORK = 2e9
"""Products that a notebook spends on hidden attention without being asked: some seconds."""

PANELS = {
    "strengths": (
        "What each layer did with it",
        "Written: the length of what it added to the state. Kept: what it left of the rest. Read: "
        "the length of what the block got of the state. Bars compare it with the other tokens.",
    ),
    "decay": (
        "How long it lasts",
        "The share of what it wrote that is left after so many more tokens: median over channels "
        "of the mean over their states.",
    ),
    "attention": (
        "Who reads it, and whom it reads",
        "Hidden attention, the mean of |alpha| over channels: what the scan's output at one token "
        "gets of another. Lines below the text mark the same.",
    ),
    "predictions": (
        "What would come next",
        "The likeliest next tokens, had the model ended after that layer (logit lens); the last "
        "layer is the model's own. Framed: what the text goes on with.",
    ),
}
"""Title and explanation of each panel."""


def html_of(trace: Trace, model: Any = None, tokenizer: Any = None) -> str:
    """Return a trace as an HTML page of its own: no network, no other file.

    The text is coloured by the step size; a click or the arrow keys choose a token, and panels show
    what it wrote, how long that lasts, who reads it and what would come next. ``model`` is the one
    that was traced: predictions need it. ``tokenizer`` names what is predicted; without it, that of
    the model's files. A panel whose quantities the trace lacks is replaced by a line that says
    how to get them: ``CAPTURE`` has them all. Raises InputError for an empty trace and for another
    model than the traced one.
    """
    return _filled(contents(trace, model, tokenizer), trace, "")


def save_report(
    path: str | os.PathLike[str], trace: Trace, model: Any = None, tokenizer: Any = None
) -> None:
    """Write ``html_of`` to a file, whole or not at all.

    Raises what it raises, and FileMissingError if the file cannot be written.
    """
    page = html_of(trace, model, tokenizer).encode("utf-8", "replace")  # of half a surrogate pair
    with replacing(path, follow_link=True) as temporary:
        temporary.write_bytes(page)


def frame_of(trace: Trace) -> str:
    """Return a trace's page as a frame for a notebook, of at most ``FRAME_TOKENS`` tokens.

    Its scripts are kept in the frame: they see nothing of the notebook. Raises InputError for an
    empty trace.
    """
    count = min(len(trace), FRAME_TOKENS)
    cut = "" if count == len(trace) else f"The first {count} of {len(trace):,} tokens. "
    shown = beginning(trace, count)
    page = html.escape(_filled(contents(shown, work=FRAME_WORK), shown, cut))
    return (
        f'<iframe title="Trace of {count} tokens" sandbox="allow-scripts" width="100%" '
        f'height="640" style="border:0" srcdoc="{page}"></iframe>'
    )


def beginning(trace: Trace, count: int) -> Trace:
    """Return a trace of the first ``count`` tokens, without states."""
    arrays = {"ids", "tokens", "labels", "logits"}  # whose first axis is that of tokens
    cut = {
        name: getattr(trace, name)[:count] for name in arrays if getattr(trace, name) is not None
    }
    for name in set(trace.captured) - {"h", "logits"}:
        cut[name] = getattr(trace, name)[:, :count]
    return dataclasses.replace(trace, h=None, **cut)


# --- parts of the page ----------------------------------------------------------------------------


def _filled(found: dict[str, Any], trace: Trace, cut: str) -> str:
    script = "".join(_template(name) for name in ("numbers.js", "view.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    after = f", after {_count(trace.before, 'token')} read before" if trace.before else ""
    size = f"{_count(len(trace), 'token')}, {_count(len(trace.layers), 'layer')}"
    levels, low, high = scale(trace)
    parts = {
        "title": html.escape(f"Trace: {' '.join(trace.labels[:8])}"),
        "policy": f"'sha256-{digest}'",
        "style": _template("style.css"),
        "lead": html.escape(f"{cut}{size}{after}."),
        "choices": "".join(
            f'<option value="{row}">layer {layer}</option>'
            for row, layer in enumerate(trace.layers)
        ),
        "colour": _colour(found, low, high),
        "tokens": "".join(map(_token, range(len(trace)), trace.labels, levels)),
        "panels": "".join(_panel(name, found["left_out"].get(name)) for name in PANELS),
        "model": html.escape(trace.model),
        "version": html.escape(__version__),
        "data": _script_json(found),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template("page.html"))


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _colour(found: dict[str, Any], low: float, high: float) -> str:
    """Return the legend of the colours, or why there are none."""
    why = found["left_out"].get("colour")
    if why is not None:
        return f'<p class="left-out">The text has no colours: {html.escape(why)}</p>'
    return (
        f'<div class="legend"><span>{html.escape(found["colour_name"])}</span>'
        f'<span class="scale"><span id="low">{low:.3g}</span><span class="ramp" aria-hidden="true">'
        f'</span><span id="high">{high:.3g}</span></span></div>'
    )


def _token(place: int, label: str, level: float) -> str:
    """Return a token of the text; a line ends where the token has a line break."""
    text = html.escape(label).replace("·", "<i>·</i>")
    end = "<br>" if "↵" in label else ""
    return (
        f'<span class="token" role="option" id="t{place}" style="--v:{level:.3f}" tabindex="-1" '
        f'aria-selected="false">{text}</span>{end}'
    )


def _panel(name: str, why: str | None) -> str:
    title, explanation = PANELS[name]
    if why is not None:
        return f'<p class="left-out">{title}: {html.escape(why)}</p>'
    return (
        f'<section class="panel" aria-labelledby="{name}-title"><h3 id="{name}-title">{title}</h3>'
        f'<p class="explanation">{explanation}</p><div id="{name}" class="body"></div></section>'
    )


def _script_json(found: dict[str, Any]) -> str:
    """Return JSON for a script element: no character of it begins a tag, a comment or an entity."""
    text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
