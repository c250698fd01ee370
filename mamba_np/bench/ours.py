"""What is measured of this package: a model's prompts and tokens, and the scan alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..model import MambaForCausalLM
from ..threads import run_team, set_num_threads
from .timing import PROMPT, Job, ids_of, median_of, scan_arrays, seconds_of


class Ours:
    """A model, with weights of one dtype."""

    def __init__(self, model: str, dtype: str, backend: str):
        self.model = MambaForCausalLM.from_pretrained(model, dtype=dtype, backend=backend)

    def prefill(self, job: Job) -> float:
        """Return tokens a second of reading ``length`` tokens; the last position's logits."""
        set_num_threads(job["threads"])
        ids = self._ids(1, job["length"])
        return job["length"] / median_of(lambda: self.model(ids, logits_to_keep=1), job)

    def decode(self, job: Job) -> float:
        """Return tokens a second, one of each of ``batch`` texts a call, with a cache."""
        set_num_threads(job["threads"])
        ids = self._ids(job["batch"], PROMPT)
        cache = self.model(ids, logits_to_keep=1).cache_params
        token = ids[:, :1]

        def step() -> None:
            self.model(token, cache_params=cache, logits_to_keep=1)

        return job["batch"] / median_of(step, job)

    def product_share(self, job: Job) -> float:
        """Return the part of a prefill that the first thread spends inside matrix products."""
        set_num_threads(job["threads"])
        ids = self._ids(1, job["length"])
        shares: list[float] = []

        def measure() -> None:
            spent, start = [0.0], time.perf_counter()
            with _timed_products(spent):
                self.model(ids, logits_to_keep=1)
            shares.append(spent[0] / (time.perf_counter() - start))

        seconds_of(measure, job)
        if not any(shares):
            raise NotImplementedError("no matrix products of NumPy's took part")
        return float(np.median(shares[1:]))

    def _ids(self, batch: int, length: int) -> NDArray:
        return ids_of(self.model.config.vocab_size, batch, length)


@contextmanager
def _timed_products(spent: list[float]) -> Iterator[None]:
    """Return a context in which this thread's seconds in ``np.matmul`` are added to spent[0]."""
    matmul, here = np.matmul, threading.get_ident()

    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return matmul(*args, **options)
        finally:
            if threading.get_ident() == here:
                spent[0] += time.perf_counter() - start

    np.matmul = timed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        np.matmul = matmul


# --- the scan alone ------------------------------------------------------------------------------


class Scan:
    """The fused scan kernel on arrays that are ready, and powers of two with nothing around them.

    The kernel does what a model needs of it: softplus of the step size, the recurrence, the skip
    connection and the gate. Nothing is allocated or copied while it is timed, but the few KB that
    the kernel itself works in.
    """

    def __init__(self, L: int, E: int, N: int):
        self.L, self.E, self.N = L, E, N
        self.y, self._run = _scan_call(L, E, N)
        self._powers: Any = None

    def scan(self, job: Job) -> float:
        """Return milliseconds of a scan of L steps, E channels and N states each."""
        return 1e3 * median_of(lambda: self._run(job["threads"]), job)

    def exp2(self, job: Job) -> float:
        """Return milliseconds of L * E * N powers of two, on one thread, of 4 KB of numbers."""
        if self._powers is None:
            self._powers = _compiled_powers()
        row = np.linspace(-4, 0, 1024, dtype=np.float32)
        result = np.empty_like(row)
        turns = self.L * self.E * self.N // row.size
        return 1e3 * median_of(lambda: self._powers(row, result, turns), job)


def _scan_call(L: int, E: int, N: int) -> tuple[NDArray, Any]:
    """Return the result (L, E padded) that a scan writes, and a function of the threads to use."""
    from ..kernels.packing import aligned, groups_of_channels, padded
    from ..kernels.scan import NO_STARTS, Channels, Sequence, selective_scan

    x, delta, A, B, C = scan_arrays(L, E, N)
    wide = padded(E)
    x, delta, z = (_widened(a) for a in (x, eq.inverse_softplus(delta), np.ones_like(x)))
    A_per_octave, ones = (
        groups_of_channels(eq.per_octave(A)),
        _widened(np.ones((1, E), np.float32))[0],
    )
    zeros, y, h = aligned((wide,)), aligned(x.shape), aligned((1, N, wide))
    steps = np.array([L])
    sequence = Sequence(x, delta, wide, B.reshape(-1), C.reshape(-1), N, z.reshape(-1), wide)
    channels = Channels(A_per_octave, ones, zeros, wide, N, True)

    def run(threads: int) -> None:
        def share(member: Any) -> None:
            selective_scan(sequence, channels, h, y, NO_STARTS, L, steps, member.share(wide // 16))

        run_team(share, threads)

    return y, run


def _widened(array: NDArray) -> NDArray:
    """Return (rows, channels) as a model has them: from a cache line on, to whole Lanes."""
    from ..kernels.packing import aligned, padded

    result = aligned((len(array), padded(array.shape[1])))
    result[:, : array.shape[1]] = array
    return result


def _compiled_powers() -> Any:
    """Return a kernel that makes 2**x of an array again and again."""
    import numba

    from ..kernels import vectorised  # noqa: F401 - lets kernels call equations
    from ..kernels.lanes import WIDTH
    from ..kernels.memory import load, store
    from ..kernels.options import OPTIONS

    @numba.njit(**OPTIONS)
    def powers(x, y, turns):
        for _ in range(turns):
            for i in range(0, x.size, WIDTH):
                store(y, i, eq.exp2(load(x, i)))

    return powers
