"""Answers that readers of notebook 06 may give, and words of the hint that they get."""

import numpy as np

from mamba_np import MambaCache


def _from_nothing(model, path, first, second):
    return model(first).logits[0, -1], model(second).logits[0, -1]


def _one_after_the_other(model, path, first, second):
    cache = MambaCache.load(path)
    return tuple(model(ids, cache_params=cache).logits[0, -1] for ids in (first, second))


def _all_positions(model, path, first, second):
    return tuple(
        model(ids, cache_params=MambaCache.load(path)).logits[0] for ids in (first, second)
    )


def _spoils_the_file(model, path, first, second):
    cache = MambaCache.load(path)
    scores = model(first, cache_params=cache).logits[0, -1]
    cache.save(path)
    return scores, model(second, cache_params=MambaCache.load(path)).logits[0, -1]


def _swapped(model, path, first, second):
    return tuple(
        model(ids, cache_params=MambaCache.load(path)).logits[0, -1] for ids in (second, first)
    )


def _one_too_few(probabilities, p):
    order = np.argsort(-probabilities)
    mask = np.zeros(len(order), bool)
    mask[order[np.cumsum(probabilities[order]) <= p]] = True
    return mask


def _one_too_many(probabilities, p):
    order = np.argsort(-probabilities)
    mask = np.zeros(len(order), bool)
    mask[order[: np.searchsorted(np.cumsum(probabilities[order]), p) + 2]] = True
    return mask


def _in_sorted_order(probabilities, p):
    falling = np.sort(probabilities)[::-1]
    return np.cumsum(falling) - falling < p


WRONG = {
    "06a": [
        (_from_nothing, "read from nothing"),
        (_one_after_the_other, "end of `first`"),
        (_all_positions, "only the last position"),
        (_spoils_the_file, "has changed"),
        (_swapped, "your scores after `first`"),
        (lambda model, path, first, second: None, "replace the dots"),
        (lambda model, path, first, second: model(first).logits[0, -1], "two things"),
    ],
    "06b": [
        (_one_too_few, "no token at all"),
        (lambda q, p: _one_too_few(q, p) | (q == q.max()), "sum to 0.5 only"),
        (_one_too_many, "suffice"),
        (_in_sorted_order, "order of the vocabulary"),
        (lambda q, p: np.cumsum(q) - q < p, "you keep"),
        (lambda q, p: q >= p, "no token at all"),
        (lambda q, p: q[np.argsort(-q)][:1], "mask of 4 booleans"),
        (lambda q, p: None, "replace the dots"),
    ],
}
