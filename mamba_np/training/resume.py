"""What a Trainer adds to a checkpoint, and how it goes on from one."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..checks import shown
from ..errors import CheckpointError, InputError
from ..files import read_json_object, write_json
from ..lora import PeftModel
from ..model import MambaForCausalLM
from . import folders
from .arguments import TrainingArguments
from .data import Row
from .optimiser import AdamW
from .state import TrainerState, checkpoints, latest_checkpoint, load_training
from .steps import StepResult

RECORD = "training_args.json"

DECISIVE = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    *("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed"),
)
"""Arguments without which a resumed run is another run than the undisturbed one."""


@dataclass
class Losses:
    """Sums over the steps of a run: what logs and the result are means of."""

    window: float = 0.0
    window_steps: int = 0
    total: float = 0.0
    steps: int = 0
    tokens: int = 0
    new_steps: int = field(default=0, compare=False)
    new_tokens: int = field(default=0, compare=False)

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self.window, self.total = self.window + result.loss, self.total + result.loss
        self.window_steps, self.steps = self.window_steps + 1, self.steps + 1
        self.tokens, self.new_tokens = self.tokens + result.tokens, self.new_tokens + result.tokens
        self.new_steps += 1

    def take(self) -> float:
        """Return the mean loss since this was last asked."""
        mean = self.window / max(1, self.window_steps)
        self.window, self.window_steps = 0.0, 0
        return mean

    def mean(self) -> float:
        """Return the mean loss of all steps."""
        return self.total / max(1, self.steps)

    def kept(self) -> dict[str, Any]:
        """Return the sums that belong in a checkpoint."""
        return {name: value for name, value in vars(self).items() if not name.startswith("new_")}


@dataclass(frozen=True)
class Data:
    """What tells whether a run goes on with the data that it began with."""

    rows: int
    sha256: str

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Data":
        """Take in all ids and labels (L,) of the rows, in their order."""
        digest = hashlib.sha256()
        for ids, labels in rows:
            digest.update(ids.astype("<i4").tobytes())
            digest.update(labels.astype("<i8").tobytes())
        return cls(len(rows), digest.hexdigest())


@dataclass
class Saved:
    """A model in a checkpoint: its tokenizer, the arguments, the sums and the data's digest too."""

    model: Any
    processing_class: Any
    args: TrainingArguments
    losses: Losses
    data: Data

    def state_dict(self) -> dict[str, NDArray]:
        """Return the arrays that may be trained."""
        return self.model.state_dict()

    def save_pretrained(self, folder: Path) -> None:
        """Write all of it."""
        self.model.save_pretrained(folder)
        if hasattr(self.processing_class, "save_pretrained"):
            self.processing_class.save_pretrained(folder)
        record = {"arguments": self.args.to_dict(), "losses": self.losses.kept()}
        write_json(folder / RECORD, record | asdict(self.data))


def find(wanted: str | os.PathLike[str] | bool | None, output_dir: Any) -> Path | None:
    """Return the checkpoint to go on from: the one that is named, the latest, or None.

    Raises CheckpointError where the latest is wanted and there is none.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True:
        return Path(wanted)
    path = latest_checkpoint(output_dir)
    if path is None:
        raise CheckpointError(f"{output_dir}: expected a checkpoint to resume from, found none")
    return path


def make_way(args: TrainingArguments, step: int | None = None) -> None:
    """See to it that no checkpoint is in the way of a new run, or of one that goes on at ``step``.

    Raises CheckpointError naming one, unless ``overwrite_output_dir`` lets them be removed.
    """
    folder = Path(str(args.output_dir))
    found = checkpoints(folder) if args.save_strategy != "no" and folder.is_dir() else []
    if step is not None:  # damaged ones are written anew
        found = [(at, path) for at, path in found if at > step and folders.is_sound(path)]
    for _, path in found:
        if not args.overwrite_output_dir:
            raise CheckpointError(
                f"{path}: expected no checkpoint of an earlier run in output_dir; pass "
                "resume_from_checkpoint=True to go on from the latest, overwrite_output_dir=True "
                "to remove them, or another output_dir"
            )
        folders.discard(path)


def restore(
    path: Path, model: Any, optimiser: AdamW, args: TrainingArguments, data: Data
) -> tuple[TrainerState, Losses]:
    """Bring a model and its optimiser to where a checkpoint is; return the rest of it.

    Warns about arguments that differ from those of the run. Raises CheckpointError for a folder
    that is damaged or no Trainer's, and InputError for other data or another model, before
    anything is changed.
    """
    loaded, state = load_training(path, optimiser.parameters)
    record = read_json_object(path / RECORD, CheckpointError)
    try:
        before, losses = dict(record["arguments"]), Losses(**record["losses"])
        found = Data(record["rows"], record.get("sha256", data.sha256))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / RECORD}: expected what a Trainer writes: {error}") from None
    if found != data:
        other = f"{data.rows}" if found.rows != data.rows else "others"
        raise InputError(
            f"train_dataset: expected the {shown(found.rows)} rows of the run in {path}, "
            f"found {other}"
        )
    weights = _weights(path, model)
    for name, array in optimiser.parameters.items():
        _check(path, name, array, weights.get(name))
    make_way(args, loaded.step)
    _warn(path, before, args.to_dict())
    for name, array in optimiser.parameters.items():
        array[...] = weights[name]
    optimiser.step = loaded.step
    optimiser.exp_avg, optimiser.exp_avg_sq = loaded.exp_avg, loaded.exp_avg_sq
    return state, losses


def _weights(path: Path, model: Any) -> dict[str, NDArray]:
    if isinstance(model, PeftModel):
        loaded = PeftModel.from_pretrained(model.base_model, path)
        wrong = next((t for t in loaded.targets if t not in model.targets), None)
        if wrong is not None:
            raise CheckpointError(
                f"{path}: expected the run's adapter, found one that changes {wrong.module} "
                f"with rank {wrong.rank} and a scaling of {wrong.scaling:g}"
            )
        return loaded.state_dict()
    return MambaForCausalLM.from_pretrained(path, dtype="auto").state_dict()


def _check(path: Path, name: str, array: NDArray, found: NDArray | None) -> None:
    if found is None or (found.shape, found.dtype) != (array.shape, array.dtype):
        what = "none" if found is None else f"{found.dtype} of shape {found.shape}"
        raise CheckpointError(
            f"{path}: {name}: expected {array.dtype} of shape {array.shape}, found {what}"
        )


def _warn(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in DECISIVE if before.get(name) != now[name]]
    if changed:
        found = ", ".join(f"{name} was {shown(before.get(name))}" for name in changed)
        warnings.warn(
            f"{path}: the run goes on with other arguments than it began with: {found}",
            stacklevel=2,
        )
