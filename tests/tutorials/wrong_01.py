"""Answers that readers of notebook 01 may give, and words of the hint that they get."""

import math


def opened(*steps, shut=1e-5, wide=10.0):
    return [wide if t in steps else shut for t in range(60)]


WRONG = {
    "01a": [
        (lambda A, B, delta: delta * B, "Euler's rule"),
        (lambda A, B, delta: (1 - math.exp(delta * A)) / A * B, "should be"),
    ],
    "01b": [(0.01, "1 % is asked for"), (-1.0, "positive"), ("0.02%", "ValueError")],
    "01c": [
        (opened(20, 40), "at 40 is still open"),
        (opened(5), "at 5 opens"),
        (opened(20, wide=1.0), "has to forget"),
        (opened(20, shut=0.05), "too much noise"),
        ([0.0] * 60, "positive"),
        (opened(20)[:59], "found (59,)"),
    ],
}
