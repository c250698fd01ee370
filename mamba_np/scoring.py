"""How well a model predicts a text: perplexity and bits per byte, in constant memory.

The model reads the text in chunks and carries its state from one to the next, so every token is
predicted from everything before it, however long the text: no windows, no context that is cut.
Only one chunk of logits exists at a time.
"""

import codecs
import collections
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import integer
from .equations import log_probability
from .errors import InputError, NonFiniteError

CHUNK_SIZE = 512
"""Tokens whose logits exist at once."""

BLOCK_CHARS = 8192
"""Characters tokenised at once. Small, so that the work goes on evenly instead of in jumps."""

_ROWS = 64  # of the logits that are exponentiated at once; bounds the temporary arrays


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a text, and the figures that follow from it."""

    log_likelihood: float
    """The sum of the log-probabilities of all scored tokens, in nats."""
    tokens: int
    """How many tokens were scored."""
    bytes: int | None = None
    """How many bytes of text they stand for, where that is known."""

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood per token; infinite above 1e308."""
        try:
            return math.exp(-self.log_likelihood / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def bits_per_token(self) -> float:
        """The mean negative log-likelihood per token, in bits."""
        return -self.log_likelihood / self.tokens / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        """The negative log-likelihood per byte, in bits: comparable between tokenizers."""
        return -self.log_likelihood / self.bytes / math.log(2) if self.bytes else None


# --- token ids -------------------------------------------------------------------------------


def score(
    model: Any,
    tokens: Iterable[ArrayLike],
    *,
    add_bos: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> Score:
    """Return how likely ``model`` finds one sequence of tokens.

    ``tokens`` is the sequence in pieces: an iterable of 1-D arrays of ids of any lengths (for a
    sequence held in one array, ``[ids]``). Where the pieces end does not matter. With ``add_bos``
    the model first reads its configuration's bos token, so that the first token is scored too;
    without (or if there is none) the first token is read and not scored.

    Raises InputError for ids outside the vocabulary and for a sequence with nothing to score,
    NonFiniteError if a logit is not finite.
    """
    running = running_scores(model, tokens, add_bos=add_bos, chunk_size=chunk_size)
    last = collections.deque(running, maxlen=1)
    if not last:
        raise InputError("tokens: expected at least one token to score, found none")
    return last[0]


def running_scores(
    model: Any,
    tokens: Iterable[ArrayLike],
    *,
    add_bos: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> Iterator[Score]:
    """Yield the score of everything read so far, after each chunk; see ``score``."""
    chunk_size = integer("chunk_size", chunk_size, error=InputError)
    previous = model.config.bos_token_id if add_bos else None
    cache, log_likelihood, count = None, 0.0, 0
    for chunk in _chunks(tokens, chunk_size, model.config.vocab_size):
        read = chunk[:-1] if previous is None else np.concatenate([[previous], chunk[:-1]])
        targets = chunk if previous is not None else chunk[1:]
        previous = chunk[-1]
        if not targets.size:  # the very first token, alone in its chunk
            continue
        output = model(read[None], cache_params=cache, use_cache=True, return_dict=True)
        cache = output.cache_params
        log_likelihood += float(log_probabilities(output.logits[0], targets).sum())
        count += targets.size
        yield Score(log_likelihood, count)


def log_probabilities(logits: NDArray, targets: NDArray) -> NDArray:
    """Return the log-probability of each target, float64 (L), for logits (L, V), targets (L).

    Raises NonFiniteError.
    """
    result = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        top = logits[rows].max(axis=-1)  # NaN wins over every number
        if not np.isfinite(top).all():
            place = int(np.isfinite(top).argmin())
            raise NonFiniteError(
                f"logits: expected finite numbers, found {top[place]} at position "
                f"{start + place} of the chunk"
            )
        result[rows] = log_probability(logits[rows], targets[rows])
    return result


def _chunks(tokens: Iterable[ArrayLike], size: int, vocab_size: int) -> Iterator[NDArray]:
    """Yield the ids (L) in arrays of ``size``, the last one shorter, whatever came in."""
    held: list[NDArray] = []
    missing = size
    for piece in tokens:
        ids = _check_piece(piece, vocab_size)
        while ids.size:
            held.append(ids[:missing])
            ids = ids[missing:]
            missing -= held[-1].size
            if not missing:
                yield np.concatenate(held)
                held, missing = [], size
    if held:
        yield np.concatenate(held)


def _check_piece(piece: ArrayLike, vocab_size: int) -> NDArray:
    ids = np.asarray(piece)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        found = f"{ids.dtype} of shape {ids.shape}" if ids.ndim else "a single value"
        hint = "" if ids.ndim else "; pass one sequence as [ids]"
        raise InputError(f"tokens: expected 1-D arrays of integers, found {found}{hint}")
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        raise InputError(
            f"tokens: expected ids from 0 to {vocab_size - 1}, found {ids[wrong.argmax()]}"
        )
    return ids.astype(np.int64, copy=False)


# --- text ------------------------------------------------------------------------------------


def score_text(
    model: Any,
    tokenizer: Any,
    stream: BinaryIO,
    *,
    name: str = "text",
    errors: str = "strict",
    add_bos: bool = True,
    chunk_size: int = CHUNK_SIZE,
    progress: Callable[[Score], object] | None = None,
) -> Score:
    """Return how likely ``model`` finds the text of a binary stream of any length.

    The text is tokenised in blocks; see ``split_text`` for what that means. ``errors`` is
    "strict" or "replace", for bytes that are not UTF-8. ``progress`` is called with the score so
    far after each chunk. ``name`` names the stream in errors.

    Raises InputError for bytes that are not UTF-8 and for an empty text, and as ``score`` does.
    """
    reader = TextReader(stream, name, errors)
    ids = (
        np.asarray(tokenizer.encode(block, add_special_tokens=False), np.int64)
        for block in split_text(reader)
    )
    total = None
    for running in running_scores(model, ids, add_bos=add_bos, chunk_size=chunk_size):
        total = replace(running, bytes=reader.bytes_read)
        if progress is not None:
            progress(total)
    if total is None:
        found = "a single token without a bos token before it" if reader.bytes_read else "no bytes"
        raise InputError(f"{name}: expected text to score, found {found}")
    return replace(total, bytes=reader.bytes_read)


class TextReader:
    """Iterates over the text of a binary stream of UTF-8, some thousand characters at a time.

    Raises InputError giving the offset of the first byte that is not UTF-8, unless ``errors`` is
    "replace".
    """

    def __init__(self, stream: BinaryIO, name: str = "text", errors: str = "strict"):
        if errors not in ("strict", "replace"):
            raise InputError(f"errors: expected 'strict' or 'replace', found {errors!r}")
        self._stream, self._name, self._errors = stream, name, errors
        self.bytes_read = 0
        """Bytes taken from the stream so far."""

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(self._errors)
        while data := self._stream.read(BLOCK_CHARS):
            self.bytes_read += len(data)
            yield self._decode(decoder, data)
        yield self._decode(decoder, b"", final=True)

    def _decode(self, decoder: codecs.IncrementalDecoder, data: bytes, final: bool = False) -> str:
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError as error:
            # error.object also holds the start of a character that an earlier read cut off.
            offset = self.bytes_read - len(error.object) + error.start
            raise InputError(
                f"{self._name}: expected text in UTF-8, found byte "
                f"0x{error.object[error.start]:02x} at offset {offset} ({error.reason})"
            ) from error


def split_text(texts: Iterable[str], size: int = BLOCK_CHARS) -> Iterator[str]:
    """Yield the same text in blocks of at most ``size`` characters.

    Blocks end before a space (else a line break) that follows a character that is not white
    space. No token of a byte-level BPE tokenizer of GPT-2's or GPT-NeoX's kind, which published
    Mamba checkpoints use, reaches across such a place: block by block, the tokens are those of the
    whole text. A text without white space is cut after ``size`` characters, wherever that is.
    """
    held = ""
    for text in texts:
        held += text
        while len(held) > size:
            end = _last_gap(held, " ", size) or _last_gap(held, "\n", size) or size
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _last_gap(text: str, space: str, size: int) -> int:
    """Return the last index <= size where ``space`` follows something else, or 0 for none."""
    index = text.rfind(space, 1, size + 1)
    while index > 0 and text[index - 1].isspace():
        index = text.rfind(space, 1, index)
    return max(index, 0)
