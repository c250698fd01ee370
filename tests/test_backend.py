"""Choosing a backend: by name, once, and never another one in silence."""

import pytest

from mamba_np import MambaConfig, MambaModel, backend, reference
from mamba_np.errors import BackendError

CONFIG = MambaConfig(vocab_size=11, hidden_size=6, num_hidden_layers=1)


def test_auto_is_the_first_available_one():
    assert backend.resolve("auto") == backend.resolve(None) == backend.available()[0]


def test_numpy_is_the_reference():
    assert backend.get("numpy") is reference


@pytest.mark.parametrize("name", ["torch", "NumPy", "", 3])
def test_an_absent_backend_is_an_error_that_lists_the_present_ones(name):
    with pytest.raises(BackendError, match="numpy"):
        MambaModel(CONFIG, backend=name)


@pytest.mark.parametrize(
    ("device", "asked", "found"),
    [(None, "numpy", "numpy"), ("cpu", "auto", "auto"), ("cpu", "numpy", "numpy"),
     ("cuda", "auto", "cuda"), ("cuda:0", "cuda", "cuda")],
)  # fmt: skip
def test_devices_are_backends(device, asked, found):
    assert backend.for_device(device, asked) == found


@pytest.mark.parametrize(
    ("device", "asked"), [("cuda:1", "auto"), ("gpu", "auto"), ("cpu", "cuda"), ("cuda", "numpy")]
)
def test_other_devices_and_contradictions_are_refused(device, asked):
    with pytest.raises(BackendError, match=r"^device: "):
        MambaModel(CONFIG, device=device, backend=asked)
