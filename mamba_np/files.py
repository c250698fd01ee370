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

from .errors import CheckpointError, ConfigError, FileMissingError

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
    size = path.stat().st_size
    if size > limit:
        raise error(f"{path}: expected a JSON file of at most {limit} bytes, found {size}")
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
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
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8"
        )


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes that name in one step.

    On any exception the temporary file is removed and the old file stays as it was.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a checkpoint is not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder to save into, with its parents.

    Raises CheckpointError if a file has that name.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: expected a folder to save into, found a file")
    path.mkdir(parents=True, exist_ok=True)
    return path
