"""How well a model predicts batches, in memory for the logits of some hundred tokens."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference import IGNORED_LABEL
from ..scoring import log_probabilities
from .data import Row, collate

TOKENS = 512
"""Tokens whose logits exist at a time: a row of them is as long as the vocabulary."""


def mean_loss(model: Any, batches: Iterable[Mapping[str, Any]]) -> float:
    """Return the mean loss of all predicted tokens, in nats; NaN where there are none.

    Batches are those of ``training_step``. Raises InputError for input that the model refuses,
    NonFiniteError for a logit that is not finite.
    """
    total, count = 0.0, 0
    for batch in batches:
        found = _log_likelihoods(model, batch)
        total, count = total - float(found.sum()), count + len(found)
    return total / count if count else math.nan


def _log_likelihoods(model: Any, batch: Mapping[str, Any]) -> NDArray:
    """Return the log-probability of each predicted token of a batch, in pieces of its length."""
    ids, labels, mask = _without_gaps(batch)
    targets = np.append(labels[:, 1:], np.full((len(ids), 1), IGNORED_LABEL), axis=1)
    step, cache, found = max(1, TOKENS // len(ids)), None, [np.empty(0)]
    for start in range(0, ids.shape[1], step):
        piece = slice(start, start + step)
        output = model(
            ids[:, piece], cache_params=cache, use_cache=True, attention_mask=mask[:, piece]
        )
        cache, wanted = output.cache_params, targets[:, piece] != IGNORED_LABEL
        found.append(log_probabilities(output.logits[wanted], targets[:, piece][wanted]))
    return np.concatenate(found)


def _without_gaps(batch: Mapping[str, Any]) -> tuple[NDArray, NDArray, NDArray]:
    """Return ids, labels and mask (B, L) with all that is masked at the ends of the rows."""
    ids, labels = np.asarray(batch["input_ids"]), np.asarray(batch["labels"])
    mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)))
    rows = [Row(i[m != 0], k[m != 0]) for i, k, m in zip(ids, labels, mask, strict=True)]
    packed = collate(rows)
    return packed["input_ids"], packed["labels"], packed.get("attention_mask", np.ones_like(ids))
