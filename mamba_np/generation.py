"""generate: from a prompt to a text, one token at a time.

The prompt is read in one call, then one token a call with the model's state as the only memory:
time and memory per token do not depend on how long the text has become. Arguments, their meaning
and the order of processing are those of transformers; docs/differences.md says what differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import beam
from .cache import MambaCache
from .decoding import GOES_ON, Prompt, Reader, Records, Stopping, StoppingCriterion, Texts, feeding
from .errors import InputError
from .generation_config import GenerationConfig, combine
from .inputs import require_one
from .outputs import ModelOutput
from .sampling import LogitsProcessor, Scorer, check_scores, draw, row_generators

__all__ = ["GenerationConfig", "GenerateOutput", "GenerationMixin", "TokenStream"]


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """What ``generate`` returns with ``return_dict_in_generate``; R = B * num_return_sequences.

    ``cache_params`` has read every row's text up to, but without, its last token: go on from it
    by passing that token with the new input. There is none after beam search or without cache.
    """

    sequences: NDArray  # (R, prompt + new) int64
    sequences_scores: NDArray | None = None  # (R): beams only, with the length penalty
    scores: tuple[NDArray, ...] | None = None  # per token (R, V), or (B * num_beams, V)
    logits: tuple[NDArray, ...] | None = None  # per token, before processing
    beam_indices: NDArray | None = None  # (R, new): which beam each token extended; -1 after it
    hidden_states: tuple[tuple[NDArray, ...], ...] | None = None  # per token, the model's
    cache_params: MambaCache | None = None
    finish_reasons: list[str] | None = (
        None  # per row: "eos", "stop", "length"; "none": no such text
    )


class _Task:
    """One checked call of ``generate``: everything that decoding needs."""

    def __init__(
        self,
        model: Any,
        config: GenerationConfig,
        prompt: Prompt,
        cache: Any,
        seed: int | np.random.Generator | None,
        processors: Sequence[LogitsProcessor],
        stopping: Stopping,
    ):
        self.config, self.prompt, self.stopping = config, prompt, stopping
        self.copies = config.num_beams if config.num_beams > 1 else config.num_return_sequences
        self.reader = Reader(model, prompt, cache, config)
        self.scorer = Scorer(config, processors)
        self.texts = Texts(prompt, self.copies)
        self.records = Records(config)
        repeats = 1 if config.num_beams > 1 else self.copies
        self.generators = row_generators(seed, prompt.rows, repeats) if config.do_sample else []
        self.fill = -1 if config.fill_token_id is None else config.fill_token_id

    def writer(self) -> Iterator[tuple[int, NDArray | None]] | None:
        """Return the engine's own choice of tokens, where it has one and nobody looks at scores."""
        make = getattr(self.reader.model, "_writer", None)
        watched = self.stopping.criteria or self.config.return_dict_in_generate
        if make is None or watched or self.texts.rows != 1 or not self.reader.use_cache:
            return None
        temperature = self.scorer.simple
        if temperature is None:
            return None
        seed = int(self.generators[0].integers(2**63)) if temperature else 0
        last, most = int(self.texts.new[0, -1]), self.stopping.limit
        return make(self.reader.cache, last, most, temperature, seed)


class TokenStream(Iterator[NDArray]):
    """The tokens of a running generation: yields the new ids (R) of one step at a time.

    A row that has ended yields the pad token. ``finish_reasons`` says per row why it ended
    ("eos", "stop", "length"; "" while it goes on), ``sequences`` is the text so far.
    """

    def __init__(self, task: _Task):
        self._task = task
        self._reasons = np.full(task.texts.rows, GOES_ON, "<U6")
        self._steps = self._decode()

    @property
    def finish_reasons(self) -> list[str]:
        """Why each row ended; "" for those that go on."""
        return self._reasons.tolist()

    @property
    def sequences(self) -> NDArray:
        """The prompt and the tokens so far (R, L + n) int64: a copy."""
        return self._task.texts.ids.copy()

    @property
    def cache_params(self) -> Any:
        """The model's state: it has read everything but the last token."""
        return self._task.reader.cache if self._task.reader.use_cache else None

    def __next__(self) -> NDArray:
        return next(self._steps)

    def _decode(self) -> Iterator[NDArray]:
        task, texts = self._task, self._task.texts
        logits = task.reader.read_prompt(task.copies)
        live = np.ones(texts.rows, bool)
        while True:
            check_scores(logits, texts.count + 1, "logits", live)
            scores = task.scorer(logits, texts.history, texts.ids, texts.count)
            check_scores(scores, texts.count + 1, "processed scores", live)
            task.records.keep(scores, logits, task.reader.hidden_states)
            tokens = self._choose(scores, live)
            texts.append(tokens, real=live)
            ended = task.stopping(texts.new, lambda: texts.ids, scores, live)
            self._reasons[live] = ended[live]
            yield tokens
            live = self._reasons == GOES_ON
            if not live.any():
                return
            writer = task.writer()
            if writer is not None:
                yield from self._follow(writer)
                return
            logits = task.reader.read(texts, live)

    def _follow(self, writer: Iterator[tuple[int, NDArray | None]]) -> Iterator[NDArray]:
        """Take the only row's tokens from an engine that chooses them itself."""
        texts, stopping, live = self._task.texts, self._task.stopping, np.ones(1, bool)
        for token, suspect in writer:
            if suspect is not None:
                check_scores(self._task.reader.checked(suspect), texts.count + 1, "logits")
            texts.append(np.array([token]))
            self._reasons = stopping(texts.new, lambda: texts.ids, np.empty(0), live)
            yield texts.new[:, -1].copy()
            if self._reasons[0] != GOES_ON:
                return

    def _choose(self, scores: NDArray, live: NDArray) -> NDArray:
        """Return the next token (R) of every row that goes on, the filler for the others."""
        tokens = np.full(len(scores), self._task.fill, np.int64)
        if self._task.config.do_sample:
            generators = [self._task.generators[row] for row in np.flatnonzero(live)]
            tokens[live] = draw(scores[live], generators)
        else:
            tokens[live] = scores[live].argmax(axis=1)
        return tokens


class GenerationMixin:
    """Gives a causal language model ``generate`` and ``stream``.

    The class needs ``config``, ``generation_config`` and a call with the arguments of
    MambaForCausalLM.
    """

    config: Any
    generation_config: GenerationConfig

    def generate(
        self,
        input_ids: Any = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        cache_params: Any = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        streamer: Any = None,
        tokenizer: Any = None,
        seed: int | np.random.Generator | None = None,
        **options: Any,
    ) -> NDArray | GenerateOutput:
        """Continue each row of a prompt; return int64 ids (B * num_return_sequences, L + new).

        ``input_ids`` (B, L); None starts one row from the bos token. With ``inputs_embeds``
        (B, L, D) instead, only new tokens are returned. ``attention_mask`` (B, L) has 0 for
        tokens to treat as absent, on any side: each row gives what it gives alone. Without it
        all tokens count, since a pad id can be a real token too. ``cache_params`` holds what was
        read before (it is advanced in place); the ids are then only those that follow, and
        processors know of these alone.

        ``options`` are the fields of GenerationConfig; they win over ``generation_config``, and
        that over the model's own. ``tokenizer`` is needed by ``stop_strings``. Rows that end
        early are filled with ``pad_token_id``, or else the first eos id. ``streamer`` gets the
        prompt and then each step's ids by ``put``, and ``end`` however it ends. The same
        ``seed`` (an int or a NumPy Generator) gives the same text, whatever the other rows hold.

        Raises InputError (or CacheError) naming the argument, NonFiniteError naming the token and
        row where scores are NaN or infinite, TypeError for an unknown option.
        """
        task = self._task(
            input_ids, generation_config, attention_mask, inputs_embeds, cache_params,
            logits_processor, stopping_criteria, tokenizer, seed, options,
        )  # fmt: skip
        if task.config.num_beams > 1:
            if streamer is not None:
                raise InputError(
                    "streamer: expected none with num_beams > 1: texts can still change"
                )
            return _beam_output(task)
        stream = TokenStream(task)
        with feeding(streamer) as put:
            put(task.texts.ids)
            for tokens in stream:
                put(tokens)
        return _stream_output(task, stream)

    def stream(
        self,
        input_ids: Any = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        cache_params: Any = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        tokenizer: Any = None,
        seed: int | np.random.Generator | None = None,
        **options: Any,
    ) -> TokenStream:
        """Return an iterator of the new ids (B) of each step, as soon as they are chosen.

        The arguments are those of ``generate``; beam search cannot be streamed. Bad arguments
        raise here, not at the first token.
        """
        task = self._task(
            input_ids, generation_config, attention_mask, inputs_embeds, cache_params,
            logits_processor, stopping_criteria, tokenizer, seed, options,
        )  # fmt: skip
        if task.config.num_beams > 1:
            raise InputError(
                "num_beams: expected 1 for streaming: the texts of beams can still change"
            )
        return TokenStream(task)

    def _task(
        self, input_ids, generation_config, attention_mask, inputs_embeds, cache_params,
        logits_processor, stopping_criteria, tokenizer, seed, options,
    ) -> _Task:  # fmt: skip
        """Check all arguments of a call."""
        config = combine(self.generation_config, generation_config, options)
        if input_ids is None and inputs_embeds is None and cache_params is None:
            input_ids = _start(config)
        past = cache_params is not None
        require_one(input_ids, inputs_embeds)
        if input_ids is not None:
            prompt = Prompt.of_ids(input_ids, attention_mask, self.config.vocab_size, past)
        else:
            prompt = Prompt.of_embeddings(inputs_embeds, attention_mask, past)
        limit = config.new_tokens(prompt.length)
        criteria = _functions("stopping_criteria", stopping_criteria)
        stopping = Stopping(config, limit, tokenizer, criteria)
        _check_fill(config, stopping, prompt.rows)
        seed = _check_seed(seed, config)
        processors = _functions("logits_processor", logits_processor)
        return _Task(self, config, prompt, cache_params, seed, processors, stopping)


# --- checks ------------------------------------------------------------------------------------


def _start(config: GenerationConfig) -> list[list[int]]:
    """Return the prompt that stands for none."""
    if config.bos_token_id is None:
        raise InputError("input_ids: expected ids, or a bos_token_id to start from, found neither")
    return [[config.bos_token_id]]


def _functions(name: str, values: Any) -> Sequence[Any]:
    """Check a list of callables."""
    values = () if values is None else values
    if not isinstance(values, (list, tuple)):
        raise InputError(f"{name}: expected a list of functions, found {type(values).__name__}")
    for i, value in enumerate(values):
        if not callable(value):
            raise InputError(f"{name}[{i}]: expected a function, found {type(value).__name__}")
    return values


def _check_seed(seed: Any, config: GenerationConfig) -> int | np.random.Generator | None:
    if isinstance(seed, np.random.Generator):
        return seed
    return config.seed if seed is None else config.updated({"seed": seed}).seed


def _check_fill(config: GenerationConfig, stopping: Stopping, rows: int) -> None:
    """Refuse rows that may end at different lengths with nothing to fill them with."""
    several = rows * config.num_return_sequences > 1
    if several and stopping.early and config.fill_token_id is None:
        raise InputError("pad_token_id: expected an id to fill rows that end early, found None")


# --- results -----------------------------------------------------------------------------------


def _stream_output(task: _Task, stream: TokenStream) -> NDArray | GenerateOutput:
    if not task.config.return_dict_in_generate:
        return stream.sequences
    return GenerateOutput(
        stream.sequences,
        cache_params=stream.cache_params,
        finish_reasons=stream.finish_reasons,
        **task.records.tuples(),
    )


def _beam_output(task: _Task) -> NDArray | GenerateOutput:
    """Run the beam search and lay out the best texts of each row."""
    rows, wanted = task.prompt.rows, task.config.num_return_sequences
    beams = beam.BeamSearch(task.config, rows, task.stopping.limit, task.generators)
    beam.search(task.reader, task.texts, task.scorer, task.stopping, beams, task.records.keep)
    nothing = beam.Hypothesis(-np.inf, np.empty(0, np.int64), np.empty(0, np.int64), "none")
    best = [(ended + [nothing] * wanted)[:wanted] for ended in beams.ended]
    texts = [text for row in best for text in row]
    longest = max(len(text.tokens) for text in texts)
    new = np.full((rows * wanted, longest), task.fill, np.int64)
    indices = np.full((rows * wanted, longest), -1, np.int64)
    for i, text in enumerate(texts):
        new[i, : len(text.tokens)], indices[i, : len(text.tokens)] = text.tokens, text.beams
    sequences = np.hstack([np.repeat(task.prompt.ids, wanted, axis=0), new])
    if not task.config.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences,
        np.array([text.score for text in texts]),
        beam_indices=indices,
        finish_reasons=[text.reason for text in texts],
        **task.records.tuples(),
    )
