"""Gradients of whole models: PyTorch's for trained ones, differences and laws for any model."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import FIXTURES, MODELS
from differences import slope
from hypothesis import given
from hypothesis import strategies as st
from test_laws import configs, make_model, masks, seeds
from tolerances import TOLERANCES, assert_close_to_scale, tolerance

import mamba_np
from mamba_np import MambaConfig, MambaForCausalLM, MambaModel
from mamba_np.checkpoint.names import parts
from mamba_np.config import SELECTIVE
from mamba_np.errors import InputError
from mamba_np.gradients import _engine, by_reference, loss_and_gradients
from mamba_np.params import convert, map_arrays
from mamba_np.reference import IGNORED_LABEL

DTYPES = ("float64", "float32")
ENGINES = [("float64", "numpy"), ("float32", "numpy"), ("float32", "auto")]
PREFIX = "f64.grad."

# --- trained models against PyTorch --------------------------------------------------------------


@cache
def load(name, dtype, backend="auto"):
    folder = FIXTURES / "models" / name
    return MambaForCausalLM.from_pretrained(folder, dtype=dtype, backend=backend)


@cache
def references(name):
    with np.load(FIXTURES / "refs" / f"{name}.npz") as file:
        wanted = [key for key in file.files if key.startswith(PREFIX) or key == "f64.loss"]
        return {key: file[key] for key in [*wanted, "in.input_ids", "in.labels"]}


@cache
def results(name, dtype, backend="auto"):
    refs, model = references(name), load(name, dtype, backend)
    return loss_and_gradients(model, refs["in.input_ids"], refs["in.labels"])


ALL_KEYS = [
    (name, key.removeprefix(PREFIX))
    for name in MODELS
    for key in references(name)
    if key.startswith(PREFIX)
]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_its_gradient(name):
    state, (_, gradients) = load(name, "float64").state_dict(), results(name, "float64")
    assert list(gradients) == list(state)
    assert {key: a.shape for key, a in gradients.items()} == {k: a.shape for k, a in state.items()}
    assert set(gradients) == {key for model, key in ALL_KEYS if model == name}
    assert len(gradients) > 20


@pytest.mark.parametrize(("dtype", "backend"), ENGINES)
@pytest.mark.parametrize(("name", "key"), ALL_KEYS)
def test_every_gradient(name, key, dtype, backend, manifest):
    found = results(name, dtype, backend)[1][key]
    assert found.dtype == dtype
    rounded = manifest["models"][name]["grads_rounded_to_f32"]
    step = "rounded gradient" if rounded and dtype == "float64" else "gradient"
    assert_close_to_scale(found, references(name)[PREFIX + key], tolerance(step, dtype), key)


@pytest.mark.parametrize(("dtype", "backend"), ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_the_model(name, dtype, backend):
    refs, (loss, _) = references(name), results(name, dtype, backend)
    assert isinstance(loss, np.float64)
    assert_close_to_scale(loss, refs["f64.loss"], tolerance("model", dtype), "PyTorch's")
    own = load(name, dtype, backend)(refs["in.input_ids"], labels=refs["in.labels"]).loss
    assert_close_to_scale(loss, own, tolerance("model", dtype), "the model's own")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_sixteen_bits_has_gradients_in_float32(name):
    refs, model = references(name), load(name, "bfloat16")
    found = loss_and_gradients(model, refs["in.input_ids"], refs["in.labels"])[1]
    wide = MambaForCausalLM(model.config, params=convert(model.params, "float32"))
    expected = loss_and_gradients(wide, refs["in.input_ids"], refs["in.labels"])[1]
    for key, gradient in found.items():
        assert gradient.dtype == np.float32
        assert_close_to_scale(gradient, expected[key], tolerance("gradient", "float32"), key)


# --- any model -----------------------------------------------------------------------------------

# Smooth activations alone: differences know no kinks.
smooth = configs.filter(lambda config: config.hidden_act != "relu")
some_fixed = st.builds(
    lambda config, names: MambaConfig(**config.to_dict() | {"selective": names}),
    smooth,
    st.lists(st.sampled_from(SELECTIVE), max_size=2),
)


@st.composite
def situations(draw, configs=configs, max_rows=3, max_length=9):
    """Draw (model, ids, labels): any model in float64, any ids, some labels left out."""
    config = draw(configs)
    rng = np.random.default_rng(draw(seeds))
    shape = draw(st.integers(1, max_rows)), draw(st.integers(2, max_length))
    ids = rng.integers(config.vocab_size, size=shape)
    labels = np.where(rng.random(shape) < 0.2, IGNORED_LABEL, ids)
    return make_model(config, draw(seeds)), ids, labels


def counted(labels, mask=None):
    """Return how many labels each row's loss is the mean of."""
    mask = np.ones(labels.shape, int) if mask is None else mask
    rows = [row[keep != 0] for row, keep in zip(labels, mask, strict=True)]
    return np.array([(row[1:] != IGNORED_LABEL).sum() for row in rows])


def same_gradients(found, expected):
    for key, gradient in expected.items():
        rtol = tolerance("gradient law", "float64")
        assert_close_to_scale(found[key], gradient, rtol, key)


def mean_of_rows(model, ids, labels, mask=None):
    """Return the loss and the gradients of the rows alone, without padding, as one mean."""
    mask = np.ones(ids.shape, int) if mask is None else mask
    counts = counted(labels, mask)
    total, sums = 0.0, {key: np.zeros(a.shape) for key, a in model.state_dict().items()}
    for row in np.flatnonzero(counts):
        keep = mask[row] != 0
        alone = ids[row : row + 1, keep], labels[row : row + 1, keep]
        loss, found = loss_and_gradients(model, *alone)
        share = counts[row] / counts.sum()
        total += share * loss
        sums = {key: sums[key] + share * a for key, a in found.items()}
    return total, sums


@given(situations(smooth | some_fixed), st.booleans(), st.data())
def test_gradients_are_the_slopes_of_the_loss(situation, masked, data):
    model, ids, labels = situation
    mask = data.draw(masks(ids.shape)) if masked else np.ones(ids.shape, int)
    if not counted(labels, mask).any():
        return
    loss, gradients = loss_and_gradients(model, ids, labels, mask)
    rng = np.random.default_rng(0)
    for key, field, owner in parts(model.params):
        array = getattr(owner, field)
        way = rng.normal(size=array.shape)

        def moved_loss(t, array=array, way=way):
            swap = lambda _, a: array + t * way if a is array else a  # noqa: E731
            moved = MambaForCausalLM(model.config, params=map_arrays(swap, model.params))
            return moved(ids, mask, labels=labels).loss

        found = np.sum(gradients[key].reshape(array.shape) * way)
        size = np.sqrt(np.sum(gradients[key] ** 2)) + loss
        expected = slope(moved_loss, step=1e-4)  # embeddings are small, and normed
        assert abs(found - expected) <= TOLERANCES["difference", "float64"] * size, key


@given(situations(), st.data())
def test_a_masked_batch_is_its_rows_without_padding(situation, data):
    model, ids, labels = situation
    mask = data.draw(masks(ids.shape))
    loss, gradients = loss_and_gradients(model, ids, labels, mask)
    if not counted(labels, mask).any():
        assert np.isnan(loss)
        assert not any(a.any() for a in gradients.values())
        return
    expected_loss, expected = mean_of_rows(model, ids, labels, mask)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_gradients(gradients, expected)


@given(situations(), st.booleans(), st.data())
def test_padding_on_either_side_changes_nothing(situation, left, data):
    model, ids, labels = situation
    if not counted(labels).any():
        return
    places = data.draw(st.integers(1, 4))
    sides = ((0, 0), (places, 0) if left else (0, places))
    padded, mask = np.pad(ids, sides), np.pad(np.ones_like(ids), sides)
    marked = np.pad(labels, sides)  # labels at masked positions have no part
    loss, gradients = loss_and_gradients(model, padded, marked, mask)
    expected_loss, expected = loss_and_gradients(model, ids, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_gradients(gradients, expected)


@given(situations())
def test_a_batch_is_the_weighted_mean_of_its_rows(situation):
    model, ids, labels = situation
    if not counted(labels).any():
        return
    expected_loss, expected = mean_of_rows(model, ids, labels)
    loss, gradients = loss_and_gradients(model, ids, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_gradients(gradients, expected)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def small(request):
    config = mamba_np.MambaConfig(
        vocab_size=7, hidden_size=6, num_hidden_layers=2, tie_word_embeddings=request.param
    )
    return make_model(config)


def test_only_the_rows_of_tokens_that_occur_have_a_gradient(small):
    ids = np.array([[3, 3, 5, 3], [5, 3, 3, 0]])
    _, gradients = loss_and_gradients(small, ids, ids)
    rows = np.flatnonzero(gradients["backbone.embeddings.weight"].any(axis=1))
    # The head scores every token; the last one of a row is read, and predicts nothing.
    assert list(rows) == (list(range(7)) if small.params.tied else [3, 5])


def test_a_tied_head_adds_to_the_gradient_of_the_embeddings():
    ids, sizes = np.array([[3, 3, 5, 3, 1]]), {"vocab_size": 7, "hidden_size": 6}
    tied = make_model(mamba_np.MambaConfig(**sizes, num_hidden_layers=1))
    apart = mamba_np.MambaConfig(**sizes, num_hidden_layers=1, tie_word_embeddings=False)
    params = replace(tied.params, lm_head=tied.params.lm_head.copy())
    _, expected = loss_and_gradients(MambaForCausalLM(apart, params=params), ids, ids)
    expected["backbone.embeddings.weight"] += expected.pop("lm_head.weight")
    same_gradients(loss_and_gradients(tied, ids, ids)[1], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5), (1, 1)])
def test_without_a_label_the_loss_is_nan_and_the_gradients_are_zeros(shape, dtype):
    model, ids = load(MODELS[0], dtype), np.ones(shape, int)
    loss, gradients = loss_and_gradients(model, ids, np.full(shape, IGNORED_LABEL))
    assert np.isnan(loss)
    assert list(gradients) == list(model.state_dict())
    assert all(a.dtype == dtype for a in gradients.values())
    assert not any(a.any() for a in gradients.values())


def test_a_batch_that_is_masked_entirely(small):
    ids = np.ones((2, 3), int)
    loss, gradients = loss_and_gradients(small, ids, ids, np.zeros((2, 3), int))
    assert np.isnan(loss)
    assert not any(a.any() for a in gradients.values())


def test_the_model_and_the_arguments_stay_as_they_are(small):
    ids, mask = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[0, 1, 1], [1, 1, 1]])
    before = {key: a.copy() for key, a in small.state_dict().items()}
    arguments = ids.copy(), ids.copy(), mask.copy()
    first = loss_and_gradients(small, *arguments)
    assert all(map(np.array_equal, arguments, (ids, ids, mask)))
    for gradient in first[1].values():
        gradient[...] = 0  # results are the caller's own
    assert all(np.array_equal(a, before[key]) for key, a in small.state_dict().items())
    assert loss_and_gradients(small, *arguments)[0] == first[0]


def test_steps_down_the_gradient_lower_the_loss(small):
    ids = np.array([[1, 2, 3, 1, 2, 3, 1, 2, 3]])
    losses = []
    for _ in range(20):
        loss, gradients = loss_and_gradients(small, ids, ids)
        losses.append(loss)
        steps = {id(getattr(o, f)): gradients[key] for key, f, o in parts(small.params)}
        small.params = map_arrays(
            lambda _, a, steps=steps: a - 0.05 * steps[id(a)].reshape(a.shape), small.params
        )
    assert all(np.diff(losses) < 0)
    assert losses[-1] < 0.8 * losses[0]


# --- what has no gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("selective", [(), ("B",), ("delta", "C"), SELECTIVE])
@pytest.mark.parametrize("texts", [3, 40])  # one rank, and several
def test_the_kernels_fix_what_does_not_follow_from_the_input(selective, texts, rng):
    config = MambaConfig(
        vocab_size=11, hidden_size=24, state_size=4, num_hidden_layers=2, selective=selective
    )
    wide, ids = make_model(config), rng.integers(11, size=(texts, 33))
    params = convert(wide.params, "float32")
    asked = {"params": params, "config": config}
    kernels, numpy = MambaForCausalLM(**asked), MambaForCausalLM(**asked, backend="numpy")
    expected = loss_and_gradients(wide, ids, ids)
    for model in (kernels, numpy):
        loss, found = loss_and_gradients(model, ids, ids)
        assert_close_to_scale(loss, expected[0], tolerance("model", "float32"), "loss")
        for key, gradient in expected[1].items():
            assert_close_to_scale(found[key], gradient, tolerance("gradient", "float32"), key)
    assert _engine(kernels).__module__ == "mamba_np.kernels.training"
    assert _engine(numpy) is by_reference
    assert kernels.backend == ("cpu" if selective == SELECTIVE else "numpy")


@pytest.mark.parametrize("model", [None, "a path", 3])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InputError, match=f"^model: expected a MambaForCausalLM, found {model!r}"):
        loss_and_gradients(model, [[1]], [[1]])


def test_a_model_without_a_head_is_refused():
    model = MambaModel.from_pretrained(FIXTURES / "models" / MODELS[0])
    with pytest.raises(InputError, match=r"^model: expected a MambaForCausalLM, found .+"):
        loss_and_gradients(model, [[1, 2]], [[1, 2]])


def test_int8_weights_are_refused():
    with pytest.raises(InputError, match=r"^loss_and_gradients: expected .*found int8"):
        loss_and_gradients(load(MODELS[0], "int8"), [[1, 2]], [[1, 2]])


@pytest.mark.parametrize("rule", ["zoh", "euler", "bilinear"])
def test_other_discretisations_are_refused(rule):
    model = make_model(mamba_np.MambaConfig(vocab_size=5, hidden_size=4, discretisation=rule))
    with pytest.raises(InputError, match=rf"^config.discretisation: expected 'mamba'.*'{rule}'"):
        loss_and_gradients(model, [[1, 2]], [[1, 2]])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("input_ids", {"input_ids": [[1, 7]]}),
        ("input_ids", {"input_ids": [1, 2]}),
        ("labels", {"labels": [[1, 2, 3]]}),
        ("labels", {"labels": [[1, 7]]}),
        ("labels", {"labels": [[1, -1]]}),
        ("labels", {"labels": [[0.5, 1]]}),
        ("labels", {"labels": None}),
        ("attention_mask", {"attention_mask": [[1]]}),
        ("attention_mask", {"attention_mask": [[1, 2]]}),
    ],
)
def test_bad_arguments_are_named(name, change, small):
    arguments = {"input_ids": [[1, 2]], "labels": [[1, 2]]} | change
    with pytest.raises(InputError, match=f"^{name}: expected"):
        loss_and_gradients(small, **arguments)
