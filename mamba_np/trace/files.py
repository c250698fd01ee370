"""Traces in safetensors files: arrays as tensors, the rest as JSON in the header.

A long text repeats its tokens, so the header has each of them once, and a tensor says which
belongs where.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import choice, integer, shown
from ..equations import DISCRETISATIONS
from ..errors import CheckpointError, FileMissingError
from ..files import replacing, require_regular_file
from .request import CONSTANTS, QUANTITIES, kept_states
from .result import Trace

FILE_FORMAT = "mamba_np.trace.1"
HEADER_LIMIT = 12 * 2**20
"""Of a trace, in bytes. That of a vocabulary of 50,000 tokens, all in one text, has 1.5 million."""

INDICES: dict[str, str] = {
    "ids": "L", "layers": "n", "channels": "c", "token_places": "L", "label_places": "L",
}  # fmt: skip
FLOATS = QUANTITIES | CONSTANTS


def save_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace; raises FileMissingError if the file cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tokens, token_places = _coded(trace.tokens)
    labels, label_places = _coded(trace.labels)
    tensors = {
        **{"ids": trace.ids, "layers": trace.layers, "channels": trace.channels},
        **{"token_places": token_places, "label_places": label_places},
        **trace.arrays(),
    }
    values = {
        **{name: getattr(trace, name) for name in ("every", "before", "model", "discretisation")},
        **{"tokens": tokens, "labels": labels},
    }
    header = {"format": FILE_FORMAT, "trace": json.dumps(values, ensure_ascii=False)}
    with replacing(path, follow_link=True) as temporary:
        try:
            save_file(
                {name: np.ascontiguousarray(array) for name, array in tensors.items()},
                temporary,
                metadata=header,
            )
        except SafetensorError as error:  # a full disk, for one
            raise FileMissingError(f"{path}: cannot be written: {error}") from error


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace; raises FileMissingError and CheckpointError naming the file."""
    from safetensors import SafetensorError, safe_open

    path = require_regular_file(path)
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > HEADER_LIMIT:
            raise CheckpointError(
                f"{path}: expected a saved Trace, found a header of {header} bytes"
            )
        with safe_open(path, framework="numpy") as file:
            values = _check_header(path, file.metadata() or {})
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {n: (p.get_dtype(), tuple(p.get_shape())) for n, p in parts.items()}
            _check_tensors(path, kinds, values)
            tensors = {name: file.get_tensor(name) for name in parts}
    except OSError as error:
        raise FileMissingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected a saved Trace, found: {error}") from None
    _check_indices(path, tensors, values)
    texts = {
        name: tuple(values[name][place] for place in tensors.pop(f"{name[:-1]}_places"))
        for name in ("tokens", "labels")
    }
    return Trace(**{**values, **texts}, **tensors)


def _coded(texts: Sequence[str]) -> tuple[list[str], NDArray]:
    """Return each text once, and which of them comes at each place (L)."""
    known = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(known), np.array([known[text] for text in texts], np.int64)


# --- checks ---------------------------------------------------------------------------------------


def _check_header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Return the fields that are no arrays."""
    found = metadata.get("format")
    if found != FILE_FORMAT:
        raise CheckpointError(f"{path}: expected the format {FILE_FORMAT!r}, found {shown(found)}")
    try:
        values = json.loads(metadata.get("trace", ""))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: trace: expected JSON in the header, found none") from None
    names = ("every", "before", "model", "discretisation", "tokens", "labels")
    if not isinstance(values, dict) or set(values) != set(names):
        raise CheckpointError(
            f"{path}: trace: expected {', '.join(names)} in the header, found {shown(values)}"
        )
    for name in ("tokens", "labels"):
        texts = values[name]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise CheckpointError(f"{path}: {name}: expected a list of texts, found others")
    if not isinstance(values["model"], str):
        raise CheckpointError(f"{path}: model: expected a text, found {shown(values['model'])}")
    choice(f"{path}: discretisation", values["discretisation"], DISCRETISATIONS, CheckpointError)
    integer(f"{path}: every", values["every"], error=CheckpointError)
    integer(f"{path}: before", values["before"], low=0, error=CheckpointError)
    return values


def _check_tensors(
    path: Path, kinds: dict[str, tuple[str, tuple[int, ...]]], values: dict[str, Any]
) -> None:
    """Compare names, dtypes and shapes with what a trace has; nothing is read yet."""
    missing, unknown = set(INDICES) - set(kinds), set(kinds) - set(INDICES | FLOATS)
    if missing or unknown:
        problem = f"no {min(missing)}" if missing else f"a tensor {shown(min(unknown))}"
        raise CheckpointError(f"{path}: expected the tensors of a trace, found {problem}")
    floats = sorted({dtype for name, (dtype, _) in kinds.items() if name in FLOATS})
    if floats not in (["F32"], ["F64"]):
        raise CheckpointError(
            f"{path}: expected arrays of float32 or of float64, found {', '.join(floats) or 'none'}"
        )
    sizes: dict[str, int] = {}
    for name in (*INDICES, *FLOATS):
        if name not in kinds:
            continue
        (dtype, shape), axes = kinds[name], (INDICES | FLOATS)[name].split()
        fits = len(shape) == len(axes) and (name in FLOATS or dtype == "I64")
        for axis, size in zip(axes, shape, strict=False):
            fits = size == sizes.setdefault(axis, size) and fits
        length = sizes["L"]  # which the first one has told
        sizes["P"] = kept_states(length, values["every"], values["before"])
        if not fits:
            expected = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
            raise CheckpointError(
                f"{path}: {name}: expected {'a float' if name in FLOATS else 'I64'} of shape "
                f"({expected}), found {dtype} of shape {shape}"
            )


def _check_indices(path: Path, tensors: dict[str, NDArray], values: dict[str, Any]) -> None:
    """Raise CheckpointError for an index that is negative, or too large for what it points to."""
    limits = dict.fromkeys(INDICES, 2**31)
    limits |= {"token_places": len(values["tokens"]), "label_places": len(values["labels"])}
    for name in INDICES:
        array, high = tensors[name], limits[name]
        if array.size and not 0 <= array.min() <= array.max() < high:
            found = array.min() if array.min() < 0 else array.max()
            raise CheckpointError(f"{path}: {name}: expected 0 to {high - 1}, found {found}")
