"""What all tests share: paths, references, random numbers, opt-in markers, hypothesis profiles."""

import os

# The models are tiny: threads of the BLAS and of torch would spend their time waiting for each
# other. To be set before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import signal
import zlib
from functools import cache
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from mamba_np import AutoTokenizer, MambaForCausalLM
from mamba_np.bundled import bundled_model_path
from mamba_np.warmup import warmup

# A shell's background jobs ignore Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FIXTURES = Path(__file__).parent / "fixtures"
MODELS = ("base_silu", "sharded_bf16", "original_bin")

settings.register_profile(
    "default",
    deadline=None,  # shared machines are slow now and then; a time limit stands in pyproject.toml
    max_examples=25,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption(
        "--hub", action="store_true", help="run tests that download published checkpoints"
    )
    parser.addoption(
        "--notebooks", action="store_true", help="execute the tutorials as Jupyter does"
    )
    parser.addoption(
        "--gpu", action="store_true", help="run the GPU engine's tests on a GPU, not the emulator"
    )


OPT_IN = {
    "hub": "downloads published checkpoints; opt in with --hub",
    "notebooks": "executes the tutorials as Jupyter does; opt in with --notebooks",
}


def pytest_collection_modifyitems(config, items):
    for name, reason in OPT_IN.items():
        if not config.getoption(f"--{name}"):
            for item in items:
                if name in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels():
    """Compile what most tests need before the first of them, whose time limit it would eat."""
    for _ in warmup(["float32"]):
        pass


@pytest.fixture(scope="session")
def fixtures_path():
    """The folder of the reference checkpoints."""
    return FIXTURES


@pytest.fixture(scope="session")
def model_path():
    """A function from the name of a reference checkpoint to its folder."""
    return lambda name: FIXTURES / "models" / name


@cache
def _refs(name):
    with np.load(FIXTURES / "refs" / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


@pytest.fixture(scope="session")
def refs():
    """A function from a name to the reference arrays made for it: {key: array}."""
    return _refs


@pytest.fixture(scope="session")
def manifest():
    """How the references were made, and the float32 errors of PyTorch."""
    return json.loads((FIXTURES / "manifest.json").read_text("utf-8"))


@cache
def _oracle_weights(name):
    folder = FIXTURES / "models" / name
    return naive.read_tensors(folder), naive.read_config(folder)


@pytest.fixture(scope="session")
def oracle_weights():
    """A function from a name to ({tensor name: float64 array}, config) for the oracle."""
    return _oracle_weights


@pytest.fixture
def rng(request):
    """A random generator whose seed is the name of the test."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """Each dtype that a model computes in."""
    return request.param


@pytest.fixture(scope="session")
def model():
    """The bundled language model."""
    return MambaForCausalLM.from_pretrained(bundled_model_path())


@pytest.fixture(scope="session")
def tokenizer():
    """The bundled model's tokenizer."""
    return AutoTokenizer.from_pretrained(bundled_model_path())
