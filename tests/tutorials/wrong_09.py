"""Answers that readers of notebook 09 may give, and words of the hint that they get."""

import numpy as np


def _ordinary(delta, ids, width=4):
    seen = np.flatnonzero(ids == 15)[:, None] + np.arange(width)
    keep = np.ones(len(ids), bool)
    keep[seen[seen < len(ids)]] = False
    return delta[keep]


def _half_life(rates, A):
    return np.log(2) / (rates[:, None] * np.abs(A))


def _far(alpha):
    return np.subtract.outer(np.arange(len(alpha)), np.arange(len(alpha)))


WRONG = {
    "09a": [
        (lambda tokens, share: tokens, "should be 500"),
        (lambda tokens, share: tokens * np.log2(1 / share), "shorter half-life"),
        (lambda tokens, share: -tokens / np.log(share), "should be 1000"),
        (lambda tokens, share: tokens / np.log2(share), "above 0"),
        (lambda tokens, share: None, "replace the dots"),
    ],
    "09b": [
        (lambda delta, A, ids: _half_life(delta.mean(0), A), "step at which the channel writes"),
        (lambda delta, A, ids: _half_life(_ordinary(delta, ids, 1).mean(0), A), "three after"),
        (lambda delta, A, ids: _half_life(np.median(_ordinary(delta, ids), axis=0), A), "median"),
        (lambda delta, A, ids: _half_life(1 / (1 / _ordinary(delta, ids)).mean(0), A), "smallest"),
        (lambda delta, A, ids: 1 / (_ordinary(delta, ids).mean(0)[:, None] * abs(A)), "ln 2"),
        (lambda delta, A, ids: np.log(2) / (_ordinary(delta, ids).mean(0)[:, None] * A), "|A|"),
        (lambda delta, A, ids: np.log(2) / _ordinary(delta, ids).mean(0), "(E, N) = (5, 3)"),
        (lambda delta, A, ids: _half_life(_ordinary(delta, ids, 3).mean(0), A), "over ours"),
        (lambda delta, A, ids: None, "replace the dots"),
    ],
    "09c": [
        (lambda alpha: (_far(alpha) * alpha).sum(1) / alpha.sum(1), "cancel"),
        (lambda alpha: (_far(alpha) * abs(alpha)).sum(1), "their scale"),
        (lambda alpha: (_far(alpha) * abs(alpha)).mean(1), "how many there are"),
        (lambda alpha: (np.arange(7) * abs(alpha)).sum(1) / abs(alpha).sum(1), "t - s"),
        (lambda alpha: -(_far(alpha) * abs(alpha)).sum(1) / abs(alpha).sum(1), "should be"),
        (lambda alpha: (_far(alpha) * abs(alpha)).sum(0) / abs(alpha).sum(0), "columns s"),
        (lambda alpha: (_far(alpha) * abs(alpha)).sum() / abs(alpha).sum(), "sum over s"),
        (lambda alpha: None, "replace the dots"),
    ],
}
