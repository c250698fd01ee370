"""The exercises of "Write text from a state"."""

import tempfile
from pathlib import Path

import numpy as np

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.equations import softmax

from ..checking import exercise, expect, near

CONFIG = MambaConfig(vocab_size=13, hidden_size=8, num_hidden_layers=2, state_size=4)
PROMPT, FIRST, SECOND = [[5, 1, 7, 2]], [[3, 9]], [[11, 4, 6]]


@exercise("06a")
def two_ways(answer):
    """The scores after two texts, each read from the one state in a file."""
    model = MambaForCausalLM(CONFIG, rng=0, backend="numpy")

    def after(*texts):
        return model(np.hstack(texts)).logits[0, -1]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        model(PROMPT).cache_params.save(path)
        before = path.read_bytes()
        found = answer(model, path, np.array(FIRST), np.array(SECOND))
        expect(found is not None and found is not ..., "It returns nothing yet: replace the dots.")
        expect(path.read_bytes() == before, "The file at `path` has changed: leave it alone.")
    pair = isinstance(found, (tuple, list)) and len(found) == 2
    expect(pair, "Return two things: the scores after `first`, and those after `second`.")
    first, second = found
    shapes = [np.shape(one) for one in found]
    expect(
        shapes == [(13,), (13,)],
        f"Expected two arrays of V = 13 scores, found shapes {shapes[0]} and {shapes[1]}: "
        "the logits are (1, L, V), and only the last position predicts the next token.",
    )
    expect(
        not np.allclose(first, after(FIRST), atol=1e-5),
        "`first` was read from nothing: go on from the state in the file.",
    )
    near(first, after(PROMPT, FIRST), "your scores after `first`", 1e-4)
    expect(
        not np.allclose(second, after(PROMPT, FIRST, SECOND), atol=1e-5),
        "`second` went on from the end of `first`. What does a call do to the cache it is given?",
    )
    near(second, after(PROMPT, SECOND), "your scores after `second`", 1e-4)


@exercise("06b")
def nucleus(answer):
    """A mask of the fewest tokens whose probabilities sum to p."""
    rng = np.random.default_rng(6)
    cases = [(np.array([0.1, 0.5, 0.15, 0.25]), p) for p in (0.4, 0.6, 0.8, 0.95)]
    cases += [(softmax(2 * rng.standard_normal(40)), p) for p in (0.05, 0.5, 0.9, 0.99)]
    for probabilities, p in cases:
        found = answer(probabilities.copy(), p)
        expect(found is not None and found is not ..., "It returns nothing yet: replace the dots.")
        found = np.asarray(found)
        expect(
            found.dtype == bool and found.shape == probabilities.shape,
            f"Expected a mask of {len(probabilities)} booleans, found {found.dtype} of shape "
            f"{found.shape}.",
        )
        _compare(probabilities, found, p)


def _compare(probabilities, found, p):
    order = np.argsort(-probabilities)
    count = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    wanted = np.zeros(len(found), bool)
    wanted[order[:count]] = True
    if (found == wanted).all():
        return
    what = (
        f"For probabilities {probabilities} and p = {p:g}" if len(found) == 4 else f"At p = {p:g}"
    )
    total = probabilities[found].sum()
    expect(found.any(), f"{what} you keep no token at all: at least one must stay.")
    if found.sum() == count:
        expect(
            total >= p,
            f"{what} you keep {count} tokens, as you should, but not the likeliest: have you "
            "brought the mask back from sorted order to the order of the vocabulary?",
        )
    expect(total >= p, f"{what} the tokens that you keep sum to {total:.3g} only.")
    expect(
        found.sum() <= count,
        f"{what} you keep {found.sum()} tokens; {count} of the likeliest suffice.",
    )
    expect(False, f"{what} you keep other tokens than the likeliest.")
