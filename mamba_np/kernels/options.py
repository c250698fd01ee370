"""How kernels are compiled, and where the result is kept.

Compiling takes seconds, so each kernel is compiled once per machine and its machine code is kept
in a folder (see ``code_folder``). Numba adds the processor's name and features to what it looks up.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba.core.typing import templates

from ..code_folder import PACKAGE, name_of, usable_folder

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
    """Return the folder of the compiled kernels, made if need be; None if none can be written."""
    global _folder
    if _folder is None or not _folder.is_dir():
        names = ("derivatives.py", "equations.py", "polynomials.py")
        sources = [*(PACKAGE / name for name in names), *sorted(PACKAGE.glob("kernels/*.py"))]
        _folder = usable_folder(name_of(sources))
    return _folder
