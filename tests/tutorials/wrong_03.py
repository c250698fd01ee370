"""Answers that readers of notebook 03 may give, and words of the hint that they get."""

import numpy as np

A = -np.linspace(0.2, 2.4, 12)
AT_AGE = np.exp(np.arange(6)[:, None] * A)
READS = np.linalg.pinv(AT_AGE)  # column a reads age a


def steps(noise, reset, word):
    return lambda ids: np.select([ids == 0, ids == 1], [noise, reset], word)


WRONG = {
    "03a": [
        (READS[:, 3], "ages count from 0"),
        (READS[:, 0], "should be 1 at age 2"),
        (5 * READS[:, 2], "the height should be 1"),
        (READS, "found (12, 6)"),
        (np.zeros(12), "0, 0, 0"),
        (AT_AGE[2], "should be 1 at age 2"),
    ],
    "03b": [
        (steps(1.0, 50.0, 1.0), "Time should not pass"),
        (steps(1e-3, 50.0, 1.0), "Time should not pass"),
        (steps(0.0, 0.0, 1.0), "100.00% of the slowest"),
        (steps(0.0, 5.0, 1.0), "outlives your reset"),
        (steps(0.0, np.inf, 1.0), "inf * 0"),
        (steps(0.0, 50.0, 0.0), "not written"),
        (steps(0.0, 50.0, 20.0), "words before it are forgotten"),
        (steps(0.0, -50.0, 1.0), "turns time back"),
        (lambda ids: np.array([0.0, 50.0, 1.0]), "one step size for each"),
        (lambda ids: ..., "replace the dots"),
    ],
    "03c": [
        (-4.6, "after a single one"),
        (2.45e-6, "Is b a step size"),
        (-30.0, "shut further"),
        (12.92, "0.000% is left"),
        ("small", "ValueError"),
    ],
}
