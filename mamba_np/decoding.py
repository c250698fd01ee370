"""What every way of decoding needs: the prompt, the texts as they grow, the model, when to stop.

Masked tokens are absent: each row's real tokens are moved to the right end of the prompt, so that
the last column of every row is the token that the next one follows.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checks import shown
from .errors import InputError, NonFiniteError
from .generation_config import GenerationConfig
from .inputs import as_array, as_matrix, check_ids, check_mask
from .sampling import ABSENT

StoppingCriterion = Callable[[NDArray, NDArray], Any]
"""A user's function of input_ids (B, L) and scores (B, V): stop? One answer, or one a row."""

GOES_ON, EOS, LENGTH, STOP = "", "eos", "length", "stop"
"""Why a row ended; the empty string while it has not."""


class Prompt(NamedTuple):
    """A checked prompt of B rows."""

    ids: NDArray  # (B, L) as the caller gave it; L = 0 for embeddings
    history: NDArray  # (B, L') the real ids at the right end, ABSENT before them
    embeddings: NDArray | None  # (B, L', D), arranged the same way
    mask: NDArray | None  # (B, L') True for real tokens; None where all are

    @property
    def rows(self) -> int:
        """The number of rows, B."""
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """The width that max_length counts."""
        return self.ids.shape[1] if self.embeddings is None else self.embeddings.shape[1]

    @classmethod
    def of_ids(cls, input_ids: Any, attention_mask: Any, vocab_size: int, past: bool) -> "Prompt":
        """Check ids and mask; raises InputError naming the argument and what is wrong in it."""
        ids = as_matrix("input_ids", input_ids)
        mask = check_mask(attention_mask, ids.shape, has_past=past)
        checked = check_ids(ids, vocab_size, mask)
        ids = ids.astype(np.int64)
        if mask is None:
            return cls(ids, checked, None, None)
        order, mask = _to_the_right(mask)
        history = np.where(mask, np.take_along_axis(checked, order, axis=1), ABSENT)
        return cls(ids, history, None, mask)

    @classmethod
    def of_embeddings(cls, inputs_embeds: Any, attention_mask: Any, past: bool) -> "Prompt":
        """Check the outside of embeddings (B, L, D); the model checks the rest."""
        embeddings = as_array("inputs_embeds", inputs_embeds)
        if embeddings.ndim != 3 or 0 in embeddings.shape:
            raise InputError(
                "inputs_embeds: expected shape (batch, length, hidden_size), none of them 0, "
                f"found {embeddings.shape}"
            )
        mask = check_mask(attention_mask, embeddings.shape[:2], has_past=past)
        nothing = np.empty((len(embeddings), 0), np.int64)
        if mask is None:
            return cls(nothing, nothing, embeddings, None)
        order, mask = _to_the_right(mask)
        embeddings = np.take_along_axis(embeddings, order[:, :, None], axis=1)
        return cls(nothing, nothing, embeddings, mask)


def _to_the_right(mask: NDArray) -> tuple[NDArray, NDArray]:
    """Return the order that moves real tokens to the right end, and the mask in that order."""
    empty = ~mask.any(axis=1)
    if empty.any():
        row = int(empty.argmax())
        raise InputError(f"attention_mask: expected a token in every row, found none in row {row}")
    longest = mask.sum(axis=1).max()
    order = np.argsort(mask, axis=1, kind="stable")[:, -longest:]
    return order, np.take_along_axis(mask, order, axis=1)


class Texts:
    """The ids of every row, in arrays with room to grow.

    ``ids`` is what ``generate`` returns; ``history`` is the same text without what is masked or
    comes after the end, for processors.
    """

    def __init__(self, prompt: Prompt, copies: int = 1):
        self._ids = np.repeat(prompt.ids, copies, axis=0)
        self._history = np.repeat(prompt.history, copies, axis=0)
        self.rows = len(self._ids)
        self.start, self._pad = prompt.ids.shape[1], prompt.history.shape[1]
        self.count = 0

    @property
    def ids(self) -> NDArray:
        """Prompt and new tokens (R, L + count): a read-only view."""
        view = self._ids[:, : self.start + self.count]
        view.flags.writeable = False
        return view

    @property
    def new(self) -> NDArray:
        """The new tokens alone (R, count): a read-only view."""
        return self.ids[:, self.start :]

    @property
    def history(self) -> NDArray:
        """Like ``ids``, but real tokens only, at the right end; ABSENT elsewhere."""
        view = self._history[:, : self._pad + self.count]
        view.flags.writeable = False
        return view

    def append(self, tokens: NDArray, real: NDArray | None = None) -> None:
        """Add one token (R) to every row; where ``real`` is False it is only a filler."""
        self._ids = _with_room(self._ids, self.start + self.count)
        self._history = _with_room(self._history, self._pad + self.count)
        self._ids[:, self.start + self.count] = tokens
        heard = tokens if real is None else np.where(real, tokens, ABSENT)
        self._history[:, self._pad + self.count] = heard
        self.count += 1

    def select(self, rows: NDArray) -> None:
        """Replace every row's new tokens by those of the given rows, which have its prompt."""
        for array, start in ((self._ids, self.start), (self._history, self._pad)):
            array[:, start : start + self.count] = array[rows, start : start + self.count]


def _with_room(array: NDArray, length: int) -> NDArray:
    """Return an array with at least one more column; doubling makes that rare."""
    if length < array.shape[1]:
        return array
    larger = np.empty((array.shape[0], max(256, 2 * length)), array.dtype)
    larger[:, :length] = array[:, :length]
    return larger


class Reader:
    """A model and what it has read: logits (R, V) of the next token, one position at a time.

    With a cache the prompt takes one call and every token another, of constant size. Without,
    every call reads the whole text again.
    """

    def __init__(self, model: Any, prompt: Prompt, cache: Any, config: GenerationConfig):
        self.model, self.prompt, self.cache = model, prompt, cache
        self.use_cache = config.use_cache or prompt.embeddings is not None
        self.options = {
            "use_cache": self.use_cache,
            "output_hidden_states": config.output_hidden_states,
            "return_dict": True,
            "logits_to_keep": 1,
        }
        self.hidden_states: tuple[NDArray, ...] | None = None
        """Of the latest call; None unless they are asked for."""

    def read_prompt(self, copies: int = 1) -> NDArray:
        """Read the prompt once; every row stands for ``copies`` rows from then on."""
        ids = None if self.prompt.embeddings is not None else self.prompt.history.clip(0)
        logits = self._call(
            input_ids=ids, inputs_embeds=self.prompt.embeddings, attention_mask=self.prompt.mask
        )
        if copies == 1:
            return logits
        rows = np.repeat(np.arange(self.prompt.rows), copies)
        self.select(rows)
        if self.hidden_states is not None:
            self.hidden_states = tuple(h[rows] for h in self.hidden_states)
        return logits[rows]

    def read(self, texts: Texts, live: NDArray | None = None) -> NDArray:
        """Read the token that was appended last, in the rows (R) that are ``live``.

        The state of a row that has ended stays as it was before the row's last token.
        """
        if not self.use_cache:
            mask = texts.history != ABSENT
            return self._call(input_ids=texts.history.clip(0), attention_mask=mask)
        mask = None if live is None or live.all() else live[:, None]
        return self._call(input_ids=texts.history[:, -1:].clip(0), attention_mask=mask)

    def select(self, rows: NDArray) -> None:
        """Go on with the states of the given rows."""
        if self.cache is not None:
            self.cache = self.cache.select(rows)

    def _call(self, **inputs: Any) -> NDArray:
        output = self.model(**inputs, cache_params=self.cache, **self.options)
        if self.use_cache:
            self.cache = output.cache_params
        self.hidden_states = output.hidden_states
        return self.checked(output.logits[:, -1])

    def checked(self, logits: NDArray) -> NDArray:
        """Return logits; raise NonFiniteError naming the parameter that made them NaN, if any."""
        if np.isnan(logits).any():
            self._explain_nan()
        return logits

    def _explain_nan(self) -> None:
        find = getattr(self.model, "find_non_finite", None)
        name = find() if find else None
        if name is not None:
            raise NonFiniteError(f"{name}: expected finite weights, found NaN or infinity")


class Records:
    """What is kept of every step, if it is asked for; nothing otherwise."""

    def __init__(self, config: GenerationConfig):
        wanted = config.return_dict_in_generate
        self.scores = [] if wanted and config.output_scores else None
        self.logits = [] if wanted and config.output_logits else None
        self.hidden_states = [] if wanted and config.output_hidden_states else None

    def keep(self, scores: NDArray, logits: NDArray, hidden_states: Any) -> None:
        """Remember one step."""
        for record, value in (
            (self.scores, scores),
            (self.logits, logits),
            (self.hidden_states, hidden_states),
        ):
            if record is not None:
                record.append(value)

    def tuples(self) -> dict[str, Any]:
        """Return what was kept, by the names of GenerateOutput."""
        return {name: tuple(record) for name, record in vars(self).items() if record is not None}


class Stopping:
    """Decide which rows have ended, and why."""

    def __init__(
        self,
        config: GenerationConfig,
        limit: int,
        tokenizer: Any = None,
        criteria: Sequence[StoppingCriterion] = (),
    ):
        self.limit, self.eos, self.criteria = limit, config.eos_token_ids, tuple(criteria)
        strings = config.stop_strings or ()
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if self.strings and not hasattr(tokenizer, "decode"):
            raise InputError(
                f"tokenizer: expected the model's tokenizer with stop_strings, "
                f"found {shown(tokenizer)}"
            )
        self.tokenizer = tokenizer
        # A token has at least one byte; the margin lets decoders treat a first token differently.
        self.window = 4 + max((len(s.encode()) for s in self.strings), default=0)

    @property
    def early(self) -> bool:
        """Whether a row can end before the limit."""
        return bool(self.eos or self.strings or self.criteria)

    def __call__(
        self, new: NDArray, ids: Callable[[], NDArray], scores: NDArray, live: NDArray
    ) -> NDArray:
        """Return why each row ends with its latest token: strings (R), "" for those that go on.

        ``new`` (R, n) are the new tokens, ``ids`` makes the whole text (R, L + n), ``live`` (R)
        marks the rows that had not ended before.
        """
        reasons = np.full(len(new), LENGTH if new.shape[1] >= self.limit else GOES_ON, "<U6")
        if self.strings:
            reasons[
                [bool(on) and self._has_string(row) for row, on in zip(new, live, strict=True)]
            ] = STOP
        for i, criterion in enumerate(self.criteria):
            reasons[_answers(i, criterion(ids(), scores), len(new))] = STOP
        if self.eos:
            reasons[np.isin(new[:, -1], self.eos)] = EOS
        return reasons

    def _has_string(self, new: NDArray) -> bool:
        # The window is long enough for a string that the latest token completes.
        text = self.tokenizer.decode(new[-self.window :].tolist(), skip_special_tokens=False)
        return any(string in text for string in self.strings)


def _answers(index: int, result: Any, rows: int) -> NDArray:
    """Check what a user's stopping criterion returned, and give every row an answer."""
    answers = np.asarray(result)
    if answers.dtype != bool or answers.shape not in ((), (rows,)):
        raise InputError(
            f"stopping_criteria[{index}]: expected a bool or an array of {rows} bools, "
            f"found {result!r}"
        )
    return np.broadcast_to(answers, rows)


@contextlib.contextmanager
def feeding(streamer: Any) -> Iterator[Callable[[NDArray], Any]]:
    """Yield the streamer's ``put``; however it ends, the streamer's reader is not left waiting."""
    if streamer is None:
        yield lambda _: None
        return
    if not hasattr(streamer, "put") or not hasattr(streamer, "end"):
        raise InputError(f"streamer: expected methods put and end, found {shown(streamer)}")
    try:
        yield streamer.put
    except BaseException as error:
        # Raised here, and for whoever reads the text in another thread.
        getattr(streamer, "fail", lambda _: None)(error)
        raise
    finally:
        streamer.end()
