"""Traces on the GPU's engine: what float64 makes of the same numbers, and nothing is changed."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from test_engine import IDS, SMALL, close, small_models
from test_engine import gpu as gpu  # the fixture

from mamba_np import MambaForCausalLM, Trace
from mamba_np.cuda import engine
from mamba_np.params import map_arrays

EVERYTHING = ("delta", "delta_mean", "delta_geometric_mean", "B", "C", "x", "z", "y", "h")
EVERYTHING += ("residual", "residual_norm", "logits")
TEXT = IDS[0]


def pair(dtype="float32"):
    """Return a model on the GPU, and one in float64 whose traces the suite compares with loops."""
    model, _ = small_models(dtype)
    wide = map_arrays(lambda _, a: a.astype(np.float64), model.params)
    return model, MambaForCausalLM(SMALL, params=wide)


def same(found: Trace, expected: Trace, dtype="float32"):
    assert found.captured == expected.captured
    for name, array in expected.arrays().items():
        if array.size:
            close(found.arrays()[name], array, dtype, name)
        else:
            assert found.arrays()[name].shape == array.shape


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"layers": [1], "channels": [35, 0, 7], "every": 4},
        {"channels": range(33), "every": 9},
        {"every": 10},
    ],
)
def test_a_trace_is_what_float64_makes_of_the_same_numbers(gpu, choice):
    model, exact = pair()
    same(
        model.trace(TEXT, capture=EVERYTHING, **choice),
        exact.trace(TEXT, capture=EVERYTHING, **choice),
    )


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_quantity_alone(gpu, name):
    model, exact = pair()
    same(model.trace(TEXT, capture=(name,)), exact.trace(TEXT, capture=(name,)))


def test_a_text_in_chunks(gpu, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 4)
    model, exact = pair()
    options = {"capture": EVERYTHING, "every": 3}
    same(model.trace(TEXT, **options), exact.trace(TEXT, **options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_otherwise(gpu, dtype):
    model, exact = pair(dtype)
    options = {"capture": ("delta", "B", "y", "h", "residual")}
    same(model.trace(TEXT, **options), exact.trace(TEXT, **options), dtype)


def test_a_prompt_and_then_tokens(gpu):
    traces = []
    for model in pair():
        tracer = model.tracer(capture=EVERYTHING, every=2)
        cache = tracer(TEXT[None, :6]).cache_params
        for token in TEXT[6:]:
            cache = tracer([[token]], cache_params=cache).cache_params
        traces.append(tracer.trace)
    same(*traces)


def test_looking_changes_nothing(gpu):
    """Logits and states are those without a tracer, to the bit: of a prompt, and of one token."""
    model, _ = pair()
    tracer, plain, seen = model.tracer(capture=EVERYTHING), None, None
    for piece in (TEXT[None, :5], TEXT[None, 5:6], TEXT[None, 6:7], TEXT[None, 7:]):
        found = tracer(piece, cache_params=seen)
        expected = model(piece, cache_params=plain)
        assert np.array_equal(found.logits, expected.logits)
        seen, plain = found.cache_params, expected.cache_params
    for kind in ("conv_states", "ssm_states"):
        assert np.array_equal(getattr(seen, kind), getattr(plain, kind))


def test_a_text_that_is_generated(gpu):
    model, _ = pair()
    tracer = model.tracer(capture=("delta",))
    written = tracer.generate(TEXT[None, :4], max_new_tokens=4)
    assert np.array_equal(written, model.generate(TEXT[None, :4], max_new_tokens=4))
    assert len(tracer.trace.ids) == 7
    close(tracer.trace.delta, model.trace(written[0, :-1], capture=("delta",)).delta)
