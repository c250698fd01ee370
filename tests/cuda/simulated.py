"""The scan's kernels in Numba's simulator: python simulated.py INPUTS.npz OUTPUTS.npz

To be run with NUMBA_ENABLE_CUDASIM=1. The simulator has one thread of the system for each thread of
a block, and true barriers; it knows no types, no wide loads and no shuffles. So stand-ins take the
place of what ``dialect`` and ``intrinsics`` offer, and all else is the package's own code: the
kernels, the formulas as device functions, the order of barriers. Blocks are of THREADS threads, so
that tiles have few steps, and a short text needs several.

The inputs of a case lie under "case/name"; "case" itself is the text of a JSON object with
form, N, out, gated and, for chunks and traces, more.
"""

import json
import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np
from numba import cuda as simulator
from numba import types
from numba.cuda.simulator.kernel import _get_kernel_context

THREADS = 32


# --- stand-ins ------------------------------------------------------------------------------------


class Warp:
    """What 32 threads that run in step can do: see each other's registers."""

    def __init__(self):
        self.values: list[Any] = [None] * 32
        self.barrier = threading.Barrier(32, timeout=60)

    def exchange(self, lane, value, source):
        self.values[lane] = value
        self.barrier.wait()
        found = self.values[int(source)]
        self.barrier.wait()
        return found


class Cuda:
    """``cuda`` as kernels know it; device functions are called as they are."""

    def __init__(self):
        self._lock, self._block = threading.Lock(), None
        self._arrays, self._warps = {}, {}
        self.barriers = True

    def jit(self, function=None, **options):
        return (lambda f: f) if function is None else function

    def __getattr__(self, name):
        return getattr(_get_kernel_context(), name)

    def _of_block(self, group, key, make):
        """Return what threads of a block have in common; another block gets another."""
        with self._lock:
            block = _get_kernel_context(), tuple(self.blockIdx)
            if block != self._block:
                self._block, self._arrays, self._warps = block, {}, {}
            group = getattr(self, group)
            if key not in group:
                group[key] = make()
            return group[key]

    @property
    def shared(self):
        return self

    def array(self, size, dtype, alignment):
        assert alignment == 16
        return self._of_block("_arrays", 0, lambda: np.full(size, np.nan, np.float32))

    def syncthreads(self):
        if self.barriers:
            _get_kernel_context().syncthreads()

    def shfl_sync(self, mask, value, source):
        thread = self.threadIdx.x
        warp = self._of_block("_warps", thread // 32, Warp)
        return warp.exchange(thread % 32, value, source)

    def shfl_xor_sync(self, mask, value, distance):
        return self.shfl_sync(mask, value, (self.threadIdx.x % 32) ^ distance)


def load4(base, index):
    """Four numbers from a place that is a multiple of four, as the hardware wants it."""
    assert index % 4 == 0
    return tuple(np.float32(base[int(index) + k]) for k in range(4))


def store4(base, index, *numbers):
    assert index % 4 == 0
    for k in range(4):
        base[int(index) + k] = numbers[k]


cuda = Cuda()
dialect = ModuleType("mamba_np.cuda.dialect")
extending = ModuleType("extending")
extending.intrinsic = lambda function: function
vars(dialect).update(cuda=cuda, types=types, extending=extending, arrayobj=None, dispatcher=None)
sys.modules["mamba_np.cuda.dialect"] = dialect

from mamba_np.cuda import intrinsics  # noqa: E402

vars(intrinsics).update(
    load4=load4,
    store4=store4,
    bits_of=lambda x: np.float32(x).view(np.uint32),
    float_of=lambda bits: np.uint32(bits).view(np.float32),
)

from mamba_np.cuda import scan_steps  # noqa: E402

scan_steps.THREADS = THREADS

from mamba_np.cuda import scan, scan_chunks, scan_lanes, scan_trace  # noqa: E402

FORMS = {"channels": scan.channel_scan, "lanes": scan_lanes.lane_scan}


# --- cases ----------------------------------------------------------------------------------------


def run(kernel, grid, *arguments):
    """Launch a kernel; arrays are changed in place."""
    flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in arguments]
    simulator.jit(kernel.function)[grid, (THREADS,)](*flat)


def scanned(case, a):
    """Return y and the states after a case, by the kernels of its form."""
    texts, L, E = a["x"].shape
    sizes, N, gated = (L, E, a["selected"].shape[2]), case["N"], case["gated"]
    y = np.full(a["x"].shape, np.nan, np.float32)
    y = y if case["out"] == "float32" else np.zeros(y.shape, np.uint16)
    h = a["h"].copy()
    inputs = [a[name] for name in ("x", "raw", "xz", "selected", "A", "D", "dt_bias", "lengths")]
    if case["form"] in FORMS:
        kernel = FORMS[case["form"]](N, case["out"], gated)
        grid = scan.blocks_of(case["form"], E), texts, 1
        run(kernel, grid, *inputs, h, y, *sizes, L)
        return {"y": y, "h": h}
    chunk = case["chunk"]
    count = -(-L // chunk)
    ends = np.full((texts, count, *h.shape[1:]), np.nan, np.float32)
    sums = np.full((texts, count, E), np.nan, np.float32)
    some = [a[name] for name in ("x", "raw", "selected", "A", "dt_bias", "lengths")]
    # Of a z, which chunks have not, Python reads what lies in x; compilers leave that read out.
    some[0] = np.concatenate([a["x"].reshape(-1), np.full(a["x"].size, np.nan, np.float32)])
    grid = E // THREADS, texts, count
    run(scan_chunks.chunk_states(N, gated), grid, *some, ends, sums, *sizes, chunk)
    grid = E * h.shape[2] // THREADS, texts
    run(scan_chunks.carry(N), grid, ends, sums, a["A"], h, E, count)
    rescan = case["rescan"]
    kernel = FORMS[rescan](N, case["out"], gated)
    run(kernel, (scan.blocks_of(rescan, E), texts, count), *inputs, ends, y, *sizes, chunk)
    return {"y": y, "h": h, "last": ends[:, -1]}


def traced(case, a):
    """Return what a trace of some channels holds."""
    texts, L, E = a["x"].shape
    chosen, before, every = a["chosen"], case["before"], case["every"]
    kept = (before + L) // every - before // every
    delta, y = (np.full((texts, L, len(chosen)), np.nan, np.float32) for _ in range(2))
    states = np.full((texts, kept, len(chosen), a["A"].shape[1]), np.nan, np.float32)
    names = ("x", "raw", "selected", "A", "dt_bias", "lengths", "h", "chosen")
    grid = -(-len(chosen) // scan_trace.THREADS), texts
    sizes = L, E, a["selected"].shape[2], len(chosen), before, every
    kernel = scan_trace.tracing_scan(case["N"], case["gated"])
    run(kernel, grid, *(a[name] for name in names), delta, y, states, *sizes)
    return {"delta": delta, "y": y, "states": states}


def main(source: str, target: str) -> None:
    outputs = {}
    with np.load(source) as file:
        cases = {name: json.loads(str(file[name])) for name in file.files if "/" not in name}
        for name, case in cases.items():
            arrays = {k.partition("/")[2]: file[k] for k in file.files if k.startswith(f"{name}/")}
            cuda.barriers = not case.get("without_barriers")
            found = (traced if case["form"] == "trace" else scanned)(case, arrays)
            outputs.update({f"{name}/{key}": value for key, value in found.items()})
    np.savez(target, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
