"""The exercises of "Ask why"."""

from functools import cache

import numpy as np

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path
from mamba_np.interventions import CutPath

from ..checking import exercise, expect, near

PROMPT = 'The wolf met the fox in the forest. "Good day," said the wolf. "Good day," said the'


@cache
def _model():
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    ids = tokenizer(PROMPT, return_tensors="np")["input_ids"][0]
    return MambaForCausalLM.from_pretrained(bundled_model_path()), ids, tokenizer


def _log_p(model, ids):
    scores = model(ids[None]).logits[0, -1].astype(np.float64)
    return scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())


@cache
def _cut(token):
    """Return log p of a token, and what it is with each source cut."""
    model, ids, _ = _model()
    after = []
    for source in range(len(ids)):
        with model.intervene(CutPath(source=source)):
            after.append(_log_p(model, ids)[token])
    return _log_p(model, ids)[token], np.array(after)


@exercise("13a")
def knock_out(answer):
    """The change of log p of a token, for each source that is cut."""
    model, ids, tokenizer = _model()
    token = int(tokenizer(" fox")["input_ids"][0])
    found = answer(model, ids, token)
    before, after = _cut(token)
    wanted = after - before
    if isinstance(found, np.ndarray | list) and np.shape(found) == wanted.shape:
        same = np.allclose(found, -wanted, atol=1e-3)
        expect(not same, "The sign is turned: after the cut, minus before.")
        same = np.allclose(found, np.exp(after) - np.exp(before), atol=1e-4)
        expect(not same, "These are changes of p. The logarithm of p is asked for.")
        same = np.allclose(found, after, atol=1e-3)
        expect(not same, "This is log p with each source cut. Subtract what it is without a cut.")
    near(found, wanted, "your function's array", tolerance=1e-3)


@exercise("13b")
def somebody_else(answer):
    """A change, or several, after which the answer is neither fox nor wolf."""
    model, ids, tokenizer = _model()
    changes = answer if isinstance(answer, list | tuple) else [answer]
    with model.intervene(*changes):
        said = tokenizer.decode([int(_log_p(model, ids).argmax())])
    expect(said != " fox", "The model still says fox.")
    expect(said != " wolf", "It says wolf: the fox is forgotten, and nobody else is remembered.")
