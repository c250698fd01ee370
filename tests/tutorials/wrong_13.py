"""Answers that readers of notebook 13 may give, and words of the hint that they get."""

import numpy as np

from mamba_np import equations as eq
from mamba_np.interventions import CutPath


def p_of(model, ids, token, sources, log):
    found = []
    for source in sources:
        with model.intervene(*([] if source is None else [CutPath(source=source)])):
            scores = model(ids[None]).logits[0, -1]
        found.append((eq.log_softmax if log else eq.softmax)(scores)[token])
    return np.array(found)


def changes(model, ids, token, log=True):
    before = p_of(model, ids, token, [None], log)
    return p_of(model, ids, token, range(len(ids)), log) - before


WRONG = {
    "13a": [
        (lambda *a: -changes(*a), "The sign is turned"),
        (lambda *a: changes(*a, log=False), "changes of p"),
        (lambda m, i, t: p_of(m, i, t, range(len(i)), True), "Subtract what it is"),
        (lambda *a: changes(*a)[1:], "should have the shape"),
        (lambda *a: np.roll(changes(*a), 1), "should be"),
        (lambda *a: ..., "nothing yet"),
    ],
    "13b": [
        (CutPath(source=0), "still says fox"),
        (CutPath(source=4), "says wolf"),
        ("fox", "stopped with"),
        ([], "still says fox"),
    ],
}
