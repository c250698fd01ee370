"""Exercises that answer: ``check("01a", my_function)`` says what is right, or what is not yet.

A module of ``exercises`` for each notebook holds one function for each exercise. It takes the
reader's answer and raises NotYet with a hint where that is wrong::

    @exercise("01a")
    def input_matrix(answer):
        near(answer(-1.0, 2.0, 0.5), 0.787, "answer(A=-1, B=2, delta=0.5)")
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

Exercise = Callable[[Any], None]

exercises: dict[str, Exercise] = {}
verdicts: list[tuple[str, bool]] = []
"""Each answer that was checked, in order: the exercise, and whether it was right."""


class NotYet(Exception):
    """An answer that is not right yet; the message is a hint, for the reader."""


def exercise(name: str) -> Callable[[Exercise], Exercise]:
    """Register the function below as the judge of an exercise, such as "01a"."""

    def register(judge: Exercise) -> Exercise:
        exercises[name] = judge
        return judge

    return register


def check(name: str, answer: Any) -> None:
    """Print whether an answer is right, and a hint where it is not. Nothing is raised."""
    hint = problem(name, answer)
    verdicts.append((name, hint is None))
    print(f"{name}: {'right!' if hint is None else f'not yet. {hint}'}")


def problem(name: str, answer: Any) -> str | None:
    """Return what is wrong with an answer, in a sentence for its author, or None."""
    judge = _judge(name)
    if answer is None or answer is ...:
        return "There is no answer yet: replace the dots."
    try:
        judge(answer)
    except NotYet as hint:
        return str(hint)
    except Exception as error:  # of the reader's code: it may be any
        return f"Your code stopped with {type(error).__name__}: {error}"
    return None


def _judge(name: str) -> Exercise:
    if name not in exercises:
        import_module(f".exercises.e{name[:2]}", __package__)
    return exercises[name]


def near(found: Any, expected: Any, what: str, tolerance: float = 1e-6) -> None:
    """Raise NotYet unless ``found`` is ``expected``, up to a share of its largest value."""
    if found is None or found is ...:
        raise NotYet(f"{what} is nothing yet: replace the dots, and return the result.")
    try:
        values = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        raise NotYet(f"{what} should be numbers, and is {found!r}.") from None
    wanted = np.asarray(expected, dtype=float)
    if values.shape != wanted.shape:
        raise NotYet(f"{what} should have the shape {wanted.shape}, and has {values.shape}.")
    wrong = ~(np.abs(values - wanted) <= tolerance * max(np.abs(wanted).max(initial=0), 1e-300))
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f"{what}{list(first) if first else ''}"
        raise NotYet(f"{place} should be {wanted[first]:.6g}, and is {values[first]:.6g}.")


def expect(condition: Any, hint: str) -> None:
    """Raise NotYet with a hint unless the condition holds."""
    if not condition:
        raise NotYet(hint)
