"""From the scores of every next token to one token: processors, warpers and the draw.

Every function takes scores (B, V) and returns new ones; -inf forbids a token. A history (B, L) is
the ids of each row, oldest first, with ``ABSENT`` where the row has no token: padding counts for
nothing. Values mean what they mean in transformers 5; all arithmetic is in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .equations import softmax
from .errors import InputError, NonFiniteError
from .generation_config import GenerationConfig

ABSENT = -1
"""The id of a position that holds no token."""

LogitsProcessor = Callable[[NDArray, NDArray], NDArray]
"""A user's function of input_ids (B, L) and scores (B, V) that returns new scores (B, V)."""


# --- processors: they depend on what has been said ---------------------------------------------


def repetition_penalty(scores: NDArray, history: NDArray, penalty: float) -> NDArray:
    """Make tokens of the history less likely: divide positive scores, multiply negative ones.

    Source: CTRL (Keskar et al. 2019), section 4.1. Below 1, the penalty rewards repetition.
    """
    seen = np.zeros((scores.shape[0], scores.shape[1] + 1), bool)
    seen[np.arange(len(history))[:, None], history] = True  # ABSENT marks the spare last column
    penalised = np.where(scores < 0, scores * penalty, scores / penalty)
    return np.where(seen[:, :-1], penalised, scores)


def no_repeat_ngram(scores: NDArray, history: NDArray, size: int) -> NDArray:
    """Forbid each token that would complete a run of ``size`` tokens for the second time."""
    scores = scores.copy()
    length = history.shape[1]
    if length < size:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(history, size, axis=1)
    latest = history[:, length - size + 1 :]  # the size - 1 tokens that the next one follows
    repeats = (windows[:, :, :-1] == latest[:, None]).all(axis=2)
    repeats &= (windows != ABSENT).all(axis=2)
    row, start = np.nonzero(repeats)
    scores[row, windows[row, start, -1]] = -np.inf
    return scores


def forbid(scores: NDArray, tokens: Sequence[int]) -> NDArray:
    """Forbid the given tokens; ids outside the vocabulary are ignored."""
    scores = scores.copy()
    scores[:, [token for token in tokens if token < scores.shape[1]]] = -np.inf
    return scores


# --- warpers: they only reshape the distribution -----------------------------------------------


def temperature(scores: NDArray, value: float) -> NDArray:
    """Divide by the temperature: below 1 the likely tokens get likelier, above 1 less so."""
    return scores / value


def top_k(scores: NDArray, k: int, min_tokens_to_keep: int = 1) -> NDArray:
    """Keep the k highest scores; all tokens tied with the last of them stay too."""
    k = min(max(k, min_tokens_to_keep), scores.shape[1])
    lowest = np.partition(scores, -k, axis=1)[:, -k, None]
    return np.where(scores < lowest, -np.inf, scores)


def top_p(scores: NDArray, p: float, min_tokens_to_keep: int = 1) -> NDArray:
    """Keep the likeliest tokens that together reach probability p ("nucleus sampling").

    Source: Holtzman et al. 2020, section 3.1. Among equal scores the higher ids are kept.
    """
    order = np.argsort(scores, axis=1, kind="stable")  # the unlikeliest first
    below = np.cumsum(softmax(np.take_along_axis(scores, order, axis=1)), axis=1)
    removed = below <= 1 - p
    removed[:, -min_tokens_to_keep:] = False
    return _remove(scores, order, removed)


def min_p(scores: NDArray, p: float, min_tokens_to_keep: int = 1) -> NDArray:
    """Keep the tokens at least p times as likely as the likeliest one.

    Source: Nguyen et al. 2024, "Turning up the heat", section 3.
    """
    order = np.argsort(scores, axis=1, kind="stable")
    sorted_p = softmax(np.take_along_axis(scores, order, axis=1))
    removed = sorted_p < p * sorted_p[:, -1:]
    removed[:, -min_tokens_to_keep:] = False
    return _remove(scores, order, removed)


def _remove(scores: NDArray, order: NDArray, removed: NDArray) -> NDArray:
    """Forbid the tokens marked in sorted order."""
    unsorted = np.empty_like(removed)
    np.put_along_axis(unsorted, order, removed, axis=1)
    return np.where(unsorted, -np.inf, scores)


# --- draws -------------------------------------------------------------------------------------


def row_generators(
    seed: int | np.random.Generator | None, rows: int, repeats: int = 1
) -> list[np.random.Generator]:
    """Return a random generator for each row and each of its repeats, row by row.

    Each depends on the seed, the row and the repeat alone, so that a row's draws are the same
    whatever the other rows hold. None takes fresh entropy from the operating system.
    """
    if isinstance(seed, np.random.Generator):
        seed = int(seed.integers(2**63))
    elif seed is None:
        seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    return [np.random.default_rng((seed, r, i)) for r in range(rows) for i in range(repeats)]


def draw(scores: NDArray, generators: Sequence[np.random.Generator]) -> NDArray:
    """Draw one token for each row from softmax(scores): int64 (B), one number per generator.

    By inversion: the first token whose cumulative probability exceeds a uniform number.
    """
    cumulative = np.cumsum(softmax(scores), axis=1)
    total = cumulative[:, -1:]
    uniform = np.array([generator.random() for generator in generators])[:, None]
    tokens = (cumulative <= uniform * total).sum(axis=1)
    # Rounding may carry the product up to the total itself: take the last possible token then.
    return np.minimum(tokens, (cumulative < total).sum(axis=1))


def check_scores(scores: NDArray, step: int, what: str, rows: NDArray | None = None) -> None:
    """Raise NonFiniteError unless every row has a highest score that is a finite number.

    This finds NaN and +inf anywhere, and rows in which every token is forbidden. ``rows`` (B)
    marks the rows to look at; ``what`` says where the scores come from.
    """
    best = scores.max(axis=1)  # NaN wins over every number
    wrong = ~np.isfinite(best) if rows is None else ~np.isfinite(best) & rows
    if wrong.any():
        row = int(wrong.argmax())
        found = f"{best[row]:g} as the highest" if best[row] > 0 else "none left: all are -inf"
        found = "NaN" if np.isnan(best[row]) else found
        raise NonFiniteError(
            f"{what} for new token {step}, row {row}: expected finite scores, found {found}"
        )


def check_ranking(scores: NDArray, step: int) -> None:
    """Raise NonFiniteError if a processed score of a beam is NaN or +inf; -inf is a ban."""
    wrong = ~(scores < np.inf).all(axis=1)
    if wrong.any():
        beam = int(wrong.argmax())
        raise NonFiniteError(
            f"processed scores for new token {step}, beam {beam}: expected numbers or -inf, found "
            f"{'NaN' if np.isnan(scores[beam]).any() else 'inf'}"
        )


# --- all of it in order ------------------------------------------------------------------------


class Scorer:
    """Turn logits into the scores to choose by, as the configuration says.

    Order as in transformers: repetition penalty, n-grams, minimum length, the user's processors;
    then, if sampling, temperature, top-k, top-p, min-p.
    """

    def __init__(self, config: GenerationConfig, custom: Sequence[LogitsProcessor] = ()):
        self.config, self.custom = config, tuple(custom)
        # Beams need tokens besides the ends of text, to have something to go on with.
        self.keep = 1 if config.num_beams == 1 else max(2, len(config.eos_token_ids) + 1)

    @property
    def simple(self) -> float | None:
        """The temperature at which tokens are drawn from the logits alone; 0 for the highest.

        None where anything else has a say in the choice.
        """
        c = self.config
        if c.repetition_penalty != 1 or c.no_repeat_ngram_size or c.min_new_tokens or self.custom:
            return None
        if not c.do_sample:
            return 0.0
        return None if c.top_k or c.top_p < 1 or c.min_p is not None else c.temperature

    def __call__(
        self, scores: NDArray, history: NDArray, input_ids: NDArray, new_tokens: int
    ) -> NDArray:
        """Return new scores (B, V) in float64; ``new_tokens`` have been made so far."""
        config, scores = self.config, scores.astype(np.float64)
        if config.repetition_penalty != 1:
            scores = repetition_penalty(scores, history, config.repetition_penalty)
        if config.no_repeat_ngram_size:
            scores = no_repeat_ngram(scores, history, config.no_repeat_ngram_size)
        if new_tokens < (config.min_new_tokens or 0):
            scores = forbid(scores, config.eos_token_ids)
        for i, processor in enumerate(self.custom):
            scores = _custom_scores(i, processor(input_ids, scores), scores.shape)
        alive = np.isfinite(scores.max(axis=1))  # a row without hope has no distribution
        if config.do_sample and alive.any():
            scores = scores.copy()
            scores[alive] = self._warp(scores[alive])
        return scores

    def _warp(self, scores: NDArray) -> NDArray:
        config = self.config
        if config.temperature != 1:
            scores = temperature(scores, config.temperature)
        if config.top_k:
            scores = top_k(scores, config.top_k, self.keep)
        if config.top_p < 1:
            scores = top_p(scores, config.top_p, self.keep)
        if config.min_p is not None:
            scores = min_p(scores, config.min_p, self.keep)
        return scores


def _custom_scores(index: int, result: Any, shape: tuple[int, ...]) -> NDArray:
    """Check what a user's processor returned."""
    name = f"logits_processor[{index}]"
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f":
        kind = getattr(result, "dtype", type(result).__name__)
        raise InputError(f"{name}: expected it to return an array of floats, found {kind}")
    if result.shape != shape:
        raise InputError(f"{name}: expected it to return shape {shape}, found {result.shape}")
    return result.astype(np.float64, copy=False)
