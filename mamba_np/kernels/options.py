"""How kernels are compiled, and where the result is kept.

Compiling takes seconds, so each kernel is compiled once per machine and its machine code is kept
in a folder of the user's, named after this version and these sources: an update never meets code
of another version. Numba adds the processor's name and features to what it looks up.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba.core.typing import templates

from .. import __version__

# Decorators of Numba's whose results type checkers misread.
intrinsic: Any = numba.extending.intrinsic
infer_global: Any = templates.infer_global

_settings: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]

OPTIONS: dict[str, Any] = {
    "nogil": True,  # other Python threads go on meanwhile
    "error_model": "numpy",  # division by zero is inf, as in NumPy; a check would cost vectors
    "fastmath": {"contract", "nsz"},  # a * b + c in one rounding; sums keep their order
}


INLINE: Any = {"forceinline": True, **OPTIONS}
"""Options of a function that is compiled into its callers."""


def inline(function: Callable) -> Any:
    """Compile a function into every kernel that calls it."""
    return numba.njit(**INLINE)(function)


def kernel(function: Callable) -> Any:
    """Compile a function that Python calls, once per machine."""
    folder = cache_folder()
    if folder is None:
        return numba.njit(**OPTIONS)(function)
    before = _settings.CACHE_DIR
    try:  # Numba reads the folder when it decorates; others' functions keep their own
        _settings.CACHE_DIR = str(folder)
        return numba.njit(cache=True, **OPTIONS)(function)
    finally:
        _settings.CACHE_DIR = before


# --- the folder ---------------------------------------------------------------------------------

_folder: Path | None = None


def cache_folder() -> Path | None:
    """Return the folder of the compiled kernels, made if need be; None if none can be written.

    Below NUMBA_CACHE_DIR if that is set, else in the user's folder for caches, else in the
    folder for temporary files.
    """
    global _folder
    if _folder is None or not _folder.is_dir():
        candidates = (base / _name() for base in _bases())
        _folder = next((folder for folder in candidates if _usable(folder)), None)
    return _folder


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


def _usable(folder: Path) -> bool:
    """Make the folder; say whether this user, and nobody else, can write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return False
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    shared = os.name == "posix" and status.st_mode & 0o022
    return not foreign and not shared and os.access(folder, os.W_OK)


def _name() -> str:
    """Return a name that changes with the version and with each source that kernels are made of."""
    package = Path(__file__).parent.parent
    names = ("derivatives.py", "equations.py", "polynomials.py")
    sources = [*(package / name for name in names), *sorted((package / "kernels").glob("*.py"))]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return f"{__version__}-{digest.hexdigest()[:12]}"
