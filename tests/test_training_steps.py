"""One step of training: batches in parts, what is refused, and what is left alone when it fails."""

import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.errors import InputError, TrainingError
from mamba_np.gradients import loss_and_gradients
from mamba_np.training import AdamW, global_norm, training_step

V = 13
CONFIG = MambaConfig(vocab_size=V, hidden_size=8, num_hidden_layers=2, state_size=4)
LAW = tolerance("law", "float64")


def start(dtype="float64", **options):
    """Return a small model and an optimiser of it."""
    model = MambaForCausalLM(CONFIG, rng=0, dtype=dtype, backend="numpy").make_writeable()
    return model, AdamW(model.state_dict(), **{"lr": 1e-2, "weight_decay": 0.1} | options)


def batch_of(rng, rows=4, length=7):
    ids = rng.integers(V, size=(rows, length))
    labels, mask = ids.copy(), np.ones_like(ids)
    labels[0, :5] = -100  # rows with different numbers of labels
    mask[1, :3] = 0
    mask[2, 2:5] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def parts(batch, *cuts):
    """Cut a batch between its rows."""
    pieces = {key: np.split(value, cuts) for key, value in batch.items()}
    return [dict(zip(pieces, some, strict=True)) for some in zip(*pieces.values(), strict=True)]


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def everything(model, optimiser):
    """Return copies of all that a step may change."""
    kept = (model.state_dict(), optimiser.exp_avg, optimiser.exp_avg_sq)
    return [copies(arrays) for arrays in kept], optimiser.step


def assert_unchanged(model, optimiser, before):
    kept, step = everything(model, optimiser)
    assert step == before[1]
    for now, then in zip(kept, before[0], strict=True):
        assert all(now[name].tobytes() == then[name].tobytes() for name in then)


def test_a_step_is_the_gradients_clipping_and_the_optimiser(rng):
    batch = batch_of(rng)
    model, optimiser = start()
    expected, by_hand = start()
    loss, gradients = loss_and_gradients(expected, *batch.values())
    norm = global_norm(gradients)
    assert norm > 0.5
    by_hand.update({name: g * (0.5 / (norm + 1e-6)) for name, g in gradients.items()}, 3e-3)
    result = training_step(model, optimiser, [batch], 3e-3, 0.5)
    assert result.loss == loss
    assert result.grad_norm == norm
    assert result.tokens == 6 - 4 + 3 + 3 + 6
    for name, array in model.state_dict().items():
        assert_close_to_scale(array, expected.state_dict()[name], LAW, name)


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2, 3), (0, 4)])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_batches_in_parts_make_the_same_step(rng, cuts, max_grad_norm):
    (model, optimiser), (in_parts, of_parts) = start(), start()
    for _ in range(3):
        batch = batch_of(rng)
        whole = training_step(model, optimiser, [batch], None, max_grad_norm)
        some = [part for part in parts(batch, *cuts) if len(part["labels"])]
        result = training_step(in_parts, of_parts, some, None, max_grad_norm)
        assert result == pytest.approx(whole, rel=LAW)
        for name, array in model.state_dict().items():
            assert_close_to_scale(in_parts.state_dict()[name], array, LAW, name)


def test_a_batch_without_labels_counts_nothing(rng):
    (model, optimiser), (other, of_other) = start(), start()
    batch, empty = batch_of(rng), batch_of(rng)
    empty["labels"] = np.full_like(empty["labels"], -100)
    result = training_step(model, optimiser, [batch])
    assert training_step(other, of_other, [empty, batch, empty]) == result
    for name, array in model.state_dict().items():
        assert np.array_equal(other.state_dict()[name], array)


def test_some_of_the_parameters_may_be_trained(rng):
    model, _ = start()
    before = copies(model.state_dict())
    some = {n: a for n, a in model.state_dict().items() if "mixer.in_proj" in n}
    optimiser = AdamW(some, lr=1e-2)
    batch = batch_of(rng)
    gradients = loss_and_gradients(model, *batch.values())[1]
    result = training_step(model, optimiser, [batch])
    assert result.grad_norm == global_norm({name: gradients[name] for name in some})
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]) == (name not in some)


def test_float32_is_trained_in_float32(rng):
    model, optimiser = start("float32")
    training_step(model, optimiser, [batch_of(rng)], max_grad_norm=1.0)
    arrays = [*model.state_dict().values(), *optimiser.exp_avg.values()]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}


# --- what is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_and_nothing_moves(rng, bad):
    model, optimiser = start()
    batch = batch_of(rng)
    training_step(model, optimiser, [batch])
    model.params.layers[1].dt_bias[3] = bad
    before = everything(model, optimiser)
    with pytest.raises(TrainingError, match=r"^step 2: expected a finite loss") as caught:
        training_step(model, optimiser, [batch], max_grad_norm=1.0)
    assert "backbone.layers.1.mixer.dt_proj.bias itself holds NaN or infinity" in str(caught.value)
    assert_unchanged(model, optimiser, before)


@pytest.mark.parametrize("where", ["norm_f", "layers.1.mixer.D", "layers.0.norm", "embeddings"])
def test_the_gradient_that_the_backward_pass_met_first_is_named(rng, where):
    model, optimiser = start()
    names = list(model.state_dict())
    last = next(i for i, name in enumerate(names) if where in name)

    def spoiled(*arguments):
        loss, gradients = loss_and_gradients(*arguments)
        for name in names[: last + 1]:  # from there on, downwards
            gradients[name].flat[-1] = np.inf
        return loss, gradients

    before = everything(model, optimiser)
    with pytest.raises(TrainingError, match="found gradients of norm inf") as caught:
        training_step(model, optimiser, [batch_of(rng)], gradients_of=spoiled)
    assert str(caught.value).startswith("step 1: ")
    assert str(caught.value).endswith(f"first at {names[last]}")
    assert_unchanged(model, optimiser, before)


def test_a_loss_that_is_not_finite_stops_before_the_next_batch(rng):
    model, optimiser = start()
    calls = []

    def spoiled(*arguments):
        calls.append(1)
        loss, gradients = loss_and_gradients(*arguments)
        return (np.inf if len(calls) == 2 else loss), gradients

    with pytest.raises(TrainingError, match=r"found a loss of inf$"):
        training_step(model, optimiser, [batch_of(rng)] * 3, gradients_of=spoiled)
    assert len(calls) == 2
    assert optimiser.step == 0


# --- what is refused ---------------------------------------------------------------------------


def test_an_optimiser_of_other_arrays_is_refused(rng):
    model, optimiser = start()
    model.make_writeable()  # once too often: new copies
    with pytest.raises(InputError, match=r"own array for backbone.embeddings.weight, found anoth"):
        training_step(model, optimiser, [batch_of(rng)])
    stray = AdamW({"adapter": np.zeros(3)})
    with pytest.raises(InputError, match="expected parameters of the model, found 'adapter'"):
        training_step(model, stray, [batch_of(rng)])


IDS = [[1, 2, 3]]


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "batches: expected at least one label to predict, found none"),
        ([{"input_ids": IDS, "labels": [[1, -100, -100]]}], "at least one label"),
        ({"input_ids": IDS, "labels": IDS}, "batches: expected a list of batches"),
        ([{"input_ids": IDS}], r"batches\[0\]: expected input_ids, labels .* found input_ids$"),
        ([{"input_ids": IDS, "labels": IDS, "label": IDS}], "found input_ids, label, labels"),
        ([IDS], r"batches\[0\]: .* found \[\[1, 2, 3\]\]"),
        ([{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS, "labels": [[1]]}], r"batches\[1\]"),
        ([{"input_ids": [[99]], "labels": [[1]]}], r"batches\[0\]: input_ids: .* found 99"),
    ],
)
def test_batches_that_cannot_be_learnt_from_are_refused_by_name(batches, words):
    model, optimiser = start()
    with pytest.raises(InputError, match=words):
        training_step(model, optimiser, batches)


def test_a_model_and_an_optimiser_are_needed():
    model, optimiser = start()
    for pair in ((optimiser, model), (model, None)):
        with pytest.raises(InputError, match="training_step: expected a model and an AdamW"):
            training_step(*pair, [{"input_ids": IDS, "labels": IDS}])


@pytest.mark.parametrize("value", [0, -1, np.nan, "1"])
def test_a_norm_to_clip_to_is_positive(rng, value):
    model, optimiser = start()
    with pytest.raises(InputError, match="max_grad_norm: expected a finite number above 0"):
        training_step(model, optimiser, [batch_of(rng)], max_grad_norm=value)
