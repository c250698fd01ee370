"""LoRA adapters: PEFT's numbers, PEFT's files, and everything that can be wrong with them."""

import enum
import json
import shutil
import warnings

import fake_hub
import forge
import ml_dtypes
import numpy as np
import pytest
from differences import slope
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tolerances import TOLERANCES, assert_close_to_scale, error_to_scale, tolerance

from mamba_np import GenerationConfig, MambaConfig, MambaForCausalLM, MambaModel, score
from mamba_np.errors import (
    CacheError,
    CheckpointError,
    ConfigError,
    FileMissingError,
    InputError,
    MambaError,
    NonFiniteError,
    UnsafeFileError,
    UnsupportedModelError,
)
from mamba_np.interventions import ScaleDelta
from mamba_np.lora import (
    LoraConfig,
    PeftModel,
    count_trainable,
    get_peft_model,
    lora_loss_and_gradients,
)
from mamba_np.params import convert
from mamba_np.training import AdamW, training_step

NAME = "lora_seed_targets"
PAGE = {
    "r": 8,
    "target_modules": ["x_proj", "embeddings", "in_proj", "out_proj"],
    "task_type": "CAUSAL_LM",
    "bias": "none",
}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
A0 = f"{PREFIX}backbone.layers.0.mixer.in_proj.lora_A.weight"
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


@pytest.fixture
def adapter_path(fixtures_path):
    return fixtures_path / "lora" / NAME


@pytest.fixture
def load(model_path, adapter_path):
    """A function that joins the reference model and its adapter."""

    def load(dtype="float64", **options):
        model = MambaForCausalLM.from_pretrained(model_path("base_silu"), dtype=dtype)
        return PeftModel.from_pretrained(model, adapter_path, **options)

    return load


def small(tie=True, dtype="float64", **options):
    config = MambaConfig(**forge.CONFIG | {"tie_word_embeddings": tie})
    return MambaForCausalLM(config, rng=1, dtype=dtype, **options)


def changed(model, rng, **options):
    """Return a model with an adapter of which no factor is zero."""
    peft_model = get_peft_model(model, LoraConfig(**PAGE | {"r": 2} | options), rng=rng)
    for array in peft_model.trainable().values():
        array += 0.1 * rng.standard_normal(array.shape)
    return peft_model


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_and_loss_are_those_of_peft(load, refs, dtype):
    expected, peft_model = refs(NAME), load(dtype)
    rtol = tolerance("model", dtype)
    output = peft_model(expected["in.input_ids"], labels=expected["in.labels"])
    assert output.logits.dtype == dtype
    assert_close_to_scale(output.logits, expected["f64.logits_adapter"], rtol, "adapter")
    assert abs(output.loss - expected["f64.loss_adapter"]) <= rtol * expected["f64.loss_adapter"]
    with peft_model.disable_adapter():
        base = peft_model(expected["in.input_ids"]).logits
    assert_close_to_scale(base, expected["f64.logits_base"], rtol, "base")
    again = peft_model(expected["in.input_ids"]).logits
    np.testing.assert_array_equal(again, output.logits)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_merge_into_a_tied_matrix_is_that_of_peft_and_warns(load, refs, dtype):
    expected, peft_model = refs(NAME), load(dtype)
    with pytest.warns(UserWarning, match="untie=True"):
        merged = peft_model.merge_and_unload()
    assert merged.params.tied
    assert merged.config.tie_word_embeddings
    rtol = tolerance("model", dtype)
    logits = merged(expected["in.input_ids"]).logits
    assert_close_to_scale(logits, expected["f64.logits_merged"], rtol, "merged")
    # What the warning is about.
    assert error_to_scale(logits, expected["f64.logits_adapter"]) > 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_untied_merge_keeps_the_logits(load, refs, dtype):
    expected, peft_model = refs(NAME), load(dtype)
    merged = peft_model.merge_and_unload(untie=True)
    assert not merged.params.tied
    assert not merged.config.tie_word_embeddings
    logits = merged(expected["in.input_ids"]).logits
    rtol = tolerance("model", dtype)
    assert_close_to_scale(logits, expected["f64.logits_adapter"], rtol, "merged")


@pytest.mark.parametrize("untie", [False, True])
def test_a_merged_model_is_saved_and_loaded(load, refs, tmp_path, untie):
    ids = refs(NAME)["in.input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = load("float32").merge_and_unload(untie=untie)
    merged.save_pretrained(tmp_path)
    found = MambaForCausalLM.from_pretrained(tmp_path)
    assert found.params.tied != untie
    for (name, a), (other, b) in zip(
        merged.state_dict().items(), found.state_dict().items(), strict=True
    ):
        assert name == other
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found(ids).logits, merged(ids).logits)


def test_no_warning_where_merging_changes_nothing(rng):
    without = changed(small(), rng, target_modules=["in_proj"])
    untied = changed(small(tie=False), rng)
    for peft_model in (without, untied):
        merged = peft_model.merge_and_unload()
        assert_close_to_scale(
            merged(IDS).logits, peft_model(IDS).logits, tolerance("law", "float64")
        )


def test_the_base_is_left_alone(load, model_path):
    peft_model = load("float32")
    before = {k: a.copy() for k, a in peft_model.base_model.state_dict().items()}
    peft_model.merge_and_unload(untie=True)
    peft_model.generate([[1, 2]], max_new_tokens=2)
    assert peft_model.get_base_model() is peft_model.base_model
    for name, array in peft_model.base_model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def by_hand(model, peft_model):
    """Return the logits of an adapted model by the definition: W + scaling * B @ A, by loops."""
    config, arrays = peft_model.active_peft_config, peft_model.state_dict()
    state = {k: a.astype(np.float64) for k, a in model.state_dict().items()}
    head = state.get("lm_head.weight", state["backbone.embeddings.weight"]).copy()
    for name, a in arrays.items():
        if not name.endswith(("lora_A.weight", "lora_embedding_A")):
            continue
        b = arrays[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        module = name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]
        change = config.scaling(module) * np.einsum("or,ri->oi", b, a)
        state[f"{module}.weight"] += change.T if "embedding" in name else change
        head = state["lm_head.weight"] if module == "lm_head" else head
    folder_config = MambaConfig(**model.config.to_dict() | {"tie_word_embeddings": False})
    changed_model = MambaForCausalLM(folder_config, dtype="float64")
    for name, array in changed_model.state_dict().items():
        array[...] = head if name == "lm_head.weight" else state[name]
    return changed_model(IDS).logits


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 3, "use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.1\.mixer\.(in|x)_proj"},
        {"rank_pattern": {"in_proj": 3, "1.mixer.out_proj": 1}, "alpha_pattern": {"x_proj": 1}},
        {"target_modules": ["layers.0.mixer.in_proj", "embeddings"]},
    ],
)
def test_options_do_what_they_say(rng, tie, options):
    model = small(tie)
    peft_model = changed(model, rng, **options)
    rtol = tolerance("law", "float64")
    assert_close_to_scale(peft_model(IDS).logits, by_hand(model, peft_model), rtol)


def test_an_untied_head_can_be_adapted(rng):
    model = small(tie=False)
    peft_model = changed(model, rng, target_modules=["lm_head", "embeddings"])
    rtol = tolerance("law", "float64")
    assert_close_to_scale(peft_model(IDS).logits, by_hand(model, peft_model), rtol)
    merged = peft_model.merge_and_unload()
    assert_close_to_scale(merged(IDS).logits, peft_model(IDS).logits, rtol)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_changes_of_narrow_weights_are_not_lost(rng, dtype):
    model = small(dtype=dtype)
    peft_model = changed(model, rng)
    assert {a.dtype for a in peft_model.state_dict().values()} == {np.dtype("float32")}
    assert peft_model.effective.dtype == np.float32
    for name, array in peft_model.effective.state_dict().items():
        if name.endswith("proj.weight"):  # an engine prepares read-only ones once
            assert not array.flags.writeable, name
    wide = by_hand(model, peft_model)
    assert_close_to_scale(peft_model(IDS).logits, wide, tolerance("law", "float32"))
    merged = peft_model.merge_and_unload(untie=True)
    assert {merged.dtype.name, merged.params.layers[0].in_proj.dtype.name} == {dtype}
    assert merged.params.layers[0].A_log.dtype == np.float32


def test_a_merge_that_overflows_is_refused(rng):
    peft_model = changed(small(dtype="float16"), rng, target_modules=["x_proj"])
    for array in peft_model.trainable().values():
        array *= 1000
    with pytest.raises(NonFiniteError, match=r"layers\.0\.mixer\.x_proj\.weight.*float16"):
        peft_model.merge_and_unload()


# --- gradients ----------------------------------------------------------------------------------


def test_every_gradient_is_that_of_pytorch(load, refs):
    expected, peft_model = refs(NAME), load()
    loss, gradients = lora_loss_and_gradients(
        peft_model, expected["in.input_ids"], expected["in.labels"]
    )
    rtol = TOLERANCES["model", "float64"]
    assert abs(loss - expected["f64.loss_adapter"]) <= rtol * expected["f64.loss_adapter"]
    assert gradients.keys() == peft_model.state_dict().keys()
    for name, gradient in gradients.items():
        reference = expected["f64.grad." + name.removeprefix(PREFIX)]
        rtol = TOLERANCES["gradient", "float64"]
        if reference.dtype == np.float32:
            rtol = TOLERANCES["rounded gradient", "float64"]
        assert_close_to_scale(gradient, reference, rtol, name)
    assert sum(key.startswith("f64.grad.") for key in expected) == len(gradients)


def test_float32_gradients(load, refs):
    expected, peft_model = refs(NAME), load("float32")
    _, gradients = lora_loss_and_gradients(
        peft_model, expected["in.input_ids"], expected["in.labels"]
    )
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float32
        reference = expected["f64.grad." + name.removeprefix(PREFIX)]
        assert_close_to_scale(gradient, reference, TOLERANCES["gradient", "float32"], name)


@pytest.mark.parametrize("tie", [True, False])
def test_gradients_against_differences(rng, tie):
    modules = [*PAGE["target_modules"], *([] if tie else ["lm_head"])]
    peft_model = changed(small(tie), rng, target_modules=modules, use_rslora=True)
    mask = np.ones_like(IDS)
    mask[0, :3] = 0
    _, gradients = lora_loss_and_gradients(peft_model, IDS, IDS, mask)
    for name, array in peft_model.trainable().items():
        start, way = array.copy(), rng.standard_normal(array.shape)

        def loss(t, array=array, start=start, way=way):
            array[...] = start + t * way
            return float(peft_model(IDS, attention_mask=mask, labels=IDS).loss)

        expected = slope(loss, 1e-4)  # embeddings are small beside a random direction
        array[...] = start
        found, size = np.sum(gradients[name] * way), np.linalg.norm(gradients[name])
        assert abs(found - expected) <= TOLERANCES["difference", "float64"] * (size + 1), name


def test_some_steps_of_descent_lower_the_loss(rng):
    peft_model = get_peft_model(small(), LoraConfig(**PAGE), rng=0)
    losses = []
    for _ in range(8):
        loss, gradients = lora_loss_and_gradients(peft_model, IDS, IDS)
        losses.append(loss)
        for name, array in peft_model.trainable().items():
            array -= 0.3 * gradients[name]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05


def test_a_step_of_training_moves_the_adapter_alone(rng):
    peft_model = changed(small(), rng)
    before = {name: array.copy() for name, array in peft_model.state_dict().items()}
    base = {name: array.copy() for name, array in peft_model.base_model.state_dict().items()}
    optimiser, batch = AdamW(peft_model.trainable()), {"input_ids": IDS, "labels": IDS}
    losses = [
        training_step(peft_model, optimiser, [batch], 1e-2, gradients_of=lora_loss_and_gradients)
        for _ in range(5)
    ]
    assert losses[-1].loss < losses[0].loss
    for name, array in peft_model.state_dict().items():
        assert (array != before[name]).any(), name
    for name, array in peft_model.base_model.state_dict().items():
        np.testing.assert_array_equal(array, base[name])


def test_numbers_that_are_not_finite_are_found(rng):
    peft_model = changed(small(), rng)
    assert peft_model.find_non_finite() is None
    peft_model.trainable()[A0][0, 0] = np.nan
    assert peft_model.find_non_finite() == A0
    assert np.isnan(peft_model(IDS).logits).any()


def test_gradients_are_refused_where_they_would_mislead(rng):
    peft_model = changed(small(), rng, lora_dropout=0.1)
    peft_model(IDS)  # dropout is for training
    with pytest.raises(InputError, match=r"lora_dropout: expected 0 for training, found 0\.1"):
        lora_loss_and_gradients(peft_model, IDS, IDS)
    peft_model = changed(small(), rng)
    with peft_model.disable_adapter(), pytest.raises(InputError, match="disable_adapter"):
        lora_loss_and_gradients(peft_model, IDS, IDS)
    with pytest.raises(InputError, match="expected a PeftModel"):
        lora_loss_and_gradients(small(), IDS, IDS)


# --- the model follows its adapter --------------------------------------------------------------


def test_a_new_adapter_changes_nothing():
    model = small()
    for scheme in (True, "gaussian"):
        config = LoraConfig(**PAGE, init_lora_weights=scheme)
        peft_model = get_peft_model(model, config, rng=0)
        np.testing.assert_array_equal(peft_model(IDS).logits, model(IDS).logits)
    other = get_peft_model(model, LoraConfig(**PAGE, init_lora_weights=False), rng=0)
    assert error_to_scale(other(IDS).logits, model(IDS).logits) > 1e-3
    for name, array in other.state_dict().items():
        assert array.any(), name


def test_first_factors_have_pytorchs_distributions():
    config = MambaConfig(vocab_size=5000, hidden_size=400, num_hidden_layers=1)
    peft_model = get_peft_model(
        MambaForCausalLM(config, rng=0), LoraConfig(**PAGE | {"r": 50}), rng=0
    )
    arrays = peft_model.state_dict()
    a = arrays[f"{PREFIX}backbone.layers.0.mixer.in_proj.lora_A.weight"]
    assert a.shape == (50, 400)
    bound = 1 / np.sqrt(400)
    assert 0.99 * bound < np.abs(a).max() <= bound
    assert abs(a.std() - bound / np.sqrt(3)) < 0.02 * bound
    b = arrays[f"{PREFIX}backbone.embeddings.lora_embedding_B"]
    assert b.shape == (400, 50)
    assert abs(b.std() - 1) < 0.03
    assert abs(b.mean()) < 0.03
    for name, array in arrays.items():
        zero = name.endswith(("lora_B.weight", "lora_embedding_A"))
        assert (not array.any()) == zero


def test_the_same_seed_gives_the_same_adapter():
    one, two, other = (get_peft_model(small(), LoraConfig(**PAGE), rng=s) for s in (5, 5, 6))
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(array, two.state_dict()[name])
    assert any((array != other.state_dict()[n]).any() for n, array in one.state_dict().items())


def test_every_change_in_place_is_noticed(rng):
    peft_model = changed(small(), rng)
    assert peft_model.effective is peft_model.effective
    for name, array in peft_model.trainable().items():
        before, cache = peft_model(IDS).logits, peft_model.new_cache(2)
        array[0, 1] += 0.5
        assert (peft_model(IDS).logits != before).any(), name
        if "in_proj" in name and "layers.0" in name:
            with pytest.raises(CacheError):  # of the model as it was
                peft_model(IDS, cache_params=cache)


def test_the_adapted_model_can_be_intervened_in(rng):
    base = small()
    peft_model = changed(base, rng)
    before, of_base = peft_model(IDS).logits, base(IDS).logits
    with peft_model.intervene(ScaleDelta(0.5)) as inside:
        found = peft_model(IDS).logits
        assert inside is peft_model.effective
        np.testing.assert_array_equal(base(IDS).logits, of_base)
    with peft_model.merge_and_unload(untie=True).intervene(ScaleDelta(0.5)) as merged:
        assert_close_to_scale(found, merged(IDS).logits, tolerance("law", "float64"))
    assert error_to_scale(found, before) > 1000 * tolerance("law", "float64")
    np.testing.assert_array_equal(peft_model(IDS).logits, before)


def test_another_base_is_noticed(rng):
    peft_model = changed(small(), rng)
    before = peft_model(IDS).logits
    peft_model.base_model.make_writeable()
    peft_model.base_model.params.norm_f[...] *= 2
    assert (peft_model(IDS).logits != before).any()
    peft_model.base_model.resize_token_embeddings(20)
    with pytest.raises(InputError, match=r"embeddings.*expected shape \(11, 6\)"):
        peft_model(IDS)


def test_an_adapter_for_inference_cannot_be_changed(load):
    peft_model = load()
    with pytest.raises(InputError, match="is_trainable=True"):
        peft_model.trainable()
    for array in peft_model.state_dict().values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert peft_model.get_nb_trainable_parameters()[0] == 0
    trainable = load(is_trainable=True)
    for array in trainable.trainable().values():
        array[...] = 0
    ids = [[1, 2, 3]]
    np.testing.assert_array_equal(trainable(ids).logits, trainable.base_model(ids).logits)
    with pytest.raises(ValueError, match="read-only"):
        next(iter(trainable.state_dict().values()))[...] = 0


def test_generation_uses_the_adapter(load, tmp_path):
    peft_model = load("float32")
    merged = peft_model.merge_and_unload(untie=True)
    options = {"max_new_tokens": 12}
    found = peft_model.generate([[5, 6, 7]], **options)
    np.testing.assert_array_equal(found, merged.generate([[5, 6, 7]], **options))
    steps = [int(t[0]) for t in peft_model.stream([[5, 6, 7]], **options)]
    assert steps == found[0, 3:].tolist()
    with peft_model.disable_adapter():
        base = peft_model.generate([[5, 6, 7]], **options)
    assert base.tolist() == peft_model.base_model.generate([[5, 6, 7]], **options).tolist()
    assert base.tolist() != found.tolist()
    ids = np.arange(30)
    assert score(peft_model, [ids]) == score(merged, [ids])


def test_the_bases_defaults_for_generation_are_followed(rng):
    peft_model = changed(small(), rng)
    assert peft_model.generate([[1]], eos_token_id=None, max_new_tokens=3).shape == (1, 4)
    peft_model.base_model.generation_config = GenerationConfig(max_new_tokens=5, seed=1)
    assert peft_model.generate([[1]]).shape == (1, 6)


def test_adapters_come_on_again_after_an_error(rng):
    peft_model = changed(small(), rng)
    with pytest.raises(InputError), peft_model.disable_adapter():
        peft_model([[10**6]])
    assert not peft_model.disabled


# --- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "width", "expected"),
    [
        (24, 768, 1_898_304),
        (48, 1024, 4_379_456),
        (48, 1536, 6_361_920),
        (48, 2048, 8_344_384),
        (64, 2560, 13_628_224),
    ],
)
def test_trainable_parameters_of_the_published_models(layers, width, expected):
    config = MambaConfig(vocab_size=50280, hidden_size=width, num_hidden_layers=layers)
    assert count_trainable(config, LoraConfig(**PAGE)) == expected


def test_trainable_parameters_in_pefts_words(capsys):
    model = small()
    peft_model = get_peft_model(model, LoraConfig(**PAGE | {"r": 2}), rng=0)
    trainable = sum(a.size for a in peft_model.state_dict().values())
    total = trainable + model.num_parameters()
    assert peft_model.get_nb_trainable_parameters() == (trainable, total)
    assert count_trainable(model.config, peft_model.active_peft_config) == trainable
    peft_model.print_trainable_parameters()
    share = f"{100 * trainable / total:.4f}"
    assert capsys.readouterr().out == (
        f"trainable params: {trainable} || all params: {total:,} || trainable%: {share}\n"
    )
    assert repr(peft_model).startswith(f"PeftModel({trainable} of ")


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (None, "expected the names of modules, found None"),
        (["in_proj", "q_proj"], "'q_proj'"),
        (["q_proj"], "names no module"),
        (r".*\.attention", "names no module"),
        (["dt_proj", "in_proj"], r"layers\.0\.mixer\.dt_proj: .*without calling it"),
        (["conv1d"], "conv1d: cannot be adapted"),
        (["norm_f"], "norm_f: cannot be adapted"),
        (["lm_head"], "tie_word_embeddings"),
        (r"backbone\..*", "cannot be adapted"),
        ("(in_proj", "expected a regular expression"),
        ("(" * 50_000, "expected a regular expression"),
    ],
)
def test_targets_that_cannot_be(targets, text):
    with pytest.raises(ConfigError, match=text):
        get_peft_model(small(), LoraConfig(target_modules=targets))


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["in_proj"], 2),
        ("all-linear", 6),
        (["layers.1.mixer.in_proj"], 1),
        (["1.mixer.in_proj", "backbone.embeddings"], 2),
        (("in_proj", "x_proj"), 4),
        ({"in_proj", "x_proj"}, 4),
        (r"backbone\.layers\.\d\.mixer\.in_proj", 2),
        (r".*(embeddings|out_proj)", 3),
    ],
)
def test_targets_by_name_and_by_expression(targets, count):
    peft_model = get_peft_model(small(), LoraConfig(target_modules=targets), rng=0)
    assert len(peft_model.targets) == count
    assert len(peft_model.state_dict()) == 2 * count


@pytest.mark.parametrize("model", [None, "base_silu"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InputError, match="expected a MambaForCausalLM"):
        get_peft_model(model, LoraConfig(**PAGE))


def test_models_that_cannot_be_adapted(adapter_path):
    with pytest.raises(InputError, match="expected a MambaForCausalLM"):
        get_peft_model(MambaModel(small().config), LoraConfig(**PAGE))
    with pytest.raises(InputError, match="found int8"):
        get_peft_model(small(dtype="int8"), LoraConfig(**PAGE))
    with pytest.raises(InputError, match="found int8"):
        PeftModel.from_pretrained(small(dtype="int8"), adapter_path)
    with pytest.raises(InputError, match="expected a LoraConfig"):
        get_peft_model(small(), PAGE)


# --- configuration ------------------------------------------------------------------------------


def test_defaults_are_those_of_peft():
    config = LoraConfig()
    assert config.to_dict() == {
        "peft_type": "LORA",
        "r": 8,
        "target_modules": None,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "task_type": None,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": False,
        "base_model_name_or_path": None,
    }
    assert LoraConfig(**PAGE).scaling("backbone.embeddings") == 1


def test_a_task_type_may_be_pefts_enumeration():
    kind = enum.Enum("TaskType", {"CAUSAL_LM": "CAUSAL_LM"}, type=str)
    assert json.dumps(LoraConfig(task_type=kind.CAUSAL_LM).to_dict()["task_type"]) == '"CAUSAL_LM"'
    assert type(LoraConfig(task_type=kind.CAUSAL_LM).task_type) is str


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"use_dora": True}, "'use_dora'.*not supported.*found True"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"bias": "all"}, "bias: expected one of none, found 'all'"),
        ({"task_type": "SEQ_CLS"}, "task_type: expected one of CAUSAL_LM"),
        ({"r": 0}, "r: expected an integer from 1"),
        ({"r": 2.5}, "r: expected an integer"),
        ({"lora_alpha": "big"}, "lora_alpha: expected a finite number"),
        ({"lora_dropout": 1.5}, "lora_dropout: .*at most 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": 7}, "target_modules"),
        ({"target_modules": ["a"] * 1001}, "at most 1000 module names.*found a list of 1001"),
        ({"rank_pattern": dict.fromkeys(map(str, range(1001)), 1)}, "at most 1000 names"),
        ({"rank_pattern": ["in_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"in_proj": 0}}, r"rank_pattern\['in_proj'\]: expected an integer"),
        ({"alpha_pattern": {"in_proj": None}}, r"alpha_pattern\['in_proj'\]"),
    ],
)
def test_options_that_cannot_be(options, text):
    with pytest.raises(ConfigError, match=text):
        LoraConfig(**options)


def test_unknown_options_that_are_off_are_kept(tmp_path, adapter_path):
    config = LoraConfig.from_pretrained(adapter_path)
    assert config.extra["use_dora"] is False
    assert config.extra["megatron_core"] == "megatron.core"
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text()) == json.loads(
        (adapter_path / CONFIG).read_text()
    )
    assert LoraConfig.from_pretrained(tmp_path) == config
    assert LoraConfig.from_pretrained(tmp_path, r=16).r == 16


@pytest.mark.parametrize("found", ["IA3", None, ["LORA"]])
def test_other_kinds_of_adapters(found):
    with pytest.raises(UnsupportedModelError, match="peft_type: expected 'LORA'"):
        LoraConfig.from_dict({"peft_type": found, "r": 8})
    with pytest.raises(ConfigError, match="expected a dictionary"):
        LoraConfig.from_dict([found])


def test_scaling_and_ranks():
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={"in_proj": 9, r"^backbone.layers.1.mixer.x_proj": 2},
        alpha_pattern={r"layers\.[13]\.mixer\.in_proj": 18},
    )
    assert config.scaling("backbone.embeddings") == 1.5
    assert config.rank("backbone.layers.0.mixer.in_proj") == 9
    assert config.scaling("backbone.layers.1.mixer.in_proj") == 2
    assert config.rank("backbone.layers.1.mixer.x_proj") == 2
    assert config.rank("backbone.layers.0.mixer.x_proj") == 4
    rs = LoraConfig(**config.to_dict() | {"use_rslora": True})
    assert rs.scaling("backbone.embeddings") == 3
    assert rs.scaling("backbone.layers.1.mixer.in_proj") == 6


# --- files --------------------------------------------------------------------------------------


def test_an_adapter_of_peft_is_written_as_it_was(load, adapter_path, tmp_path):
    load("float32").save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (adapter_path / WEIGHTS).read_bytes().rstrip()
    before, after = (json.loads((f / CONFIG).read_text()) for f in (adapter_path, tmp_path))
    assert after == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS, "README.md"])


def test_a_new_adapter_has_pefts_names_shapes_and_dtypes(tmp_path, rng):
    peft_model = changed(small(dtype="float32"), rng)
    peft_model.save_pretrained(tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    found = load_file(tmp_path / WEIGHTS)
    V, D, E, R, N = forge.V, forge.D, forge.E, forge.R, forge.N
    expected = {
        f"{PREFIX}backbone.embeddings.lora_embedding_A": (2, V),
        f"{PREFIX}backbone.embeddings.lora_embedding_B": (D, 2),
    }
    for i in range(2):
        mixer = f"{PREFIX}backbone.layers.{i}.mixer"
        for name, O, I in (  # noqa: E741
            ("in_proj", 2 * E, D),
            ("x_proj", R + 2 * N, E),
            ("out_proj", D, E),
        ):
            expected[f"{mixer}.{name}.lora_A.weight"] = (2, I)
            expected[f"{mixer}.{name}.lora_B.weight"] = (O, 2)
    assert {k: a.shape for k, a in found.items()} == expected
    assert {a.dtype.name for a in found.values()} == {"float32"}
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["inference_mode"]) == ("LORA", 2, True)
    assert config["target_modules"] == PAGE["target_modules"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "targets", [PAGE["target_modules"], "all-linear", r".*\.0\.mixer\.(in|x)_proj"]
)
def test_files_come_back_as_they_were(tmp_path, rng, dtype, targets):
    peft_model = changed(small(dtype=dtype), rng, target_modules=targets)
    peft_model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(small(dtype=dtype), tmp_path / "a", is_trainable=True)
    assert again.targets == peft_model.targets
    np.testing.assert_array_equal(again(IDS).logits, peft_model(IDS).logits)
    again.save_pretrained(tmp_path / "b")
    again.save_pretrained(tmp_path / "a")  # over the files that it came from
    for name in (WEIGHTS, CONFIG, "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_adapters_in_other_dtypes_are_read(tmp_path, rng, dtype):
    peft_model = changed(small(dtype="float32"), rng)
    peft_model.save_pretrained(tmp_path)
    tensors = {k: a.astype(dtype) for k, a in peft_model.state_dict().items()}
    save_file(tensors, tmp_path / WEIGHTS)
    found = PeftModel.from_pretrained(small(dtype="float32"), tmp_path).state_dict()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name].astype(np.float32))


def test_pickled_adapters_are_read_without_running_anything(tmp_path, rng):
    torch = pytest.importorskip("torch")
    peft_model = changed(small(dtype="float32"), rng)
    peft_model.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    tensors = {k: torch.from_numpy(a.copy()) for k, a in peft_model.state_dict().items()}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    found = PeftModel.from_pretrained(small(dtype="float32"), tmp_path)
    for name, array in peft_model.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], array)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_pefts_copy_of_an_adapted_head_is_compared_and_not_used(tmp_path, rng, stored):
    model = small(tie=False, dtype="float32")
    if stored == "bfloat16":
        model = MambaForCausalLM(model.config, params=convert(model.params, stored))
    peft_model = changed(model, rng, target_modules=["lm_head", "in_proj"])
    peft_model.save_pretrained(tmp_path)
    tensors = {k: a.copy() for k, a in peft_model.state_dict().items()}
    copy = model.lm_head.astype(np.float32)  # PEFT writes it where lm_head is a target
    save_file(tensors | {f"{PREFIX}lm_head.base_layer.weight": copy}, tmp_path / WEIGHTS)
    found = PeftModel.from_pretrained(model, tmp_path)
    assert found.state_dict().keys() == tensors.keys()
    np.testing.assert_array_equal(found(IDS).logits, peft_model(IDS).logits)


def test_the_model_card(tmp_path, rng, model_path):
    model = MambaForCausalLM.from_pretrained(model_path("base_silu"))
    peft_model = get_peft_model(model, LoraConfig(**PAGE), rng=rng)
    base = peft_model.active_peft_config.base_model_name_or_path
    assert base == str(model_path("base_silu"))
    peft_model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert card.startswith(f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\n")
    (tmp_path / "README.md").write_text("mine", "utf-8")
    peft_model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == "mine"
    assert LoraConfig.from_pretrained(tmp_path).base_model_name_or_path == base


def test_an_adapter_of_the_hub(tmp_path, adapter_path, model_path):
    fake_hub.publish(tmp_path / "cache", "me/adapter", adapter_path)
    printed = fake_hub.run_offline(
        f"""
from mamba_np import MambaForCausalLM
from mamba_np.lora import PeftModel
model = MambaForCausalLM.from_pretrained({str(model_path("base_silu"))!r})
print(len(PeftModel.from_pretrained(model, "me/adapter", revision="main").state_dict()))
""",
        tmp_path / "cache",
        tmp_path,
    )
    assert printed == "20\n"


def test_unknown_arguments(load):
    with pytest.raises(TypeError, match="unexpected arguments: adapter_name"):
        load(adapter_name="x")


# --- what PEFT's "all-linear" adds ---------------------------------------------------------------


def add_inert(tensors, config):
    """Add an adapter of dt_proj as it is before the first step, and stays in transformers."""
    config["target_modules"].append("dt_proj")
    for i in range(2):
        mixer = f"{PREFIX}backbone.layers.{i}.mixer.dt_proj."
        tensors[f"{mixer}lora_A.weight"] = np.full((2, forge.R), 0.5, np.float32)
        tensors[f"{mixer}lora_B.weight"] = np.zeros((forge.E, 2), np.float32)


def test_an_adapter_of_dt_proj_that_changes_nothing_is_kept(adapter, tmp_path):
    folder, tensors, config = adapter
    model = small(dtype="float32")
    before = PeftModel.from_pretrained(model, folder)
    add_inert(tensors, config)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    found = PeftModel.from_pretrained(model, folder)
    np.testing.assert_array_equal(found(IDS).logits, before(IDS).logits)
    found.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == tensors.keys()
    merged = found.merge_and_unload(untie=True).params
    np.testing.assert_array_equal(merged.layers[1].dt_proj, model.params.layers[1].dt_proj)
    with pytest.raises(ConfigError, match=r"is_trainable: expected False for .*0\.mixer\.dt_proj"):
        PeftModel.from_pretrained(model, folder, is_trainable=True)


PEFTS_LOGITS = [-5.5270338, -7.7249088, -6.5609469, -7.1901960, -5.5300550, 1.8922122]
"""By PEFT 0.21.2 and transformers 5.23.0, of the adapter below. They are the same whatever numbers
dt_proj's lora_B has, which gets no gradient either; merged, the first is -5.2330003 with others."""


def test_logits_with_dt_proj_are_those_of_peft(model_path, tmp_path):
    rng, tensors = np.random.default_rng(5), {}
    sizes = {"in_proj": (64, 256), "x_proj": (128, 36), "dt_proj": (4, 128)}
    for i in range(3):
        for name, (inputs, outputs) in sizes.items():
            module = f"{PREFIX}backbone.layers.{i}.mixer.{name}"
            for letter, shape in (("A", (2, inputs)), ("B", (outputs, 2))):
                factor = (0.2 * rng.standard_normal(shape)).astype(np.float32)
                factor *= (name, letter) != ("dt_proj", "B")
                tensors[f"{module}.lora_{letter}.weight"] = factor
    save_file(tensors, tmp_path / WEIGHTS)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=[*sizes])
    config.save_pretrained(tmp_path)
    model = MambaForCausalLM.from_pretrained(model_path("base_silu"))
    logits = PeftModel.from_pretrained(model, tmp_path)([[3, 1, 4, 1, 5, 9, 2, 6]]).logits[0, -1]
    assert_close_to_scale(logits[:6], PEFTS_LOGITS, tolerance("model", "float32"))


def test_all_linear_is_written_as_names(tmp_path):
    # PEFT, reading "all-linear", would look for dt_proj.
    mine = LoraConfig(target_modules="all-linear")
    get_peft_model(small(), mine, rng=0).save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())["target_modules"]
    assert written == ["in_proj", "x_proj", "out_proj"]
    assert mine.target_modules == "all-linear"


# --- bad files ----------------------------------------------------------------------------------
BAD = {}


def bad(kind, *parts):
    """Register a function of (folder, tensors, config) that damages a sound adapter."""

    def register(damage):
        BAD[damage.__name__] = (damage, kind, parts)
        return damage

    return register


@bad(CheckpointError, A0, "expected shape (2, 6), found no such tensor")
def a_tensor_missing(folder, tensors, config):
    del tensors[A0]


@bad(CheckpointError, A0, "expected shape (2, 6)", "found (6, 2)")
def a_transposed_tensor(folder, tensors, config):
    tensors[A0] = np.ascontiguousarray(tensors[A0].T)


@bad(CheckpointError, "expected shape (3,", "rank_pattern", CONFIG)
def another_rank(folder, tensors, config):
    config["r"] = 3


@bad(CheckpointError, A0, "expected shape (1, 6)")
def another_rank_of_one_module(folder, tensors, config):
    config["rank_pattern"] = {"layers.0.mixer.in_proj": 1}


@bad(CheckpointError, "expected one of the dtypes", "I32")
def a_tensor_of_integers(folder, tensors, config):
    tensors[A0] = tensors[A0].astype(np.int32)


@bad(CheckpointError, "layers.7", "a model of 2 layers", "found another tensor")
def a_layer_that_is_not_there(folder, tensors, config):
    tensors[A0.replace("layers.0", "layers.7")] = tensors[A0]


@bad(CheckpointError, "lora_magnitude_vector", "found another tensor")
def a_tensor_of_another_method(folder, tensors, config):
    tensors[A0.replace("lora_A.weight", "lora_magnitude_vector")] = np.ones(24, np.float32)


@bad(CheckpointError, "'in_proj'", "found another tensor")
def a_name_of_nothing(folder, tensors, config):
    tensors["in_proj"] = tensors[A0]


@bad(NonFiniteError, A0, "found NaN or infinity")
def nan(folder, tensors, config):
    tensors[A0][1, 1] = np.nan


@bad(NonFiniteError, A0, "found NaN or infinity")
def infinity(folder, tensors, config):
    tensors[A0][1, 1] = np.inf


@bad(UnsupportedModelError, CONFIG, "peft_type: expected 'LORA', found 'IA3'")
def not_a_lora(folder, tensors, config):
    config["peft_type"] = "IA3"


@bad(UnsupportedModelError, CONFIG, "peft_type: expected 'LORA', found None")
def no_kind(folder, tensors, config):
    del config["peft_type"]


@bad(ConfigError, CONFIG, "'use_dora'", "not supported")
def another_method(folder, tensors, config):
    config["use_dora"] = True


@bad(UnsupportedModelError, "1.mixer.dt_proj.lora_B", "expected zeros", "do nothing there")
def an_adapter_that_counts_only_once_it_is_merged(folder, tensors, config):
    add_inert(tensors, config)
    tensors[f"{PREFIX}backbone.layers.1.mixer.dt_proj.lora_B.weight"][3, 1] = 1e-9


@bad(CheckpointError, "0.mixer.dt_proj.lora_A", "found no such tensor")
def an_adapter_of_dt_proj_without_numbers(folder, tensors, config):
    config["target_modules"].append("dt_proj")


@bad(ConfigError, CONFIG, "tie_word_embeddings")
def a_tied_head(folder, tensors, config):
    config["target_modules"].append("lm_head")


@bad(CheckpointError, "embeddings.base_layer.weight", "found others")
def embeddings_of_another_model(folder, tensors, config):
    tensors[f"{PREFIX}backbone.embeddings.base_layer.weight"] = np.ones((11, 6), np.float32)


@bad(CheckpointError, "embeddings.base_layer.weight", "expected shape (11, 6)", "found (12, 6)")
def embeddings_of_another_vocabulary(folder, tensors, config):
    tensors[f"{PREFIX}backbone.embeddings.base_layer.weight"] = np.ones((12, 6), np.float32)


@bad(CheckpointError, "in_proj.base_layer.weight", "found another tensor")
def a_matrix_that_peft_never_copies(folder, tensors, config):
    tensors[A0.replace("lora_A", "base_layer")] = tensors[A0]


@bad(CheckpointError, "found another tensor")
def fewer_targets_than_tensors(folder, tensors, config):
    config["target_modules"] = ["in_proj"]


@bad(ConfigError, CONFIG, "rank_pattern: expected names of modules")
def an_expression_that_never_ends(folder, tensors, config):
    config["rank_pattern"] = {"(a|a)*" * 30 + "x": 4}


@bad(ConfigError, "target_modules", "names no module")
def targets_of_another_architecture(folder, tensors, config):
    config["target_modules"] = ["q_proj", "v_proj"]


@bad(CheckpointError, "lora_B.weight", "found no such tensor")
def a_factor_missing_from_an_expression(folder, tensors, config):
    config["target_modules"] = "(a|a)*" * 30 + "x"  # never run: the tensors tell
    del tensors[A0.replace("lora_A", "lora_B")]


@bad(ConfigError, "r: expected an integer from 1")
def no_rank(folder, tensors, config):
    config["r"] = 0


@pytest.fixture
def adapter(tmp_path, rng):
    """A sound adapter's folder, tensors and configuration."""
    folder = tmp_path / "adapter"
    peft_model = changed(small(dtype="float32"), rng)
    peft_model.save_pretrained(folder)
    tensors = {k: a.copy() for k, a in peft_model.state_dict().items()}
    return folder, tensors, json.loads((folder / CONFIG).read_text())


def error_of(folder):
    with pytest.raises(MambaError) as caught:
        PeftModel.from_pretrained(small(dtype="float32"), folder)
    assert len(str(caught.value)) < 1000
    return caught.value


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused(adapter, name):
    damage, kind, parts = BAD[name]
    folder, tensors, config = adapter
    damage(folder, tensors, config)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    error = error_of(folder)
    assert isinstance(error, kind)
    for part in (str(folder), *parts):
        assert part in str(error)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_adapters_are_refused(adapter, size):
    path = adapter[0] / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    error = error_of(adapter[0])
    assert isinstance(error, CheckpointError)
    assert "damaged or only partly downloaded" in str(error)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_files_that_are_missing_or_lead_elsewhere(adapter, tmp_path, name):
    path = adapter[0] / name
    shutil.copy(path, tmp_path / "elsewhere")
    path.unlink()
    error = error_of(adapter[0])
    assert isinstance(error, FileMissingError)
    assert name in str(error)
    path.symlink_to(tmp_path / "elsewhere")
    assert isinstance(error_of(adapter[0]), UnsafeFileError)


def test_a_regular_expression_of_a_file_is_not_run(adapter):
    folder, _, config = adapter
    config["target_modules"] = "(a|a)*" * 30 + "x"
    (folder / CONFIG).write_text(json.dumps(config))
    found = PeftModel.from_pretrained(small(dtype="float32"), folder)
    assert len(found.targets) == 7
    assert found.active_peft_config.target_modules == config["target_modules"]


def test_names_that_match_nothing_beside_others_are_no_reason_to_refuse_a_file(adapter):
    folder, _, config = adapter
    config["target_modules"].append("q_proj")
    (folder / CONFIG).write_text(json.dumps(config))
    assert len(PeftModel.from_pretrained(small(dtype="float32"), folder).targets) == 7


def test_a_folder_that_is_no_adapter(tmp_path, model_path):
    assert CONFIG in str(error_of(model_path("base_silu")))
    assert "found no such folder" in str(error_of(tmp_path / "nothing"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="found a file"):
        get_peft_model(small(), LoraConfig(**PAGE), rng=0).save_pretrained(tmp_path / "file")
