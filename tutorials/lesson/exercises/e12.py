"""The exercises of "Train it by hand"."""

import numpy as np

from ..checking import exercise, expect, near

TINY = 1e-30
"""Of a complex step: f(v + i TINY) / TINY has the slope of f at v as its imaginary part."""


def known_mistake(found, mistakes):
    """Give the hint of the first mistake whose result this is."""
    if found is None or found is ...:
        return
    for wrong, hint in mistakes:
        same = np.shape(found) == np.shape(wrong) and np.allclose(found, wrong, rtol=1e-6)
        expect(not same, hint)


@exercise("12a")
def step_size_of_one_step(answer):
    """The gradient of one step with respect to delta."""
    rng = np.random.default_rng(121)
    dh, h, B = rng.standard_normal((3, 4))
    A, delta, x = -rng.uniform(0.3, 2, 4), 0.7, 1.3
    found = answer(dh, h, delta, A, B, x)
    expect(
        np.shape(found) != (4,),
        "One number is wanted, and these are four: delta acts on each of the N numbers of the "
        "state, and their shares add up.",
    )
    A_bar = np.exp(delta * A)
    known_mistake(
        found,
        [
            (
                np.sum(dh * B * x),
                "This is what delta does by writing. It stands in A_bar too, and forgets.",
            ),
            (
                np.sum(dh * A * A_bar * h),
                "This is what delta does by forgetting. It stands before B x too, and writes.",
            ),
            (
                np.sum(dh * (A_bar * h + B * x)),
                "The inner derivative is missing: what stands beside delta in the exponent?",
            ),
            (
                np.sum(dh * (delta * A_bar * h + B * x)),
                "This inner derivative is the one with respect to A. With respect to delta, the "
                "other factor of the exponent comes down.",
            ),
            (
                np.sum(dh * (A * h + B * x)),
                "An exponential has itself as its derivative: where has it gone?",
            ),
            (
                np.sum(dh * (A * A_bar * h + delta * B * x)),
                "The slope of delta B x with respect to delta has no delta in it any more.",
            ),
            (
                np.sum(A * A_bar * h + B * x),
                "This is how the state changes. How much the loss minds is dh, for each number.",
            ),
        ],
    )

    def after(step):
        return np.sum(dh * (np.exp(step * A) * h + step * B * x))

    near(found, after(delta + 1j * TINY).imag / TINY, "your gradient")


@exercise("12b")
def gradient_of_A(answer):
    """The gradient of A over several tokens, with the factor that was missing."""
    rng = np.random.default_rng(122)
    dh, h = rng.standard_normal((2, 5, 3))
    delta, A = rng.uniform(0.1, 1, 5), -rng.uniform(0.3, 2, 3)
    found = answer(dh, h, delta, A)
    terms, A_bar = dh * h * delta[:, None], np.exp(delta[:, None] * A)
    expect(
        np.shape(found) != (5, 3),
        "A is the same at all tokens: add up what they say, so that (N) numbers are left.",
    )
    known_mistake(
        found,
        [
            (
                terms.sum(axis=0),
                "This is the wrong one still: a factor that differs from token to token and from "
                "state to state is missing.",
            ),
            (
                (terms * A).sum(axis=0),
                "The ratios of one token are positive, and A is not. Put A and delta together: "
                "which quantity of the step is made of both?",
            ),
            (
                (terms / A_bar).sum(axis=0),
                "This divides by it: the ratios are right / wrong, so wrong has to be multiplied.",
            ),
            (
                (terms * np.exp(A)).sum(axis=0),
                "Nearly: the ratio depends on the token too, since each has its own delta.",
            ),
            (
                (dh * h * A_bar).sum(axis=0),
                "The missing factor is there, and delta is gone: it comes down from the exponent.",
            ),
        ],
    )
    slopes = [_slope_of_loss(dh, h, delta, A, n) for n in range(3)]
    near(found, slopes, "your gradient")


def _slope_of_loss(dh, h, delta, A, n):
    stepped = A.astype(complex)
    stepped[n] += 1j * TINY
    return np.sum(dh * np.exp(delta[:, None] * stepped) * h).imag / TINY


@exercise("12c")
def merged_by_hand(answer):
    """W + alpha / r * B A, the rank read off the shapes."""
    rng = np.random.default_rng(123)
    W, A, B = (rng.standard_normal(shape) for shape in ((6, 5), (2, 5), (6, 2)))
    alpha, before = 8, W.copy()
    found = answer(W, A, B, alpha)
    expect(
        np.array_equal(W, before),
        "Your function has changed W itself: the base model would change with it. Make a new one.",
    )
    change = B @ A
    known_mistake(
        found,
        [
            (change * alpha / 2, "This is the change alone. Where is the matrix it changes?"),
            (W + change, "The scale is missing: alpha / r."),
            (W + alpha * change, "This is alpha times the change. It has to be alpha / r times."),
            (W + change / 2, "Divided by r, but alpha is missing."),
            (W + change * alpha / 5, "r is the small size of A and B, not the width of W."),
            (W + change * alpha / 6, "r is the small size of A and B, not the height of W."),
            (W + change * alpha / np.sqrt(2), "This is alpha / sqrt(r), of another kind of LoRA."),
        ],
    )
    near(found, W + 4.0 * change, "the merged matrix")
