"""Measure what looking inside costs: traces beside plain reading, hidden attention, memory.

    python tools/tracing_costs.py [MODEL]

Without MODEL, a model of random weights in the shape of mamba-130m. Each time is the best of
several, traced and untraced in turns; memory is what tracemalloc sees of a trace, beside its
estimate.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from mamba_np import MambaConfig, MambaForCausalLM, Trace, analysis

LENGTH, ROUNDS = 512, 7
CAPTURES = (("delta",), ("delta", "B", "C"), ("y",), ("delta_mean",))


def best(*works: Callable[[], Any]) -> list[float]:
    """Return the shortest time of each, in seconds; they take turns."""
    found = [float("inf")] * len(works)
    for work in works:
        work()
    for _ in range(ROUNDS):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            found[i] = min(found[i], time.perf_counter() - start)
    return found


def grown(work: Callable[[], Trace]) -> tuple[int, Trace]:
    """Return by how many bytes the memory of Python and NumPy has grown, and the trace."""
    work()
    tracemalloc.start()
    trace = work()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size, trace


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", help="folder or hub id [default: random weights]")
    name = parser.parse_args().model
    shape = MambaConfig(hidden_size=768, num_hidden_layers=24)
    model = MambaForCausalLM.from_pretrained(name) if name else MambaForCausalLM(shape, rng=0)
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=LENGTH)

    def plain() -> Any:
        return model(ids[None], logits_to_keep=1, use_cache=False)

    print(
        f"{model}, {LENGTH} tokens\n\n| what | seconds | of a plain reading | bytes, of estimated |"
    )
    print("|---|---|---|---|")
    for capture in CAPTURES:

        def traced(capture: tuple[str, ...] = capture) -> Trace:
            return model.trace(ids, capture=capture)

        alone, seen = best(plain, traced)
        size, trace = grown(traced)
        share = size / Trace.estimate(model, LENGTH, capture=capture)
        print(f"| {', '.join(capture)} | {seen:.3f} | {seen / alone:.2f} | {share:.3f} |")
        del trace
    trace = model.trace(ids, layers=[model.config.num_hidden_layers // 2])
    (seconds,) = best(lambda: analysis.mean_hidden_attention(trace, int(trace.layers[0])))
    print(f"| mean hidden attention of one layer | {seconds:.3f} | | |")


if __name__ == "__main__":
    main()
