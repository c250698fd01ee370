"""Tokens along an axis: all of them by name, some of them, or positions, as there is room."""

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..trace.labels import texts_of, tokenizer_of
from ..trace.tracer import one_text
from .figures import library

ALL, SOME, NUMBERED = 40, 20, 200
"""Up to ALL tokens each has its name, up to NUMBERED about SOME have, beyond there are numbers."""

SIZE = 7.0
"""Of the names, in points; a line takes some more."""

FAMILY = "monospace"
OTHERS = (
    "DejaVu Sans",  # signs that look like the rest
    *("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo"),
    *("AppleGothic", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Emoji", "Symbola"),
    *("Segoe UI Emoji", "Segoe UI Symbol", "Noto Sans Symbols2"),
)
"""Where characters are looked for that the first family lacks, in this order."""

SPECIAL = re.compile(r"<\|.+\|>|</?s>|<(pad|unk|bos|eos|mask)>|\[(PAD|UNK|CLS|SEP|MASK)\]")
"""How vocabularies spell tokens that are no text; their names are set in italics."""


class Text(NamedTuple):
    """The tokens of a text, (L) each, as a Trace has them."""

    tokens: tuple[str, ...]
    labels: tuple[str, ...]


def text_of(model: Any, ids: Any) -> Text:
    """Return the tokens and labels of ids (L) or (1, L), by the tokenizer of the model's files."""
    return Text(*texts_of(one_text(ids)[0], tokenizer_of(model)))


def token_axis(
    axis: Any, labels: Sequence[str], *, tokens: Sequence[str] | None = None, name: str = "token"
) -> None:
    """Name the tokens at 0 ... L - 1 along an axis (``ax.xaxis`` or ``ax.yaxis``).

    ``labels`` (L) are for people (``Trace.labels``); ``tokens`` (L), as the vocabulary spells
    them, tell special tokens. The axis is called ``name``.
    """
    count = len(labels)
    if count > NUMBERED:
        ticker = library("matplotlib.ticker")
        axis.set_major_locator(ticker.MaxNLocator(8, integer=True))
        axis.set_label_text(f"{name} (position)")
        return
    step = _step(axis, count)
    places = range(0, count, step)
    texts, families = readable([labels[i] for i in places])
    horizontal = axis.axis_name == "x"
    axis.set_ticks(
        list(places), labels=texts, rotation=90 if horizontal else 0, fontsize=SIZE,
        fontfamily=families, parse_math=False, usetex=False,
    )  # fmt: skip
    for place, tick in zip(places, axis.get_major_ticks(), strict=True):
        if tokens is not None and SPECIAL.fullmatch(tokens[place]):
            tick.label1.set_style("italic")  # which shared axes may hide
    axis.set_label_text(name if step == 1 else f"{name} (1 in {step} named)")


def _step(axis: Any, count: int) -> int:
    """Return the distance of named tokens for which there is room on the axis."""
    box = axis.axes.bbox
    length = box.width if axis.axis_name == "x" else box.height
    fit = int(length / axis.axes.figure.dpi / (1.2 * SIZE / 72))
    limit = max(1, min(fit, ALL if count <= ALL else SOME))
    return max(1, -(-count // limit))


def readable(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return labels of which every character can be drawn, and the families of fonts for it.

    What no font here has is shown by its number, ⟨D55C⟩, with a warning that says what helps.
    """
    missing = {c for label in labels for c in label} - _drawn(FAMILY, "".join(labels))
    families = [FAMILY]
    if missing:
        installed = set(library("matplotlib.font_manager").get_font_names())
        for family in (one for one in OTHERS if one in installed):
            found = _drawn(family, "".join(missing))
            if found:
                families.append(family)
                missing -= found
    if missing:
        some = "".join(sorted(missing)[:8])
        warnings.warn(
            f"no font here can draw {some!r}, so numbers stand for it; for Korean, Chinese and "
            "Japanese install Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk) or NanumGothic "
            "(fonts-nanum), for emoji Symbola (fonts-symbola), and restart Python",
            stacklevel=2,
        )
    texts = ["".join(f"⟨{ord(c):X}⟩" if c in missing else c for c in one) for one in labels]
    return texts, families


def _drawn(family: str, characters: str) -> set[str]:
    """Return those of the characters that a family of fonts has."""
    manager = library("matplotlib.font_manager")
    font = manager.get_font(manager.findfont(manager.FontProperties(family=family)))
    return {c for c in characters if font.get_char_index(ord(c))}


def layer_axis(axis: Any, layers: Any) -> None:
    """Name layers (n) at 0 ... n - 1 along an axis, a dozen of them at most."""
    step = max(1, -(-len(layers) // 12))
    places = np.arange(0, len(layers), step)
    axis.set_ticks(places, labels=[str(layers[i]) for i in places])
    axis.set_label_text("layer")
