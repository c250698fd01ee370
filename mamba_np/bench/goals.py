"""What the measurements are to show: goals as ratios of two results, and whether they are met.

A result has a key such as "decode 1 | 2 threads | ours float32", the last part being a program.
"""

from dataclasses import dataclass
from typing import Any

from .blocks import key, many
from .options import FORMATS

Results = dict[str, dict[str, Any]]
"""Results by their keys; of each, ``median`` (None: not measured) and ``disturbed`` count here."""


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be at least, or at most, a bound."""

    text: str
    over: str  # key of what is divided
    under: tuple[str, ...]  # keys of what it is divided by: the largest of them; none: by 1
    bound: float
    at_least: bool = True
    scale: float = 1.0

    def judge(self, results: Results) -> dict[str, Any]:
        """Return the ratio and whether the goal is "met", "not met" or "not measured"."""
        row: dict[str, Any] = {"goal": self.text, "bound": self.bound, "at_least": self.at_least}
        used = [results.get(key, {}) for key in (self.over, *self.under)]
        medians: list[Any] = [one.get("median") for one in used]
        if not all(medians):
            return {**row, "ratio": None, "state": "not measured"}
        ratio = self.scale * medians[0] / max(medians[1:], default=1.0)
        met = ratio >= self.bound if self.at_least else ratio <= self.bound
        state = "met" if met else "not met"
        if any(one.get("disturbed") for one in used):
            state += " (disturbed)"
        return {**row, "ratio": ratio, "state": state}


def judge(results: Results, most: int, gigabytes: float) -> list[dict[str, Any]]:
    """Return a row for each goal; see ``goals``."""
    return [goal.judge(results) for goal in goals(most, gigabytes)]


def goals(most: int, gigabytes: float) -> list[Goal]:
    """Return all goals; ``most`` threads are "two", ``gigabytes`` what a float32 step reads."""
    found = [*_decode(most, gigabytes), *_prefill(most), *_scan(most), *_rest(), *_training(most)]
    first: dict[str, Goal] = {}
    for goal in found:  # with one thread at most, goals of two threads are those of one
        first.setdefault(goal.text, goal)
    return list(first.values())


def _decode(most: int, gigabytes: float) -> list[Goal]:
    found = []
    for threads, bounds in ((most, (1.2, 1.4, 1.4, 1.6)), (1, (1.2, 1.4, 1.4, 1.45))):
        dtypes = ("float32", "bfloat16", "bfloat16", "int8")
        for dtype, kind, bound in zip(dtypes, FORMATS, bounds, strict=True):
            text = f"decode, {many(threads)}: {dtype} / llama.cpp {kind}"
            ours = key("decode 1", threads, f"ours {dtype}")
            found.append(Goal(text, ours, (key("decode 1", threads, f"llama.cpp {kind}"),), bound))
    f32, where = key("decode 1", most, "ours float32"), f"decode, {many(most)}"
    read = key("decode 1", most, "read bandwidth")
    peer = (key("decode 1", most, "transformers"),)
    eight = key("decode 8", most, "ours float32"), (key("decode 8", most, "transformers"),)
    return [
        *found,
        Goal(f"{where}: float32 / transformers", f32, peer, 3.0),
        Goal(f"{where}: float32's bytes / read bandwidth", f32, (read,), 0.9, scale=gigabytes),
        Goal(f"decode of 8 texts, {many(most)}: float32 / transformers", *eight, 3.5),
    ]


def _prefill(most: int) -> list[Goal]:
    def at(length: int, name: str) -> str:
        return key(f"prefill {length}", most, name)

    best = {n: tuple(at(n, f"llama.cpp {kind}") for kind in FORMATS) for n in (128, 512, 2048)}
    f32 = {n: at(n, "ours float32") for n in best}
    share = at(512, "ours float32, share of matrix products")
    found = [
        Goal("prefill 512: float32 / llama.cpp F32", f32[512], best[512][:1], 2.8),
        Goal("prefill 512: float32 / llama.cpp's best format", f32[512], best[512], 2.4),
        Goal("prefill 512: float32 / transformers", f32[512], (at(512, "transformers"),), 5.5),
        Goal("prefill 512: float32 / mambapy", f32[512], (at(512, "mambapy"),), 9.0),
        Goal("prefill 512: share of the time in matrix products", share, (), 0.8),
        Goal("prefill 2048: float32 / llama.cpp's best format", f32[2048], best[2048], 3.5),
        Goal("prefill 2048: speed per token / that at 512", f32[2048], (f32[512],), 1.0),
        Goal("prefill 128: float32 / llama.cpp's best format", f32[128], best[128], 2.0),
    ]
    return found + [
        Goal(f"prefill {n}: {dtype} / float32", at(n, f"ours {dtype}"), (f32[n],), 0.9)
        for dtype in ("bfloat16", "int8")
        for n in f32
    ]


def _scan(most: int) -> list[Goal]:
    ours, bare = key("scan", 1, "ours"), key("scan", 1, "bare exp2")
    llama, loop = key("scan", 1, "llama.cpp"), key("scan", 1, "torch loop")
    text = "scan, 1 thread: our time / the bare exp2 loop's"
    found = [
        Goal("scan, 1 thread: llama.cpp's time / ours", llama, (ours,), 12.0),
        Goal("scan, 1 thread: torch loop's time / ours", loop, (ours,), 30.0),
        Goal(text, ours, (bare,), 2.0, at_least=False),
        Goal(f"{text} (stretch)", ours, (bare,), 1.7, at_least=False),
    ]
    if most > 1:
        text = f"scan: time with 1 thread / with {most}"
        found.append(Goal(text, ours, (key("scan", most, "ours"),), 1.85 * most / 2))
    return found


def _rest() -> list[Goal]:
    long, short = "100000 tokens", "4000 tokens"
    peak = f"memory | {long}", (f"memory | {short}",)
    pace = f"time per token | {long}", (f"time per token | {short}",)
    cold, warm = "start | first ever, 1 token", "start | later, 1 token"
    return [
        Goal("memory: peak of 100,000 tokens / of 4,000", *peak, 1.10, at_least=False),
        Goal("time per token: 100,000 tokens / 4,000", *pace, 1.05, at_least=False),
        Goal("first token ever, seconds", cold, (), 15.0, at_least=False),
        Goal("first token of later starts, seconds", warm, (), 1.0, at_least=False),
    ]


def _training(most: int) -> list[Goal]:
    found = []
    for shape in ("1 x 256", "4 x 256", "4 x 512"):
        what = f"training {shape}"
        pair = key(what, most, "ours float32"), (key(what, most, "transformers"),)
        found.append(Goal(f"{what}, {many(most)}: ours / transformers", *pair, 5.0))
    what = "memory of training, each token"
    long, short = f"{what} | ours, 1024 to 2048 tokens", f"{what} | ours, 128 to 256 tokens"
    text, counted = f"{what}: 1,024 to 2,048 tokens", f"{what} | ours, counted"
    return [
        *found,
        Goal(f"{text} / 128 to 256", long, (short,), 1.10, at_least=False),
        Goal(f"{text} / counted", long, (counted,), 1.10, at_least=False),
    ]
