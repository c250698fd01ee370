"""What all programs share: how a call is timed, and what it is given."""

import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Job = dict[str, Any]
"""What is asked of a program: ``do`` names a method of it, ``threads`` how many to use, ``seconds``
and ``repeats`` how long and how often to do it at least; the rest is the method's own."""

PROMPT = 8
"""Tokens that a text has before its continuation is timed."""


def seconds_of(call: Callable[[], Any], job: Job) -> list[float]:
    """Call once to warm up, then as long and as often as the job says; return each one's seconds.

    The first call is counted too if the job says ``warm_up=False``.
    """
    if job.get("warm_up", True):
        call()
    least, repeats = job["seconds"], job.get("repeats", 3)
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def median_of(call: Callable[[], Any], job: Job) -> float:
    """Return the median seconds of a call."""
    return statistics.median(seconds_of(call, job))


def peak_megabytes() -> float:
    """Return the most memory, in MB, that this process has had at once.

    Not ``ru_maxrss`` where that can be helped: on Linux it starts from what the parent had.
    """
    try:
        found = re.search(
            r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
        )
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1.024e-3
    import resource

    unit = 1e-6 if sys.platform == "darwin" else 1.024e-3  # bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ids_of(vocabulary: int, batch: int, length: int) -> NDArray:
    """Return random tokens (batch, length), the same ones for every program."""
    return np.random.default_rng(0).integers(0, vocabulary, (batch, length))


def scan_arrays(L: int, E: int, N: int) -> tuple[NDArray, ...]:
    """Return x (L E), delta (L E), A (E N), B (L N), C (L N) of a scan of one text, float32."""
    rng = np.random.default_rng(0)
    x, B, C = (rng.standard_normal((L, width), np.float32) for width in (E, N, N))
    delta = rng.uniform(0.001, 0.1, (L, E)).astype(np.float32)
    A = -np.tile(np.arange(1, N + 1, dtype=np.float32), (E, 1))
    return x, delta, A, B, C
