"""A ladder: ways to compute the same, each checked and timed, and the limits that none can pass."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .timing import seconds

GREY, ORANGE, BLUE, GREEN = "#888888", "#D55E00", "#0072B2", "#009E73"
COLORS = {"NumPy": GREY, "compiled": ORANGE, "sixteen": BLUE, "mamba_np": GREEN}
"""By how the name of a rung begins."""


class Ladder:
    """Rungs in their order: what each costs, in nanoseconds for each of ``updates``."""

    def __init__(self, expected: np.ndarray, updates: int):
        self.expected, self.updates, self.cost = expected, updates, {}

    def rung(self, name: str, function: Callable, *arguments: Any, repeats: int = 3) -> None:
        """Assert that a function returns what is expected (in float32), and keep its time."""
        y = function(*arguments)  # the first call compiles, where there is something to compile
        np.testing.assert_allclose(y, self.expected, atol=2e-6 * np.abs(self.expected).max())
        took = seconds(function, *arguments, repeats=repeats)
        self.cost[name] = 1e9 * took / self.updates
        print(f"{name}: {self.cost[name]:.2f} ns an update, {1e3 * took:.1f} ms in all")

    def draw(self, ax, floors: dict[str, float]) -> None:
        """Draw a bar for each rung, and a line for each floor.

        A rung's text says its time, and how many times as fast as the first rung it is.
        """
        costs = list(self.cost.values())
        for i, (name, cost) in enumerate(self.cost.items()):
            color = next(color for word, color in COLORS.items() if name.startswith(word))
            ax.barh(i, cost, color=color, height=0.62)
            words = f"{cost:.2g} ns" + (f": {costs[0] / cost:.2g} times as fast" if i else "")
            ax.text(cost * 1.12, i, words, va="center", fontsize=8, backgroundcolor="white")
        for text, floor in floors.items():
            ax.plot(
                [floor, floor], [-0.7, len(costs) - 0.5], color="black", lw=0.9, ls="--", zorder=0
            )
            ax.text(floor, -0.8, text, fontsize=7.5, ha="center", va="bottom")
        ax.set_yticks(range(len(costs)), list(self.cost))
        ax.set(xscale="log", xlim=(min(*costs, *floors.values()) / 2, max(costs) * 9))
        ax.set(ylim=(len(costs) - 0.5, -1.6))
        ax.set_xlabel("nanoseconds for each update (t, e, n): shorter is better")
