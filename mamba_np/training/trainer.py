"""Trainer: a run from data to a trained model, with transformers' names and events."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from ..checks import shown
from ..errors import ConfigError, InputError
from ..files import make_folder
from ..gradients import forget_arrays, loss_and_gradients
from ..lora import PeftModel, lora_loss_and_gradients
from ..model import MambaForCausalLM
from . import resume
from .arguments import TrainingArguments
from .callbacks import Display, Progress, TrainerControl, interrupts_held
from .data import Batch, DataOptions, Row, collate, epoch_order, load_data
from .evaluation import mean_loss
from .optimiser import AdamW
from .run import Run, TrainOutput, due
from .schedule import Schedule
from .sources import has_split
from .state import TrainerState, save_checkpoint
from .steps import training_step

LOGGER = logging.getLogger("mamba_np.training")


class Trainer:
    """Trains a model on data: ``train()``, ``evaluate()``, ``save_model()``.

    ``model`` is a MambaForCausalLM, all of which is trained, or a PeftModel, whose adapter is;
    either is changed in place. ``train_dataset`` and ``eval_dataset`` are paths or iterables of
    dicts, see ``data.load_data``, and are read as a whole; of a folder that is named for training,
    the file valid.jsonl or valid.txt is for evaluation. ``processing_class`` (once ``tokenizer``)
    makes ids of texts, and is saved beside the model. ``data_collator`` may make other batches of
    dicts with ``input_ids`` and ``labels``. ``callbacks`` are TrainerCallbacks, or classes of them.

    ``state.log_history`` holds what was logged, and stderr shows it. ``eval_loss`` is the mean over
    all predicted tokens (transformers': over batches).

    Raises InputError and ConfigError naming the argument or the place in the data that cannot be
    used.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        tokenizer: Any = None,
        callbacks: Sequence[Any] | None = None,
    ):
        if not isinstance(model, (MambaForCausalLM, PeftModel)):
            raise InputError(
                f"model: expected a MambaForCausalLM or a PeftModel, found {shown(model)}"
            )
        self.model = model
        self.args = TrainingArguments() if args is None else args
        if not isinstance(self.args, TrainingArguments):
            raise InputError(f"args: expected TrainingArguments, found {shown(args)}")
        self.processing_class = tokenizer if processing_class is None else processing_class
        self.data_collator = data_collator
        self.callbacks = []
        for callback in callbacks or ():
            self.add_callback(callback)
        if eval_dataset is None and has_split(train_dataset, "valid"):
            eval_dataset = train_dataset
        self.train_rows = self._load(train_dataset, "train_dataset", "train")
        self.eval_rows = self._load(eval_dataset, "eval_dataset", "valid")
        if self.args.eval_strategy != "no" and self.eval_rows is None:
            raise ConfigError(
                f"eval_strategy: expected 'no' without an eval_dataset, "
                f"found {self.args.eval_strategy!r}"
            )
        self.state, self.control = Progress(), TrainerControl()

    def add_callback(self, callback: Any) -> None:
        """Let a TrainerCallback, or a new one of a class, be told of what happens from now on."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: ``processing_class`` by its old name."""
        return self.processing_class

    # --- data -----------------------------------------------------------------------------------

    def data_options(self) -> DataOptions:
        """Return how examples become rows."""
        return DataOptions()

    def _load(self, source: Any, name: str, split: str) -> list[Row] | None:
        if source is None:
            return None
        options = self.data_options()
        rows = load_data(source, self.processing_class, options, name=name, split=split)
        largest, size = max(int(row.ids.max()) for row in rows), self.model.config.vocab_size
        if largest >= size:
            raise InputError(
                f"{name}: expected ids below the model's vocab_size, {size}, found {largest}"
            )
        return rows

    def _batch(self, rows: list[Row]) -> Batch:
        if self.data_collator is not None:
            keys = ("input_ids", "labels")
            lists = [[array.tolist() for array in row] for row in rows]
            return self.data_collator([dict(zip(keys, pair, strict=True)) for pair in lists])
        return collate(rows, getattr(self.processing_class, "pad_token_id", None) or 0)

    def _batches(self, rows: list[Row], size: int) -> Iterator[Batch]:
        for i in range(0, len(rows), size):
            yield self._batch(rows[i : i + size])

    # --- training -------------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None
    ) -> TrainOutput:
        """Train up to the last step, or until a callback stops it.

        ``resume_from_checkpoint`` is a checkpoint's folder, or True for the latest one of
        ``output_dir``: the run goes on from there as if it had never stopped, bit for bit. After
        Ctrl-C the current step, and a checkpoint that is being written, are finished before
        KeyboardInterrupt is raised.

        Raises InputError without data, CheckpointError for a checkpoint that is damaged or of
        another run, and where an earlier run's would be in the way; TrainingError for a loss or
        gradient that is not finite, with the weights as before that step.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        self.control = TrainerControl()
        run = self._begin(resume_from_checkpoint)
        display = Display(self.args.disable_tqdm, self.state.max_steps, self.state.global_step)
        self._call("on_train_begin")
        try:
            with interrupts_held() as release:
                if self.args.eval_on_start and not self.state.global_step:
                    display.write(self.evaluate())
                while self.state.global_step < self.state.max_steps:
                    self._step(run, display)
                    release()
                    if self.control.should_training_stop:
                        break
        finally:
            display.close()
            forget_arrays()
        return self._end(run, display)

    def _begin(self, checkpoint: str | os.PathLike[str] | bool | None) -> Run:
        """Return a new run, or the one that a checkpoint holds."""
        if self.train_rows is None:
            raise InputError("train_dataset: expected data to train on, found None")
        args, rows = self.args, len(self.train_rows)
        total = args.total_steps(rows)
        schedule = Schedule(
            args.learning_rate, total, args.get_warmup_steps(total), args.lr_scheduler_type
        )
        optimiser = AdamW(
            self._parameters(),
            args.learning_rate,
            (args.adam_beta1, args.adam_beta2),
            args.adam_epsilon,
            args.weight_decay,
        )
        data = resume.Data.of(self.train_rows)
        run = Run(optimiser, schedule, TrainerState(seed=args.seed), resume.Losses(), data)
        path = resume.find(checkpoint, args.output_dir)
        if path is None:
            resume.make_way(args)
        else:
            run.state, run.losses = resume.restore(path, self.model, optimiser, args, data)
        epochs = total / args.steps_per_epoch(rows)
        self.state = Progress(
            max_steps=total, num_train_epochs=epochs, log_history=run.state.log_history
        )
        self._show(run)
        run.started = time.perf_counter()
        return run

    def _parameters(self) -> dict[str, NDArray]:
        """Return the arrays that are trained, by name: the model's own."""
        if isinstance(self.model, PeftModel):
            return self.model.trainable()
        if not all(array.flags.writeable for array in self.model.state_dict().values()):
            self.model.make_writeable()
        return self.model.state_dict()

    def _show(self, run: Run) -> None:
        """Let ``state`` say where the run is."""
        size, rows = self.args.train_batch_size, len(self.train_rows or ())
        batches = math.ceil(run.state.data_position / size)
        self.state.global_step = run.optimiser.step
        self.state.epoch = run.state.epoch + batches / self.args.batches_per_epoch(rows)
        self.state.num_input_tokens_seen = run.losses.tokens

    def _step(self, run: Run, display: Display) -> None:
        self.control.new_step()
        rows, lr = self._next_rows(run), run.schedule(run.optimiser.step)
        result = training_step(
            self.model,
            run.optimiser,
            list(self._batches(rows, self.args.train_batch_size)),
            lr,
            self.args.max_grad_norm or None,
            gradients_of=self._gradients_of(),
        )
        run.losses.add(result)
        self._advance(run, len(rows))
        display.step(result.loss, result.tokens)
        self._call("on_step_end")
        if run.order is None:
            self._call("on_epoch_end")
        if self.control.should_log:
            values = {"loss": run.losses.take(), "grad_norm": result.grad_norm}
            display.write(self._log(values | {"learning_rate": lr}))
        if self.control.should_evaluate:
            display.write(self.evaluate())
        if self.control.should_save:
            self._save(run)
            self._call("on_save")

    def _gradients_of(self) -> Callable[..., Any]:
        lora = isinstance(self.model, PeftModel)
        return lora_loss_and_gradients if lora else loss_and_gradients

    def _next_rows(self, run: Run) -> list[Row]:
        """Return the rows of the update that begins: fewer at the end of an epoch."""
        assert self.train_rows is not None
        if run.order is None:
            run.order = epoch_order(len(self.train_rows), self.args.seed, run.state.epoch)
            self._call("on_epoch_begin")
        self._call("on_step_begin")
        start = run.state.data_position
        count = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return [self.train_rows[i] for i in run.order[start : start + count]]

    def _advance(self, run: Run, rows: int) -> None:
        """Count a step, and decide what happens after it."""
        run.rows_seen += rows
        run.state.data_position += rows
        ended = run.state.data_position >= len(self.train_rows or ())
        if ended:
            run.state.epoch, run.state.data_position, run.order = run.state.epoch + 1, 0, None
        self._show(run)
        args, step, control = self.args, self.state.global_step, self.control
        last = step >= self.state.max_steps
        control.should_log |= due(args.logging_strategy, args.logging_steps, step, ended)
        control.should_log |= args.logging_first_step and step == 1
        every = args.eval_steps or args.logging_steps
        control.should_evaluate |= due(args.eval_strategy, every, step, ended)
        control.should_save |= due(args.save_strategy, args.save_steps, step, ended)
        control.should_save |= args.save_strategy == "steps" and last

    def _end(self, run: Run, display: Display) -> TrainOutput:
        seconds = time.perf_counter() - run.started
        loss = run.losses.mean()
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": run.rows_seen / seconds,
            "train_steps_per_second": run.losses.new_steps / seconds,
            "train_tokens_per_second": run.losses.new_tokens / seconds,
            "train_loss": loss,
        }
        metrics = self._log(metrics)
        display.write(metrics)
        self._call("on_train_end")
        metrics.pop("step")
        return TrainOutput(self.state.global_step, loss, metrics)

    # --- what is told and kept ------------------------------------------------------------------

    def _log(self, values: dict[str, Any]) -> dict[str, Any]:
        entry = values | {"epoch": self.state.epoch, "step": self.state.global_step}
        self.state.log_history.append(entry)
        LOGGER.info("%s", entry)
        self._call("on_log", logs=dict(entry))
        return dict(entry)

    def _call(self, event: str, **options: Any) -> None:
        options |= {"model": self.model, "processing_class": self.processing_class}
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                method(self.args, self.state, self.control, **options)

    def _save(self, run: Run) -> None:
        saved = resume.Saved(self.model, self.processing_class, self.args, run.losses, run.data)
        limit = self.args.save_total_limit
        save_checkpoint(
            str(self.args.output_dir), saved, run.optimiser, run.state, save_total_limit=limit
        )

    def save_model(self, output_dir: str | os.PathLike[str] | None = None) -> None:
        """Write the model, or the adapter alone, and the tokenizer.

        The folder is ``args.output_dir`` unless given. Raises as their ``save_pretrained``.
        """
        folder = make_folder(output_dir or str(self.args.output_dir))
        self.model.save_pretrained(folder)
        if hasattr(self.processing_class, "save_pretrained"):
            self.processing_class.save_pretrained(folder)

    # --- evaluation -----------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return and log the mean loss over all predicted tokens of the data for evaluation.

        Keys: eval_loss, eval_runtime, eval_samples_per_second, eval_steps_per_second, epoch.
        Raises InputError if there is no such data.
        """
        rows = self.eval_rows
        if eval_dataset is not None:
            rows = self._load(eval_dataset, "eval_dataset", "valid")
        if rows is None:
            raise InputError("eval_dataset: expected data to evaluate on, found None")
        started = time.perf_counter()
        size = self.args.eval_batch_size
        loss = mean_loss(self.model, self._batches(rows, size))
        seconds = time.perf_counter() - started
        metrics = {
            "eval_loss": loss,
            "eval_runtime": seconds,
            "eval_samples_per_second": len(rows) / seconds,
            "eval_steps_per_second": math.ceil(len(rows) / size) / seconds,
        }
        metrics = self._log(metrics)
        metrics.pop("step")
        self._call("on_evaluate", metrics=dict(metrics))
        return metrics
