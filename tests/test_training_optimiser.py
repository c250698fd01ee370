"""AdamW and clipping: step by step beside PyTorch's, in place, without copies."""

import tracemalloc

import numpy as np
import pytest
from tolerances import tolerance

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.errors import InputError
from mamba_np.training import AdamW, clip_by_global_norm, decays, global_norm
from mamba_np.training.optimiser import BLOCK

SHAPES = {"backbone.layers.0.mixer.in_proj.weight": (7, 5), "backbone.layers.0.mixer.A_log": (9, 3)}
SHAPES["backbone.layers.0.mixer.conv1d.weight"] = (6, 1, 4)
TINY = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4}


def draw(rng, dtype, scale=1.0):
    return {
        name: (rng.standard_normal(shape) * scale).astype(dtype) for name, shape in SHAPES.items()
    }


def their_adamw(arrays, **options):
    """Return PyTorch's optimiser of copies of the arrays, and the copies by name."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
    decay = options.pop("weight_decay")
    groups = [
        {"params": [tensor], "weight_decay": decay if decays(name) else 0.0}
        for name, tensor in tensors.items()
    ]
    return torch.optim.AdamW(groups, **options), tensors


def their_step(optimizer, tensors, gradients, lr):
    torch = pytest.importorskip("torch")
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(gradients[name])
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


FREE_RUNNING = tolerance("optimiser", "float64")
ONE_STEP = tolerance("optimiser", "float32")
NORM = tolerance("norm", "float64")


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"eps": 0.1, "betas": (0.5, 0.9)}])
def test_float64_is_torchs_step_by_step(rng, options):
    options = {"weight_decay": 0.0, "lr": 1e-3} | options
    arrays = draw(rng, np.float64)
    optimizer, tensors = their_adamw(arrays, **options)
    ours = AdamW(arrays, **options)
    for step in range(60):
        lr, gradients = 1e-2 * (1 + step % 7), draw(rng, np.float64, 10.0 ** -(step % 9))
        ours.update(gradients, lr)
        their_step(optimizer, tensors, gradients, lr)
        for name, tensor in tensors.items():
            expected = tensor.detach().numpy()
            assert np.abs(arrays[name] - expected).max() <= FREE_RUNNING * np.abs(expected).max()
            for moment in ("exp_avg", "exp_avg_sq"):
                theirs = optimizer.state[tensor][moment].numpy()
                found = getattr(ours, moment)[name]
                assert np.abs(found - theirs).max() <= FREE_RUNNING * np.abs(theirs).max()
    assert ours.step == 60


def test_float32_is_torchs_to_a_rounding(rng):
    arrays = draw(rng, np.float32)
    optimizer, tensors = their_adamw(arrays, weight_decay=0.1)
    ours = AdamW(arrays, weight_decay=0.1)
    for step in range(30):
        gradients = draw(rng, np.float32, 10.0 ** -(step % 9))
        kept = [arrays, ours.exp_avg, ours.exp_avg_sq]
        before = [{name: array.copy() for name, array in some.items()} for some in kept]
        ours.update(gradients, 1e-2)
        their_step(optimizer, tensors, gradients, 1e-2)
        for name, tensor in tensors.items():
            moments = [optimizer.state[tensor][moment] for moment in ("exp_avg", "exp_avg_sq")]
            for some, old, theirs in zip(kept, before, [tensor.detach(), *moments], strict=True):
                expected, found = theirs.numpy(), some[name]
                assert found.dtype == np.float32
                scale = np.maximum(np.abs(expected), np.abs(old[name]))
                assert (np.abs(found - expected) <= ONE_STEP * scale).all()
                found[...] = expected  # the next step begins with the same numbers


def test_blocks_do_not_show(rng):
    many = rng.standard_normal(2 * BLOCK + 17)
    gradient = rng.standard_normal(many.shape)
    parts = {f"{i}": part.copy() for i, part in enumerate(np.array_split(many, 7))}
    whole = {"all": many}
    of_whole, of_parts = AdamW(whole, weight_decay=0.1), AdamW(parts, weight_decay=0.1)
    for _ in range(3):
        of_whole.update({"all": gradient})
        of_parts.update({f"{i}": part for i, part in enumerate(np.array_split(gradient, 7))})
    assert np.array_equal(np.concatenate(list(parts.values())), many)


def test_an_update_takes_no_memory_to_speak_of(rng):
    parameter = {"w": rng.standard_normal((2000, 1000), np.float32)}
    gradient = {"w": rng.standard_normal((2000, 1000), np.float32)}
    optimiser = AdamW(parameter, weight_decay=0.1)
    optimiser.update(gradient)
    tracemalloc.start()
    optimiser.update(gradient)
    clip_by_global_norm(gradient, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 8 * BLOCK < gradient["w"].nbytes / 8


def test_state_dict_leads_into_the_model(rng):
    config = MambaConfig(**TINY, use_bias=True)
    model = MambaForCausalLM(config, rng=0, backend="cpu").make_writeable()
    ids = rng.integers(13, size=(2, 6))
    optimiser = AdamW(model.state_dict(), lr=0.1, weight_decay=0.1)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    logits = model(ids).logits
    ones = {name: np.ones_like(array) for name, array in before.items()}
    optimiser.update(ones)
    for name, array in model.state_dict().items():
        assert np.abs(array - before[name]).min() > 0.05, name
    layer = model.params.layers[1]
    assert np.shares_memory(
        layer.conv, optimiser.parameters["backbone.layers.1.mixer.conv1d.weight"]
    )
    assert model.lm_head is model.params.embeddings
    # The compiled backend keeps nothing of the weights as they were.
    fresh = MambaForCausalLM(config, params=model.params, backend="cpu")
    assert np.array_equal(model(ids).logits, fresh(ids).logits)
    assert not np.allclose(model(ids).logits, logits)


def test_what_decays():
    config = MambaConfig(**TINY, use_bias=True, tie_word_embeddings=False)
    names = MambaForCausalLM(config, rng=0).state_dict()
    layer = "backbone.layers.1."
    assert {name for name in names if decays(name) and "layers.0." not in name} == {
        "backbone.embeddings.weight",
        "lm_head.weight",
        f"{layer}mixer.in_proj.weight",
        f"{layer}mixer.conv1d.weight",
        f"{layer}mixer.x_proj.weight",
        f"{layer}mixer.dt_proj.weight",
        f"{layer}mixer.out_proj.weight",
    }
    bare = "backbone."
    assert [decays(n.removeprefix(bare)) for n in names] == [decays(n) for n in names]


def test_no_decay_may_be_chosen():
    arrays = {"a": np.ones(3), "b": np.ones(3)}
    zeros = {name: np.zeros(3) for name in arrays}
    AdamW(arrays, lr=0.1, weight_decay=0.5, no_decay=["b"]).update(zeros)
    assert arrays["a"].tolist() == [0.95] * 3
    assert arrays["b"].tolist() == [1.0] * 3


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e3])
def test_clipping_is_torchs(rng, max_norm):
    torch = pytest.importorskip("torch")
    gradients = draw(rng, np.float64)
    tensors = {name: torch.zeros(SHAPES[name], dtype=torch.float64) for name in gradients}
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(gradients[name])
    theirs = torch.nn.utils.clip_grad_norm_(tensors.values(), max_norm).item()
    assert clip_by_global_norm(gradients, max_norm) == pytest.approx(theirs, rel=NORM)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(gradients[name], tensor.grad.numpy(), rtol=NORM)


def test_gradients_within_the_norm_are_left_as_they_are(rng):
    gradients = draw(rng, np.float32)
    before = {name: g.copy() for name, g in gradients.items()}
    clip_by_global_norm(gradients, 1e3)
    assert all(np.array_equal(gradients[name], before[name]) for name in before)


def test_the_norm_is_the_same_in_every_order(rng):
    gradients = {f"{i}": rng.standard_normal(50) for i in range(40)}
    orders = [rng.permutation(list(gradients)) for _ in range(10)]
    assert len({global_norm({name: gradients[name] for name in order}) for order in orders}) == 1


def test_the_norm_is_summed_in_float64():
    tiny = np.full(2**20, 1e-4, np.float32)
    gradients = {"large": np.full(1, 1e3, np.float32), "tiny": tiny, "huge": np.zeros(0)}
    exact = np.sqrt(1e6 + 2**20 * float(tiny[0]) ** 2)
    assert global_norm(gradients) == pytest.approx(exact, rel=NORM)
    assert global_norm({"g": np.full(3, 1e30, np.float32)}) == pytest.approx(
        3**0.5 * float(np.float32(1e30)), rel=NORM
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_spreads_as_in_torch(bad):
    torch = pytest.importorskip("torch")
    gradients = {"a": np.array([bad, 1.0]), "b": np.ones(2)}
    tensors = [torch.zeros(2, dtype=torch.float64) for _ in gradients]
    for tensor, gradient in zip(tensors, gradients.values(), strict=True):
        tensor.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_(tensors, 1.0)
    assert not np.isfinite(clip_by_global_norm(gradients, 1.0))
    for tensor, gradient in zip(tensors, gradients.values(), strict=True):
        np.testing.assert_array_equal(gradient, tensor.grad.numpy())


def read_only():
    return np.frombuffer(bytes(24))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parameters": {"w": np.zeros(3, np.float16)}}, "w: expected .* found float16; load"),
        ({"parameters": {"w": [1.0]}}, r"w: expected an array .* found \[1.0\]"),
        ({"parameters": {"w": read_only()}}, "w: .* read-only one; call model.make_writeable"),
        ({"parameters": {"w": np.zeros((4, 3)).T}}, "w: expected an array in C order"),
        ({"lr": -1}, "lr: .* found -1"),
        ({"eps": "small"}, "eps: .* found 'small'"),
        ({"weight_decay": np.inf}, "weight_decay: .* found inf"),
        ({"betas": (0.9, 1)}, "betas: .* found 1"),
        ({"betas": 0.9}, "betas: expected two numbers, found 0.9"),
        ({"no_decay": ["v"]}, "no_decay: expected names of parameters, found 'v'"),
        ({"no_decay": "v"}, "no_decay: expected names of parameters, found 'v'"),
    ],
)
def test_what_cannot_be_optimised_is_refused_by_name(arguments, words):
    with pytest.raises(InputError, match=words):
        AdamW(**{"parameters": {"w": np.zeros(3)}} | arguments)


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        ({"v": np.ones(3)}, r"gradients: w: expected float64 of shape \(3,\), found none"),
        ({"v": np.ones(3), "w": np.ones(4)}, r"found float64 of shape \(4,\)"),
        ({"v": np.ones(3), "w": np.ones(3, np.float32)}, r"found float32 of shape \(3,\)"),
    ],
)
def test_gradients_that_do_not_fit_change_nothing(gradients, words):
    arrays = {"v": np.zeros(3), "w": np.zeros(3)}
    optimiser = AdamW(arrays)
    with pytest.raises(InputError, match=words):
        optimiser.update(gradients)
    assert optimiser.step == 0
    assert not any(a.any() for a in [*arrays.values(), *optimiser.exp_avg.values()])
