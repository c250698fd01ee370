"""Slopes by differences: the judge of gradients, which knows a function by its values alone."""

import numpy as np
from tolerances import TOLERANCES

STEP = 3e-4
"""How far an input of about 1 is moved, in units of a random direction."""


def slope(f, step=STEP):
    """Return the derivative of f at 0, for f from a number to a number or an array, in float64.

    Central differences of three widths; their errors in step**2 and step**4 cancel.
    """
    narrow, middle, wide = ((f(h) - f(-h)) / (2 * h) for h in (step, 2 * step, 4 * step))
    return (64 * narrow - 20 * middle + wide) / 45


def assert_gradients(f, inputs, outputs, gradients, rng, step=STEP):
    """Compare each gradient with what f does along a random direction of each input.

    ``inputs`` and ``gradients`` are {name: array}; ``f(**inputs)`` returns one array or several,
    and ``outputs`` are the gradients of the loss with respect to these.
    """
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)

    def loss(**changed):
        found = f(**inputs | changed)
        found = found if isinstance(found, tuple) else (found,)
        return sum(np.sum(a * b) for a, b in zip(found, outputs, strict=True))

    scale, rtol = abs(loss()), TOLERANCES["difference", "float64"]
    for name, gradient in gradients.items():
        start = inputs[name]
        assert gradient.shape == start.shape, f"{name}: shape {gradient.shape}"
        way = rng.normal(size=start.shape)
        expected = slope(lambda t, n=name, a=start, v=way: loss(**{n: a + t * v}), step)
        found, size = np.sum(gradient * way), np.sqrt(np.sum(gradient**2))
        allowed = rtol * (size + scale)  # the loss is itself rounded
        assert abs(found - expected) <= allowed, (
            f"{name}: {found:.9g} along a direction, by differences {expected:.9g}; "
            f"allowed error {allowed:.3g}"
        )
