"""Rows of ids to rectangles: the checks of the arguments, truncation, padding and arrays."""

from typing import Any

import numpy as np

from ..checks import shown
from ..errors import InputError

Columns = dict[str, list[list[Any]]]
"""One list of rows by name: "input_ids", "attention_mask", "offset_mapping"."""

PADDING = {
    False: None,
    "do_not_pad": None,
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
}
TRUNCATION = {
    None: None,
    False: False,
    "do_not_truncate": False,
    True: True,
    "longest_first": True,
    "only_first": True,
}
PADDING_LIMIT = 2**20
"""Longest ``model_max_length`` that is padded to: larger numbers mean that there is no limit."""


class BatchEncoding(dict):
    """The ids and masks of some texts: a dict whose entries are attributes too.

    ``model(**encoding)``, ``encoding["input_ids"]`` and ``encoding.input_ids`` all work.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            found = ", ".join(self) or "nothing"
            raise AttributeError(f"{name}: expected one of this encoding's: {found}") from None


# --- arguments -----------------------------------------------------------------------------------


def choose(name: str, value: Any, choices: dict[Any, Any]) -> Any:
    """Return what ``value`` stands for; raises InputError if it is none of the choices."""
    for choice, meaning in choices.items():
        if value is choice or (isinstance(value, str) and value == choice):
            return meaning
    raise InputError(
        f"{name}: expected one of {', '.join(map(repr, choices))}, found {shown(value)}"
    )


def check_length(max_length: Any) -> int | None:
    """Return ``max_length`` as an int from 0, or None."""
    if max_length is None:
        return None
    is_integer = isinstance(max_length, int | np.integer) and not isinstance(max_length, bool)
    if not is_integer or max_length < 0:
        raise InputError(f"max_length: expected an integer from 0, found {shown(max_length)}")
    return int(max_length)


def check_texts(text: Any) -> list[str]:
    """Return a list of texts, from one text or several.

    Raises InputError for anything else, and for lone surrogates, which no encoding of Unicode has.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple):
        raise InputError(f"text: expected a string or a list of them, found {type(text).__name__}")
    if not texts:
        raise InputError("text: expected at least one text, found an empty list")
    for number, one in enumerate(texts):
        name = "text" if isinstance(text, str) else f"text[{number}]"
        if not isinstance(one, str):
            raise InputError(f"{name}: expected a string, found {type(one).__name__}")
        try:
            one.encode()
        except UnicodeEncodeError as problem:
            raise InputError(
                f"{name}: expected Unicode text, found the lone surrogate "
                f"{one[problem.start]!r} at position {problem.start}"
            ) from None
    return list(texts)


def check_ids(ids: Any) -> list[int]:
    """Return the ids of one text as a list, from an integer, a list or a 1-D array.

    Raises InputError for anything else and for negative ids.
    """
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"ids: expected integers, found {type(ids).__name__}") from None
    if array.ndim > 1:
        raise InputError(
            f"ids: expected those of one text, found shape {array.shape}; "
            "batch_decode takes several texts"
        )
    if array.size == 0:
        return []
    if array.dtype.kind not in "iu":
        raise InputError(f"ids: expected integers, found {array.dtype} ({shown(ids)})")
    flat = array.reshape(-1)
    if flat.min() < 0:
        place = int((flat < 0).argmax())
        raise InputError(f"ids: expected numbers from 0, found {flat[place]} at position {place}")
    return flat.tolist()


# --- rectangles ----------------------------------------------------------------------------------


def kept_positions(added: list[int], limit: int, side: str) -> list[int]:
    """Return the positions that truncation to ``limit`` tokens keeps.

    ``added`` marks the special tokens that the tokenizer put around the text: they always stay.

    Raises InputError if they alone are more than ``limit``.
    """
    if len(added) <= limit:
        return list(range(len(added)))
    text = [place for place, one in enumerate(added) if not one]
    room = limit - (len(added) - len(text))
    if room < 0:
        raise InputError(
            f"max_length: expected room for the {len(added) - len(text)} special tokens around "
            f"each text, found {limit}"
        )
    dropped = set(text[: len(text) - room] if side == "left" else text[room:])
    return [place for place in range(len(added)) if place not in dropped]


def pad(columns: Columns, fills: dict[str, Any], length: int, side: str) -> Columns:
    """Return the columns with each row filled up to ``length``; longer rows stay as they are."""

    def filled(row: list[Any], fill: Any) -> list[Any]:
        filling = [fill] * (length - len(row))
        return filling + row if side == "left" else row + filling

    return {name: [filled(row, fills[name]) for row in rows] for name, rows in columns.items()}


def to_arrays(columns: Columns) -> dict[str, Any]:
    """Return each column as an int64 array (B, L), offsets as (B, L, 2).

    Raises InputError for rows of different lengths.
    """
    lengths = [len(row) for row in columns["input_ids"]]
    if min(lengths) != max(lengths):
        raise InputError(
            f"return_tensors='np': expected rows of one length, found {min(lengths)} to "
            f"{max(lengths)} tokens; pass padding=True"
        )
    shape = (len(lengths), lengths[0])
    return {
        name: np.asarray(rows, np.int64).reshape((*shape, 2) if name == "offset_mapping" else shape)
        for name, rows in columns.items()
    }
