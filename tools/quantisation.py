"""Measure what storing weights in fewer bits costs: how far the predictions on a text move.

    python tools/quantisation.py TEXT

Prints a Markdown table: for each storage, bytes of the weights, bits per byte and perplexity per
token of the text, and, against float32, the mean and the largest Kullback-Leibler divergence of a
prediction (in nats) and how often the likeliest token is the same.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path
from mamba_np import equations as eq
from mamba_np.int8 import quantised

WINDOW = 1024
"""Tokens whose predictions are compared at a time."""

GROUPS = (32, 64, 128, 256)


def models(name: str) -> dict[str, MambaForCausalLM]:
    """Return the model in each storage, float32 first."""
    dtypes = ("float32", "bfloat16", "float16")
    found = {dtype: MambaForCausalLM.from_pretrained(name, dtype=dtype) for dtype in dtypes}
    base = found["float32"]
    for group in GROUPS:
        params = quantised(base.params, group)
        found[f"int8, groups of {group}"] = MambaForCausalLM(base.config, params=params)
    return found


def weight_bytes(model: MambaForCausalLM) -> int:
    """Return the bytes of all parameters, scales included."""
    return sum(array.nbytes for array in model.state_dict().values())


class Sums:
    """What is added up for one storage over the text."""

    def __init__(self) -> None:
        self.nats = self.divergence = self.largest = 0.0
        self.same = self.count = 0

    def add(self, log_q: np.ndarray, log_p: np.ndarray, next_ids: np.ndarray) -> None:
        """Add predictions (L, V) that are followed by ``next_ids`` (L); ``log_p`` is float32's."""
        self.nats -= log_q[np.arange(len(next_ids)), next_ids].sum()
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        self.divergence += divergence.sum()
        self.largest = max(self.largest, divergence.max())
        self.same += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
        self.count += len(next_ids)


def measure(found: dict[str, MambaForCausalLM], ids: np.ndarray) -> dict[str, Sums]:
    """Return the sums of each model over a text's ids, read once from left to right."""
    sums = {name: Sums() for name in found}
    caches: dict[str, Any] = dict.fromkeys(found)
    for first in range(0, len(ids) - 1, WINDOW):
        piece, following = ids[first : first + WINDOW], ids[first + 1 : first + WINDOW + 1]
        log_p = None
        for name, model in found.items():
            output = model(piece[None], cache_params=caches[name])
            caches[name] = output.cache_params
            logits = output.logits[0, : len(following)]
            log_q = eq.log_softmax(logits.astype(np.float64))
            log_p = log_q if log_p is None else log_p
            sums[name].add(log_q, log_p, following)
    return sums


def table(found: dict[str, MambaForCausalLM], sums: dict[str, Sums], size: int) -> str:
    """Return the Markdown table; ``size`` is that of the text in bytes."""
    head = ("weights", "MB", "bits per byte", "perplexity", "mean KL", "largest KL", "same top")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, s in sums.items():
        bits, perplexity = s.nats / np.log(2) / size, np.exp(s.nats / s.count)
        cells = (
            name,
            f"{weight_bytes(found[name]) / 1e6:.2f}",
            f"{bits:.5f}",
            f"{perplexity:.4f}",
            f"{s.divergence / s.count:.1e}",
            f"{s.largest:.1e}",
            f"{s.same / s.count:.2%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", type=Path, help="a text in UTF-8")
    parser.add_argument("--model", default=str(bundled_model_path()), help="default: the bundled")
    parser.add_argument("--bytes", type=int, default=400_000, help="of the text, from its start")
    options = parser.parse_args()
    text = options.text.read_bytes()[: options.bytes].decode(errors="ignore")
    ids = np.asarray(AutoTokenizer.from_pretrained(options.model)(text)["input_ids"]).reshape(-1)
    found = models(options.model)
    print(table(found, measure(found, ids), len(text.encode())))


if __name__ == "__main__":
    main()
