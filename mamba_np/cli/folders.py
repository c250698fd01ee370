"""Commands that read one folder of a checkpoint and write another: what they check and copy."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
