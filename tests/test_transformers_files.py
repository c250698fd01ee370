"""Files travel both ways between this package and transformers, to the bit.

Skipped without transformers and PyTorch; the continuous integration has both.
"""

import warnings

import forge
import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

import mamba_np
from mamba_np.checkpoint import headers, read_params, state_dict
from mamba_np.config import MambaConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "sizes": {"expand": 3, "intermediate_size": 18, "time_step_rank": 1, "conv_kernel": 3},
}


@pytest.fixture(autouse=True)
def _their_warnings():
    """What transformers and torch warn about is not this package's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=VARIANTS)
def config(request):
    return MambaConfig(**forge.CONFIG | VARIANTS[request.param])


def theirs(folder, cls=None, **options):
    """Load a folder in transformers; fail if it had anything to say about the weights."""
    cls = cls or transformers.MambaForCausalLM
    options = {"dtype": torch.float32} | options
    model, report = cls.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def assert_same_parameters(model, params):
    """Fail unless transformers' model has exactly these parameters."""
    own = state_dict(params)
    their = {k: v for k, v in model.state_dict().items() if not (params.tied and k == forge.HEAD)}
    assert their.keys() == own.keys()
    for name, array in own.items():
        np.testing.assert_array_equal(
            their[name].double().numpy(), array.astype(np.float64), err_msg=name
        )


def assert_same_logits(model, own):
    """Fail unless both models give the same logits up to float32 rounding."""
    ids = np.random.default_rng(0).integers(0, forge.V, (2, 9))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    assert_close_to_scale(own(ids).logits, expected, tolerance("model", "float32"))


@pytest.mark.parametrize("limit", ["5GB", 500])
def test_transformers_loads_what_we_save(tmp_path, config, rng, limit):
    own = mamba_np.MambaForCausalLM(config, rng=rng)
    own.save_pretrained(tmp_path, max_shard_size=limit)
    model = theirs(tmp_path)
    assert_same_parameters(model, own.params)
    assert_same_logits(model, own)


def test_transformers_leaves_out_proj_of_what_we_save_as_it_is(tmp_path, rng):
    config = MambaConfig(**forge.CONFIG | {"rescale_prenorm_residual": True})
    own = mamba_np.MambaForCausalLM(config, rng=rng)
    own.save_pretrained(tmp_path)
    model = theirs(tmp_path)
    assert_same_parameters(model, own.params)
    assert_same_logits(model, own)
    assert mamba_np.MambaConfig.from_pretrained(tmp_path).rescale_prenorm_residual is False


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_transformers_loads_every_dtype_we_save(tmp_path, rng, dtype):
    own = mamba_np.MambaForCausalLM(MambaConfig(**forge.CONFIG), rng=rng, dtype=dtype)
    own.save_pretrained(tmp_path)
    assert_same_parameters(theirs(tmp_path, dtype=torch.float64), own.params)


def test_transformers_loads_our_model_without_a_head(tmp_path, config, rng):
    own = mamba_np.MambaModel(config, rng=rng)
    own.save_pretrained(tmp_path)
    assert_same_parameters(theirs(tmp_path, transformers.MambaModel), own.params)


def their_model(config, cls=None, dtype=torch.float32):
    torch.manual_seed(0)
    fields = {k: v for k, v in config.to_dict().items() if k != "architectures"}
    cls = cls or transformers.MambaForCausalLM
    model = cls(transformers.MambaConfig(**fields)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # their own start has zeros and ones
            parameter += 0.1 * torch.randn(parameter.shape).to(dtype)
    return model


@pytest.mark.parametrize("limit", ["5GB", "1KB"])
def test_we_load_what_transformers_saves(tmp_path, config, limit):
    model = their_model(config)
    model.save_pretrained(tmp_path, max_shard_size=limit)
    assert (limit == "5GB") == (tmp_path / "model.safetensors").exists()
    own = mamba_np.MambaForCausalLM.from_pretrained(tmp_path)
    assert_same_parameters(model, own.params)
    assert_same_logits(model, own)
    assert own.config.tie_word_embeddings == config.tie_word_embeddings


def test_we_load_what_transformers_saves_without_a_head(tmp_path, config):
    model = their_model(config, transformers.MambaModel)
    model.save_pretrained(tmp_path)
    own = mamba_np.MambaModel.from_pretrained(tmp_path)
    assert_same_parameters(model, own.params)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_we_load_every_dtype_transformers_saves(tmp_path, dtype):
    model = their_model(MambaConfig(**forge.CONFIG), dtype=dtype)
    model.save_pretrained(tmp_path)
    own = MambaConfig.from_pretrained(tmp_path)
    assert_same_parameters(model, read_params(tmp_path, own, "float64"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_we_load_what_torch_pickles(tmp_path, dtype, variant):
    config = MambaConfig(**forge.CONFIG | VARIANTS[variant])
    model = their_model(config, dtype=dtype)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config.save_pretrained(tmp_path)
    params = read_params(tmp_path, config, "float64")
    assert params.tied == (variant == "tied")
    assert_same_parameters(model, params)


def test_we_load_pickled_parameters_and_read_only_their_header(tmp_path):
    config = MambaConfig(**forge.CONFIG)
    model = their_model(config)
    torch.save(dict(model.named_parameters()), tmp_path / "pytorch_model.bin")
    found = headers(tmp_path)
    assert {name: tensor.shape for name, tensor in found.items()} == forge.SHAPES
    assert_same_parameters(model, read_params(tmp_path, config))


def test_torch_reads_what_our_tests_forge(tmp_path):
    # The forged pickles of the other tests are those that torch.save would write.
    arrays = forge.tensors()
    path = forge.write_torch_model(tmp_path) / "pytorch_model.bin"
    found = torch.load(path, weights_only=True)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_the_older_format_of_torch_is_refused(tmp_path):
    state = their_model(MambaConfig(**forge.CONFIG)).state_dict()
    forge.write_config(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(mamba_np.errors.CheckpointError, match="older format"):
        headers(tmp_path)
