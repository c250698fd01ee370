"""Commands that read one folder of a checkpoint and write another: what they check and copy."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from .common import DTYPES, format_bytes


def writing_options(command: Callable) -> Callable:
    """Add the options of a command that writes a model's folder."""
    dtypes = click.Choice(DTYPES)
    for option in (
        click.option("--force", is_flag=True, help="Write into a folder that holds files already."),
        click.option(
            "--max-shard-size",
            metavar="SIZE",
            default="5GB",
            show_default=True,
            help="Of one weights file.",
        ),
        click.option("--dtype", type=dtypes, help="Dtype of the matrices [default: as stored]."),
    ):
        command = option(command)
    return command


def write_model(model: Any, target: Path, others: dict[str, Path], max_shard_size: int) -> None:
    """Write a model, copy the other files of its source, and say what was written."""
    from ..files import replacing

    with no_folder_left_empty(target):
        model.save_pretrained(target, max_shard_size=max_shard_size)
    for name, path in others.items():
        with replacing(target / name) as temporary:
            shutil.copyfile(path, temporary)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    click.echo(
        f"{target}: {model.num_parameters():,} parameters, {model.dtype}, {format_bytes(written)}"
    )


def locate_source(source: str, hub: dict[str, Any]) -> Path:
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


def check_target(target: Path, source: Path, force: bool) -> None:
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


def other_files(folder: Path) -> dict[str, Path]:
    """Return the tokenizer's and generation's files that there are, by name."""
    from ..files import own_file
    from ..hub import GENERATION_FILES, TOKENIZER_FILES

    names = TOKENIZER_FILES + GENERATION_FILES
    return {name: own_file(folder, name) for name in names if os.path.lexists(folder / name)}


@contextlib.contextmanager
def no_folder_left_empty(target: Path) -> Iterator[None]:
    """Remove the folders that were made for nothing if what runs inside fails."""
    missing = [path for path in (target, *target.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty, or not even made
            for path in missing:
                path.rmdir()
        raise
