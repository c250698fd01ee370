"""PTX's types: how many bytes each has, and as which NumPy dtype its values are computed."""

from typing import NamedTuple

import numpy as np

from .errors import PTXError


class Type(NamedTuple):
    """One of PTX's types. A bfloat16 and packed pairs have no NumPy dtype: they stay bits."""

    name: str
    dtype: np.dtype
    bytes: int

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    @property
    def is_signed(self) -> bool:
        return self.dtype.kind == "i"


def _types():
    yield "pred", np.bool_
    for bits in (8, 16, 32, 64):
        for letter, kind in (("b", "uint"), ("u", "uint"), ("s", "int")):
            yield f"{letter}{bits}", f"{kind}{bits}"
    for bits in (16, 32, 64):
        yield f"f{bits}", f"float{bits}"
    yield "bf16", "uint16"
    yield "f16x2", "uint32"
    yield "bf16x2", "uint32"


TYPES = {name: Type(name, np.dtype(dtype), np.dtype(dtype).itemsize) for name, dtype in _types()}


def type_named(name: str) -> Type:
    try:
        return TYPES[name]
    except KeyError:
        raise PTXError(f"expected a type, found .{name}") from None


def wide(kind: Type) -> Type:
    """Return the type of twice the width: what mul.wide makes."""
    return TYPES[f"{kind.name[0]}{16 * kind.bytes}"]


def bits_type(size: int) -> Type:
    """Return the type of plain bits with this many bytes."""
    return TYPES[f"b{8 * size}"]
