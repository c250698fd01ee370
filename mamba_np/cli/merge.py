"""``mamba-np merge``: a model and a LoRA adapter of it, to one model in safetensors."""

from pathlib import Path
from typing import Any

import click

from .common import chosen_model, hub_options
from .folders import check_target, locate_source, other_files, write_model, writing_options

HELP = """Write BASE with the LoRA adapter ADAPTER merged into it into the folder OUT.

BASE is a model and ADAPTER an adapter in PEFT's format: folders or hub ids. The new model needs
no adapter any more; tokenizer and generation files of BASE are copied.

\b
Examples:
  mamba-np merge state-spaces/mamba-130m-hf ./results ./merged
  mamba-np merge ./base ./adapter ./merged --untie --dtype float32
"""


@click.command("merge", help=HELP, short_help="Merge a LoRA adapter into its model.")
@click.argument("base", metavar="BASE")
@click.argument("adapter", metavar="ADAPTER")
@click.argument("out", metavar="OUT")
@click.option(
    "--untie",
    is_flag=True,
    help="Where embeddings are adapted: give the head its own matrix, so that logits stay.",
)
@writing_options
@click.option("--adapter-revision", metavar="NAME", help="Branch, tag or commit of ADAPTER.")
@hub_options
def command(base: str, adapter: str, out: str, dtype: str | None, **options: Any) -> None:
    """Run ``mamba-np merge``."""
    from ..checkpoint.save import parse_size
    from ..lora import PeftModel
    from ..model import MambaForCausalLM

    max_shard_size, force = parse_size(options.pop("max_shard_size")), options.pop("force")
    untie, revision = options.pop("untie"), options.pop("adapter_revision")
    hub = chosen_model(base, options).hub
    target = Path(out)
    folder = locate_source(base, hub)
    check_target(target, folder, force)
    others = other_files(folder)
    model = MambaForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    peft_model = PeftModel.from_pretrained(model, adapter, **hub | {"revision": revision})
    merged = peft_model.merge_and_unload(untie=untie)
    write_model(merged, target, others, max_shard_size)
