"""Answers that readers of notebook 12 may give, and words of the hint that they get."""

import numpy as np


def forgets(h, delta, A):
    return A * np.exp(delta * A) * h


def hurried(dh, h, delta, A):
    return dh * h * delta[:, None]


def in_place(W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return W


WRONG = {
    "12a": [
        (lambda dh, h, delta, A, B, x: ..., "replace the dots"),
        (lambda dh, h, delta, A, B, x: dh * (forgets(h, delta, A) + B * x), "add up"),
        (lambda dh, h, delta, A, B, x: np.sum(dh * B * x), "by writing"),
        (lambda dh, h, delta, A, B, x: np.sum(dh * forgets(h, delta, A)), "by forgetting"),
        (
            lambda dh, h, delta, A, B, x: np.sum(dh * (np.exp(delta * A) * h + B * x)),
            "inner derivative is missing",
        ),
        (
            lambda dh, h, delta, A, B, x: np.sum(dh * (delta * np.exp(delta * A) * h + B * x)),
            "with respect to A",
        ),
        (lambda dh, h, delta, A, B, x: np.sum(dh * (A * h + B * x)), "exponential"),
        (
            lambda dh, h, delta, A, B, x: np.sum(dh * (forgets(h, delta, A) + delta * B * x)),
            "no delta in it",
        ),
        (lambda dh, h, delta, A, B, x: np.sum(forgets(h, delta, A) + B * x), "loss minds"),
        (lambda dh, h, delta, A, B, x: 0.0, "should be"),
    ],
    "12b": [
        (lambda dh, h, delta, A: ..., "replace the dots"),
        (lambda dh, h, delta, A: hurried(dh, h, delta, A).sum(axis=0), "wrong one still"),
        (lambda dh, h, delta, A: hurried(dh, h, delta, A) * np.exp(delta[:, None] * A), "add up"),
        (lambda dh, h, delta, A: (hurried(dh, h, delta, A) * A).sum(axis=0), "positive"),
        (
            lambda dh, h, delta, A: np.sum(
                hurried(dh, h, delta, A) / np.exp(delta[:, None] * A), axis=0
            ),
            "divides",
        ),
        (lambda dh, h, delta, A: np.sum(hurried(dh, h, delta, A) * np.exp(A), axis=0), "Nearly"),
        (
            lambda dh, h, delta, A: np.sum(dh * h * np.exp(delta[:, None] * A), axis=0),
            "delta is gone",
        ),
        (lambda dh, h, delta, A: np.zeros(3), "should be"),
    ],
    "12c": [
        (lambda W, A, B, alpha: ..., "replace the dots"),
        (lambda W, A, B, alpha: B @ A * alpha / len(A), "change alone"),
        (lambda W, A, B, alpha: W + B @ A, "scale is missing"),
        (lambda W, A, B, alpha: W + alpha * B @ A, "alpha times the change"),
        (lambda W, A, B, alpha: W + B @ A / len(A), "alpha is missing"),
        (lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A, "not the width"),
        (lambda W, A, B, alpha: W + alpha / len(B) * B @ A, "not the height"),
        (lambda W, A, B, alpha: W + alpha / np.sqrt(len(A)) * B @ A, "sqrt"),
        (lambda W, A, B, alpha: W + alpha / len(A) * A @ B, "ValueError"),
        (in_place, "changed W itself"),
        (lambda W, A, B, alpha: 2 * W, "should be"),
    ],
}
