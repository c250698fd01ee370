"""Checks of single values that come from a caller or a file; each error names the field.

Whatever a file holds, a message stays short: values are shown up to ``SHOWN`` characters.
"""

import sys
from collections.abc import Collection
from typing import Any

import numpy as np

from .errors import ConfigError, MambaError

SIZE_LIMIT = 2**31 - 1
"""Largest size or count: a tensor that large does not exist."""

SHOWN = 80

Number = int | float


def shown(value: Any) -> str:
    """Return the value as an error message shows it: its repr, cut if it is long."""
    # The repr of a huge value is itself huge, so the beginning alone is taken where it can be.
    if isinstance(value, (str, bytes)) and len(value) > SHOWN:
        return f"{value[:SHOWN]!r}... ({len(value)} long)"
    if isinstance(value, (list, tuple, dict)) and len(value) > SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def integer(
    name: str,
    value: Any,
    low: int = 1,
    high: int = SIZE_LIMIT,
    error: type[MambaError] = ConfigError,
) -> int:
    """Return an integer (Python's or NumPy's, no bool) from ``low`` to ``high``."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise error(f"{name}: expected an integer from {low} to {high}, found {shown(value)}")
    return int(value)


def number(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    above: bool = False,
    error: type[MambaError] = ConfigError,
) -> float:
    """Return a finite number from ``low`` to ``high``; ``above``: larger than ``low``."""
    value = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer of JSON can be too large for any float.
    fits = is_number and abs(value) <= sys.float_info.max and low <= value <= high
    if not fits or (above and value == low):
        bounds = f" above {low:g}" if above else f" of at least {low:g}" if low > -np.inf else ""
        bounds += f"{' and' if bounds else ' of'} at most {high:g}" if high < np.inf else ""
        raise error(f"{name}: expected a finite number{bounds}, found {shown(value)}")
    return float(value)


def flag(name: str, value: Any, error: type[MambaError] = ConfigError) -> bool:
    """Return a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise error(f"{name}: expected true or false, found {shown(value)}")
    return bool(value)


def choice(
    name: str, value: Any, choices: Collection[str], error: type[MambaError] = ConfigError
) -> str:
    """Return a string that is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name}: expected one of {', '.join(choices)}, found {shown(value)}")
    return value


def token_ids(name: str, value: Any, error: type[MambaError] = ConfigError) -> int | list[int]:
    """Return an id or a list of ids."""
    if isinstance(value, (list, tuple)):
        return [integer(name, one, low=0, error=error) for one in value]
    return integer(name, value, low=0, error=error)
