"""Trained checkpoints against transformers: every reference array, in both dtypes and both scans.

float64 must be within 1e-11 of scale of the float64 references. float32 must be within 5e-6, and
where PyTorch's own float32 error is known, no more than half as much again: as it is with compiled
kernels, in NumPy with matrix products rounded once. In which order a product is summed is up to
the machine's BLAS, and doubles or halves the error.
"""

import json
from functools import cache
from unittest import mock

import naive
import numpy as np
import pytest
from conftest import FIXTURES, MODELS
from tolerances import (
    ROUNDING_FLOOR,
    TORCH_FACTOR,
    assert_close_to_scale,
    error_to_scale,
    tolerance,
)

from mamba_np import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, MambaModel, reference
from mamba_np.bundled import bundled_model_path

DTYPES = ("float64", "float32")
SCANS = {
    "associative": {"use_mambapy": True, "use_associative_scan": True},
    "recurrence": {"use_mambapy": False, "use_associative_scan": False},
    "auto": {},  # the fastest engine there is: compiled kernels for float32
}
PREFILL = 9


@cache
def load(name, dtype, scan="auto"):
    folder = FIXTURES / "models" / name
    config = MambaConfig.from_pretrained(folder, **SCANS[scan])
    backend = "auto" if scan == "auto" else "numpy"
    return MambaForCausalLM.from_pretrained(folder, config=config, dtype=dtype, backend=backend)


def test_the_engines_are_the_ones_meant():
    assert load(MODELS[0], "float32").backend == "cpu"
    assert load(MODELS[0], "float64").backend == "numpy"
    assert load(MODELS[0], "float32", "recurrence").backend == "numpy"


@cache
def references(name):
    with np.load(FIXTURES / "refs" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def states(found, prefix, layers=None):
    """Return {reference key: array} of a cache, or of its first layers."""
    arrays = {}
    for kind in ("conv_states", "ssm_states"):
        for i, array in enumerate(getattr(found, kind)[:layers]):
            arrays[f"f64.{prefix}.{kind}.{i}"] = array.copy()
    return arrays


def prompt_and_steps(model, ids, prefix, length, steps, layers):
    """Return the arrays of a prompt that is read at once and continued token by token."""
    out = model(ids[:, :length])
    arrays, cache_params, logits = states(out.cache_params, prefix, layers), out.cache_params, []
    for t in range(length, length + steps):
        logits.append(model(ids[:, t : t + 1], cache_params=cache_params).logits)
    name = "step_logits" if prefix == "prefill" else f"{prefix}.step_logits"
    arrays[f"f64.{name}"] = np.concatenate(logits, axis=1)
    if prefix != "prefill":
        arrays[f"f64.{prefix}.logits"] = out.logits
    return arrays, cache_params


@cache
def results(name, dtype, scan):
    """Return our value for every reference key that starts with f64, but gradients."""
    return results_of(load(name, dtype, scan), name, dtype)


def results_of(model, name, dtype):
    refs = references(name)
    ids = refs["in.input_ids"]
    out = model(ids, labels=refs["in.labels"], output_hidden_states=True)
    arrays = {"f64.logits": out.logits, "f64.loss": out.loss}
    arrays |= {f"f64.hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}
    arrays |= states(out.cache_params, "end")
    arrays["f64.embeddings"] = model.backbone.embeddings[ids].astype(dtype)
    arrays["f64.logits_embeds"] = model(inputs_embeds=refs["in.inputs_embeds"]).logits
    for side in ("left", "right", "holes"):
        out = model(ids, attention_mask=refs[f"in.mask_{side}"])
        arrays[f"f64.logits_mask_{side}"] = out.logits
        if side == "left":
            arrays |= states(out.cache_params, "mask_left")
    for prefix, length, steps, layers in (
        ("prefill", PREFILL, ids.shape[1] - PREFILL, None),
        ("short1", 1, 1, 1),
        ("short2", 2, 1, 1),
    ):
        arrays |= prompt_and_steps(model, ids, prefix, length, steps, layers)[0]
    if "f64.long.input_ids" in refs:
        out = model(refs["f64.long.input_ids"])
        arrays["f64.long.logits"] = out.logits[:, refs["f64.long.positions"]]
        long = states(out.cache_params, "long")
        arrays |= {key: array for key, array in long.items() if "ssm_states" in key}
    return arrays


def compared_keys(name):
    own_inputs = ("f64.long.input_ids", "f64.long.positions")
    return [
        key
        for key in references(name)
        if key.startswith("f64.") and ".grad." not in key and key not in own_inputs
    ]


ALL_KEYS = [(name, key) for name in MODELS for key in compared_keys(name)]


def unmasked(name, key, *arrays):
    """Leave out the masked positions of logits that were made with a mask."""
    side = key.removeprefix("f64.logits_mask_")
    if side == key:
        return arrays
    mask = references(name)[f"in.mask_{side}"] != 0
    return tuple(array[mask] for array in arrays)


@cache
def expected_array(name, key):
    """Return the wanted value: transformers', but for holes, where the rules differ."""
    if key != "f64.logits_mask_holes":
        return references(name)[key]
    folder, refs = FIXTURES / "models" / name, references(name)
    return naive.forward(
        naive.read_tensors(folder),
        naive.read_config(folder),
        refs["in.input_ids"],
        attention_mask=refs["in.mask_holes"],
    ).logits


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_out(name):
    assert set(compared_keys(name)) == set(results(name, "float64", "associative"))
    float32_keys = {key for key in references(name) if key.startswith("f32.")}
    assert {key.replace("f32.", "f64.") for key in float32_keys} <= set(compared_keys(name))
    assert len(compared_keys(name)) > 30


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "key"), ALL_KEYS)
def test_every_array(name, key, dtype, scan):
    found = np.asarray(results(name, dtype, scan)[key])
    assert found.dtype == ("float64" if key == "f64.loss" else dtype)
    found, expected = unmasked(name, key, found, expected_array(name, key))
    assert_close_to_scale(found, expected, tolerance("model", dtype), key)


def torch_errors():
    """Return (model, key) wherever the float32 error of PyTorch is known."""
    manifest = json.loads((FIXTURES / "manifest.json").read_text("utf-8"))
    return [
        (name, f"f64.{key}", error)
        for name in MODELS
        for key, error in manifest["models"][name]["hf_f32_rel_err"].items()
    ]


def products_rounded_once(x, weight, bias=None, linear=reference.linear):
    """Do what ``reference.linear`` does, in float64 inside."""
    wide = (None if array is None else array.astype(np.float64) for array in (x, weight, bias))
    return linear(*wide).astype(x.dtype)


@cache
def float32_results(name, scan):
    """Return our float32 values, without what the machine's BLAS adds to the reference's."""
    if scan == "auto":
        return results(name, "float32", scan)
    with mock.patch.object(reference, "linear", products_rounded_once):
        return results.__wrapped__(name, "float32", scan)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(("name", "key", "theirs"), torch_errors())
def test_float32_is_as_close_to_float64_as_pytorchs(name, key, theirs, scan):
    found = np.asarray(float32_results(name, scan)[key])
    found, expected = unmasked(name, key, found, expected_array(name, key))
    # Where PyTorch's rounding is lucky in one layer, it says nothing about another exponential
    # or another order of sums: the yardstick is its error over all layers.
    kind = key.rstrip("0123456789")
    theirs = max(e for n, k, e in torch_errors() if n == name and k.startswith(kind))
    allowed = max(TORCH_FACTOR * theirs, ROUNDING_FLOOR["float32"])
    assert_close_to_scale(found, expected, allowed, f"{key} (PyTorch: {theirs:.3g})")


@pytest.mark.parametrize("scan", SCANS)
def test_float32_is_on_average_closer_to_float64_than_pytorchs(scan):
    ratios = []
    for name, key, theirs in torch_errors():
        found = np.asarray(float32_results(name, scan)[key])
        pair = unmasked(name, key, found, expected_array(name, key))
        ratios.append(error_to_scale(*pair) / theirs)
    mean = float(np.exp(np.mean(np.log(ratios))))
    assert mean <= 1, f"geometric mean of {len(ratios)} ratios: {mean:.2f}"


@pytest.mark.parametrize("name", MODELS)
def test_the_recorded_float32_arrays(name):
    # The manifest's errors, which the test above relies on, are those of the arrays themselves.
    errors = {(n, key): error for n, key, error in torch_errors()}
    keys = [key for key in references(name) if key.startswith("f32.")]
    assert len(keys) >= 5
    for key in keys:
        wide = key.replace("f32.", "f64.")
        theirs = error_to_scale(references(name)[key], references(name)[wide])
        assert theirs == pytest.approx(errors[name, wide], rel=1e-6), key
        ours = results(name, "float32", "associative")[wide]
        both = tolerance("model", "float32")
        if "mask" not in key:
            assert_close_to_scale(ours, references(name)[key], both, key)


@pytest.mark.parametrize("name", MODELS)
def test_holes_differ_from_transformers_as_documented(name):
    # There a masked token lets the state decay; here it is as if absent.
    mask = references(name)["in.mask_holes"] != 0
    ours = results(name, "float64", "associative")["f64.logits_mask_holes"]
    theirs = references(name)["f64.logits_mask_holes"]
    assert error_to_scale(ours[mask], theirs[mask]) > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_after_all_steps_is_that_of_one_pass(name, dtype):
    model, refs = load(name, dtype), references(name)
    ids = refs["in.input_ids"]
    _, cache_params = prompt_and_steps(model, ids, "prefill", PREFILL, ids.shape[1] - PREFILL, None)
    for key, array in states(cache_params, "end").items():
        assert_close_to_scale(array, refs[key], tolerance("model", dtype), key)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_of_a_right_padded_batch_is_that_of_the_rows_alone(name, dtype):
    # transformers' own is off by half its scale here, so the oracle judges.
    model, refs = load(name, dtype), references(name)
    ids, mask = refs["in.input_ids"], refs["in.mask_right"]
    cache_params = model(ids, attention_mask=mask).cache_params
    folder = FIXTURES / "models" / name
    tensors, config = naive.read_tensors(folder), naive.read_config(folder)
    for row in range(len(ids)):
        alone = naive.forward(tensors, config, ids[row : row + 1, : mask[row].sum()])
        for kind in ("conv_states", "ssm_states"):
            pairs = zip(getattr(cache_params, kind), getattr(alone, kind), strict=True)
            for i, (ours, theirs) in enumerate(pairs):
                label = f"row {row}, {kind} {i}"
                assert_close_to_scale(ours[row], theirs[0], tolerance("model", dtype), label)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_model_without_its_head(name, dtype):
    model = MambaModel.from_pretrained(FIXTURES / "models" / name, dtype=dtype)
    refs = references(name)
    out = model(refs["in.input_ids"], output_hidden_states=True)
    last = len(out.hidden_states) - 1
    expected = refs[f"f64.hidden_states.{last}"]
    assert_close_to_scale(out.last_hidden_state, expected, tolerance("model", dtype), "last")
    assert np.array_equal(out.hidden_states[-1], out.last_hidden_state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens(name, scan, dtype, manifest):
    model, refs = load(name, dtype, scan), references(name)
    prompt = refs["in.input_ids"][:, :PREFILL]
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    found = model.generate(prompt, eos_token_id=None, **options)
    assert np.array_equal(found, refs["gen.greedy"])
    mask = refs["in.mask_left"][:, :PREFILL]
    padded = np.where(mask, prompt, 0)
    found = model.generate(padded, attention_mask=mask, eos_token_id=None, **options)
    assert np.array_equal(found, refs["gen.greedy_left_padded"])
    eos = manifest["models"][name]["greedy_eos_token"]
    found = model.generate(prompt, eos_token_id=eos, **options)
    assert np.array_equal(found, refs["gen.greedy_eos"])


# --- the bundled model ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
@pytest.mark.parametrize("text", ["0", "1"])
def test_the_bundled_model(text, dtype, refs):
    refs = refs("stories")
    model = AutoModelForCausalLM.from_pretrained(bundled_model_path(), dtype=dtype)
    logits, expected = model(refs[f"{text}.input_ids"]).logits, refs[f"{text}.logits_f64"]
    step = "float64" if dtype == "float64" else "float32"
    assert logits.dtype == step
    assert_close_to_scale(logits, expected, tolerance("model", step), f"text {text}")
    if dtype == "float32":
        theirs = error_to_scale(refs[f"{text}.logits_transformers_f32"], expected)
        assert_close_to_scale(logits, expected, TORCH_FACTOR * theirs, f"text {text} (PyTorch's)")


@pytest.mark.parametrize("text", ["0", "1"])
def test_greedy_tokens_of_the_bundled_model(text, refs):
    refs = refs("stories")
    model = AutoModelForCausalLM.from_pretrained(bundled_model_path())
    ids = refs[f"{text}.input_ids"]
    found = model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert np.array_equal(found, refs[f"{text}.greedy40"])
