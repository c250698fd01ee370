"""The exercises of "Keep a number in mind"."""

import numpy as np

from ..checking import exercise, expect, near


@exercise("01a")
def input_matrix(answer):
    """B_bar of the exact zero-order hold, from A, B and delta."""
    for A, B, delta in ((-1.0, 1.0, 0.5), (-2.0, 3.0, 0.1), (-0.5, -1.0, 4.0)):
        found = answer(A, B, delta)
        what = f"your function at A={A:g}, B={B:g}, delta={delta:g}"
        euler = found not in (None, ...) and np.isclose(found, delta * B)
        expect(not euler, f"{what} gives delta * B: that is Euler's rule. Solve the integral.")
        near(found, np.expm1(delta * A) / A * B, what)


@exercise("01b")
def step_of_one_percent(answer):
    """The step size at which delta * B is 1 % larger than the exact B_bar, for A = -1."""
    delta = float(answer)
    expect(delta > 0, "A step size is positive.")
    exact = -np.expm1(-delta)
    excess = (delta - exact) / exact
    hint = f"At delta = {delta:g} Euler's B_bar is {100 * excess:.3g} % off; 1 % is asked for."
    expect(abs(excess - 0.01) < 2e-4, hint)


@exercise("01c")
def keep_one_of_three(answer):
    """Sixty step sizes with which the state ends as the input of step 20."""
    deltas = np.asarray(answer, dtype=float)
    expect(deltas.shape == (60,), f"60 step sizes are asked for, in one row: found {deltas.shape}.")
    expect((deltas > 0).all(), "A step size is positive; a very small one keeps nearly everything.")
    rng = np.random.default_rng(1)
    for _ in range(3):
        x = rng.normal(0, 1, 60)
        x[[5, 20, 40]] = rng.uniform(3, 9, 3)
        h = 0.0
        for value, delta in zip(x, deltas, strict=True):
            h = np.exp(-delta) * h + -np.expm1(-delta) * value
        shown = ", ".join(f"{value:.2f}" for value in x[[5, 20, 40]])
        found = f"With {shown} shown at steps 5, 20 and 40 your state ends as {h:.2f}: "
        expect(abs(h - x[40]) > 0.02 * x[40], f"{found}the step size at 40 is still open.")
        expect(
            abs(h - x[5]) > 0.02 * x[5], f"{found}the step size at 5 opens, that at 20 does not."
        )
        expect(deltas[20] > 3, f"{found}at step 20 it has to forget, and to take, more than that.")
        expect(abs(h - x[20]) <= 0.02 * x[20], f"{found}too much noise gets in. Shut it further.")
