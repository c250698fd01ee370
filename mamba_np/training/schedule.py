"""Learning rates as functions of the step, with transformers' names and numbers.

All begin with a warm-up, in which the rate grows from 0 in equal steps. What follows is a straight
line to 0 ("linear", transformers' default), half a wave of the cosine ("cosine") or nothing
("constant"); they are transformers' ``get_linear_schedule_with_warmup``,
``get_cosine_with_min_lr_schedule_with_warmup`` and ``get_constant_schedule_with_warmup``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..checks import choice, integer, number
from ..errors import InputError

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every step: ``schedule(step)``, where ``step`` updates came before.

    ``total_steps`` is the length of the run, warm-up included; ``min_ratio`` the share of ``lr``
    that is left of a cosine at its end. Where the first step has a warm-up, its rate is 0, as in
    transformers. Raises InputError for values that no schedule can have.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    name: str = "linear"
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        checked: dict[str, Callable[[str, Any], Any]] = {
            "lr": lambda name, value: number(name, value, low=0, error=InputError),
            "total_steps": lambda name, value: integer(name, value, error=InputError),
            "warmup_steps": lambda name, value: integer(name, value, low=0, error=InputError),
            "name": lambda name, value: choice(name, value, SCHEDULES, error=InputError),
            "min_ratio": lambda name, value: number(name, value, 0, 1, error=InputError),
        }
        for name, check in checked.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.min_ratio and self.name != "cosine":
            raise InputError(
                f"min_ratio: expected 0 for the schedule {self.name!r}, found {self.min_ratio:g}"
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate of the update that ``step`` others came before."""
        return self.lr * self.factor(integer("step", step, low=0, error=InputError))

    def factor(self, step: int) -> float:
        """Return the share of ``lr`` that counts at a step, from 0 to 1."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.name == "constant":
            return 1.0
        left, whole = self.total_steps - step, max(1, self.total_steps - self.warmup_steps)
        if self.name == "linear":
            return max(0.0, left / whole)
        # transformers' cosine rises again after the end of the run; ours stays.
        progress = min(1.0, (step - self.warmup_steps) / whole)
        wave = 0.5 * (1.0 + math.cos(math.pi * progress))
        return wave * (1 - self.min_ratio) + self.min_ratio
