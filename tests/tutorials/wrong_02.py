"""Answers that readers of notebook 02 may give, and words of the hint that they get."""

import numpy as np


def powers(A_bar, L, first=0):
    return A_bar ** np.arange(first, L + first)[:, None]


def by_lag(weight):
    def matrix(K):
        t = np.arange(len(K))
        return weight(K, t[:, None] - t)

    return matrix


def journeys(first, last, entry=lambda t, s: s, swap=False):
    def matrix(A_bar, B_bar, C):
        M = np.zeros((len(A_bar), len(A_bar)))
        for t in range(len(M)):
            for s in range(t + 1):
                kept = np.prod(A_bar[s + first : t + last], axis=0)
                M[t, s] = C @ (kept * B_bar[entry(t, s)])
        return M.T if swap else M

    return matrix


def with_power(A_bar, B_bar, C):
    L = len(A_bar)
    return np.array(
        [
            [C @ (A_bar[t] ** (t - s) * B_bar[s]) if s <= t else 0 for s in range(L)]
            for t in range(L)
        ]
    )


WRONG = {
    "02a": [
        (lambda A_bar, B_bar, C, L: powers(A_bar, L, 1) @ (B_bar * C), "in its own step"),
        (lambda A_bar, B_bar, C, L: powers(A_bar, L) * B_bar * C, "are summed"),
        (lambda A_bar, B_bar, C, L: powers(A_bar, L) @ C, "with B_bar"),
        (lambda A_bar, B_bar, C, L: powers(A_bar, L) @ B_bar, "with C"),
        (lambda A_bar, B_bar, C, L: np.arange(L)[:, None] * A_bar * B_bar @ C, "a power"),
        (lambda A_bar, B_bar, C, L: powers(A_bar, L + 1) @ (B_bar * C), "should have the shape"),
        (lambda A_bar, B_bar, C, L: powers(A_bar, L) @ (B_bar - C), "should be"),
        (lambda A_bar, B_bar, C, L: A_bar ** np.arange(L) * B_bar * C, "stopped with ValueError"),
        (lambda A_bar, B_bar, C, L: ..., "replace the dots"),
    ],
    "02b": [
        (by_lag(lambda K, lag: np.where(lag <= 0, K[abs(lag)], 0)), "changed places"),
        (by_lag(lambda K, lag: K[lag]), "K[-1] is the last"),
        (by_lag(lambda K, lag: K[abs(lag)]), "the future"),
        (by_lag(lambda K, lag: np.where(lag > 0, K[abs(lag)], 0)), "should be 3"),
        (np.diag, "should be 2"),
    ],
    "02c": [
        (journeys(0, 1), "begins at s + 1"),
        (journeys(1, 0), "ends with A_bar_t"),
        (journeys(1, 1, entry=lambda t, s: t), "of its own step"),
        (journeys(1, 1, swap=True), "changed places"),
        (with_power, "A power of one A_bar"),
        (lambda A_bar, B_bar, C: A_bar @ C, "should have the shape (6, 6)"),
    ],
}
