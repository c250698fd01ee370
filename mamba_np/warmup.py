"""Compile the kernels before they are needed: they are kept, so this is done once per machine."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from . import ops
from .config import MambaConfig
from .model import MambaForCausalLM
from .threads import run_team


def warmup(dtypes: Sequence[str] = ("float32",)) -> Iterator[tuple[str, float]]:
    """Compile what models stored in ``dtypes`` need; yield (what, seconds) after each part.

    Raises InputError for an unknown dtype.
    """
    config = MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1)
    for dtype in dtypes:
        start = time.perf_counter()
        model = MambaForCausalLM(config, dtype=dtype, rng=0)
        cache = model(np.zeros((1, 12), np.int64)).cache_params  # a prompt
        model(np.zeros((1, 1), np.int64), cache_params=cache)  # a token
        yield f"models in {dtype}", time.perf_counter() - start
    start = time.perf_counter()
    run_team(lambda member: member.barrier(), size=2)
    x = np.zeros((1, 16, 2), np.float32)
    ops.causal_conv1d(x, np.zeros((16, 4), np.float32))
    ops.selective_scan(x, x, -np.ones((16, 1), np.float32), x[:, :1], x[:, :1])
    yield "threads and operators", time.perf_counter() - start
