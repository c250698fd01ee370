"""``mamba-np lora``: train a low-rank adapter of a model."""

from typing import Any

import click

from .common import chosen_model, load_model
from .train import LORA_LR, Plan, check_out, data_options, run_options, run_training, step_options

HELP = """Train a LoRA adapter of a model on DATA and write it, in PEFT's format, to --out.

DATA and most options are those of "mamba-np train". The model itself is not changed and not
written: "mamba-np merge" makes one model of both.

\b
Examples:
  mamba-np lora quotes.jsonl --out ./adapter -m state-spaces/mamba-130m-hf --text-field quote
  mamba-np lora ./data --out ./adapter --rank 16 --alpha 32 --target in_proj,out_proj
"""


@click.command("lora", help=HELP, short_help="Train a LoRA adapter of a model.")
@click.argument("data", metavar="DATA")
@data_options
@click.option(
    "--rank", type=click.IntRange(min=1), default=8, show_default=True, help="Of the adapter."
)
@click.option(
    "--alpha", type=float, default=8.0, show_default=True, help="The change counts alpha / rank."
)
@click.option(
    "--target",
    metavar="NAMES",
    default="all-linear",
    show_default=True,
    help="Matrices, with commas: embeddings, in_proj, x_proj, out_proj, lm_head; or all-linear.",
)
@step_options
@run_options
def command(data: str, model: str | None, **options: Any) -> None:
    """Run ``mamba-np lora``."""
    from ..lora import LoraConfig

    plan = Plan(data, chosen_model(model, options), options)
    check_out(plan)
    target = options["target"]
    names = target if target == "all-linear" else [name.strip() for name in target.split(",")]
    alpha = options["alpha"]
    config = LoraConfig(
        r=options["rank"],
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    network = load_model(plan.model, options["dtype"], options["backend"])
    run_training(plan, network, LORA_LR, config)
