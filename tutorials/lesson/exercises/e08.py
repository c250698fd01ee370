"""The exercises of "See what delta sees"."""

import numpy as np

from ..checking import NotYet, exercise, expect, near

SENTENCE = 'The wolf met the fox in the forest. "Good day," said the wolf. "Good day," said the'


@exercise("08a")
def longest_memory(answer):
    """The channel whose slowest state has the longest half-life, and that half-life."""
    rng = np.random.default_rng(8)
    for E, N in ((5, 3), (7, 4), (40, 16)):
        delta = np.exp(rng.normal(-3, 2, (12, E)))
        A = -np.exp(rng.normal(0, 1, (E, N)))
        rates = delta.mean(axis=0)[:, None] * -A  # (E N)
        halves = np.log(2) / rates.min(axis=1)
        found = answer(delta.copy(), A.copy())
        what = f"longest(delta, A) for {E} channels of {N} states"
        if not isinstance(found, tuple) or len(found) != 2:
            near(found, (0, 0), what)
            expect(isinstance(found, list), "Return two things: the channel, and its half-life.")
        channel, tokens = (float(np.asarray(one)) for one in found)
        _name_the_mistake(channel, tokens, rates, halves)
        near(channel, halves.argmax(), f"the channel of {what}")
        near(tokens, halves.max(), f"the half-life of {what}", tolerance=1e-4)


def _name_the_mistake(channel, tokens, rates, halves):
    fast = np.log(2) / rates.max(axis=1)
    if channel == fast.argmax() and np.isclose(tokens, fast.max()):
        raise NotYet("That is the fastest state of each channel; the slowest has the smallest |A|.")
    if channel == halves.argmin():
        raise NotYet("That channel forgets soonest: the longest half-life is asked for.")
    if tokens < 0:
        raise NotYet("A half-life is positive, and A is negative: take |A|.")
    if channel == halves.argmax() and np.isclose(tokens, halves.max() / np.log(2)):
        raise NotYet("After 1 / (delta |A|) tokens a share of 1/e is left; half is asked for.")
    average = np.log(2) / rates.mean(axis=1)
    if channel == average.argmax() and np.isclose(tokens, average.max()):
        raise NotYet("That averages over the states of a channel; take its slowest one.")


@exercise("08b")
def make_it_say_wolf(answer):
    """A change of delta at one token and in one layer after which the model says wolf."""
    from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path
    from mamba_np.interventions import ClampDelta, FreezeDelta, ScaleDelta

    kinds = (ScaleDelta, ClampDelta, FreezeDelta)
    hint = "Assign one ScaleDelta, ClampDelta or FreezeDelta: those change step sizes."
    expect(isinstance(answer, kinds), hint)
    expect(_one(answer.layers), "Choose one layer: layers=5, say.")
    expect(
        _one(answer.tokens), "Choose one token, by its position from 0: tokens=8 is the full stop."
    )
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    model = MambaForCausalLM.from_pretrained(bundled_model_path())
    ids = tokenizer(SENTENCE, return_tensors="np")["input_ids"]
    with model.intervene(answer):
        likeliest = tokenizer.decode([int(model(ids).logits[0, -1].argmax())])
    hint = f"The model now says{likeliest}. "
    if likeliest == " fox":
        hint += "Who should not have been written down, and in which layer do animals live?"
    expect(likeliest == " wolf", hint + "It should say wolf.")


def _one(chosen):
    return chosen is not None and not isinstance(chosen, slice) and np.size(chosen) == 1
