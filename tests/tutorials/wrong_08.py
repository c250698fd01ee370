"""Answers that readers of notebook 08 may give, and words of the hint that they get."""

import numpy as np

from mamba_np.interventions import Ablate, ClampDelta, FreezeDelta, ScaleDelta


def halves(delta, A):
    return np.log(2) / (delta.mean(axis=0)[:, None] * np.abs(A))


def best(values):
    return values.argmax(), values.max()


WRONG = {
    "08a": [
        (lambda delta, A: best(halves(delta, A).min(axis=1)), "fastest state"),
        (lambda delta, A: best(halves(delta, A).max(axis=1) / np.log(2)), "1/e is left"),
        (lambda delta, A: best(np.log(2) / (delta.mean(0) * np.abs(A).mean(1))), "averages over"),
        (lambda delta, A: halves(delta, A).max(axis=1).argmax(), "shape (2,)"),
        (lambda delta, A: best(-halves(delta, A).max(axis=1)), "forgets soonest"),
        (lambda delta, A: (halves(delta, A).max(axis=1).argmax(), -3.0), "take |A|"),
        (lambda delta, A: best(np.log(2) / (np.median(delta, 0) * np.abs(A).min(1))), "should be"),
    ],
    "08b": [
        (FreezeDelta(layers=5), "Choose one token"),
        (ClampDelta(high=0, tokens=4), "Choose one layer"),
        (ClampDelta(high=0, tokens=[3, 4], layers=5), "Choose one token"),
        (ClampDelta(high=0, tokens=4, layers=4), "says fox"),
        (ClampDelta(high=0, tokens=1, layers=5), "Who should not have been written down"),
        (ScaleDelta(1000.0, tokens=4, layers=5), "It should say wolf"),
        (Ablate(layers=5, tokens=4), "ScaleDelta, ClampDelta or FreezeDelta"),
        (ScaleDelta(-1.0, tokens=4, layers=5), "factor"),
    ],
}
