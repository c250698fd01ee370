"""The scan's kernels in Numba's simulator, against the float64 oracle: no GPU, no numba-cuda.

Kernels run as Python, a thread of the system for each of their threads, so what is tested is their
text: who does what, and which barriers stand between. All forms of the scan and the trace are
covered, with blocks of 32 threads; stand-ins in ``simulated.py`` replace wide loads, shuffles and
bit patterns. What the compilers make of them is tested in ``test_scan.py``, and needs numba-cuda.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import ml_dtypes
import naive
import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq

RTOL = tolerance("gpu scan", "float32")
DEFAULTS = {"out": "float32", "gated": True, "lengths": [7], "N": 4, "E": 32}

CASES = {
    "channels": {"form": "channels", "lengths": [7, 2], "E": 64},
    "several tiles": {"form": "channels", "lengths": [21], "N": 16},
    "a tile ends with the text": {"form": "channels", "lengths": [16, 8], "N": 16},
    "padded states": {"form": "channels", "lengths": [5], "N": 3},
    "no step": {"form": "channels", "lengths": [0, 4]},
    "bfloat16": {"form": "channels", "lengths": [6, 3], "out": "bfloat16"},
    "bare": {"form": "channels", "lengths": [6], "gated": False},
    "lanes": {"form": "lanes", "lengths": [7, 2]},
    "lanes, several tiles": {"form": "lanes", "lengths": [10], "N": 16},
    "lanes, bare": {"form": "lanes", "lengths": [5], "gated": False, "N": 7},
    "chunks": {"form": "chunks", "lengths": [10, 5], "chunk": 4, "rescan": "channels", "E": 64},
    "a single chunk": {"form": "chunks", "lengths": [6], "chunk": 8, "rescan": "channels"},
    "six chunks": {"form": "chunks", "lengths": [22], "chunk": 4, "rescan": "channels"},
    "chunks by lanes": {"form": "chunks", "lengths": [9], "chunk": 4, "rescan": "lanes"},
    "chunks, bare": {
        "form": "chunks", "lengths": [10], "chunk": 4, "rescan": "channels", "gated": False,
    },
    "trace": {"form": "trace", "lengths": [7, 3], "before": 2, "every": 3, "E": 64},
    "trace, bare": {"form": "trace", "lengths": [5], "before": 0, "every": 1, "gated": False},
    "without barriers": {
        "form": "channels", "lengths": [21], "N": 16, "without_barriers": True,
    },
}  # fmt: skip
CASES = {name: DEFAULTS | case for name, case in CASES.items()}


def inputs(name):
    """Return what a case's kernels read: pads are zero, what must not be read is NaN."""
    case = CASES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    texts, L, N, E = len(case["lengths"]), max(case["lengths"]), case["N"], case["E"]
    N4 = -(-N // 4) * 4

    def normal(*shape, states=None):
        array = rng.standard_normal(shape).astype(np.float32)
        if states is not None:
            array[..., N:] = 0
        return array

    raw, xz = 2 * normal(texts, L, E), normal(texts, L, 2 * E)
    xz[..., :E] = np.nan
    arrays = {
        "x": normal(texts, L, E),
        "raw": raw if case["gated"] else abs(raw) / 3,
        "xz": xz if case["gated"] else np.full_like(xz, np.nan),
        "selected": np.full((texts, L, 2 * N4 + 4), np.nan, np.float32),
        "A": -np.exp(normal(E, N4)) * np.float32(eq.LOG2_E),
        "D": normal(E),
        "dt_bias": normal(E),
        "lengths": np.array(case["lengths"], np.int32),
        "h": normal(texts, E, N4, states=N),
        "chosen": rng.permutation(E)[: E - 5].astype(np.int32),
    }
    arrays["A"][:, N:] = 0
    for k in (0, N4):
        arrays["selected"][..., k : k + N4] = normal(texts, L, N4, states=N)
    return arrays


def oracle(case, a, lengths, gated=None):
    """Return y (B L E), 0 past the ends, and the states (B E N) after these lengths, float64."""
    N, N4, E = case["N"], a["A"].shape[1], case["E"]
    y, h = np.zeros(a["x"].shape), a["h"][..., :N].astype(np.float64)
    A = a["A"][:, :N] / eq.LOG2_E
    for b, length in enumerate(lengths):
        x, raw, z = (array[b, :length].T[None] for array in (a["x"], a["raw"], a["xz"][..., E:]))
        B, C = (a["selected"][b, :length, k : k + N].T[None] for k in (0, N4))
        more = dict(delta_bias=a["dt_bias"], delta_softplus=True) if case["gated"] else {}
        if case["gated"] and case["form"] != "trace":
            more.update(D=a["D"], z=z)
        state = h[b : b + 1]
        found, last = naive.selective_scan(x, raw, A, B, C, initial_state=state, **more)
        y[b, :length], h[b] = found[0].T, last[0]
    return y, h


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run all cases in one process that has the simulator: {case: {name: array}}."""
    folder = tmp_path_factory.mktemp("simulator")
    arrays = {f"{name}/{key}": value for name in CASES for key, value in inputs(name).items()}
    np.savez(folder / "in.npz", **{name: json.dumps(CASES[name]) for name in CASES}, **arrays)
    script = Path(__file__).with_name("simulated.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "in.npz"), str(folder / "out.npz")],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {name: {} for name in CASES}
    with np.load(folder / "out.npz") as file:
        for key in file.files:
            name, _, array = key.partition("/")
            found[name][array] = file[key]
    return found


def of_form(*forms):
    return [n for n, c in CASES.items() if c["form"] in forms and "without_barriers" not in c]


@pytest.mark.parametrize("name", of_form("channels", "lanes", "chunks"))
def test_a_scan_is_the_oracles(results, name):
    case, a, found = CASES[name], inputs(name), results[name]
    y, h = oracle(case, a, case["lengths"])
    if case["out"] == "bfloat16":
        found["y"] = found["y"].view(ml_dtypes.bfloat16)
    rtol = tolerance("gpu scan", case["out"])
    assert_close_to_scale(found["y"].astype(np.float64), y, rtol, "y")
    for b, length in enumerate(case["lengths"]):
        assert not found["y"][b, length:].astype(np.float32).any(), "outputs past the end"
    for states in ("h", "last"):
        if states in found:
            assert_close_to_scale(found[states][..., : case["N"]], h, RTOL, states)
            assert not found[states][..., case["N"] :].any(), "padded states moved"


@pytest.mark.parametrize("name", of_form("trace"))
def test_a_trace_is_the_oracles(results, name):
    case, a, found = CASES[name], inputs(name), results[name]
    chosen, lengths = a["chosen"], np.array(case["lengths"])
    L = lengths.max()
    delta = a["raw"].astype(np.float64)
    if case["gated"]:
        delta = naive.each(naive.softplus, delta + a["dt_bias"])
    delta = delta[..., chosen] * (np.arange(L) < lengths[:, None])[..., None]
    assert_close_to_scale(found["delta"], delta, RTOL, "delta")
    assert_close_to_scale(found["y"], oracle(case, a, lengths)[0][..., chosen], RTOL, "y")
    steps = [t for t in range(1, L + 1) if (case["before"] + t) % case["every"] == 0]
    assert found["states"].shape[1] == len(steps)
    for p, t in enumerate(steps):
        h = oracle(case, a, np.minimum(lengths, t))[1]
        states = found["states"][:, p, :, : case["N"]]
        assert_close_to_scale(states, h[:, chosen], RTOL, f"states after {t}")


def test_barriers_matter(results):
    """The same kernel with barriers that do not wait reads what nobody has brought."""
    name = "without barriers"
    y, _ = oracle(CASES[name], inputs(name), CASES[name]["lengths"])
    assert not np.allclose(results[name]["y"], y, 1e-3, 1e-3)
