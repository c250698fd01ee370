"""The exercises of "Push the memory"."""

import numpy as np

from ..checking import exercise, expect, near

SPECIAL, WIDTH = 15, 4


@exercise("09a")
def needed(answer):
    """The half-life at which a share is left after some tokens."""
    for tokens, share in ((1000, 0.5), (1000, 0.25), (2**20, 0.01), (100, 0.9)):
        found = answer(tokens, share)
        expect(found is not None and found is not ..., "It returns nothing yet: replace the dots.")
        what = f"your half-life for {share:g} of it after {tokens:,} tokens"
        halvings = np.log2(1 / share)
        expect(np.ndim(found) == 0 and float(found) > 0, f"{what} should be a number above 0.")
        expect(
            not (share == 0.25 and np.isclose(found, tokens * halvings)),
            f"{what} is longer than the text: to keep less takes a shorter half-life.",
        )
        expect(
            not (share != 0.5 and np.isclose(found, tokens / np.log(1 / share))),
            f"{what} is the time in which 1/e is left: half is asked for.",
        )
        near(found, tokens / halvings, what)


@exercise("09b")
def ordinary_half_lives(answer):
    """The half-lives of states by the mean step size at ordinary tokens."""
    rng = np.random.default_rng(9)
    delta = rng.lognormal(-14, 2, (200, 5))
    A = -rng.uniform(0.5, 8, (5, 3))
    ids = rng.integers(0, SPECIAL, 200)
    places = np.array([50, 120, 198])
    ids[places] = SPECIAL
    delta[52] = delta[122] = 9.0  # where it writes
    delta[53], delta[121], delta[199] = 0.01, 0.02, 0.03

    found = answer(delta.copy(), A.copy(), ids.copy())
    expect(found is not None and found is not ..., "It returns nothing yet: replace the dots.")
    found = np.asarray(found, dtype=float)
    expect(found.shape == A.shape, f"Expected a half-life of each state (E, N) = {A.shape}, found "
           f"the shape {found.shape}.")  # fmt: skip
    expect((found > 0).all(), "Some half-lives are not above 0: A is negative, take |A|.")

    def by(rates):
        return np.log(2) / (rates[:, None] * np.abs(A))

    def without(width):
        keep = np.ones(200, bool)
        for later in range(width):
            keep[(places + later)[places + later < 200]] = False
        return delta[keep]

    hints = {
        "the step at which the channel writes is in your mean: leave it out.": by(delta.mean(0)),
        "you have left out the special tokens alone: the three after each still see it.": by(
            without(1).mean(0)
        ),
        "the largest step sizes dominate their sum, and a median overlooks them.": by(
            np.median(without(WIDTH), axis=0)
        ),
        "that is the mean of half-lives, which the smallest step sizes dominate; what decays "
        "goes by their sum.": by(1 / (1 / without(WIDTH)).mean(0)),
        "there is no ln 2 in it: that is the time in which 1/e is left.": by(without(WIDTH).mean(0))
        / np.log(2),
    }
    for hint, wrong in hints.items():
        expect(not np.allclose(found, wrong, rtol=1e-4), f"Not quite: {hint}")
    near(found / by(without(WIDTH).mean(0)), np.ones(A.shape), "your half-lives, over ours,", 1e-4)


@exercise("09c")
def mean_distance(answer):
    """How far back each row of a signed matrix looks, on average."""
    rng = np.random.default_rng(90)
    alpha = np.tril(rng.standard_normal((7, 7)))
    weight = np.abs(alpha)
    far = np.subtract.outer(np.arange(7), np.arange(7))
    found = answer(alpha.copy())
    expect(found is not None and found is not ..., "It returns nothing yet: replace the dots.")
    found = np.asarray(found, dtype=float)
    expect(
        found.shape == (7,),
        f"Expected one distance for each of 7 tokens, found the shape {found.shape}: sum over s.",
    )
    hints = {
        "weights have signs here and cancel: take |alpha|.": (far * alpha).sum(1) / alpha.sum(1),
        "divide by the sum of the weights, or their scale is in it.": (far * weight).sum(1),
        "divide by the sum of each row's weights, not by how many there are.": (far * weight).mean(
            1
        ),
        "that is where the weight lies, not how far back: t - s.": (np.arange(7) * weight).sum(1)
        / weight.sum(1),
        "that is the distance to the tokens that read: rows are t, columns s.": np.abs(
            far * weight
        ).sum(0)
        / weight.sum(0),
    }
    for hint, wrong in hints.items():
        expect(not np.allclose(found, wrong), f"Not quite: {hint}")
    near(found, (far * weight).sum(1) / weight.sum(1), "your mean distance")
