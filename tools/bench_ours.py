"""What is measured of mamba_np, and of the machine: each class answers jobs in a process.

A job has ``threads``, ``seconds`` (how long to repeat it) and what else its method says.
"""

import threading
import time
from typing import Any

import numpy as np
from bench_worker import median_of, seconds_of

from mamba_np import MambaForCausalLM, backend, set_num_threads
from mamba_np import equations as eq

FLOATS = 2**27
"""Numbers in the array whose reading is timed: 512 MB, more than any cache."""

SCAN = {"L": 2048, "E": 1536, "N": 16}


def ids_of(vocabulary: int, batch: int, length: int) -> np.ndarray:
    """Return random tokens (batch, length), the same ones for every program."""
    return np.random.default_rng(0).integers(0, vocabulary, (batch, length))


def on_threads(work: Any, threads: int) -> float:
    """Run work(rank) on some Python threads at once; return how many seconds that took."""
    team = [threading.Thread(target=work, args=(rank,)) for rank in range(1, threads)]
    start = time.perf_counter()
    for thread in team:
        thread.start()
    work(0)
    for thread in team:
        thread.join()
    return time.perf_counter() - start


class Limits:
    """What this machine can do at most: read memory, multiply matrices."""

    def __init__(self, floats: int = FLOATS):
        self.numbers = np.ones(floats, np.float32)
        self.sum: Any = None

    def read(self, job: dict[str, Any]) -> float:
        """Return GB/s of summing an array that no cache holds."""
        if self.sum is None:
            import numba

            flags = {"reassoc", "contract", "nsz"}
            self.sum = numba.njit(nogil=True, fastmath=flags)(_sum)
            self.sum(self.numbers[:1])
        parts = np.array_split(self.numbers, job["threads"])
        seconds = median_of(
            lambda: on_threads(lambda rank: self.sum(parts[rank]), job["threads"]), job
        )
        return self.numbers.nbytes / seconds / 1e9

    def sgemm(self, job: dict[str, Any]) -> float:
        """Return GFLOP/s of 512x768 @ 768x3072, its columns split over threads; BLAS has one."""
        from threadpoolctl import threadpool_limits

        a, b = np.ones((512, 768), np.float32), np.ones((3072, 768), np.float32)
        y, count, turns = np.empty((512, 3072), np.float32), job["threads"], 8

        def work(rank: int) -> None:
            low, high = 3072 * rank // count, 3072 * (rank + 1) // count
            for _ in range(turns):
                np.matmul(a, b[low:high].T, out=y[:, low:high])

        with threadpool_limits(1, "blas"):
            seconds = median_of(lambda: on_threads(work, count), job)
        return turns * 2 * 512 * 768 * 3072 / seconds / 1e9


def _sum(numbers):
    total = np.float32(0)
    for i in range(numbers.size):
        total += numbers[i]
    return total


class Ours:
    """A model of ours, with weights of one dtype."""

    def __init__(self, model: str, dtype: str, backend: str):
        self.model = MambaForCausalLM.from_pretrained(model, dtype=dtype, backend=backend)

    def _ids(self, batch: int, length: int) -> np.ndarray:
        return ids_of(self.model.config.vocab_size, batch, length)

    def prefill(self, job: dict[str, Any]) -> float:
        """Return tokens a second of reading ``length`` tokens; the last position's logits."""
        set_num_threads(job["threads"])
        ids = self._ids(1, job["length"])
        return job["length"] / median_of(lambda: self.model(ids, logits_to_keep=1), job)

    def decode(self, job: dict[str, Any]) -> float:
        """Return tokens a second, ``batch`` of them a call, from the cache of a short prompt."""
        set_num_threads(job["threads"])
        ids = self._ids(job["batch"], 8)
        cache = self.model(ids, logits_to_keep=1).cache_params
        token = ids[:, :1]
        return job["batch"] / median_of(lambda: self.model(token, cache_params=cache), job)

    def product_share(self, job: dict[str, Any]) -> float:
        """Return the part of a prefill that the first thread spends inside matrix products."""
        set_num_threads(job["threads"])
        ids = self._ids(1, job["length"])
        matmul, first, inside = np.matmul, threading.get_ident(), [0.0]

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return matmul(*args, **options)
            finally:
                if threading.get_ident() == first:
                    inside[0] += time.perf_counter() - start

        shares = []

        def measure() -> None:
            inside[0], start = 0.0, time.perf_counter()
            self.model(ids, logits_to_keep=1)
            shares.append(inside[0] / (time.perf_counter() - start))

        np.matmul = timed  # pyright: ignore[reportAttributeAccessIssue]
        try:
            seconds_of(measure, job["seconds"])
        finally:
            np.matmul = matmul
        return float(np.median(shares[1:]))


class Scan:
    """The selective scan alone, and the bare powers of two that it cannot do without."""

    def __init__(self, backend: str, L: int, E: int, N: int):
        self.backend, self.count = backend, L * E * N
        self.arrays = scan_arrays(L, E, N)
        self.powers: Any = None

    def scan(self, job: dict[str, Any]) -> float:
        """Return milliseconds of a whole scan."""
        set_num_threads(job["threads"])
        run = backend.get(self.backend).selective_scan
        return 1e3 * median_of(lambda: run(*self.arrays), job)

    def exp2(self, job: dict[str, Any]) -> float:
        """Return milliseconds of as many powers of two, of one cache line after another."""
        if self.powers is None:
            self.powers = _powers()
        row = np.linspace(-4, 0, 1024, dtype=np.float32)
        result = np.empty_like(row)
        turns = self.count // len(row)
        return 1e3 * median_of(lambda: self.powers(row, result, turns), job)


def _powers() -> Any:
    """Return a kernel that makes 2**x of an array in the first-level cache, again and again."""
    from mamba_np.kernels import vectorised  # noqa: F401
    from mamba_np.kernels.lanes import WIDTH, load, store
    from mamba_np.kernels.options import OPTIONS

    import numba

    @numba.njit(**OPTIONS)
    def powers(x, y, turns):
        for _ in range(turns):
            for i in range(0, x.size, WIDTH):
                store(y, i, eq.exp2(load(x, i)))

    return powers


def scan_arrays(L: int, E: int, N: int) -> tuple[np.ndarray, ...]:
    """Return x, delta, A, B, C and the first state of a scan of one text."""
    rng = np.random.default_rng(0)
    x, B, C = (rng.standard_normal((1, L, width), np.float32) for width in (E, N, N))
    delta = rng.uniform(0.001, 0.1, (1, L, E)).astype(np.float32)
    A = -np.tile(np.arange(1, N + 1, dtype=np.float32), (E, 1))
    return x, delta, A, B, C, np.zeros((1, E, N), np.float32)
