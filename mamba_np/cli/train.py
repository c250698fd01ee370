"""``mamba-np train``: all of a model, new or not, on text; and what ``mamba-np lora`` shares."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .common import (
    ModelChoice,
    chosen_model,
    hub_options,
    json_option,
    load_model,
    load_tokenizer,
    option_group,
    print_json,
)

HELP = """Train a model on DATA and write it into the folder of --out.

DATA is a file in JSON Lines with {"text": ...} or {"prompt": ..., "completion": ...} on each line,
a .txt file, which is read as one stream, or a folder with train.jsonl or train.txt and, if it is
to be evaluated, valid.jsonl or valid.txt.

The model is --model, or a new one with random weights of the shape in --config. Checkpoints stand
beside the result; after an interruption --resume goes on from the latest, with the same numbers.

\b
Examples:
  mamba-np train stories.txt --out ./mine --steps 200
  mamba-np train ./data --out ./mine -m state-spaces/mamba-130m-hf --lr 1e-4 --eval-every 100
  mamba-np train ./data --out ./new --config config.json --tokenizer ./mine --epochs 10
"""

LR, NEW_LR, LORA_LR = 5e-5, 1e-3, 2e-4
"""Learning rates of a model that is trained further, of a new one and of an adapter."""

count = click.IntRange(min=1)

data_options = option_group(
    click.option("--out", metavar="FOLDER", required=True, help="Folder to write into."),
    click.option("-m", "--model", metavar="MODEL", help="Folder or hub id [default: the bundled]."),
    click.option(
        "--tokenizer", metavar="MODEL", help="Folder or hub id to take the tokenizer from."
    ),
    click.option("--valid", metavar="FILE", help="Data to evaluate on [default: DATA's own]."),
    click.option(
        "--text-field", metavar="KEY", default="text", show_default=True, help="Key of the texts."
    ),
    click.option(
        "--length",
        type=click.IntRange(min=2),
        metavar="N",
        default=512,
        show_default=True,
        help="Most tokens of a row.",
    ),
    click.option("--pack", is_flag=True, help="Fill rows with several texts."),
)

step_options = option_group(
    click.option("--steps", type=count, metavar="N", help="Updates [default: by --epochs]."),
    click.option(
        "--epochs",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        help="Passes over the data.",
    ),
    click.option("--batch-size", type=count, default=8, show_default=True, help="Rows of a batch."),
    click.option(
        "--accumulate", type=count, default=1, show_default=True, help="Batches of an update."
    ),
    click.option("--lr", type=float, help="Learning rate [default: 5e-5; new: 1e-3; lora: 2e-4]."),
    click.option(
        "--warmup",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Its first steps.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(["linear", "cosine", "constant"]),
        default="linear",
        show_default=True,
        help="How the learning rate goes on.",
    ),
    click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Of AdamW."),
    click.option(
        "--clip", type=float, default=1.0, show_default=True, help="Largest gradient norm; 0: any."
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Of all draws."
    ),
)

run_options = option_group(
    click.option("--log-every", type=count, default=10, show_default=True, help="In updates."),
    click.option("--eval-every", type=count, metavar="N", help="In updates [default: at the end]."),
    click.option("--save-every", type=count, default=500, show_default=True, help="In updates."),
    click.option(
        "--keep", type=count, default=2, show_default=True, help="Checkpoints that are kept."
    ),
    click.option("--resume", is_flag=True, help="Go on from the latest checkpoint, if any."),
    click.option("--threads", type=count, metavar="N", help="Threads to compute with."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64"]),
        default="float32",
        show_default=True,
        help="Of weights and arithmetic.",
    ),
    click.option(
        "--backend", metavar="NAME", default="auto", show_default=True, help="auto or numpy."
    ),
    json_option,
    hub_options,
)


@click.command("train", help=HELP, short_help="Train a model, new or not, on text.")
@click.argument("data", metavar="DATA")
@data_options
@click.option("--config", metavar="FILE", help="config.json of a new model; needs --tokenizer.")
@step_options
@run_options
def command(data: str, model: str | None, config: str | None, **options: Any) -> None:
    """Run ``mamba-np train``."""
    if config is not None and (model is not None or options["tokenizer"] is None):
        raise click.UsageError("--config: expected --tokenizer with it, and no --model.")
    plan = Plan(data, chosen_model(model, options), options)
    check_out(plan)
    if config is not None:
        network = _new_model(config, options)
    else:
        network = load_model(plan.model, options["dtype"], options["backend"])
    run_training(plan, network, lr=LR if config is None else NEW_LR)


def _new_model(config: str, options: dict[str, Any]) -> Any:
    from ..config import MambaConfig
    from ..model import MambaForCausalLM

    shape = MambaConfig.from_file(config)
    chosen = {"dtype": options["dtype"], "backend": options["backend"]}
    return MambaForCausalLM(shape, rng=options["seed"], **chosen)


# --- what both commands do -----------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a command is to do."""

    data: str
    model: ModelChoice
    options: dict[str, Any]

    @property
    def valid(self) -> str | None:
        """The data to evaluate on: what is named, or the data's own."""
        from ..training.sources import has_split

        if self.options["valid"] is not None:
            return self.options["valid"]
        return self.data if has_split(self.data, "valid") else None


def check_out(plan: Plan) -> None:
    """Refuse a folder that holds something else than the run to go on with, before any work."""
    from ..errors import CheckpointError

    out = Path(plan.options["out"])
    if os.path.lexists(out) and not out.is_dir():
        raise CheckpointError(f"{out}: expected a folder to write into, found a file")
    if out.resolve() == Path(plan.model.name).resolve():
        raise CheckpointError(f"{out}: expected another folder than that of the model")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if found and not plan.options["resume"]:
        raise CheckpointError(
            f"{out}: expected a new or empty folder, found {found[0]} in it; "
            "--resume goes on with the run that is there"
        )
    # Hidden ones are what is left of a first checkpoint that was being written.
    strange = [name for name in found if not name.startswith(".")]
    if strange and not any(name.startswith("checkpoint-") for name in strange):
        raise CheckpointError(
            f"{out}: expected a checkpoint to go on from, or an empty folder, found {strange[0]}"
        )
    if plan.options["eval_every"] and plan.valid is None:
        raise click.UsageError("--eval-every: expected --valid, or a folder with valid.jsonl.")


def run_training(plan: Plan, network: Any, lr: float, peft_config: Any = None) -> None:
    """Train, write the result, and print what came of it."""
    from ..threads import set_num_threads
    from ..training import SFTTrainer, latest_checkpoint

    options, out = plan.options, plan.options["out"]
    if options["threads"] is not None:
        set_num_threads(options["threads"])
    trainer = SFTTrainer(
        network,
        _arguments(options, lr),
        train_dataset=plan.data,
        eval_dataset=plan.valid,
        processing_class=load_tokenizer(plan.model, options["tokenizer"]),
        peft_config=peft_config,
    )
    checkpoint = latest_checkpoint(out) if options["resume"] else None
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        _say_how_to_go_on(trainer.state.global_step, latest_checkpoint(out))
        raise
    if trainer.eval_rows is not None and not _evaluated(trainer.state):
        trainer.evaluate()
    trainer.save_model(out)
    _print_result(out, trainer, result, options["as_json"])


def _arguments(options: dict[str, Any], lr: float) -> Any:
    """Return the options as the Trainer calls them."""
    from ..training import SFTConfig

    return SFTConfig(
        options["out"],
        max_steps=options["steps"] or -1,
        num_train_epochs=options["epochs"],
        per_device_train_batch_size=options["batch_size"],
        per_device_eval_batch_size=options["batch_size"],
        gradient_accumulation_steps=options["accumulate"],
        learning_rate=lr if options["lr"] is None else options["lr"],
        lr_scheduler_type=options["schedule"],
        warmup_steps=options["warmup"],
        weight_decay=options["weight_decay"],
        max_grad_norm=options["clip"],
        logging_steps=options["log_every"],
        eval_strategy="steps" if options["eval_every"] else "no",
        eval_steps=options["eval_every"],
        save_steps=options["save_every"],
        save_total_limit=options["keep"],
        seed=options["seed"],
        dataset_text_field=options["text_field"],
        max_length=options["length"],
        packing=options["pack"],
    )


def _say_how_to_go_on(step: int, checkpoint: Path | None) -> None:
    where = "there is no checkpoint yet" if checkpoint is None else f"--resume: {checkpoint.name}"
    click.echo(f"interrupted after step {step}; {where}", err=True)


def _evaluated(state: Any) -> bool:
    """Tell whether the last step has been evaluated already."""
    logs = (entry for entry in state.log_history if "eval_loss" in entry)
    return any(entry["step"] == state.global_step for entry in logs)


def _print_result(out: str, trainer: Any, result: Any, as_json: bool) -> None:
    history = trainer.state.log_history
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    trained = sum(array.size for array in trainer.model.state_dict().values())
    seconds = result.metrics["train_runtime"]
    if as_json:
        print_json(
            {
                "out": out,
                "parameters": trained,
                "steps": result.global_step,
                "epochs": trainer.state.epoch,
                "loss": result.training_loss,
                "eval_loss": evaluated[-1] if evaluated else None,
                "seconds": seconds,
                "tokens_per_second": result.metrics["train_tokens_per_second"],
                "log_history": history,
            }
        )
        return
    last = f", evaluated {evaluated[-1]:.4g}" if evaluated else ""
    click.echo(
        f"{out}: {trained:,} parameters trained, {result.global_step:,} steps in {seconds:.1f} s, "
        f"loss {result.training_loss:.4g}{last}"
    )
