"""What the machine can do at most: read memory, multiply matrices."""

from typing import Any

import numpy as np

from ..threads import run_team
from .options import FLOATS
from .timing import Job, median_of

SGEMM = (512, 768, 3072)
"""Rows, inner size and columns of the product that is timed: a chunk of tokens and in_proj."""

SGEMM_TURNS = 8
"""Products in one call, so that the threads' start does not count."""


class Limits:
    """Answers jobs with what this machine reaches."""

    def __init__(self, floats: int = FLOATS):
        self.numbers = np.ones(floats, np.float32)
        self._sum: Any = None

    def read(self, job: Job) -> float:
        """Return GB/s of summing an array that no cache holds, a part of it on each thread."""
        if self._sum is None:
            self._sum = _compiled_sum()
            self._sum(self.numbers[:1])
        parts = np.array_split(self.numbers, job["threads"])

        def read_all() -> None:
            run_team(lambda member: self._sum(parts[member.rank]), job["threads"])

        return self.numbers.nbytes / median_of(read_all, job) / 1e9

    def sgemm(self, job: Job) -> float:
        """Return GFLOP/s of a float32 matrix product, its columns split over the threads.

        BLAS uses one thread a call (``run_team``).
        """
        rows, inner, columns = SGEMM
        a, b = np.ones((rows, inner), np.float32), np.ones((columns, inner), np.float32)
        y = np.empty((rows, columns), np.float32)

        def multiply(member: Any) -> None:
            low, high = member.share(columns, 16)
            for _ in range(SGEMM_TURNS):
                np.matmul(a, b[low:high].T, out=y[:, low:high])

        seconds = median_of(lambda: run_team(multiply, job["threads"]), job)
        return SGEMM_TURNS * 2 * rows * inner * columns / seconds / 1e9


def _compiled_sum() -> Any:
    import numba

    @numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
    def total(numbers):
        result = np.float32(0)
        for i in range(numbers.size):
            result += numbers[i]
        return result

    return total
