"""Parameters as named arrays: storage dtypes and tied heads."""

import ml_dtypes
import numpy as np
import pytest

from mamba_np import MambaConfig
from mamba_np.errors import InputError
from mamba_np.init import init_params
from mamba_np.params import as_dtype, compute_dtype, convert, map_arrays

CONFIG = MambaConfig(vocab_size=11, hidden_size=6, state_size=3, num_hidden_layers=2)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("float32", "float32"),
        ("torch.bfloat16", "bfloat16"),
        (np.float16, "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype("f8"), "float64"),
    ],
)
def test_dtypes_by_name_or_type(given, name):
    assert as_dtype(given).name == name


@pytest.mark.parametrize("bad", ["int8", "float31", np.int32, None, 3, "f4,f4"])
def test_other_dtypes_are_refused(bad):
    with pytest.raises(InputError, match="dtype: expected one of float64"):
        as_dtype(bad)


@pytest.mark.parametrize("storage", ["float64", "float32", "float16", "bfloat16"])
def test_only_matrices_are_narrowed(storage):
    params = convert(init_params(CONFIG, 0), storage)
    layer = params.layers[0]
    for matrix in (params.embeddings, layer.in_proj, layer.x_proj, layer.dt_proj, layer.out_proj):
        assert matrix.dtype.name == storage
    wide = compute_dtype(as_dtype(storage))
    for small in (params.norm_f, layer.norm, layer.A_log, layer.D, layer.dt_bias, layer.conv):
        assert small.dtype == wide


def test_a_tied_head_stays_the_embeddings():
    params = init_params(CONFIG, 0)
    assert params.tied
    assert convert(params, "bfloat16").tied
    assert map_arrays(lambda name, a: a.copy(), params).tied


def test_an_untied_head_is_mapped_by_itself():
    config = MambaConfig(**CONFIG.to_dict() | {"tie_word_embeddings": False})
    params = map_arrays(lambda name, a: a + (name == "lm_head"), init_params(config, 0))
    assert not params.tied
    original = init_params(config, 0)
    np.testing.assert_array_equal(params.lm_head, original.lm_head + 1)
    np.testing.assert_array_equal(params.embeddings, original.embeddings)


def test_conversion_to_the_same_dtype_copies_nothing():
    params = init_params(CONFIG, 0)
    assert convert(params, "float32").embeddings is params.embeddings
