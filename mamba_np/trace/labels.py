"""Tokens as people can read them: a short label for each, whatever bytes it is made of.

A token of a byte-level vocabulary may be a part of a character. The first token of a split
character gets the character, the others ``‥``; bytes that never become one are shown in hex.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileMissingError, TokenizerError
from ..tokenizer.stream import ByteStream, token_bytes

SIGNS = {" ": "·", "\n": "↵", "\t": "⇥", "▁": "·"}
"""What cannot be seen, and what stands for it."""

REST = "‥"
"""Stands for the rest of a character that began in an earlier token."""

WIDTH = 12
"""Characters of the longest label; what is longer ends with an ellipsis."""

_LENGTHS = {range(0x80): 1, range(0xC2, 0xE0): 2, range(0xE0, 0xF0): 3, range(0xF0, 0xF5): 4}


def texts_of(ids: NDArray, tokenizer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens and the labels of ids (L); ids in digits where a tokenizer knows none."""
    distinct = np.unique(ids).tolist()
    known = dict(zip(distinct, _spelt(distinct, tokenizer), strict=True))
    tokens = tuple(known[i] for i in ids.tolist())
    if tokenizer is None:
        return tokens, tokens
    return tokens, labels_of(tokens, _is_bytewise(tokenizer))


def names_of(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return a label for each id by itself; ids in digits where a tokenizer knows none."""
    tokens = _spelt(ids, tokenizer)
    if tokenizer is None:
        return tokens
    bytewise = _is_bytewise(tokenizer)
    return [labels_of([token], bytewise)[0] for token in tokens]


def _spelt(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the token of each id, as the vocabulary spells it."""
    if tokenizer is None:
        return [str(i) for i in ids]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [str(i) if token is None else token for i, token in zip(ids, tokens, strict=True)]


def _is_bytewise(tokenizer: Any) -> bool:
    return isinstance(tokenizer.stream_decoder(), ByteStream)


def labels_of(tokens: Sequence[str], bytewise: bool) -> tuple[str, ...]:
    """Return a label for each token of one text, given as the vocabulary spells them."""
    if bytewise:
        labels = _characters_of([token_bytes(token) for token in tokens])
    else:
        labels = ["".join(map(visible, token)) for token in tokens]
    known: dict[str, str] = {}  # equal labels are one object: a long text repeats itself
    return tuple(known.setdefault(cut, cut) for cut in map(_cut, labels))


def visible(character: str) -> str:
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
    """Yield (start, stop, label) of each character, and of each byte that belongs to none."""
    start = 0
    while start < len(data):
        length = next((n for lead, n in _LENGTHS.items() if data[start] in lead), 1)
        stop = start + length
        try:
            text = visible(data[start:stop].decode())
        except UnicodeDecodeError:
            stop, text = start + 1, f"⟨{data[start]:02X}⟩"
        yield start, stop, text
        start = stop


# --- the tokenizer of a model ---------------------------------------------------------------------


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer of the files that a model came from; None if there is none here."""
    if model._loaded is None:
        return None
    source = model._loaded[1]
    try:
        return _tokenizer_at(source.name_or_path, source.hub)
    except (FileMissingError, TokenizerError):
        return None


@functools.lru_cache(maxsize=1)
def _tokenizer_at(name: str, hub: Any) -> Any:
    from ..tokenizer import Tokenizer

    places = {"revision": hub.revision, "cache_dir": hub.cache_dir, "subfolder": hub.subfolder}
    return Tokenizer.from_pretrained(name, local_files_only=True, **places)  # never the network
