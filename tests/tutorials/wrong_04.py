"""Answers that readers of notebook 04 may give, and words of the hint that they get."""


def one_by_one(L):
    return [[(t - 1, t)] for t in range(1, L)]


def neighbours(L):
    """The right reach of the first round, again and again."""
    return [[(t - 1, t) for t in range(1, L)] for _ in range((L - 1).bit_length())]


def too_few(L):
    return [[(t - 2**k, t) for t in range(2**k, L)] for k in range((L - 1).bit_length() - 1)]


def without_the_first(L):
    """As if position 0 had nothing to give: it stays out of each round."""
    return [[(t - 2**k, t) for t in range(2**k + 1, L)] for k in range((L - 1).bit_length())]


def tree(L):
    reaches = [2**k for k in range(L.bit_length())]
    up = [[(t - r, t) for t in range(2 * r - 1, L, 2 * r)] for r in reaches]
    down = [[(t - r, t) for t in range(3 * r - 1, L, 2 * r)] for r in reaches[::-1]]
    return [merges for merges in up + down if merges]


WRONG = {
    "04a": [
        (lambda a1, b1, a2, b2: (a2 * a1, a1 * b2 + b1), "second step first"),
        (lambda a1, b1, a2, b2: (a2 * a1, b1 + b2), "only adds b1 and b2"),
        (lambda a1, b1, a2, b2: (a2 + a1, a2 * b1 + b2), "adds the factors"),
        (lambda a1, b1, a2, b2: (a2, a2 * b1 + b2), "should be"),
        (lambda a1, b1, a2, b2: a2 * b1 + b2, "should return a pair"),
        (lambda a1, b1, a2, b2: ..., "replace the dots"),
    ],
    "04b": [
        (lambda a1, b1, a2, b2: (a2 * a1, a2 * b1 + b2), "nothing is broken yet"),
        (lambda a1, b1, a2, b2: (a2 * a1, b1 + b2), "shows at once"),
        (lambda a1, b1, a2, b2: (a2 * a1, a1 * b2 + b1), "shows at once"),
        (lambda a1, b1, a2, b2: None, "replace the dots"),
    ],
    "04c": [
        (lambda L: None, "replace the dots"),
        (one_by_one, "rounds; 3 are enough"),
        (tree, "rounds; 3 are enough"),
        (neighbours, "so what it needs next"),
        (too_few, "something is still to be merged"),
        (without_the_first, "something is still to be merged"),
        (lambda L: [[(t, t - 1) for t in range(1, L)]], "into an earlier one"),
        (lambda L: [[(-1, 0)]], "there is no merge"),
        (lambda L: [[(0, 1), (0, 1)]], "written twice"),
        (lambda L: [(t - 1, t) for t in range(1, L)], "list of rounds"),
    ],
}
