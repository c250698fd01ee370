"""The paper's synthetic tasks, made on the spot: what selection is for (section 4.1).

A task is a function of a random generator that returns ``(input_ids, labels)``, both (B, L), as
``loss_and_gradients`` and the model's ``labels=`` take them: the label of a position is predicted
at the position before, and -100 marks what nobody has to predict. The answers stand at the end.
"""

import numpy as np
from numpy.typing import NDArray

from ..checks import integer
from ..errors import InputError
from ..reference import IGNORED_LABEL

Task = tuple[NDArray, NDArray]


def induction_heads(
    rng: np.random.Generator, batch: int = 8, length: int = 256, vocab_size: int = 16
) -> Task:
    """Return noise in which a special token stands twice: what followed it the first time?

    The special token is ``vocab_size - 1``: it stands once somewhere in the ``length`` tokens and
    once as the last of them; the answer, and any noise, is one of the others. Returns two arrays
    (batch, length + 1): one prediction each, of the last token (paper, section 4.1.2).

    Raises InputError for fewer than four tokens or fewer than three words.
    """
    length = integer("length", length, low=4, error=InputError)
    special = integer("vocab_size", vocab_size, low=3, error=InputError) - 1
    ids = rng.integers(0, special, (batch, length + 1))
    rows, place = np.arange(batch), rng.integers(0, length - 2, batch)
    ids[rows, place] = ids[:, -2] = special
    ids[:, -1] = ids[rows, place + 1]
    return ids, _only_last(ids, 1)


def selective_copying(
    rng: np.random.Generator,
    batch: int = 64,
    length: int = 4096,
    vocab_size: int = 16,
    tokens: int = 16,
) -> Task:
    """Return ``tokens`` words scattered over noise, then a sign, then the words in order.

    Noise is token 0 and the sign token 1; words are the others. Where the words stand is random, so
    that a model with fixed dynamics cannot tell them from the noise (paper, section 4.1.1). Returns
    two arrays (batch, length + 1 + ``tokens``) with ``tokens`` predictions each, at the end: each
    word but the last is seen before the next is predicted.

    Raises InputError where the words do not fit.
    """
    tokens = integer("tokens", tokens, error=InputError)
    length = integer("length", length, low=tokens, error=InputError)
    vocab_size = integer("vocab_size", vocab_size, low=3, error=InputError)
    words = rng.integers(2, vocab_size, (batch, tokens))
    noise = np.zeros((batch, length), np.int64)
    places = np.sort(rng.random((batch, length)).argsort(axis=1)[:, :tokens], axis=1)
    np.put_along_axis(noise, places, words, axis=1)
    ids = np.concatenate([noise, np.ones((batch, 1), np.int64), words], axis=1)
    return ids, _only_last(ids, tokens)


def _only_last(ids: NDArray, count: int) -> NDArray:
    """Return labels that are the ids at the last ``count`` positions."""
    labels = np.full_like(ids, IGNORED_LABEL)
    labels[:, -count:] = ids[:, -count:]
    return labels


def accuracy(logits: NDArray, labels: NDArray) -> float:
    """Return which share of the predictions is right: logits (B, L, V), labels (B, L)."""
    wanted = labels[:, 1:] != IGNORED_LABEL
    return float(np.mean(logits[:, :-1].argmax(axis=-1)[wanted] == labels[:, 1:][wanted]))
