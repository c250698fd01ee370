"""Reading and writing small files with care; every other module opens files through here.

Reading refuses what is not a regular file, what is too large and what is not the JSON expected,
always naming the file. Writing goes to a temporary name first, so that a crash, a full disk or a
reader that has the old file mapped never sees half a file.
"""

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CheckpointError, ConfigError, FileMissingError, MambaError, UnsafeFileError

JSON_LIMIT = 2**20
"""Largest JSON file read unless a caller allows more, in bytes. Parsed, it can take 25 times that;
configurations have some thousand bytes."""


def require_regular_file(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it is a regular file that can be opened without blocking.

    Raises FileMissingError for a missing file, a dangling link, a folder, a pipe or a device.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileMissingError(f"{path}: cannot be opened: {reason}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise FileMissingError(f"{path}: expected a file, found {kind}")
    return path


def read_json_object(
    path: str | os.PathLike[str], error: type[Exception] = ConfigError, limit: int = JSON_LIMIT
) -> dict[str, Any]:
    """Read a JSON file of at most ``limit`` bytes that holds one object.

    Raises FileMissingError if it is no regular file, and ``error`` (default ConfigError) naming
    the file if it is too large, not UTF-8, not JSON, nested too deeply, or not an object.
    """
    path = require_regular_file(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path}: expected a JSON file of at most {limit} bytes, found {size}")
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except MambaError:
        raise
    except OSError as problem:
        raise FileMissingError(f"{path}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: expected JSON text in UTF-8, found other bytes: {problem}") from None
    except RecursionError:
        raise error(f"{path}: expected plain JSON, found nesting that is too deep") from None
    except ValueError as problem:
        raise error(f"{path}: expected JSON, found a syntax error: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises ConfigError for what JSON cannot hold, before anything is written.
    """
    text = json_text(path, value)
    with replacing(path) as temporary:
        temporary.write_bytes(text)


def json_text(path: str | os.PathLike[str], value: dict[str, Any]) -> bytes:
    """Return ``value`` as the file ``path`` would hold it; raises ConfigError naming that file."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
        return (text + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:  # no JSON type; a lone surrogate; a loop
        raise ConfigError(f"{path}: expected values that JSON can hold: {error}") from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, follow_link: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes that name in one step.

    On any exception the temporary file is removed and the old file stays as it was. A link is
    replaced itself, since in a hub cache it leads to a file that others share; with
    ``follow_link`` the file that it leads to is. Raises FileMissingError naming ``path`` if it is
    a folder, a pipe or a device, or cannot be written.
    """
    path = Path(path)
    with _naming(path):
        target = path.resolve() if follow_link else path
        if target.exists() and not target.is_file():
            raise FileMissingError(f"{path}: expected a file to write, found something else")
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part"
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with _naming(path):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a checkpoint is not
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names ``path``, not a temporary file."""
    try:
        yield
    except MambaError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileMissingError(f"{path}: cannot be written: {reason}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder to save into, with its parents.

    Raises CheckpointError if something else has that name, FileMissingError if it cannot be made.
    """
    path = Path(path)
    with _naming(path):
        if os.path.lexists(path) and not path.is_dir():
            raise CheckpointError(f"{path}: expected a folder to save into, found a file")
        path.mkdir(parents=True, exist_ok=True)
    return path


def own_file(folder: Path, name: str) -> Path:
    """Return a regular file of a model's folder, or a link to one that stays with the model.

    Links may lead to other files of the folder, or into the blobs of a Hugging Face cache. Raises
    FileMissingError, and UnsafeFileError for a link that leads elsewhere.
    """
    path = require_regular_file(folder / name)
    target = path.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not in_cache and not target.is_relative_to(folder.resolve()):
        raise UnsafeFileError(
            f"{path}: expected a file in the model's folder, found a link to {target}; copy the "
            "file, or pass the folder that it is in"
        )
    return path
