"""The shapes written beside the functions of ``reference`` are those of the arrays that pass."""

import inspect
import re
import sys

import numpy as np
import pytest

from mamba_np import MambaConfig, MambaForCausalLM, reference

GROUP = re.compile(r"\(([^()]*)\)")
LETTERS = re.compile(r"(?:[A-Z0-9+|]+(?:\s[A-Z0-9+|]+)*)?")


def shapes_of(function):
    """Return (shapes of the arguments, shapes of the results) as written; None if there are none.

    They stand behind the ``def`` line, or on a line of the docstring: (B L D), (D) -> (B L D).
    """
    lines = inspect.getsource(function).splitlines()
    end = next(i for i, line in enumerate(lines) if re.search(r":(\s*#.*)?$", line))
    written = [lines[end].partition("#")[2], *(inspect.getdoc(function) or "").splitlines()]
    for line in written:
        left, arrow, right = line.partition("->")
        sides = [[g for g in GROUP.findall(side) if LETTERS.fullmatch(g)] for side in (left, right)]
        if arrow and all(sides):
            return tuple([group.split() for group in side] for side in sides)
    return None


FUNCTIONS = {
    name: function
    for name, function in vars(reference).items()
    if inspect.isfunction(function) and function.__module__ == reference.__name__
}
WRITTEN = {name: shapes_of(function) for name, function in FUNCTIONS.items()}


def unify(sizes, letters, shape):
    """Give each letter its size; return whether the shape fits what is known."""
    if len(letters) != len(shape):
        return False
    for letter, size in zip(letters, shape, strict=True):
        if letter == "R+2N":
            continue  # follows from the others
        if sizes.setdefault(letter, size) != size:
            return False
    return True


def arrays(values):
    return [value for value in values if isinstance(value, np.ndarray) and value.ndim]


@pytest.fixture
def observed():
    """Run a model, and return ({function: number of calls}, problems)."""
    calls, problems, running = {}, [], []

    def check(name, what, shapes, found):
        for letters, array in zip(shapes, found, strict=False):
            if not unify(running[-1][1], letters, array.shape):
                problems.append(f"{name}: {what} ({' '.join(letters)}): {array.shape}")

    def profile(frame, event, result):
        name = frame.f_code.co_name
        if frame.f_globals.get("__name__") != reference.__name__ or not WRITTEN.get(name):
            return
        arguments, results = WRITTEN[name]
        if event == "call":
            names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
            running.append((name, {}))
            check(name, "argument", arguments, arrays([frame.f_locals[n] for n in names]))
            calls[name] = calls.get(name, 0) + 1
        elif event == "return":
            flat = result if isinstance(result, tuple) else (result,)
            check(name, "result", results, arrays(flat))
            running.pop()

    # All sizes differ, so that no letter fits by chance.
    options = {"vocab_size": 23, "hidden_size": 10, "expand": 1.5, "state_size": 3}
    options |= {"conv_kernel": 4, "time_step_rank": 2, "num_hidden_layers": 1, "use_bias": True}
    ids = np.arange(14).reshape(2, 7)
    mask = np.array([[1] * 7, [0] * 2 + [1] * 5])
    sys.setprofile(profile)
    try:
        for parallel in (False, True):
            config = MambaConfig(**options, use_associative_scan=parallel)
            MambaForCausalLM(config, rng=0, backend="numpy")(ids, attention_mask=mask, labels=ids)
    finally:
        sys.setprofile(None)
    return calls, problems


def test_every_function_on_arrays_says_its_shapes():
    without = [name for name, shapes in WRITTEN.items() if shapes is None]
    assert without == ["fixed_rows", "memory_of", "scan_of"]  # they take no arrays


def test_the_shapes_are_true(observed):
    calls, problems = observed
    assert problems == []
    assert set(calls) == {name for name, shapes in WRITTEN.items() if shapes}


def test_a_wrong_shape_would_be_found(monkeypatch, request):
    monkeypatch.setitem(WRITTEN, "rms_norm", ([["B", "L", "D"], ["L"]], [["B", "L", "D"]]))
    _, problems = request.getfixturevalue("observed")
    assert problems
