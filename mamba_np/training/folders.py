"""Folders that are written whole or not at all, and that tell whether they are still whole.

A folder is filled under another name, ``part_of`` its own. Its manifest, written last, names its
files with their sizes and digests; only when all of them are on the disk does the folder take its
own name, in one step.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..checks import shown
from ..errors import CheckpointError, FileMissingError
from ..files import own_file, read_json_object, write_json

MANIFEST = "manifest.json"


# --- writing -----------------------------------------------------------------------------------


def part_of(path: Path) -> Path:
    """Return the name under which a folder is written."""
    return path.with_name(f".{path.name}.part")


def publish(part: Path, path: Path) -> None:
    """Give a folder that has all its files its own name; what has that name is removed.

    However this ends, ``path`` is what it was, missing, or whole and on the disk.
    """
    _seal(part)
    if os.path.lexists(path):
        discard(path)
    os.rename(part, path)
    for folder in (path.parent, path.absolute().parent.parent):  # the latter may be new, too
        _sync_folder(folder)


def _seal(part: Path) -> None:
    """Bring all files of a folder to the disk, with a manifest of them as the last."""
    files = {path.name: _sync(path) for path in sorted(part.iterdir())}
    write_json(part / MANIFEST, {"files": files})
    _sync(part / MANIFEST)
    _sync_folder(part)


def _sync(path: Path) -> dict[str, Any]:
    """Bring a file to the disk, and describe it."""
    with open(path, "r+b") as file:  # Windows syncs only what could be written to
        os.fsync(file.fileno())
    return described(path)


def described(path: Path) -> dict[str, Any]:
    """Return what a manifest says about a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- removing ----------------------------------------------------------------------------------


def discard(path: Path) -> None:
    """Remove a folder: first its name, so that nobody takes what is left of it for whole."""
    old = path.with_name(f".{path.name}.old")
    os.rename(path, old)
    _remove(old)


def remove_left_overs(folder: Path, name: re.Pattern[str]) -> None:
    """Remove what was being written or removed when somebody was killed.

    ``name`` matches the folders' own names.
    """
    for path in list(folder.iterdir()):
        hidden, ending = path.stem, path.suffix
        if ending in (".part", ".old") and hidden[:1] == "." and name.fullmatch(hidden[1:]):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what stays is tried again at the next save
    else:
        path.unlink()


# --- checking ----------------------------------------------------------------------------------


def is_complete(path: Path) -> bool:
    """Tell whether a folder has all its files, by their sizes alone."""
    try:
        files = _manifest(path)
        sizes = {name: own_file(path, name).stat().st_size for name in files}
    except CheckpointError:
        return False
    return sizes == {name: entry["size"] for name, entry in files.items()}


def is_sound(path: Path) -> bool:
    """Tell whether all files of a folder are what the manifest says."""
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def verify(path: Path) -> None:
    """Raise CheckpointError naming the first file that is not what the manifest says."""
    for name, entry in _manifest(path).items():
        file = own_file(path, name)
        try:
            found = described(file)
        except OSError as error:
            raise FileMissingError(f"{file}: cannot be read: {error.strerror}") from error
        if found != entry:
            expected, found = (f"{e['size']} bytes, SHA-256 {e['sha256']}" for e in (entry, found))
            raise CheckpointError(f"{file}: expected {expected}, found {found}")


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return {file name: its entry}."""
    files = read_json_object(path / MANIFEST, CheckpointError).get("files")
    entries = files.values() if isinstance(files, dict) else [None]
    sound = all(isinstance(e, dict) and e.keys() == {"size", "sha256"} for e in entries)
    if not isinstance(files, dict) or not files or not sound:
        raise CheckpointError(
            f"{path / MANIFEST}: expected the size and sha256 of each file, found {shown(files)}"
        )
    return files
