"""The exercises of "Scan in parallel"."""

from itertools import pairwise

import numpy as np

from ..checking import exercise, expect, near

DOTS = "replace the dots, and return the result."
STEPS = [(0.5, 3.0), (0.25, -2.0), (2.0, 1.0), (0.75, 5.0)]


def pair_of(operator, first, second):
    """Return what an operator makes of two steps, as two floats."""
    found = operator(*first, *second)
    expect(found is not ... and found is not None, f"It returns nothing yet: {DOTS}")
    expect(
        isinstance(found, (tuple, list, np.ndarray)) and len(found) == 2,
        f"It should return a pair (a, b); it returns {found!r}.",
    )
    a, b = (float(number) for number in found)
    return a, b


def true_pair(first, second):
    """Return both steps as one."""
    (a1, b1), (a2, b2) = first, second
    return a1 * a2, b1 * a2 + b2


@exercise("04a")
def compose(answer):
    """Two steps as one."""
    for first, second in pairwise(STEPS):
        (a1, b1), (a2, b2) = first, second
        a, b = pair_of(answer, first, second)
        what = f"merge({a1:g}, {b1:g}, {a2:g}, {b2:g})"
        if np.isclose(b, a1 * b2 + b1):
            expect(False, f"{what} does the second step first: what the later step multiplies?")
        hint = "the second step multiplies all that it finds, what the first has added, too."
        expect(not np.isclose(b, b1 + b2), f"{what} only adds b1 and b2; {hint}")
        hint = "h is multiplied by a1, and then the result by a2."
        expect(not np.isclose(a, a1 + a2), f"{what} adds the factors; {hint}")
        near([a, b], true_pair(first, second), what)


@exercise("04b")
def broken(answer):
    """Right from left to right, wrong in pairs."""
    merged, h = STEPS[0], STEPS[0][1]
    for t, step in enumerate(STEPS[1:], 1):
        merged, h = pair_of(answer, merged, step), step[0] * h + step[1]
        expect(
            np.isclose(merged[1], h),
            f"Left to right the state after step {t} should be {h:g}, and is {merged[1]:g}: "
            "this bug shows at once. Leave the second number right, and break the other.",
        )
    p, q, r, s = STEPS
    halves = pair_of(answer, pair_of(answer, p, q), pair_of(answer, r, s))
    expect(
        not np.isclose(halves[1], h),
        "It is right in pairs, too: nothing is broken yet. Which of the two numbers is only "
        "needed where an earlier part is put before a later one?",
    )


@exercise("04c")
def doubling(answer):
    """The rounds of Kogge and Stone, for some lengths."""
    for L in (2, 8, 16, 5, 1, 31):
        rounds = answer(L)
        expect(rounds is not ... and rounds is not None, f"It returns nothing yet: {DOTS}")
        expect(
            isinstance(rounds, list) and all(isinstance(one, list) for one in rounds),
            f"doubling({L}) should be a list of rounds, each a list of pairs (i, j).",
        )
        first = list(range(L))
        for number, merges in enumerate(rounds, 1):
            first = after_round(first, merges, f"doubling({L}), round {number}")
        behind = next((j for j in range(L) if first[j] > 0), None)
        expect(
            behind is None,
            f"After the rounds of doubling({L}) position {behind} knows nothing "
            f"before entry {behind and first[behind]}: something is still to be merged.",
        )
        needed = (L - 1).bit_length()
        expect(
            len(rounds) == needed,
            f"doubling({L}) gets there in {len(rounds)} rounds; {needed} are enough "
            "when every position reaches twice as far in each round.",
        )


def after_round(first, merges, where):
    """Return how far back each position knows after a round; ``first`` is how far before it."""
    after, L = list(first), len(first)
    for i, j in merges:
        expect(
            0 <= i < L and 0 <= j < L, f"{where}: there is no merge ({i}, {j}) of {L} positions."
        )
        expect(i < j, f"{where}: ({i}, {j}) merges a later position into an earlier one.")
        expect(after[j] == first[j], f"{where}: position {j} is written twice.")
        expect(
            i == first[j] - 1,
            f"{where}: position {j} holds the entries {first[j]} to {j}, so what it needs next "
            f"ends at entry {first[j] - 1}, and ({i}, {j}) brings what ends at entry {i}.",
        )
        after[j] = first[i]
    return after
