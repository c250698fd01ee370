"""Where training data comes from: dicts in memory, JSON Lines, plain text, a folder of both.

Every example comes with the place where it stands, which errors about it begin with:
``train.jsonl:17`` or ``train_dataset[16]``.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..checks import shown
from ..errors import FileMissingError, InputError
from ..files import require_regular_file
from ..scoring import TextReader, split_text

Example = tuple[str, dict[str, Any]]
"""The place of an example, and what it holds."""

JSON_LINES = (".jsonl", ".json")
TEXT = ".txt"
KINDS = "a file .jsonl or .txt, or a folder of them"

EXPECTED = (
    'expected {"text": ...}, {"prompt": ..., "completion": ...} or {"input_ids": ...}'
    " (dataset_text_field names another key than text)"
)

A_LINE = "expected a JSON object on each line"


def find_file(path: str | os.PathLike[str], split: str) -> Path:
    """Return the file with a split ("train", "valid") of the data at a path: it or one inside it.

    Raises FileMissingError if there is none, InputError for a file of another kind.
    """
    path = Path(path)
    if path.is_dir():
        names = [split + ending for ending in (*JSON_LINES, TEXT)]
        found = next((path / name for name in names if os.path.lexists(path / name)), None)
        if found is None:
            raise FileMissingError(f"{path}: expected {' or '.join(names)} in it, found none")
        path = found
    if path.suffix not in (*JSON_LINES, TEXT):
        raise InputError(f"{path}: expected {KINDS}, found another kind of file")
    return require_regular_file(path)


def has_split(path: Any, split: str) -> bool:
    """Tell whether the data at a path is a folder with a split of that name."""
    if not isinstance(path, (str, os.PathLike)) or not os.path.isdir(path):
        return False
    return any(os.path.lexists(Path(path) / (split + end)) for end in (*JSON_LINES, TEXT))


def read_examples(source: Any, name: str, split: str = "train") -> Iterator[Example]:
    """Yield the place and the content of each example, checked to be a dict.

    ``source`` is a path or an iterable of dicts; ``name`` is the argument that it came by. Raises
    InputError naming the place, FileMissingError for a file that is not there.
    """
    if isinstance(source, (str, os.PathLike)):
        yield from read_json_lines(find_file(source, split))
        return
    for i, example in enumerate(_iterated(source, name)):
        if not isinstance(example, Mapping):
            raise InputError(f"{name}[{i}]: {EXPECTED}, found {shown(example)}")
        yield f"{name}[{i}]", dict(example)


def _iterated(source: Any, name: str) -> Iterable[Any]:
    """Return what can be iterated over; a PyTorch dataset has only places and a length."""
    if isinstance(source, Mapping) or not (
        hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        raise InputError(
            f"{name}: expected {KINDS}, or an iterable of dicts, found {shown(source)}"
        )
    if hasattr(source, "__iter__"):
        return source
    return (source[i] for i in range(len(source)))


def read_json_lines(path: Path) -> Iterator[Example]:
    """Yield the place and the object of each line that is not empty.

    Raises InputError naming the file and the line that is not a JSON object.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            value = _parsed(line, where)
            if isinstance(value, dict):
                yield where, value
            elif value is not None or line.strip():
                raise InputError(f"{where}: {A_LINE}, found {shown(value)}")


def _parsed(line: bytes, where: str) -> Any:
    try:
        text = line.decode("utf-8-sig")
        return json.loads(text) if text.strip() else None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: expected UTF-8, found other bytes: {error.reason}") from None
    except RecursionError:
        raise InputError(f"{where}: expected plain JSON, found nesting that is too deep") from None
    except ValueError as error:
        raise InputError(f"{where}: {A_LINE}, found a syntax error: {error}") from None


def read_text(path: Path) -> Iterator[str]:
    """Yield a text file in pieces, cut where no token of a byte-level tokenizer would be.

    Raises InputError giving the offset of the first byte that is not UTF-8.
    """
    with _opened(path) as file:
        yield from split_text(TextReader(file, str(path)))


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise FileMissingError(f"{path}: cannot be opened: {error.strerror}") from error
