"""Train the induction-heads model of the paper's table 2, and make that table.

    python tools/induction_heads.py train FOLDER
    python tools/induction_heads.py table FOLDER

The model learns from random sequences of 256 tokens and is asked about sequences up to 4,096 times
as long (paper, section 4.1.2 and appendix E.1: two layers of 64, Adam without weight decay, a
constant rate of 1e-3, batches of 8). A sequence of any length is read in constant memory.

The last steps are not the paper's: Adam begins anew with an epsilon of 1e-14 instead of 1e-8. By
then every answer is right at the length of training, and gradients fall below 1e-8. With the
smaller epsilon they go on to count: step sizes at noise shrink further, until a state survives a
million tokens. The first 20,000 steps alone give 100 % up to 4,096 tokens and 20 % at 262,144; the
paper's 204,800 were not tried.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.training import AdamW, training_step
from mamba_np.training.tasks import induction_heads

CONFIG = MambaConfig(
    vocab_size=16,
    hidden_size=64,
    num_hidden_layers=2,
    initializer_range=0.02,
    rescale_prenorm_residual=True,
)
LENGTH, BATCH, RATE, MAX_NORM = 256, 8, 1e-3, 1.0
EPS, LAST_EPS = 1e-8, 1e-14
SEEDS = 1, 80
"""Of the sequences in both parts of the training, on top of the seed asked for."""
REPORT = 500
"""Steps between two lines about the loss."""


def train(folder: Path, steps: int, last_steps: int, seed: int) -> None:
    """Train a model from random parameters and fresh sequences, and save it."""
    model = MambaForCausalLM(CONFIG, rng=seed).make_writeable()
    for count, eps, own in zip((steps, last_steps), (EPS, LAST_EPS), SEEDS, strict=True):
        take_steps(model, count, eps, np.random.default_rng(seed + own))
    model.save_pretrained(folder)


def take_steps(model: MambaForCausalLM, count: int, eps: float, rng: np.random.Generator) -> None:
    """Move a model by ``count`` batches of fresh sequences."""
    optimiser, losses = AdamW(model.state_dict(), lr=RATE, eps=eps), []
    start = time.perf_counter()
    for step in range(1, count + 1):
        ids, labels = induction_heads(rng, BATCH, LENGTH, CONFIG.vocab_size)
        batch = {"input_ids": ids, "labels": labels}
        losses.append(training_step(model, optimiser, [batch], max_grad_norm=MAX_NORM).loss)
        if step % REPORT == 0:
            pace = step * BATCH * LENGTH / (time.perf_counter() - start)
            loss = np.mean(losses[-REPORT:])
            print(f"step {step}: loss {loss:.3g}, {pace:,.0f} tokens a second", flush=True)


def right_answers(model: MambaForCausalLM, length: int, sequences: int, seed: int) -> int:
    """Return how many of some sequences end as they should, one sequence after another."""
    rng, right = np.random.default_rng(seed), 0
    for _ in range(sequences):
        ids, _ = induction_heads(rng, 1, length, CONFIG.vocab_size)
        logits = model(ids[:, :-1], use_cache=False, logits_to_keep=1).logits
        right += int(logits[0, -1].argmax() == ids[0, -1])
    return right


def table(folder: Path, longest: int, tokens: int, seed: int) -> None:
    """Print accuracy at each length: at least 10 sequences, and about ``tokens`` tokens in all."""
    model = MambaForCausalLM.from_pretrained(folder)
    print("| length | right | of | seconds |\n|---|---|---|---|")
    for power in range(6, longest + 1):
        length = 2**power
        sequences = max(10, min(500, tokens // length))
        start = time.perf_counter()
        right = right_answers(model, length, sequences, seed)
        seconds = time.perf_counter() - start
        print(f"| {length:,} | {right / sequences:.1%} | {sequences} | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["train", "table"])
    parser.add_argument("folder", type=Path, help="of the model")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--last-steps", type=int, default=5_000, help="with the smaller epsilon")
    parser.add_argument("--longest", type=int, default=20, help="as a power of two")
    parser.add_argument("--tokens", type=int, default=2**20, help="to read at each length")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.action == "train":
        train(options.folder, options.steps, options.last_steps, options.seed)
    else:
        table(options.folder, options.longest, options.tokens, options.seed)


if __name__ == "__main__":
    main()
