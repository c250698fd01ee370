"""``mamba-np convert``: any layout and dtype that can be read, to Hugging Face safetensors."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .common import DTYPES, chosen_model, format_bytes, hub_options

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
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Dtype of the matrices [default: as stored]."
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Of one weights file.",
)
@click.option("--force", is_flag=True, help="Write into a folder that holds files already.")
@hub_options
def command(source: str, dest: str, dtype: str | None, **options: Any) -> None:
    """Run ``mamba-np convert``."""
    from ..checkpoint.save import parse_size
    from ..files import replacing
    from ..model import MambaForCausalLM

    max_shard_size, force = parse_size(options.pop("max_shard_size")), options.pop("force")
    hub = chosen_model(source, options).hub
    target = Path(dest)
    folder = _locate(source, hub)
    _check_target(target, folder, force)
    others = _other_files(folder)
    # Weights that keep their dtype are mapped, not read: at most one copy is in memory.
    model = MambaForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    with _no_folder_left_empty(target):
        model.save_pretrained(target, max_shard_size=max_shard_size)
    for name, path in others.items():
        with replacing(target / name) as temporary:
            shutil.copyfile(path, temporary)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    click.echo(
        f"{dest}: {model.num_parameters():,} parameters, {model.dtype}, {format_bytes(written)}"
    )


def _locate(source: str, hub: dict[str, Any]) -> Path:
    """Return the folder with the weights, and fetch the tokenizer's files if there are any."""
    from ..checkpoint import locate_model
    from ..errors import FileMissingError
    from ..hub import GENERATION_FILES, TOKENIZER_FILES, HubOptions, locate

    options = HubOptions(**hub)
    folder = locate_model(source, options)
    if not Path(source).is_dir():
        with contextlib.suppress(FileMissingError):  # the original repositories have none
            locate(source, TOKENIZER_FILES + GENERATION_FILES, options)
    return folder


def _check_target(target: Path, source: Path, force: bool) -> None:
    """Refuse to write into the source, or into a folder that holds something else."""
    from ..errors import CheckpointError

    if os.path.lexists(target) and not target.is_dir():
        raise CheckpointError(f"{target}: expected a folder to save into, found a file")
    if target.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{target}: expected a folder outside the source {source}")
    found = next(iter(sorted(target.iterdir())), None) if target.exists() else None
    if found is not None and not force:
        raise CheckpointError(
            f"{target}: expected a new or empty folder, found {found.name} in it; "
            "--force writes all the same"
        )


def _other_files(folder: Path) -> dict[str, Path]:
    """Return the tokenizer's and generation's files that there are, by name."""
    from ..files import own_file
    from ..hub import GENERATION_FILES, TOKENIZER_FILES

    names = TOKENIZER_FILES + GENERATION_FILES
    return {name: own_file(folder, name) for name in names if os.path.lexists(folder / name)}


@contextlib.contextmanager
def _no_folder_left_empty(target: Path) -> Iterator[None]:
    """Remove the folders that were made for nothing if what runs inside fails."""
    missing = [path for path in (target, *target.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty, or not even made
            for path in missing:
                path.rmdir()
        raise
