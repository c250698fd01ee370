"""The compiled backward pass against the NumPy one in float64: shapes, threads, and repetition."""

import weakref
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np import (
    MambaConfig,
    MambaForCausalLM,
    Trainer,
    TrainingArguments,
    get_num_threads,
    set_num_threads,
)
from mamba_np.checkpoint.names import parts
from mamba_np.gradients import by_reference, forget_arrays, loss_and_gradients
from mamba_np.kernels import training
from mamba_np.kernels.scan import STEPS
from mamba_np.params import convert

VOCABULARY = 37


@pytest.fixture(autouse=True)
def restored_threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


def trained_like(rng, **options):
    """Return a small model whose every parameter differs from its initial value."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 8}
    config = MambaConfig(**sizes | options, initializer_range=0.3)
    model = MambaForCausalLM(config, rng=int(rng.integers(1000))).make_writeable()
    for name, array in model.state_dict().items():
        if "A_log" not in name:
            array += 0.1 * rng.standard_normal(array.shape).astype(np.float32)
    return model


def batch(rng, texts, length):
    ids = rng.integers(0, VOCABULARY, (texts, length))
    labels = np.where(rng.random(ids.shape) < 0.2, -100, ids)
    return ids, labels


def assert_same(found, expected, dtype="float32"):
    for (name, field, ours), (_, _, theirs) in zip(parts(found), parts(expected), strict=True):
        pair = getattr(ours, field), getattr(theirs, field)
        assert pair[0].dtype == np.float32
        assert_close_to_scale(*pair, tolerance("gradient", dtype), name)


CASES = {
    "one token before the block's end": {"length": STEPS - 1},
    "one block": {"length": STEPS},
    "one token in the second block": {"length": STEPS + 1},
    "several blocks": {"length": 3 * STEPS + 5},
    "two tokens": {"length": 2},
    "one text": {"texts": 1},
    "many texts": {"texts": 7, "length": 9},
    "channels not in sixteens": {"hidden_size": 21, "intermediate_size": 35},
    "one state": {"state_size": 1, "hidden_size": 21},
    "two states": {"state_size": 2, "length": STEPS + 1},
    "three states": {"state_size": 3, "texts": 3},
    "four states": {"state_size": 4},
    "five states": {"state_size": 5, "length": 2 * STEPS + 3},
    "seven states": {"state_size": 7, "time_step_rank": 2},
    "many states": {"state_size": 64},
    "biases": {"use_bias": True},
    "no bias": {"use_conv_bias": False},
    "a head of its own": {"tie_word_embeddings": False},
    "a long convolution": {"conv_kernel": 7, "length": 5},
    "a convolution of the present alone": {"conv_kernel": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_references(case, rng):
    options = dict(CASES[case])
    texts, length = options.pop("texts", 2), options.pop("length", 20)
    model = trained_like(rng, **options)
    ids, labels = batch(rng, texts, length)
    loss, found = training.loss_and_gradients(model.params, model.config, ids, labels)
    wide = convert(model.params, "float64")
    expected_loss, expected = by_reference(wide, model.config, ids, labels)
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    assert_same(found, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads, rng):
    model = trained_like(rng)
    ids, labels = batch(rng, 3, STEPS + 3)
    expected = by_reference(convert(model.params, "float64"), model.config, ids, labels)[1]
    set_num_threads(threads)
    first = training.loss_and_gradients(model.params, model.config, ids, labels)
    again = training.loss_and_gradients(model.params, model.config, ids, labels)
    assert_same(first[1], expected)
    assert first[0] == again[0]  # kept arrays are as good as new, and sums have one order
    for (_, field, a), (_, _, b) in zip(parts(first[1]), parts(again[1]), strict=True):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_results_are_the_callers_own(rng):
    model = trained_like(rng)
    ids, labels = batch(rng, 2, 12)
    _, first = training.loss_and_gradients(model.params, model.config, ids, labels)
    before = [getattr(owner, field).copy() for _, field, owner in parts(first)]
    training.loss_and_gradients(model.params, model.config, ids[::-1].copy(), labels)
    for (name, field, owner), array in zip(parts(first), before, strict=True):
        np.testing.assert_array_equal(getattr(owner, field), array, err_msg=name)


def test_a_vocabulary_of_several_blocks(rng, monkeypatch):
    model = trained_like(rng)
    ids, labels = batch(rng, 4, 30)
    whole, expected = training.loss_and_gradients(model.params, model.config, ids, labels)
    monkeypatch.setattr(training, "SCORES", 1)  # sixteen predictions at a time
    loss, found = training.loss_and_gradients(model.params, model.config, ids, labels)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert_same(found, expected)


def test_the_model_chooses_the_kernels(rng, monkeypatch):
    model, used = trained_like(rng), []
    kernels = training.loss_and_gradients
    monkeypatch.setattr(
        training, "loss_and_gradients", lambda *args: used.append(args) or kernels(*args)
    )
    ids, labels = batch(rng, 2, 6)
    loss_and_gradients(model, ids, labels)
    assert len(used) == 1
    loss_and_gradients(MambaForCausalLM(model.config, rng=0, backend="numpy"), ids, labels)
    assert len(used) == 1
    odd = MambaConfig(**model.config.to_dict() | {"state_size": 3})
    loss_and_gradients(MambaForCausalLM(odd, rng=0), ids, labels)
    assert len(used) == 2


def test_kept_arrays_can_be_let_go(rng):
    model = trained_like(rng)
    ids, labels = batch(rng, 2, 6)
    expected = loss_and_gradients(model, ids, labels)
    kept = weakref.ref(training.between_steps.way)
    loss_and_gradients(model, ids, labels)
    assert kept() is training.between_steps.way  # until somebody says so
    forget_arrays()
    forget_arrays()  # nothing is left
    assert kept() is None
    again = loss_and_gradients(model, ids, labels)
    assert again[0] == expected[0]


@pytest.mark.parametrize("fails", [False, True])
def test_arrays_go_when_training_ends(fails, rng, tmp_path):
    class Callback:
        def on_step_end(self, *_, **__):
            seen.append(weakref.ref(training.between_steps.way))
            if fails:
                raise ZeroDivisionError

    seen, rows = [], [{"input_ids": rng.integers(0, VOCABULARY, 7)} for _ in range(4)]
    args = TrainingArguments(output_dir=tmp_path, max_steps=2, save_strategy="no")
    trainer = Trainer(trained_like(rng), args, train_dataset=rows, callbacks=[Callback()])
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        trainer.train()
    assert len(seen) == (1 if fails else 2)
    assert all(way() is None for way in seen)


def test_weights_may_change_in_place(rng):
    # Packed copies of parameters that can be written to must not outlive a step.
    model = trained_like(rng)
    ids, labels = batch(rng, 2, 10)
    loss_and_gradients(model, ids, labels)
    for layer in model.params.layers:
        layer.conv[:] *= 2
        layer.A_log[:] += 0.1
    _, found = training.loss_and_gradients(model.params, model.config, ids, labels)
    copied = replace(convert(model.params, "float64"))
    assert_same(found, by_reference(copied, model.config, ids, labels)[1])
