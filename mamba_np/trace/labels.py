"""Tokens as people can read them: a short label for each, whatever bytes it is made of.

A token of a byte-level vocabulary may be a part of a character. The first token of a split
character gets the character, the others ``‥``; bytes that never become one are shown in hex.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..tokenizer.stream import ByteStream, token_bytes

SIGNS = {" ": "·", "\n": "↵", "\t": "⇥", "▁": "·"}
"""What cannot be seen, and what stands for it."""

REST = "‥"
"""Stands for the rest of a character that began in an earlier token."""

WIDTH = 12
"""Characters of the longest label; what is longer ends with an ellipsis."""

_LENGTHS = {range(0x80): 1, range(0xC2, 0xE0): 2, range(0xE0, 0xF0): 3, range(0xF0, 0xF5): 4}


def is_bytewise(tokenizer: Any) -> bool:
    """Return whether a tokenizer's tokens are sequences of bytes."""
    return isinstance(tokenizer.stream_decoder(), ByteStream)


def labels_of(tokens: Sequence[str], bytewise: bool) -> tuple[str, ...]:
    """Return a label for each token of one text, given as the vocabulary spells them."""
    if bytewise:
        labels = _characters_of([token_bytes(token) for token in tokens])
    else:
        labels = ["".join(map(shown, token)) for token in tokens]
    known: dict[str, str] = {}  # equal labels are one object: a long text repeats itself
    return tuple(known.setdefault(cut, cut) for cut in map(_cut, labels))


def shown(character: str) -> str:
    """Return a character, or what stands for it if it cannot be seen."""
    if character in SIGNS:
        return SIGNS[character]
    return character if character.isprintable() else f"⟨{ord(character):02X}⟩"


def _cut(label: str) -> str:
    return label if len(label) <= WIDTH else f"{label[: WIDTH - 1]}…"


def _characters_of(pieces: list[bytes]) -> list[str]:
    """Give each character to the piece that it begins in."""
    owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    labels = [""] * len(pieces)
    for start, stop, text in _characters(b"".join(pieces)):
        first = owners[start]
        labels[first] += text
        for other in sorted({*owners[start:stop].tolist()} - {first}):
            labels[other] += REST
    return labels


def _characters(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield (start, stop, shown) of each character, and of each byte that belongs to none."""
    start = 0
    while start < len(data):
        length = next((n for lead, n in _LENGTHS.items() if data[start] in lead), 1)
        stop = start + length
        try:
            text = shown(data[start:stop].decode())
        except UnicodeDecodeError:
            stop, text = start + 1, f"⟨{data[start]:02X}⟩"
        yield start, stop, text
        start = stop
