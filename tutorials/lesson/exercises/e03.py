"""The exercises of "Choose what to remember"."""

import math

import numpy as np

from ..checking import exercise, expect

A = -np.linspace(0.2, 2.4, 12)


@exercise("03a")
def peak_at_age_two(answer):
    """Weights C whose kernel sum_n C_n exp(A_n a) is 1 at age 2 and 0 at 0, 1, 3, 4 and 5."""
    C = np.asarray(answer, dtype=float)
    expect(C.shape == (12,), f"Twelve numbers are asked for, in one row: found {C.shape}.")
    K = np.array(
        [sum(c * math.exp(a * age) for c, a in zip(C, A, strict=True)) for age in range(6)]
    )
    shown = ", ".join(f"{value:.3g}" for value in K)
    found = f"At the ages 0 to 5 your kernel is {shown}."
    expect(
        np.abs(K - np.eye(6)[3]).max() > 0.01,
        f"{found} The peak is at age 3: ages count from 0, and the last word is the youngest.",
    )
    largest = np.abs(K).max()
    alone = largest > 0 and np.abs(K / largest - np.eye(6)[2]).max() < 1e-2
    expect(
        not alone or abs(K[2] - 1) < 1e-3, f"{found} The place is right, the height should be 1."
    )
    expect(
        np.abs(K - np.eye(6)[2]).max() < 1e-3, f"{found} It should be 1 at age 2 and 0 elsewhere."
    )


@exercise("03b")
def keep_write_reset(answer):
    """Step sizes for ids: 0 (noise) keeps the state, 1 clears it, words from 2 on pass in."""
    rng = np.random.default_rng(3)
    ids = rng.integers(2, 16, (2, 60))
    ids[:, 5:55] = 0
    ids[1, 30] = 1
    found = answer(ids)
    expect(found is not None and found is not ..., "Nothing is returned yet: replace the dots.")
    delta = np.asarray(found, dtype=float)
    expect(
        delta.shape == ids.shape,
        f"Give one step size for each of {ids.shape}: found {delta.shape}.",
    )
    expect(
        np.isfinite(delta).all(),
        "An infinite step size gives inf * 0, which is no number. A large one does as well.",
    )
    expect((delta >= 0).all(), "A step size below 0 turns time back: the state grows.")
    noise, reset, word = (delta[kind] for kind in (ids == 0, ids == 1, ids >= 2))
    expect(
        word.min() > 0, "At a word B_bar = delta B has to be above 0, or the word is not written."
    )
    # What is left of the quickest memory after all crackles, and of the slowest after a reset.
    kept = math.exp(A[-1] * noise[: ids.shape[1] - 10].sum())
    hint = (
        f"after 50 crackles {kept:.2%} of the quickest memory is left. Time should not pass there."
    )
    expect(kept > 0.99, f"Noise should leave h unchanged: {hint}")
    left = math.exp(A[0] * reset.max())
    hint = (
        f"{left:.2%} of the slowest memory, A = -0.2, outlives your reset: open the gate further."
    )
    expect(left < 0.01, hint)
    expect(
        word.max() < 3, "At a word your gate opens so far that the words before it are forgotten."
    )


@exercise("03c")
def bias_of_a_gate(answer):
    """The b for which exp(-4096 softplus(b)) is 0.99."""
    b = float(answer)
    step = math.log1p(math.exp(b)) if b < 30 else b
    left = math.exp(-4096 * step)
    found = (
        f"With b = {b:g} the step size is {step:.3g}, and {left:.3%} is left after 4,096 crackles."
    )
    if 0 < b < 1:
        found += " Is b a step size? It is what softplus makes a step size of, and may be negative."
    elif abs(math.exp(-step) - 0.99) < 1e-3:
        found += " It is 99 % after a single one."
    elif left > 0.991:
        found += " The gate is shut further than it needs to be: find the b where 99 % are left."
    expect(abs(left - 0.99) < 1e-3, found)
