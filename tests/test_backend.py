"""Choosing a backend: by name, once, and never another one in silence."""

import pytest

from mamba_np import MambaConfig, MambaModel, backend, reference
from mamba_np.errors import BackendError


def test_auto_is_the_first_available_one():
    assert backend.resolve("auto") == backend.resolve(None) == backend.available()[0]


def test_numpy_is_the_reference():
    assert backend.get("numpy") is reference


@pytest.mark.parametrize("name", ["cuda", "torch", "NumPy", "", 3])
def test_an_absent_backend_is_an_error_that_lists_the_present_ones(name):
    config = MambaConfig(vocab_size=11, hidden_size=6, num_hidden_layers=1)
    with pytest.raises(BackendError, match="numpy"):
        MambaModel(config, backend=name)
