"""Show what selection is for: train small models with parts of it switched off.

    python tools/selection.py copying
    python tools/selection.py induction --lengths 64,256,1024

One line for each choice of what follows from the input (paper, table 7): nothing, as in the state
space models before Mamba, only B, C or delta, or all three. Models, data and steps are otherwise
the same; the task is selective copying (section 4.1.1) or induction heads (section 4.1.2), at
a length where an answer takes minutes; other lengths show what was learned.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.training import AdamW, Schedule, training_step
from mamba_np.training.tasks import Task, accuracy, induction_heads, selective_copying

CHOICES = ((), ("B",), ("C",), ("delta",), ("delta", "B", "C"))
WORDS, COPIED, LENGTH, BATCH, RATE, WARMUP = 16, 4, 64, 32, 3e-3, 200

TASKS: dict[str, Callable[[np.random.Generator, int], Task]] = {
    "copying": lambda rng, length: selective_copying(rng, BATCH, length, WORDS, COPIED),
    "induction": lambda rng, length: induction_heads(rng, BATCH, length, WORDS),
}


def trained(selective: tuple[str, ...], task: str, steps: int, seed: int) -> MambaForCausalLM:
    """Return a model of two layers of 64 after ``steps`` batches of fresh examples."""
    config = MambaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=2,
        initializer_range=0.02,
        rescale_prenorm_residual=True,
        selective=selective,
    )
    model = MambaForCausalLM(config, rng=seed).make_writeable()
    optimiser, rng = AdamW(model.state_dict()), np.random.default_rng(seed + 1)
    rate = Schedule(RATE, steps, WARMUP, "cosine")
    for step in range(steps):
        ids, labels = TASKS[task](rng, LENGTH)
        batch = {"input_ids": ids, "labels": labels}
        training_step(model, optimiser, [batch], rate(step), max_grad_norm=1.0)
    return model


def right(model: MambaForCausalLM, task: str, length: int, seed: int, batches: int = 8) -> float:
    """Return the share of right answers to examples that no model was trained on."""
    rng = np.random.default_rng((seed, length))
    asked = [TASKS[task](rng, length) for _ in range(batches)]
    return float(np.mean([accuracy(model(ids).logits, labels) for ids, labels in asked]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lengths", default=str(LENGTH), help="to ask at, with commas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    columns = " | ".join(f"right at {length:,}" for length in lengths)
    print(f"| follows from the input | {columns} | seconds |\n|{'---|' * (len(lengths) + 2)}")
    for selective in CHOICES:
        start = time.perf_counter()
        model = trained(selective, options.task, options.steps, options.seed)
        seconds = time.perf_counter() - start
        shares = [right(model, options.task, length, options.seed) for length in lengths]
        cells = " | ".join(f"{share:.1%}" for share in shares)
        print(f"| {', '.join(selective) or 'nothing'} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
