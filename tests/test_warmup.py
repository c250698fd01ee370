import os
import subprocess
import sys

import pytest

from mamba_np import __version__, code_folder
from mamba_np.errors import InputError
from mamba_np.kernels import options
from mamba_np.warmup import warmup


def run(folder, *arguments):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "mamba_np", *arguments],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.nb?")}


@pytest.mark.slow
def test_kernels_are_compiled_once_and_kept(tmp_path):
    said = run(tmp_path, "warmup")
    assert "models in float32" in said
    assert str(tmp_path) in said
    kept = files(tmp_path)
    assert len(kept) > 10
    text = run(tmp_path, "generate", "Once", "-n", "3")
    assert text.startswith("Once")
    run(tmp_path, "warmup")
    assert files(tmp_path) == kept  # nothing was compiled again, and nothing more


def test_an_unknown_dtype():
    with pytest.raises(InputError, match="dtype: expected one of"):
        list(warmup(["int3"]))


def test_the_folder_carries_version_and_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(options, "_folder", None)
    folder = options.cache_folder()
    assert folder.is_dir()
    assert folder.parent == tmp_path / "mamba_np"
    assert folder.name.startswith(__version__ + "-")


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    assert code_folder.usable(shared / "own")
    if os.name == "posix":
        shared.chmod(0o777)
        assert not code_folder.usable(shared)


def test_no_folder_at_all(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(file))
    monkeypatch.setattr(options, "_folder", None)
    assert options.cache_folder() is None
    double = options.kernel(lambda x: x + x)
    assert double(2) == 4
