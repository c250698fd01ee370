"""Training: the gradients of ``mamba_np.gradients`` put to use.

    model = MambaForCausalLM(config, rng=0)
    optimiser = AdamW(model.make_writeable().state_dict(), weight_decay=0.1)
    schedule = Schedule(lr=1e-3, total_steps=1000, warmup_steps=100)
    for batch in batches:
        result = training_step(model, optimiser, [batch], schedule(optimiser.step), 1.0)

``state`` keeps all of it in folders from which an interrupted run goes on, bit for bit. ``Trainer``
and ``SFTTrainer`` do all of that, with transformers' and TRL's names:

    SFTTrainer(model, SFTConfig("out"), train_dataset="quotes.jsonl", tokenizer=tokenizer).train()
"""

from .arguments import TrainingArguments
from .callbacks import Progress, TrainerCallback, TrainerControl
from .collator import DataCollatorForLanguageModeling
from .data import DataOptions, Row, batches, collate, epoch_order, load_data, pack
from .optimiser import AdamW, clip_by_global_norm, decays, global_norm
from .run import TrainOutput
from .schedule import SCHEDULES, Schedule
from .sft import SFTConfig, SFTTrainer
from .state import (
    Checkpoint,
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    load_training,
    save_checkpoint,
)
from .steps import StepResult, training_step
from .trainer import Trainer

__all__ = [
    "Schedule",
    "SCHEDULES",
    "AdamW",
    "decays",
    "global_norm",
    "clip_by_global_norm",
    "training_step",
    "StepResult",
    "TrainerState",
    "Checkpoint",
    "save_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "load_training",
    "Row",
    "DataOptions",
    "load_data",
    "pack",
    "epoch_order",
    "batches",
    "collate",
    "DataCollatorForLanguageModeling",
    "TrainingArguments",
    "Progress",
    "TrainerControl",
    "TrainerCallback",
    "Trainer",
    "TrainOutput",
    "SFTConfig",
    "SFTTrainer",
]
