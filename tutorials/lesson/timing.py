"""How long a call takes."""

import time
from collections.abc import Callable
from typing import Any


def seconds(function: Callable, *arguments: Any, repeats: int = 3) -> float:
    """Return the least time that ``function(*arguments)`` took in some calls, in seconds.

    The least, since whatever else the machine does can only add to it.
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)
