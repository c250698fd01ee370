"""What the commands that look into a model share: labels in columns, bars, and which layers."""

import math
import sys
import unicodedata
from typing import Any

import click

EIGHTHS = " ▏▎▍▌▋▊▉█"
"""The parts of a character's width that a bar can end at."""


def padded(text: str, width: int) -> str:
    """Return a text with spaces up to a width in the columns of a terminal."""
    return text + " " * max(0, width - columns(text))


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for Chinese and the like."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def bar(share: float, width: int) -> str:
    """Return a bar of ``share`` (0 to 1) of a width; of # where the terminal lacks blocks."""
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    if not _has_blocks():
        return "#" * round(share * width)
    whole, part = divmod(round(share * width * 8), 8)
    return "█" * whole + (EIGHTHS[part] if part else "")


def signed_bar(share: float, width: int) -> str:
    """Return a bar from a middle line: to its left for a negative ``share`` (-1 to 1)."""
    line = "│" if _has_blocks() else "|"
    length = round(min(1.0, abs(share)) * width) if math.isfinite(share) else 0
    block = ("█" if _has_blocks() else "#") * length
    return f"{block:>{width}}{line}" if share < 0 else f"{'':{width}}{line}{block}"


def _has_blocks() -> bool:
    try:
        "█▏│".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def finite(value: float) -> float | None:
    """Return a number for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


class Layers(click.ParamType):
    """Layers by their numbers: "0,3,5-7" is [0, 3, 5, 6, 7]."""

    name = "layers"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        """Return the numbers; a usage error for anything else."""
        if isinstance(value, list):
            return value
        found: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            ends = [first, last if dash else first]
            if not all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends):
                self.fail(f"expected numbers and ranges such as 0,3,5-7, found {value!r}")
            found += range(int(ends[0]), int(ends[1]) + 1)
        return found


def of_next(ids: Any, probabilities: Any, names: list[str]) -> list[dict[str, Any]]:
    """Return likeliest tokens as JSON holds them: ids and probabilities (k)."""
    return [
        {"id": int(i), "token": name, "probability": finite(p)}
        for i, p, name in zip(ids, probabilities, names, strict=True)
    ]


def percent(share: float) -> str:
    """Return a share as a percentage of six characters."""
    return f"{share:6.1%}"
