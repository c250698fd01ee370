"""The exercises of "Run one model three ways"."""

import numpy as np

from ..checking import exercise, expect, near


def same(found, other):
    """Return whether an answer is this array: the one that a mistake would give."""
    try:
        return np.shape(found) == np.shape(other) and np.allclose(np.asarray(found, float), other)
    except (TypeError, ValueError):
        return False


@exercise("02a")
def kernel(answer):
    """K_t = C A_bar^t B_bar, from A_bar, B_bar and C of shape (N,)."""
    rng = np.random.default_rng(0)
    for N, L in ((1, 5), (3, 8)):
        A_bar, B_bar, C = rng.uniform(0.3, 0.95, N), rng.uniform(1, 2, N), rng.uniform(1, 2, N)
        each = np.array([[c * b * a**t for a, b, c in zip(A_bar, B_bar, C)] for t in range(L + 1)])  # noqa: B905
        K, found = each.sum(axis=1), answer(A_bar, B_bar, C, L)
        hint = "K_0 is what is heard of an input in its own step: nothing of it has faded by then."
        expect(not same(found, K[1:]), hint)
        hint = "There is one weight for each t: the N memories of a step are summed."
        expect(np.shape(found) not in ((L, N), (N, L)), hint)
        powers = A_bar ** np.arange(L)[:, None]
        expect(
            not same(found, powers @ C), "An input enters each memory with B_bar: it is missing."
        )
        expect(not same(found, powers @ B_bar), "The memories are read with C: it is missing.")
        product = np.arange(L)[:, None] * A_bar * B_bar @ C
        expect(
            not same(found, product), "The share A_bar that stays is lost t times: it is a power."
        )
        near(found, K[:L], f"your kernel with N = {N}")


@exercise("02b")
def matrix(answer):
    """M[t, s] = K_{t-s} on and below the diagonal, from K of shape (L,)."""
    for K in (np.array([3.0, 2.0, 1.0]), np.random.default_rng(0).normal(size=7)):
        L = len(K)
        M = np.array([[K[t - s] if s <= t else 0.0 for s in range(L)] for t in range(L)])
        found = answer(K)
        hint = "Row t is who reads, column s who is read: here they have changed places."
        expect(not same(found, M.T), hint)
        round_the_end = np.array([[K[t - s] for s in range(L)] for t in range(L)])
        hint = "Above the diagonal t - s is below 0, and K[-1] is the last number: put zeros there."
        expect(not same(found, round_the_end), hint)
        mirrored = np.array([[K[abs(t - s)] for s in range(L)] for t in range(L)])
        expect(
            not same(found, mirrored), "Above the diagonal the future would be read: zeros there."
        )
        near(found, M, f"your matrix of {L} numbers")


@exercise("02c")
def varying_matrix(answer):
    """M[t, s] = C A_bar_t ... A_bar_{s+1} B_bar_s, from A_bar and B_bar of shape (L, N)."""
    rng = np.random.default_rng(1)
    L, N = 6, 2
    A_bar, B_bar, C = (
        rng.uniform(0.3, 0.95, (L, N)),
        rng.uniform(1, 2, (L, N)),
        rng.uniform(1, 2, N),
    )

    def table(weight):
        return np.array([[weight(t, s) if s <= t else 0.0 for s in range(L)] for t in range(L)])

    def kept(first, last):  # the product of the shares of these steps
        return np.prod(A_bar[first : last + 1], axis=0)

    found = answer(A_bar, B_bar, C)
    hint = "What enters at step s has not faded yet when step s ends: the product begins at s + 1."
    expect(not same(found, table(lambda t, s: C @ (kept(s, t) * B_bar[s]))), hint)
    hint = "The product ends with A_bar_t: at step t, too, a share is lost before it is read."
    expect(not same(found, table(lambda t, s: C @ (kept(s + 1, t - 1) * B_bar[s]))), hint)
    hint = "An input enters with the B_bar of its own step, s."
    expect(not same(found, table(lambda t, s: C @ (kept(s + 1, t) * B_bar[t]))), hint)
    hint = "A power of one A_bar is a kernel again: each step between has its own share."
    for base in (lambda t, s: A_bar[t], lambda t, s: A_bar[s]):
        power = table(lambda t, s, base=base: C @ (base(t, s) ** (t - s) * B_bar[s]))
        expect(not same(found, power), hint)
    right = table(lambda t, s: C @ (kept(s + 1, t) * B_bar[s]))
    hint = "Row t is who reads, column s who is read: here they have changed places."
    expect(not same(found, right.T), hint)
    near(found, right, "your matrix")
