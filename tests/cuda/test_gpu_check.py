"""tools/gpu_check.py, on a tiny model and the emulator: that it works where a GPU is at hand."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from emulated import EmulatedDevice

from mamba_np.cuda import engine

PATH = Path(__file__).parents[2] / "tools" / "gpu_check.py"


def once(work, repeats):
    work()
    return 0.5


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = EmulatedDevice()
    monkeypatch.setattr(engine, "device", lambda: device)
    monkeypatch.setattr(module, "VOCABULARY", 40)
    monkeypatch.setattr(module, "SCAN", {"B": 1, "L": 5, "E": 128, "N": 4})
    monkeypatch.setattr(module, "_median", once)
    monkeypatch.setattr(module, "bandwidth", lambda device: 1e12)
    monkeypatch.setattr(
        module, "prompt_seconds", lambda model, length: bool(model([[0] * 5])) * 0.5
    )
    monkeypatch.setattr(module, "theirs", lambda length: 1.0)
    return module, device


def test_it_measures_and_reports(tool, tmp_path):
    module, device = tool
    few = {"130m": (16, 1)}
    rows = module.measured(device, few)
    names = [row["what"] for row in rows]
    assert names[:2] == ["copy bandwidth", "scan B=1 L=5 E=128 N=4"]
    assert "130m bfloat16, tokens" in names
    assert "130m bfloat16, prompt of 512, transformers" in names
    assert {"scan", "conv", "score", "pick"} <= {
        n.split()[0].split("_")[-1] for n in device.launches
    }
    module.report(device, rows, tmp_path)
    written = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert written["rows"] == rows
    assert written["about"]["device"] == device.name
    assert "copy bandwidth" in next(tmp_path.glob("*.md")).read_text()


def test_copies_are_timed_by_replays(monkeypatch, tool):
    spec = importlib.util.spec_from_file_location("fresh", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.bandwidth(tool[1], 4096) > 0
