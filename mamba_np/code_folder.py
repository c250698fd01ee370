"""Where compiled kernels are kept: a folder of the user's, for one version of them.

It is named after this version of the package and the sources that the kernels are made of, so an
update never meets code of another version.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from . import __version__

PACKAGE = Path(__file__).parent


def usable_folder(name: str) -> Path | None:
    """Return a folder of that name, made if need be; None if none can be written.

    Below NUMBA_CACHE_DIR if that is set, else in the user's folder for caches, else in the
    folder for temporary files.
    """
    candidates = (base / name for base in _bases())
    return next((folder for folder in candidates if usable(folder)), None)


def name_of(sources: Iterable[Path], *versions: str) -> str:
    """Return a name that changes with the package's version, the sources and other versions."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    for version in versions:
        digest.update(version.encode())
    return f"{__version__}-{digest.hexdigest()[:12]}"


def _bases() -> list[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen) / "mamba_np"]
    try:
        bases = [_user_folder() / "mamba_np"]
    except RuntimeError:  # no home folder
        bases = []
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return [*bases, Path(tempfile.gettempdir()) / f"mamba_np-{owner}"]


def _user_folder() -> Path:
    """Return the user's folder for caches, as this system has it."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def usable(folder: Path) -> bool:
    """Make the folder; say whether this user, and nobody else, can write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return False
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    shared = os.name == "posix" and status.st_mode & 0o022
    return not foreign and not shared and os.access(folder, os.W_OK)
