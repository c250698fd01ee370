"""One run of ``mamba-np generate``: from a prompt or a saved state to text, figures and a state."""

import time
from typing import Any, TextIO

import numpy as np

from ..cache import MambaCache
from ..errors import CacheError, InputError
from .common import format_bytes, peak_memory

CONTEXT = 16
"""Tokens of the prompt that the decoder of the new text is shown."""

NEXT_TOKEN = "next_token"
"""Metadata of a state file: the last token of the text, which the state has not read yet."""


class Printer:
    """Writes text to a stream as its tokens come, never half a character.

    Used as a context: whatever happens inside, the text ends with a line break.
    """

    def __init__(self, decoder: Any, out: TextIO | None):
        self._decoder, self._out = decoder, out
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Print text right now."""
        if text and self._out is not None:
            self._out.write(text)
            self._out.flush()
            self._at_line_start = text.endswith("\n")

    def token(self, token: int) -> None:
        """Print the characters that are complete with this token."""
        self.write(self._decoder.put(token))

    def __enter__(self) -> "Printer":
        return self

    def __exit__(self, *_: object) -> None:
        self.write(self._decoder.flush())
        if not self._at_line_start:
            self.write("\n")


class Session:
    """A model about to continue a text.

    The model has read ``cache``; it goes on with ``ids``, which are never empty. Afterwards
    ``sequences`` and ``finish_reasons`` hold the new tokens of each text and why it ended.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: str, state_in: str | None = None):
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        if state_in is None:
            self.cache, pending = model.new_cache(), []
            self.ids = self._encode(prompt) or [self._bos()]
        else:
            self.cache, pending = load_state(state_in)
            self.ids = pending + self._encode(prompt, add_special_tokens=False)
        if not self.ids:
            raise InputError(f"PROMPT: expected text to follow the state of {state_in}, found none")
        self.sequences: list[list[int]] = [[]]
        self.finish_reasons = [""]
        self.interrupted = False
        self._started = self._last = 0.0
        self._first: float | None = None  # when the prompt had been read; unknown with beams

    def _encode(self, text: str, **options: bool) -> list[int]:
        return list(self.tokenizer.encode(text, **options)) if text else []

    def _bos(self) -> int:
        """Return the token that an empty prompt stands for."""
        bos = self.model.config.bos_token_id
        if bos is None:
            raise InputError("PROMPT: expected text, found none, and the model has no bos token")
        return bos

    # --- making text ---------------------------------------------------------------------------

    def run(self, settings: dict[str, Any], printer: Printer, echo: str = "") -> None:
        """Continue the prompt; ``printer`` gets ``echo`` and then each token as it is made.

        Ctrl-C ends it early: what there is stays, and ``interrupted`` becomes true. With several
        texts or beams there is nothing to print before all is done.
        """
        settings = settings | {"cache_params": self.cache, "tokenizer": self.tokenizer}
        self._started = self._last = time.perf_counter()
        try:
            if settings["max_new_tokens"] == 0:
                printer.write(echo)
                self._read()
            elif settings.get("num_beams", 1) > 1:
                self._search(settings)
            else:
                self._stream(settings, printer, echo)
        except KeyboardInterrupt:
            self.interrupted = True
            self.finish_reasons = [reason or "interrupted" for reason in self.finish_reasons]

    def _read(self) -> None:
        """Read the prompt, but for its last token, and make none."""
        if len(self.ids) > 1:
            ids = np.array([self.ids[:-1]])
            self.model(ids, cache_params=self.cache, use_cache=True, logits_to_keep=1)
        self.finish_reasons = ["length"]
        self._first = self._last = time.perf_counter()

    def _search(self, settings: dict[str, Any]) -> None:
        """Make the texts by beam search, which has none before it has all."""
        output = self.model.generate(np.array([self.ids]), return_dict_in_generate=True, **settings)
        self._last = time.perf_counter()
        lengths = (output.beam_indices >= 0).sum(axis=1)
        new = output.sequences[:, len(self.ids) :]
        self.sequences = [row[:n].tolist() for row, n in zip(new, lengths, strict=True)]
        self.finish_reasons = output.finish_reasons

    def _stream(self, settings: dict[str, Any], printer: Printer, echo: str) -> None:
        """Make one text or several token by token; one is printed meanwhile."""
        stream = self.model.stream(np.array([self.ids]), **settings)
        printer.write(echo)  # not before the settings are known to be good
        rows = len(stream.finish_reasons)
        self.sequences, self.finish_reasons = [[] for _ in range(rows)], [""] * rows
        for step, tokens in enumerate(stream):
            for row, reason in enumerate(self.finish_reasons):
                if not reason:
                    self.sequences[row].append(int(tokens[row]))
            self.finish_reasons = stream.finish_reasons
            self._last = time.perf_counter()
            if step == 0:
                self._first = self._last
            if len(self.sequences) == 1:
                printer.token(int(tokens[0]))

    def texts(self) -> list[str]:
        """Return the new text of each sequence, without special tokens."""
        texts = []
        for sequence in self.sequences:
            decoder = self.decoder()
            texts.append(decoder.put(sequence) + decoder.flush())
        return texts

    def decoder(self) -> Any:
        """Return a decoder for new tokens that knows what they follow.

        Some tokenizers drop the space before the first word of a text, and a prompt can end
        inside a character.
        """
        decoder = self.tokenizer.stream_decoder(skip_special_tokens=True)
        decoder.put(self.ids[-CONTEXT:])
        return decoder

    def save_state(self, path: str) -> None:
        """Write the state after this text, so that another run can go on from it."""
        next_token = (self.ids + self.sequences[0])[-1]
        self.cache.save(path, metadata={NEXT_TOKEN: str(next_token)})

    # --- figures -------------------------------------------------------------------------------

    def timings(self) -> dict[str, Any]:
        """Return counts, seconds and speeds; None where there is nothing to measure.

        The first new token comes with the reading of the prompt, so the others count as made.
        Beams do not tell when that was: the prompt's time is part of theirs.
        """
        made = timed = sum(len(s) for s in self.sequences)
        reading, making = None, self._last - self._started
        if self._first is not None:
            reading, making = self._first - self._started, self._last - self._first
            timed = made - len(self.sequences)
        return {
            "prompt_tokens": len(self.ids),
            "prompt_seconds": reading,
            "prompt_tokens_per_second": len(self.ids) / reading if reading else None,
            "new_tokens": made,
            "new_seconds": making,
            "new_tokens_per_second": timed / making if making and timed > 0 else None,
            "peak_memory_bytes": peak_memory(),
        }

    def stats_line(self) -> str:
        """Return the timings as one line for people."""
        t = self.timings()
        parts = [f"prompt: {t['prompt_tokens']} tokens", f"new: {t['new_tokens']} tokens"]
        for i, name in enumerate(("prompt", "new")):
            if t[f"{name}_tokens_per_second"]:
                parts[i] += f", {t[f'{name}_tokens_per_second']:,.1f} tokens/s"
        if t["peak_memory_bytes"] is not None:
            parts.append(f"peak memory: {format_bytes(t['peak_memory_bytes'])}")
        return " | ".join(parts)

    def report(self) -> dict[str, Any]:
        """Return everything for --json; "text" and "ids" are those of the first sequence."""
        sequences = [
            {"text": text, "ids": ids, "finish_reason": reason}
            for text, ids, reason in zip(
                self.texts(), self.sequences, self.finish_reasons, strict=True
            )
        ]
        several = {"sequences": sequences} if len(sequences) > 1 else {}
        return {
            "prompt": self.prompt,
            "prompt_ids": self.ids,
            **sequences[0],
            **several,
            "timings": self.timings(),
        }


# --- states ----------------------------------------------------------------------------------


def load_state(path: str) -> tuple[MambaCache, list[int]]:
    """Return a saved state and the token to read next, in a list; [] if the file has none.

    Raises FileMissingError or CacheError naming the file.
    """
    from safetensors import safe_open

    cache = MambaCache.load(path)
    with safe_open(path, framework="numpy") as file:
        token = (file.metadata() or {}).get(NEXT_TOKEN)
    if token is None:
        return cache, []
    if not token.isdecimal() or len(token) > 10:
        raise CacheError(f"{path}: {NEXT_TOKEN}: expected a token id, found {token!r}")
    return cache, [int(token)]
