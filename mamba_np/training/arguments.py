"""TrainingArguments: how a run goes, with the names and defaults of transformers."""

import math
import os
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from ..checks import SIZE_LIMIT, choice, flag, integer, number, shown
from ..config import with_field_signature
from ..errors import ConfigError
from .schedule import SCHEDULES

STRATEGIES = ("no", "steps", "epoch")

OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "adamw_hf")
"""transformers' names of AdamW, which is the one optimiser here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "optim": (*OPTIMISERS, None),
    "report_to": ("none", None, [], ["none"]),
    "remove_unused_columns": (True, False),
    "logging_dir": (),
    "run_name": (),
    "use_cpu": (True, False),
    "no_cuda": (True, False),
    "use_cache": (True, False, None),
    "do_train": (True, False),
    "do_eval": (True, False),
    "do_predict": (True, False),
    "log_level": (),
    "log_level_replica": (),
    "log_on_each_node": (),
    "logging_nan_inf_filter": (True, False),
    "average_tokens_across_devices": (True, False),
    "prediction_loss_only": (True, False),
    "eval_do_concat_batches": (True, False),
    "dataloader_num_workers": (0,),
    "dataloader_pin_memory": (True, False),
    "dataloader_in_order": (True,),
    "dataloader_persistent_workers": (True, False),
    "skip_memory_metrics": (True,),
    "save_safetensors": (True,),
    "save_on_each_node": (True, False),
    "train_sampling_strategy": ("random",),
    "include_num_input_tokens_seen": ("no", False),
    "hub_strategy": (),
    "hub_private_repo": (),
    "project": (),
    "length_column_name": (),
    "ddp_timeout": (),
    "local_rank": (-1, 0),
    "full_determinism": (True, False),
}
"""transformers' arguments without effect here, with the values that are taken; (): any value."""

OFF = (
    *("lr_scheduler_kwargs", "optim_args", "optim_target_modules", "label_smoothing_factor"),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "fp16_opt_level"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend"),
    *("torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha"),
    *("torch_empty_cache_steps", "auto_find_batch_size", "eval_delay", "eval_use_gather_object"),
    *("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "save_only_model"),
    *("enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_model_id", "hub_always_push"),
    *("hub_revision", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("ignore_data_skip", "restore_callback_states_from_checkpoint", "accelerator_config"),
    *("parallelism_config", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("dataloader_drop_last", "label_names", "group_by_length", "ddp_find_unused_parameters"),
    *("ddp_bucket_cap_mb", "data_seed", "adafactor", "use_mps_device", "jit_mode_eval"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "fsdp", "fsdp_config"),
    *("deepspeed", "debug", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("use_ipex", "half_precision_backend"),
)
"""transformers' arguments for what is not here: they must be None, false, 0 or empty."""

OLD_NAMES = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

COUNTS = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("logging_steps", "save_steps"),
)
FLAGS = ("logging_first_step", "eval_on_start", "overwrite_output_dir")


@with_field_signature
@dataclass(eq=False)
class TrainingArguments:
    """What decides a run, with transformers' names and defaults.

    There is one device, so ``per_device_train_batch_size`` is the size of a batch; an update sees
    ``gradient_accumulation_steps`` of them. ``max_steps``, where positive, counts updates and
    overrules ``num_train_epochs``. ``lr_scheduler_type`` is "linear", "cosine" or "constant", with
    ``warmup_steps`` updates before it, or a share ``warmup_ratio`` of all; ``warmup_steps`` below 1
    is a share as well. ``max_grad_norm`` 0 means no clipping.

    ``logging_strategy``, ``eval_strategy`` and ``save_strategy`` are "no", "steps" or "epoch".
    Checkpoints are folders of ``output_dir``, of which the newest ``save_total_limit`` stay;
    ``overwrite_output_dir`` removes those of an earlier run. On stderr, a terminal shows a bar and
    what is logged, anything else lines; with ``disable_tqdm`` there are only lines of what is
    logged.

    Arguments of transformers that mean nothing here (``NEUTRAL``, ``OFF``) are accepted at values
    that ask for nothing. Raises ConfigError naming the argument for any other, and for values that
    cannot be used; TypeError for a name that is not known there either.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL
    off: ClassVar[tuple[str, ...]] = OFF

    output_dir: str | os.PathLike[str] | None = None
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    warmup_steps: int | float = 0
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_strategy: str = "steps"
    logging_steps: int = 500
    logging_first_step: bool = False
    eval_strategy: str = "no"
    eval_steps: int | None = None
    eval_on_start: bool = False
    save_strategy: str = "steps"
    save_steps: int = 500
    save_total_limit: int | None = None
    overwrite_output_dir: bool = False
    seed: int = 42
    disable_tqdm: bool | None = None
    resume_from_checkpoint: str | os.PathLike[str] | bool | None = None

    def __init__(self, output_dir: str | os.PathLike[str] | None = None, /, **options: Any):
        if output_dir is not None:
            options = {"output_dir": output_dir} | options
        for old, new in OLD_NAMES.items():
            if old in options:
                options[new] = options.pop(old)
        for f in fields(self):
            setattr(
                self, f.name, options.pop(f.name, f.default if f.default is not MISSING else None)
            )
        for name, value in options.items():
            self._refuse(name, value)
        self.validate()

    def _refuse(self, name: str, value: Any) -> None:
        """Raise for an argument that this class does not have, unless it asks for nothing."""
        if name in self.neutral:
            taken, value = self.neutral[name], _plain(value)
            if taken and not any(type(value) is type(one) and value == one for one in taken):
                expected = " or ".join(map(repr, taken))
                raise ConfigError(f"{name}: expected {expected}, found {shown(value)}")
            return
        if name not in self.off:
            raise TypeError(f"{type(self).__name__}() got an unexpected argument {name!r}")
        if value:
            raise ConfigError(
                f"{name}: expected None, false, 0 or nothing (this option is not supported), "
                f"found {shown(value)}"
            )

    def validate(self) -> None:
        """Check every argument. Raises ConfigError for the first that is wrong."""
        self.output_dir = os.fspath(self.output_dir or "trainer_output")  # transformers' default
        for name in COUNTS:
            setattr(self, name, integer(name, getattr(self, name)))
        for name in FLAGS:
            setattr(self, name, flag(name, getattr(self, name)))
        for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"):
            setattr(self, name, number(name, getattr(self, name), low=0))
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            # transformers' enumerations are strings with a value
            setattr(self, name, choice(name, _plain(getattr(self, name)), STRATEGIES))
        self.lr_scheduler_type = choice(
            "lr_scheduler_type", _plain(self.lr_scheduler_type), SCHEDULES
        )
        self._validate_length()
        below = math.nextafter(1, 0)
        self.adam_beta1 = number("adam_beta1", self.adam_beta1, 0, below)
        self.adam_beta2 = number("adam_beta2", self.adam_beta2, 0, below)
        self.seed = integer("seed", self.seed, low=0)
        for name in ("eval_steps", "save_total_limit"):
            if getattr(self, name) is not None:
                setattr(self, name, integer(name, getattr(self, name)))

    def _validate_length(self) -> None:
        self.max_steps = integer("max_steps", self.max_steps, low=-1)
        self.num_train_epochs = number("num_train_epochs", self.num_train_epochs, low=0, above=True)
        self.warmup_ratio = number("warmup_ratio", self.warmup_ratio, 0, 1)
        self.warmup_steps = number("warmup_steps", self.warmup_steps, 0, SIZE_LIMIT)
        if self.warmup_steps >= 1:
            self.warmup_steps = int(self.warmup_steps)

    # --- what follows from them -------------------------------------------------------------------

    @property
    def train_batch_size(self) -> int:
        """The size of a batch: there is one device."""
        return self.per_device_train_batch_size

    @property
    def eval_batch_size(self) -> int:
        """The size of a batch of evaluation."""
        return self.per_device_eval_batch_size

    def steps_per_epoch(self, rows: int) -> int:
        """Return how many updates a pass over ``rows`` rows takes."""
        return max(1, math.ceil(self.batches_per_epoch(rows) / self.gradient_accumulation_steps))

    def batches_per_epoch(self, rows: int) -> int:
        """Return how many batches a pass over ``rows`` rows has."""
        return math.ceil(rows / self.train_batch_size)

    def total_steps(self, rows: int) -> int:
        """Return how many updates the run takes with ``rows`` rows of data."""
        if self.max_steps > 0:
            return self.max_steps
        return math.ceil(self.num_train_epochs * self.steps_per_epoch(rows))

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return how many of all updates are the warm-up."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(num_training_steps * (self.warmup_steps or self.warmup_ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return every argument by its name, as JSON can hold them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        paths = ("output_dir", "resume_from_checkpoint")
        return {k: str(v) if k in paths and v is not None else v for k, v in values.items()}


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
