"""``mamba-np convert``: any layout and dtype that can be read, to Hugging Face safetensors."""

from pathlib import Path
from typing import Any

import click

from .common import chosen_model, hub_options
from .folders import check_target, locate_source, other_files, write_model, writing_options

HELP = """Write SOURCE as a Hugging Face checkpoint in safetensors into the folder DEST.

SOURCE is a folder or hub id in Hugging Face's or mamba-ssm's layout, with safetensors or a
pytorch_model.bin. config.json is translated; tokenizer and generation files are copied.

\b
Examples:
  mamba-np convert state-spaces/mamba-130m ./mamba-130m-hf
  mamba-np convert ./mamba-130m-hf ./mamba-130m-bf16 --dtype bfloat16
"""


@click.command("convert", help=HELP, short_help="Write a checkpoint as Hugging Face safetensors.")
@click.argument("source", metavar="SOURCE")
@click.argument("dest", metavar="DEST")
@writing_options
@hub_options
def command(source: str, dest: str, dtype: str | None, **options: Any) -> None:
    """Run ``mamba-np convert``."""
    from ..checkpoint.save import parse_size
    from ..model import MambaForCausalLM

    max_shard_size, force = parse_size(options.pop("max_shard_size")), options.pop("force")
    hub = chosen_model(source, options).hub
    target = Path(dest)
    folder = locate_source(source, hub)
    check_target(target, folder, force)
    others = other_files(folder)
    # Weights that keep their dtype are mapped, not read: at most one copy is in memory.
    model = MambaForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    write_model(model, target, others, max_shard_size)
