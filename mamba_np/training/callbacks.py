"""What watches a run: its progress, callbacks with transformers' events, a display, Ctrl-C."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where a run is, as ``trainer.state`` tells it: transformers' TrainerState."""

    global_step: int = 0
    """Updates so far."""
    epoch: float = 0.0
    """Passes over the data so far, with a fraction."""
    max_steps: int = 0
    """Updates of the whole run."""
    num_train_epochs: float = 0.0
    num_input_tokens_seen: int = 0
    """Tokens predicted so far."""
    log_history: list[dict[str, Any]] = field(default_factory=list)
    """Each log: loss, grad_norm, learning_rate, epoch and step, or an evaluation's values."""


@dataclass(slots=True)  # so that asking for something else is an error
class TrainerControl:
    """What a callback may ask for by setting it: it happens after the current step."""

    should_training_stop: bool = False
    should_log: bool = False
    should_evaluate: bool = False
    should_save: bool = False

    def new_step(self) -> None:
        """Forget what happens after a step, for the next one."""
        self.should_log = self.should_evaluate = self.should_save = False


class TrainerCallback:
    """Is told of a run's events; to be derived from.

    ``args`` are the TrainingArguments, ``state`` the Progress and ``control`` the TrainerControl.
    ``options`` hold ``model`` and ``processing_class``, ``logs`` of on_log and ``metrics`` of
    on_evaluate.
    """

    def on_train_begin(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told before the first step."""

    def on_epoch_begin(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told before the first step of a pass, and where a run goes on within one."""

    def on_step_begin(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told before each update."""

    def on_epoch_end(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told when all rows have been seen once more."""

    def on_step_end(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told after each update."""

    def on_log(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told what was logged: ``options["logs"]``."""

    def on_evaluate(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told what was measured: ``options["metrics"]``."""

    def on_save(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told when a checkpoint is safe."""

    def on_train_end(self, args: Any, state: Progress, control: TrainerControl, **options: Any):
        """Be told after the last step."""


TICK = 30.0
"""Seconds of silence after which a line says where a run is, if there is no bar to show it."""


class Display:
    """Shows a run on stderr: a bar with loss and speed on a terminal, lines everywhere else.

    Lines, which notebooks and log files keep, tell what is logged, and after every ``TICK`` seconds
    without a log where the run is. With ``plain``, transformers' ``disable_tqdm``, there is nothing
    but lines of what is logged.
    """

    def __init__(self, plain: bool | None, total: int, done: int):
        self._plain, self._total, self._done, self._tokens = plain, total, done, 0
        self._started = self._written = time.monotonic()
        self._bar = None
        if not plain and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr)

    def step(self, loss: float, tokens: int) -> None:
        """Show one more step."""
        now = time.monotonic()
        self._done, self._tokens = self._done + 1, self._tokens + tokens
        speed = self._tokens / max(now - self._started, 1e-9)
        text = f"loss {loss:.4g}, {speed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif not self._plain and now - self._written >= TICK:
            self._print(f"step {self._done} of {self._total}, {text}")

    def write(self, logs: dict[str, Any]) -> None:
        """Show what was logged: above the bar, if there is one."""
        if self._bar is not None:
            self._bar.write(one_line(logs), file=sys.stderr)
        else:
            self._print(one_line(logs))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, line: str) -> None:
        self._written = time.monotonic()
        if sys.stderr is not None:  # closed, or a program without a console
            print(line, file=sys.stderr, flush=True)


def one_line(logs: dict[str, Any]) -> str:
    """Return a log as a line to read: ``loss 2.31  grad_norm 0.4  epoch 0.5``."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in logs.items()
    )


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called, or the block ends.

    A step is finished, and so is a checkpoint that is being written. A second Ctrl-C comes at
    once. In threads, and where somebody else handles the signal, nothing is held.
    """
    held: list[int] = []

    def hold(number: int, _: Any) -> None:
        held.append(number)
        if len(held) > 1:
            raise KeyboardInterrupt

    def release() -> None:
        if held:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield release
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield release
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    release()
