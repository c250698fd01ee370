"""Beam search: keep the best few texts of each row instead of one.

A text's score is the sum of its tokens' log-probabilities. A text that has ended is ranked by
score / length ** length_penalty, its length being the number of its new tokens; each row returns
the best ones. When to stop looking is transformers' choice of rules (``early_stopping``).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .decoding import GOES_ON, Reader, Stopping, Texts
from .equations import log_softmax
from .errors import NonFiniteError
from .generation_config import GenerationConfig
from .sampling import Scorer, check_ranking, check_scores


class Hypothesis(NamedTuple):
    """A text that has ended."""

    score: float  # with the length penalty
    tokens: NDArray  # (n) the new tokens
    beams: NDArray  # (n) the beam, counted over the whole batch, that each token extended
    reason: str


class Candidates(NamedTuple):
    """The best continuations of each row, K of them, by one token."""

    scores: NDArray  # (B, K) sums of log-probabilities
    beams: NDArray  # (B, K) which beam of the batch, 0 to B * num_beams - 1, is continued
    tokens: NDArray  # (B, K) by which token


class BeamSearch:
    """The beams of a batch of rows, and the texts that have ended."""

    def __init__(
        self,
        config: GenerationConfig,
        rows: int,
        limit: int,
        generators: Sequence[np.random.Generator],
    ):
        self.config, self.limit, self.generators = config, limit, generators
        self.rows, self.width = rows, config.num_beams
        # All beams start equal: only the first counts, or each text would be found many times.
        self.scores = np.full((rows, self.width), -np.inf)
        self.scores[:, 0] = 0.0
        self.parents = np.empty((rows * self.width, 0), np.int64)
        self.ended: list[list[Hypothesis]] = [[] for _ in range(rows)]
        self.done = np.zeros(rows, bool)

    def candidates(self, log_probs: NDArray) -> Candidates:
        """Return the continuations to look at, the best (or first drawn) ones first.

        ``log_probs`` (B * num_beams, V). They are enough for the beams even if as many as
        possible end the text. Sampling draws them without replacement, by adding Gumbel noise to
        each sum and taking the highest (Kool et al. 2019).
        """
        V = log_probs.shape[1]
        totals = (self.scores.reshape(-1, 1) + log_probs).reshape(self.rows, -1)
        count = min(max(2, 1 + len(self.config.eos_token_ids)) * self.width, totals.shape[1])
        keys = totals
        if self.config.do_sample:
            keys = totals + [g.gumbel(size=totals.shape[1]) for g in self.generators]
        chosen = _highest(keys, count)
        first_beam = np.arange(self.rows)[:, None] * self.width
        return Candidates(
            np.take_along_axis(totals, chosen, axis=1), first_beam + chosen // V, chosen % V
        )

    def advance(self, found: Candidates, texts: Texts, reasons: NDArray) -> NDArray:
        """Take one step: file the texts that ended, go on with the best others.

        ``reasons`` (B, K) says why a candidate ends. Returns which beams go on, (B * num_beams).
        """
        for row in np.flatnonzero(~self.done).tolist():
            self._file(row, found, texts, reasons[row])
        going = np.where(reasons == GOES_ON, found.scores, -np.inf)
        best = _highest(going, self.width)
        self.scores = np.take_along_axis(going, best, axis=1)
        beams, tokens = (
            np.take_along_axis(of, best, axis=1).ravel() for of in (found.beams, found.tokens)
        )
        self.parents = np.column_stack([self.parents[beams], beams])
        texts.select(beams)
        texts.append(tokens)
        for row in np.flatnonzero(~self.done).tolist():
            self.done[row] = self._is_done(row, texts.count)
        return beams

    def _file(self, row: int, found: Candidates, texts: Texts, reasons: NDArray) -> None:
        """File the ended texts of one row; only the best num_beams candidates may end."""
        ended = self.ended[row]
        length = texts.count + 1
        for k in range(min(self.width, len(reasons))):
            score, beam = found.scores[row, k], found.beams[row, k]
            if reasons[k] != GOES_ON and score > -np.inf:
                tokens = np.append(texts.new[beam], found.tokens[row, k])
                beams = np.append(self.parents[beam], beam)
                score = self._penalised(score, length)
                ended.append(Hypothesis(score, tokens, beams, str(reasons[k])))
        ended.sort(key=lambda one: -one.score)
        del ended[self.width :]

    def _is_done(self, row: int, length: int) -> bool:
        """Say whether a row has nothing left to find, by the rule of ``early_stopping``."""
        best, ended = self.scores[row, 0], self.ended[row]
        if best == -np.inf:  # no beam can go on
            if not ended:
                raise NonFiniteError(f"scores for new token {length}, row {row}: all are -inf")
            return True
        if len(ended) < self.width:
            return False
        config = self.config
        if config.early_stopping is True:
            return True
        # The beams can still win if their score so far does, at the length assumed for them.
        hopeful = config.early_stopping == "never" and config.length_penalty > 0
        return self._penalised(best, self.limit if hopeful else length) <= ended[-1].score

    def _penalised(self, score: float, length: int) -> float:
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            return float(score / np.float64(length) ** self.config.length_penalty)


def _highest(values: NDArray, count: int) -> NDArray:
    """Return where the ``count`` highest values (B, n) of each row stand, the highest first."""
    if count < values.shape[1]:
        some = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    else:
        some = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def search(
    reader: Reader, texts: Texts, scorer: Scorer, stopping: Stopping, beams: BeamSearch, keep: Any
) -> None:
    """Run a beam search to its end.

    ``keep(scores, logits, hidden_states)`` is called at each step. Raises NonFiniteError.
    """
    logits = reader.read_prompt(beams.width)
    while True:
        check_scores(logits, texts.count + 1, "logits")
        scores = scorer(
            log_softmax(logits.astype(np.float64)), texts.history, texts.ids, texts.count
        )
        check_ranking(scores, texts.count + 1)
        keep(scores, logits, reader.hidden_states)
        found = beams.candidates(scores)
        reasons = _reasons(found, texts, stopping, scores)
        chosen = beams.advance(found, texts, reasons)
        if beams.done.all():
            return
        reader.select(chosen)
        logits = reader.read(texts)


def _reasons(found: Candidates, texts: Texts, stopping: Stopping, scores: NDArray) -> NDArray:
    """Return why each candidate ends, (B, K)."""
    beams, tokens = found.beams.ravel(), found.tokens.ravel()
    new = np.column_stack([texts.new[beams], tokens])
    live = np.ones(len(new), bool)
    reasons = stopping(new, lambda: np.column_stack([texts.ids[beams], tokens]), scores, live)
    return reasons.reshape(found.scores.shape)
