"""Every tolerance of the tests, by step and dtype, with its reason.

All are relative to scale: max |actual - expected| <= tolerance * max |expected|. A test that needs
another one adds a row here and says why; no test loosens a row for itself. Machine epsilon is
2.2e-16 in float64 and 1.2e-7 in float32.
"""

import numpy as np

TOLERANCES = {
    # The oracle against float64 references that another program made; measured: 1e-15.
    ("oracle", "float64"): 1e-12,
    # One elementary function, error relative to each value: a few roundings of the formula.
    ("equation", "float64"): 2e-15,
    ("equation", "float32"): 1e-6,
    # One step of the model (norm, convolution, selection, scan, ...) on well-scaled random input:
    # sums of up to some hundred terms. Measured: 1e-15 and 5e-7.
    ("step", "float64"): 1e-13,
    ("step", "float32"): 2e-6,
    # The scan over thousands of steps: decays forget, so errors do not add up with length.
    ("scan", "float64"): 1e-13,
    ("scan", "float32"): 2e-6,
    # A whole trained model against float64 references. transformers' own float32 is at 2e-7 to
    # 7e-7; float64 differs by the order of sums alone.
    ("model", "float64"): 1e-11,
    ("model", "float32"): 5e-6,
    # The same numbers by two routes through a small random model (split, padded, batched, ...):
    # only the order of sums differs.
    ("law", "float64"): 1e-12,
    ("law", "float32"): 2e-5,
    # The same scan by a GPU's kernels: its power of two is good to 2 units in the last place, and
    # step sizes are sums of rounded ones where a text is cut into chunks.
    ("gpu scan", "float32"): 1e-5,
    # Outputs rounded to bfloat16: 8 bits, half a unit in the last place is 4e-3 of each value.
    ("gpu scan", "bfloat16"): 4e-3,
    # A whole model on a GPU against float64. With bfloat16 weights the inputs of a prompt's
    # products are rounded to bfloat16, too: each to 2e-3 of itself.
    ("gpu model", "float32"): 1e-5,
    ("gpu model", "float16"): 1e-5,
    ("gpu model", "int8"): 1e-5,
    ("gpu model", "bfloat16"): 2e-2,
    # A derivative against differences of the function: of six values, each rounded, over 3e-4, or
    # over 1e-5 beside a kink. Measured: 8e-12 and 3e-10.
    ("difference", "float64"): 1e-9,
    # A derivative against the same by another formula, to scale or value by value: some roundings
    # more than a function has, and torch's own. Measured: 4e-15 and 1.1e-6.
    ("derivative", "float64"): 1e-12,
    ("derivative", "float32"): 2e-6,
    # Gradients of a trained model against float64 references, and those of one function in
    # float32 against its float64: sums over all positions, whose terms cancel more than those
    # of a forward pass. Measured: 1.2e-15 and 1.4e-6.
    ("gradient", "float64"): 1e-12,
    ("gradient", "float32"): 2e-5,
    # The same where the manifest says "grads_rounded_to_f32": the references themselves are off
    # by up to half a unit in the last place of a float32, 6e-8. Measured: 5.5e-8.
    ("rounded gradient", "float64"): 1e-7,
    # The same gradients by two routes through a small random model: as for "law", but a whole
    # array of them may be what is left of larger terms. Measured, in 3000 models: 1.2e-13.
    ("gradient law", "float64"): 1e-11,
    # AdamW beside PyTorch's, each from its own numbers, in 60 steps: some roundings of each number
    # in each of them. Measured: 4e-16.
    ("optimiser", "float64"): 1e-14,
    # One step of it from the same numbers, for each number by itself: two units in the last place
    # of the number before or after, for a product and a sum.
    ("optimiser", "float32"): 2.4e-7,
    # A norm beside the same by another order of sums.
    ("norm", "float64"): 1e-14,
    # Runs of training by two programs, their losses and weights, absolute: AdamW divides by the
    # size of a gradient, so that what differs in its last places can move a weight whose gradient
    # is nearly nothing. Measured in 50 steps: 2e-15.
    ("run", "float64"): 1e-9,
    # Logits of the published 130m model: transformers' own bar is 1e-3 absolute, and the largest
    # of those that are published is 69.79: 1.4e-5 of it is 9.8e-4.
    ("published", "float32"): 1.4e-5,
}

TORCH_FACTOR = 1.5
"""How much further from float64 than PyTorch's float32 our float32 may be."""

ROUNDING_FLOOR = {"float32": 2.4e-7}
"""Being closer to float64 than PyTorch below this is luck: two units in the last place of the
largest value, what a product and a sum make of inputs that are themselves rounded."""


def tolerance(step, dtype):
    """Return the tolerance of a step for a dtype given as a dtype or by name."""
    return TOLERANCES[step, np.dtype(dtype).name]


def error_to_scale(actual, expected):
    """Return max |actual - expected| / max |expected|; NaN if either holds NaN."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = np.max(np.abs(actual - expected), initial=0)
    scale = np.max(np.abs(expected), initial=0)
    return float(difference if scale == 0 else difference / scale)


def assert_close_to_scale(actual, expected, rtol, name="array"):
    """Fail, with the measured value, unless max |difference| <= rtol * max |expected|."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (
        f"{name}: expected shape {expected.shape}, found {actual.shape}"
    )
    measured = error_to_scale(actual, expected)
    assert measured <= rtol, f"{name}: error {measured:.3g} of scale, allowed {rtol:.3g}"
