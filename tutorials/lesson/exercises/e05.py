"""The exercises of "Read the block line by line"."""

import numpy as np

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.init import init_layer
from mamba_np.params import Layer

from ..checking import exercise, expect, near


@exercise("05a")
def one_step(answer):
    """One step of the scan for all channels: h (E, N) and one token -> y (E), h (E, N)."""
    E, N = 5, 3
    rng = np.random.default_rng(5)
    h, x, B, C = rng.normal(size=(E, N)), rng.normal(size=E), rng.normal(size=N), rng.normal(size=N)
    delta, A = rng.uniform(0.1, 1, E), -rng.uniform(0.5, 4, (E, N))
    given = [array.copy() for array in (h, x, delta, A, B, C)]
    found = answer(*given)
    expect(found is not None, "Your function returns nothing yet: replace the dots.")
    expect(isinstance(found, tuple) and len(found) == 2, "Return two things: y and the new h.")
    expect(
        np.array_equal(given[0], h), "Your function changes the h that it is given. Make a new one."
    )
    y, new = found
    right, y_right = np.empty((E, N)), np.empty(E)
    for e in range(E):
        for n in range(N):
            right[e, n] = np.exp(delta[e] * A[e, n]) * h[e, n] + delta[e] * B[n] * x[e]
        y_right[e] = sum(C[n] * right[e, n] for n in range(N))
    if np.shape(new) == (E, N):
        _known_slips(new, h, x, delta, A, B)
    near(new, right, "your h")
    before = np.shape(y) == (E,) and np.allclose(y, h @ C)
    expect(not before, "Your y is read before this token is written. Read from the new h.")
    near(y, y_right, "your y")


def _known_slips(new, h, x, delta, A, B):
    decay = np.exp(delta[:, None] * A)
    step, drive = delta[:, None], B * x[:, None]
    slips = {
        "The new token is written without its step size: look at B_bar.": decay * h + drive,
        "Your state does not fade: multiply it by A_bar.": h + step * drive,
        "A is multiplied by h itself: a step leaves the share A_bar.": A * h + step * drive,
        "The fading leaves out delta: A_bar = exp(delta A).": np.exp(A) * h + step * drive,
        "The input x is missing: B says where to write, x says what.": decay * h + step * B,
        "That is the exact zero-order hold of B. Mamba takes delta * B.": decay * h
        + np.expm1(step * A) / A * drive,
    }
    for hint, wrong in slips.items():
        expect(not np.allclose(new, wrong), hint)


SIZES = {
    "130m": (768, 24, 129_135_360),
    "370m": (1024, 48, 371_516_416),
    "790m": (1536, 48, 793_204_224),
    "1.4b": (2048, 48, 1_372_178_432),
    "2.8b": (2560, 64, 2_768_345_600),
}
"""hidden_size, num_hidden_layers and the parameters of the published models."""


@exercise("05b")
def parameters(answer):
    """How many numbers a model of a configuration has learnt, its head being tied."""
    # A small model whose sizes do not follow from each other, so that a difference tells its cause.
    odd = MambaConfig(
        vocab_size=97, hidden_size=30, intermediate_size=70, state_size=11, time_step_rank=5,
        conv_kernel=3, num_hidden_layers=7,
    )  # fmt: skip
    arrays = MambaForCausalLM(odd, rng=0).state_dict().values()
    found, right = answer(odd), sum(array.size for array in arrays)
    expect(found is not None, "Your function returns nothing yet: replace the dots.")
    if isinstance(found, (int, np.integer)) and found != right:
        _explain(int(found) - right)
    near(found, right, "your count for a made-up model")
    for name, (width, blocks, published) in SIZES.items():
        config = MambaConfig(hidden_size=width, num_hidden_layers=blocks)
        near(answer(config), published, f"your count for {name}", tolerance=1e-12)


def _explain(excess):
    """Raise a hint for a count that is wrong in a way that can be recognised."""
    V, D, E, N, R, K, blocks = 97, 30, 70, 11, 5, 3, 7
    once = {
        -D: "D too few. Something follows the last block.",
        -V * D: "V D too few. Where do the tokens' vectors come from?",
        V * D: "V D too many. The head is tied: it is the embeddings themselves.",
    }
    each = {
        -D: "D too few in each block: one vector of D is missing.",
        -E: "E too few in each block: one vector of E is missing. A bias, perhaps?",
        -2 * E: "2 E too few in each block: two vectors of E are missing, biases perhaps.",
        -3 * E: "3 E too few in each block: three vectors of E are missing: two biases, and D.",
        2 * E: "2 E too many in each block: in_proj has no bias here.",
        2 * E + D: "2 E + D too many in each block: in_proj and out_proj have no bias here.",
        -E * D: "E D too few in each block. What does in_proj make?",
        -N * E: "N E too few in each block: is it A, or one of B and C?",
        -R * E: "R E too few in each block: the step sizes take two matrices.",
        E * E - 2 * R * E: "as many as if delta had one matrix E x E in each block.",
        (E - 1)
        * E
        * K: "the convolution counted as if its channels were mixed: each has K weights.",
    }
    known = once | {blocks * amount: hint for amount, hint in each.items()}
    if excess in known:
        expect(False, f"Off by {excess:+,} for a made-up model. That is {known[excess]}")


@exercise("05c")
def swap(answer):
    """A layer whose in_proj makes z first and x second."""
    config = MambaConfig(vocab_size=8, hidden_size=6, num_hidden_layers=1, state_size=2)
    layer = init_layer(config, 5)
    E, kept = config.intermediate_size, layer.in_proj.copy()
    found = answer(layer)
    expect(found is not None, "Your function returns nothing yet: replace the dots.")
    expect(np.array_equal(layer.in_proj, kept), "Your function changes the layer that it is given.")
    expect(isinstance(found, Layer), "Return a Layer: dataclasses.replace(layer, in_proj=...).")
    rows = found.in_proj
    expect(
        rows.shape == kept.shape, f"in_proj should keep its shape {kept.shape}, not {rows.shape}."
    )
    expect(not np.array_equal(rows, kept), "in_proj is as it was.")
    upside_down = np.array_equal(rows, kept[::-1])
    expect(not upside_down, "All rows are in reverse. Each half keeps its own order.")
    columns = np.array_equal(rows, np.roll(kept, kept.shape[1] // 2, axis=1))
    expect(not columns, "Those are the columns. A row of in_proj makes one number of x or z.")
    near(rows[:E], kept[E:], "the first half of your in_proj")
    near(rows[E:], kept[:E], "the second half of your in_proj")
