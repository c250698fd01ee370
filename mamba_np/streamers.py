"""Text while it is being generated: what ``generate(streamer=...)`` accepts.

``generate`` calls ``put`` with the prompt, then with each new token, and ``end`` at last. Text is
handed on as soon as its characters are complete, not word by word.
"""

import queue
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .tokenizer import Tokenizer


class TextStreamer:
    """Writes text to a file, by default to standard output, while it is generated.

    ``skip_prompt`` leaves the prompt out; ``decode_options`` (``skip_special_tokens``) are those
    of ``Tokenizer.stream_decoder``. After ``end`` it is ready for another text. Subclasses can do
    something else with the text by overriding ``on_finalized_text``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_prompt: bool = False,
        file: TextIO | None = None,
        **decode_options: Any,
    ):
        self.tokenizer, self.skip_prompt, self.file = tokenizer, skip_prompt, file
        self._decoder = tokenizer.stream_decoder(**decode_options)
        self._expects_prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt's ids, (1, L) or (L), or then the next token's, (1).

        Raises InputError for more than one text, and for what are no ids.
        """
        ids = self._one_text(value)
        is_prompt, self._expects_prompt = self._expects_prompt, False
        if is_prompt and self.skip_prompt:
            return
        if text := self._decoder.put(ids):
            self.on_finalized_text(text)

    def _one_text(self, value: Any) -> NDArray:
        """Return the ids of one text as a 1-D array, not checked further."""
        try:
            ids = np.asarray(value)
        except ValueError:  # rows of different lengths
            ids = None
        if ids is None or ids.ndim > 2 or (ids.ndim == 2 and len(ids) != 1):
            found = "rows of different lengths" if ids is None else f"shape {ids.shape}"
            raise InputError(
                f"{type(self).__name__}: expected the ids of one text, (1, L) or (L), found "
                f"{found}; generate with a streamer takes one prompt"
            )
        return ids.reshape(-1)

    def end(self) -> None:
        """End the text: show what is left of it, and a line break."""
        self._expects_prompt = True
        self.on_finalized_text(self._decoder.flush(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write some complete text; ``stream_end`` says that it is the last.

        Characters that the file's encoding lacks are written as "?".
        """
        file = sys.stdout if self.file is None else self.file
        text += "\n" if stream_end else ""
        try:
            file.write(text)
        except UnicodeEncodeError as problem:
            file.write(text.encode(problem.encoding, "replace").decode(problem.encoding))
        file.flush()


class TextIteratorStreamer(TextStreamer):
    """An iterator over the text that another thread is generating.

        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        Thread(target=model.generate, kwargs={**inputs, "streamer": streamer}).start()
        for text in streamer:
            print(text, end="")

    One streamer serves one text. ``timeout`` is how many seconds to wait for the next piece
    before raising TimeoutError; without it, waiting has no end. An error in the generating thread
    reaches the iterating one through ``fail``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_options: Any,
    ):
        super().__init__(tokenizer, skip_prompt, None, **decode_options)
        self.timeout = timeout
        self._pieces: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        self._closed = False  # the generating side has said its last word
        self._exhausted = False  # and the iterating side has heard it

    def put(self, value: Any) -> None:
        """Take the next ids, as TextStreamer does; raises InputError after the text has ended."""
        if self._closed:
            raise InputError(
                "TextIteratorStreamer: expected a new streamer for a new text, found one that ended"
            )
        super().put(value)

    def end(self) -> None:
        """End the text and with it the iteration; without effect once it has ended."""
        if not self._closed:
            super().end()

    def fail(self, error: BaseException) -> None:
        """End the iteration by raising ``error`` in it; without effect once it has ended."""
        if not self._closed:
            self._closed = True
            self._pieces.put(error)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand some complete text to the iterating thread."""
        if text:
            self._pieces.put(text)
        if stream_end:
            self._closed = True
            self._pieces.put(StopIteration())

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._exhausted:
            raise StopIteration
        try:
            piece = self._pieces.get(timeout=self.timeout)
        except queue.Empty:
            raise TimeoutError(
                f"TextIteratorStreamer: expected text within {self.timeout} seconds, found none"
            ) from None
        if isinstance(piece, BaseException):
            self._exhausted = True
            raise piece
        return piece
