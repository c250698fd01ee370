"""Decoding one token at a time, without ever showing half a character.

A token of a byte-level vocabulary may hold a part of a character: a Hangul syllable is three
bytes and often three tokens. Text therefore appears when its last byte does.
"""

import codecs
from collections.abc import Callable
from typing import Any, Protocol

from .batch import check_ids

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for (Radford et al. 2019).

    Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, for U+0100
    and the following.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def token_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token; one with other characters is text as it stands."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


class StreamDecoder(Protocol):
    """Turns ids into text as they come."""

    def put(self, ids: Any) -> str:
        """Take the next id, or several, and return the text that is complete now, maybe ""."""
        ...

    def flush(self) -> str:
        """End the text: return what is left, and be ready for another text.

        Bytes that never became a character are shown as U+FFFD, as ``decode`` shows them.
        """
        ...


class ByteStream:
    """The StreamDecoder of byte-level tokenizers: an incremental UTF-8 decoder.

    For every sequence of ids, what ``put`` and ``flush`` return is together exactly what
    ``decode`` returns for the whole. The cost of a token does not depend on those before it.
    """

    def __init__(self, token_of: Callable[[int], str | None]):
        self._token_of = token_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, ids: Any) -> str:
        """Take the next id, or several, and return the text that is complete now."""
        tokens = (self._token_of(i) for i in check_ids(ids))
        return self._utf8.decode(b"".join(token_bytes(t) for t in tokens if t is not None))

    def flush(self) -> str:
        """Return U+FFFD for an unfinished character, else ""; then start anew."""
        return self._utf8.decode(b"", final=True)


class WindowStream:
    """The StreamDecoder of all other tokenizers: decodes a small window again and again.

    What a token looks like can depend on its neighbour (a space before words, say), so the
    window keeps the ids shown last as context. What ``put`` and ``flush`` return is together
    what ``decode`` returns for any ids that came from text.
    """

    LIMIT = 8  # tokens held back: no character has more bytes than 4, so these never become one

    def __init__(self, token_of: Callable[[int], str | None], decode: Callable[[list[int]], str]):
        self._token_of, self._decode = token_of, decode
        self._context: list[int] = []
        self._new: list[int] = []

    def put(self, ids: Any) -> str:
        """Take the next id, or several, and return the text that is complete now."""
        return "".join(self._put(i) for i in check_ids(ids) if self._token_of(i) is not None)

    def _put(self, token: int) -> str:
        self._new.append(token)
        text = self._text()
        incomplete = not text or text.endswith(REPLACEMENT)
        if incomplete and len(self._new) < self.LIMIT:
            return ""
        self._context, self._new = self._new, []
        return text

    def _text(self) -> str:
        return self._decode(self._context + self._new)[len(self._decode(self._context)) :]

    def flush(self) -> str:
        """Return what was held back, then start anew."""
        text = self._text()
        self._context, self._new = [], []
        return text
