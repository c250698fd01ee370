"""Check the engine on this machine's GPU, and measure it: ``python tools/gpu_check.py``.

First the tests of the engine run on the GPU itself instead of the emulator (``pytest --gpu``), then
compute-sanitizer looks at some of them if it is installed, then come times: the scan beside its
floors, tokens and prompts of published sizes beside the bandwidth of memory, and transformers on
the same GPU if it is installed. ``--out FOLDER`` writes JSON and Markdown with device, versions and
date.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.cuda import engine, scan
from mamba_np.cuda.arena import CHANNELS
from mamba_np.cuda.device import Device, upload_new
from mamba_np.init import init_params
from mamba_np.params import map_arrays

ROOT = Path(__file__).parent.parent
MODELS = {"130m": (768, 24), "1.4b": (2048, 48), "2.8b": (2560, 64)}
"""hidden_size and layers of the published models."""

VOCABULARY = 50280
SCAN = {"B": 8, "L": 4096, "E": 4096, "N": 16}
GOALS = {"scan ms": 0.80, "130m tokens/s": 3000, "2.8b tokens/s": 480, "prompt x": 10}
"""On an H200; what is bound by memory scales with its bandwidth on others."""


# --- time -----------------------------------------------------------------------------------------


def seconds(device: Device, work: Callable[[], Any], repeats: int = 20) -> float:
    """Return the median time of work that was recorded once and replayed."""
    work()
    with device.recording() as recording:
        work()
    device.wait()
    return _median(lambda: (recording.replay(), device.wait()), repeats)


def _median(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return float(np.median(times))


def bandwidth(device: Device, nbytes: int = 2**30) -> float:
    """Return how many bytes a second are read and written by a copy."""
    to, source = (device.allocate(nbytes) for _ in range(2))
    return 2 * nbytes / seconds(device, lambda: device.copy(to.address, source.address, nbytes))


def scan_seconds(device: Device, B: int, L: int, E: int, N: int) -> float:
    """Return the time of the scan of B texts of L steps, E channels, N states."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Any:
        return upload_new(device, rng.standard_normal(shape, np.float32))

    E_pad, N4 = -(-E // CHANNELS) * CHANNELS, scan.padded_states(N)
    M, T = 2 * N4, B * L
    x, raw, xz = random(T, E_pad), random(T, E_pad), random(T, 2 * E_pad)
    A = upload_new(device, -np.exp(rng.standard_normal((E_pad, N4), np.float32)))
    selected, D, bias = random(T, M), random(E_pad), random(E_pad)
    h, y = device.allocate(4 * B * E_pad * N4), device.allocate(4 * T * E_pad)
    lengths = upload_new(device, np.full(B, L, np.int32))
    grid = scan.blocks_of("channels", E_pad), B, 1
    arguments = (x, raw, xz, selected, A, D, bias, lengths, h, y, L, E_pad, M, L)
    return seconds(device, lambda: device.launch(scan.channel_scan(N), grid, *arguments))


def model_of(hidden_size: int, layers: int, dtype: str) -> Any:
    """Return a model of a published shape: small random vectors, and matrices of zeros.

    Time does not depend on what the weights are, and zeros take no time to make.
    """
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=hidden_size, num_hidden_layers=1)
    one = init_params(config, 0, dtype=dtype, head=True)
    params = map_arrays(lambda _, a: np.zeros(a.shape, a.dtype) if a.ndim == 2 else a, one)
    config = MambaConfig(**config.to_dict() | {"num_hidden_layers": layers})
    whole = type(params)(params.embeddings, params.layers * layers, params.norm_f, params.lm_head)
    map_arrays(lambda _, a: a.setflags(write=False) or a, whole)  # nobody will change them
    return MambaForCausalLM(config, params=whole, backend="cuda")


def text_seconds(model: Any, tokens: int = 100) -> float:
    """Return the time of one more token of one text, chosen on the device."""
    cache = model(np.zeros((1, 8), np.int64)).cache_params
    words = model._writer(cache, 0, tokens + 8)
    for _ in range(8):
        next(words)
    return _median(lambda: next(words), tokens)


def prompt_seconds(model: Any, length: int, repeats: int = 5) -> float:
    """Return the time of a prompt, scores of the last token included."""
    ids = np.zeros((1, length), np.int64)
    model(ids, logits_to_keep=1)
    return _median(lambda: model(ids, logits_to_keep=1).logits, repeats)


def weight_bytes(model: Any) -> int:
    """Return how many bytes of weights a token reads."""
    head = model.params.lm_head.nbytes
    layers = sum(
        a.nbytes for layer in model.params.layers for a in vars(layer).values() if a is not None
    )
    return head + layers


# --- transformers on the same GPU -----------------------------------------------------------------


def theirs(length: int) -> float | None:
    """Return the time of the same prompt by transformers in bfloat16, None where it is absent."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    hidden_size, layers = MODELS["130m"]
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden_size, num_hidden_layers=layers
    )
    model: Any = transformers.MambaForCausalLM(config)
    model = model.to("cuda", torch.bfloat16).eval()
    ids = torch.zeros((1, length), dtype=torch.long, device="cuda")

    def work() -> None:
        with torch.no_grad():
            model(ids, logits_to_keep=1)
        torch.cuda.synchronize()

    work()
    return _median(work, 3)


# --- the report -----------------------------------------------------------------------------------


def measured(device: Device, models: dict[str, tuple[int, int]] = MODELS) -> list[dict[str, Any]]:
    """Return all measurements, a row each."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float, unit: str, **more: Any) -> None:
        rows.append({"what": what, "value": value, "unit": unit, **more})
        print(f"{what}: {value:.4g} {unit}  {more or ''}", flush=True)

    speed = bandwidth(device)
    add("copy bandwidth", speed / 1e12, "TB/s")
    spent = scan_seconds(device, **SCAN)
    steps = SCAN["B"] * SCAN["L"] * SCAN["E"]
    traffic = 4 * 5 * steps / speed  # x, raw, z read, y written, and what reading z skips over
    add("scan " + " ".join(f"{k}={v}" for k, v in SCAN.items()), 1e3 * spent, "ms",
        floor_of_memory_ms=1e3 * traffic)  # fmt: skip
    for name, (hidden_size, layers) in models.items():
        for dtype in ("bfloat16", "float32"):
            model = model_of(hidden_size, layers, dtype)
            one = text_seconds(model)
            floor = weight_bytes(model) / (speed / 2)
            add(f"{name} {dtype}, tokens", 1 / one, "1/s", of_the_floor=floor / one)
            if name == "130m":
                for length in (512, 2048):
                    add(f"{name} {dtype}, prompt of {length}",
                        1e3 * prompt_seconds(model, length), "ms")  # fmt: skip
            del model
    for length in (512, 2048):
        spent_by_them = theirs(length)
        if spent_by_them is not None:
            add(f"130m bfloat16, prompt of {length}, transformers", 1e3 * spent_by_them, "ms")
    return rows


def report(device: Device, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write what was measured as JSON and Markdown."""
    about = {
        "device": device.name,
        "architecture": f"sm_{device.architecture}",
        "multiprocessors": device.processors,
        "date": time.strftime("%Y-%m-%d"),
        "command": "python tools/gpu_check.py",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "goals on an H200": GOALS,
    }
    stem = f"{about['date']}-gpu-{device.name.lower().replace(' ', '-')}"
    (folder / f"{stem}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    lines = [f"# {device.name}, {about['date']}", "", "| what | value | unit | beside |"]
    lines += ["| --- | --- | --- | --- |"]
    for row in rows:
        rest = {k: f"{v:.3g}" for k, v in row.items() if k not in ("what", "value", "unit")}
        lines.append(f"| {row['what']} | {row['value']:.4g} | {row['unit']} | {rest or ''} |")
    versions = ", ".join(f"{name} {found}" for name, found in about["versions"].items())
    lines += ["", f"`{about['command']}`; {versions}."]
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n")


PACKAGES = ("mamba-np", "numpy", "numba", "numba-cuda", "nvidia-cublas", "torch", "transformers")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def run_tests(*options: str, under: tuple[str, ...] = ()) -> bool:
    """Run the engine's tests on the GPU, in a process of their own, perhaps ``under`` another."""
    tests = "tests/cuda/test_engine.py", "--gpu", *options
    return (
        subprocess.run([*under, sys.executable, "-m", "pytest", *tests], cwd=ROOT).returncode == 0
    )


def main() -> int:
    """Check, measure, report; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the JSON and Markdown files")
    parser.add_argument("--no-times", action="store_true", help="only the checks")
    options = parser.parse_args()
    device = engine.device()
    print(f"{device.name}, sm_{device.architecture}, {device.processors} multiprocessors")
    good = run_tests()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        few = "-k", "each_storage or any_split or each_form"
        good &= run_tests(*few, under=(sanitizer, "--error-exitcode", "1"))
    else:
        print("compute-sanitizer was not found: what it looks for is left to the emulator")
    if not options.no_times:
        rows = measured(device)
        if options.out is not None:
            report(device, rows, options.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
