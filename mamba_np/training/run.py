"""A run in progress: what moves the weights, what is counted, and what is due after a step."""

from dataclasses import dataclass
from typing import NamedTuple

from numpy.typing import NDArray

from .optimiser import AdamW
from .resume import Data, Losses
from .schedule import Schedule
from .state import TrainerState


class TrainOutput(NamedTuple):
    """What ``train`` returns."""

    global_step: int
    training_loss: float
    """The mean loss of all steps."""
    metrics: dict[str, float]


@dataclass
class Run:
    """A run in progress: what moves the weights, and the sums that logs are made of."""

    optimiser: AdamW
    schedule: Schedule
    state: TrainerState
    losses: Losses
    data: Data
    order: NDArray | None = None
    """The order of the current epoch, once it is needed."""
    rows_seen: int = 0
    """In this call of ``train``."""
    started: float = 0.0


def due(strategy: str, every: int, step: int, epoch_ended: bool) -> bool:
    """Tell whether a strategy, "no", "steps" or "epoch", asks for something after a step."""
    return epoch_ended if strategy == "epoch" else strategy == "steps" and step % every == 0
