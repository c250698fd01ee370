"""The table of contents of one safetensors file.

Whether a file is sound is decided by safetensors' own parser, never by ours: two parsers that
understand a file differently are how crafted files slip through. Since that parser accepts only
tensors that lie back to back, their order and sizes give every offset, and the header's JSON need
not be parsed a second time.
"""

import math
from pathlib import Path

from ..errors import CheckpointError, FileMissingError
from ..files import require_regular_file
from .tensors import TensorInfo

HEADER_LIMIT = 8 * 2**20
"""Largest header read, in bytes; that of the largest Mamba is below 100 kB."""

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Sizes of the dtypes of safetensors, to step over tensors that are not wanted."""

TRUNCATED = "; the file may be damaged or only partly downloaded"
FOREIGN = {
    b"version https://git-lfs": "; this is a Git LFS pointer: run `git lfs pull`",
    b"<": "; this looks like a web page: download the file itself",
    b"PK": "; this looks like a zip file, perhaps a PyTorch checkpoint",
    b"GGUF": "; this looks like a GGUF file: download the safetensors version",
}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return what a safetensors file holds, by the names in the file; no weight is read.

    Raises FileMissingError if it is no regular file, CheckpointError if it is not sound.
    """
    from safetensors import SafetensorError, safe_open

    path = require_regular_file(path)
    try:
        with open(path, "rb") as file:
            first = file.read(32)
        offset, hint = _data_start(path, first)
        with safe_open(path, framework="numpy") as file:
            parts = [(name, file.get_slice(name)) for name in file.offset_keys()]
            contents = [(name, p.get_dtype(), tuple(p.get_shape())) for name, p in parts]
        size = path.stat().st_size
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, found: {error}{hint}"
        ) from None
    except OSError as error:
        raise FileMissingError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _tensors(path, offset, size, contents)


def _tensors(
    path: Path, offset: int, size: int, contents: list[tuple[str, str, tuple[int, ...]]]
) -> dict[str, TensorInfo]:
    tensors = {}
    for name, dtype, shape in contents:
        tensors[name] = tensor = TensorInfo(name, dtype, shape, path, offset)
        if dtype not in BITS:
            raise CheckpointError(f"{tensor}: expected a known dtype, found {dtype!r}")
        offset += math.prod(shape) * BITS[dtype] // 8
    if offset != size:  # the file was replaced while it was being read
        raise CheckpointError(f"{path}: expected tensors up to byte {size}, found {offset}")
    return tensors


def _data_start(path: Path, first: bytes) -> tuple[int, str]:
    """Return where the numbers start, and what to add to an error about the header."""
    hint = next((h for magic, h in FOREIGN.items() if first.startswith(magic)), TRUNCATED)
    length = int.from_bytes(first[:8], "little")
    if len(first) >= 8 and length > HEADER_LIMIT:
        raise CheckpointError(
            f"{path}: expected a safetensors header of at most {HEADER_LIMIT} bytes, "
            f"found {length}{hint}"
        )
    return 8 + length, hint
