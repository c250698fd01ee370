"""The arguments of the operators: checked, in the dtype of arithmetic and in engines' layouts.

Each function raises InputError naming the argument whose dtype or shape is wrong.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checks import shown
from .errors import InputError
from .inputs import as_array
from .params import DTYPES, compute_dtype


class Scan(NamedTuple):
    """The arguments of a scan as an engine takes them: time-major, in the dtype of arithmetic."""

    x: NDArray  # (B, L, E)
    raw: NDArray  # (B, L, E): the step sizes before softplus
    A: NDArray  # (E, N)
    B: NDArray  # (B, L, N), (B, L, G, N) or (E, N)
    C: NDArray  # (B, L, N), (B, L, G, N) or (E, N)
    D: NDArray | None  # (E)
    z: NDArray | None  # (B, L, E)
    h: NDArray  # (B, E, N): the state before the first step


def scan_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state) -> Scan:
    """Check the arguments of ``selective_scan``."""
    dtype = dtype_of("u", u)
    (batch, E, L), N = shape_of("u", u, 3), shape_of("A", A, 2)[1]
    x, raw = (time_major(*m, dtype, (batch, E, L)) for m in (("u", u), ("delta", delta)))
    bias = vector("delta_bias", delta_bias, E, dtype)
    raw = raw if bias is None else raw + bias
    A = checked("A", A, dtype, (E, N))
    h = np.zeros((batch, E, N), dtype)
    if initial_state is not None:
        h = checked("initial_state", initial_state, dtype, (batch, E, N))
    B, C = (selected(*m, dtype, (batch, E, N, L)) for m in (("B", B), ("C", C)))
    D = vector("D", D, E, dtype)
    z = None if z is None else time_major("z", z, dtype, (batch, E, L))
    return Scan(x, raw, A, B, C, D, z, h)


def selected(name, values, dtype, sizes, allow_fixed=True):
    """Return B or C time-major: (B L N) if all channels share it, (B L G N), or (E N)."""
    batch, E, N, L = sizes
    values = as_array(name, values)
    if values.ndim == 2 and allow_fixed:
        return checked(name, values, dtype, (E, N))
    if values.ndim == 3:
        return checked(name, values, dtype, (batch, N, L)).swapaxes(1, 2)
    groups = values.shape[1] if values.ndim == 4 else 1
    values = checked(name, values, dtype, (batch, groups, N, L))
    if groups == 0 or E % groups:
        raise InputError(f"{name}: expected a number of groups that divides {E}, found {groups}")
    values = values.transpose(0, 3, 1, 2)
    return values[:, :, 0] if groups == 1 else values


def of_each_channel(M, x):
    """Return B or C as an engine takes it: (B L N), or (B L E N) with each channel's own."""
    if M.ndim == 2:
        return np.broadcast_to(M, (*x.shape, M.shape[1]))
    return M if M.ndim == 3 else np.repeat(M, x.shape[2] // M.shape[2], axis=2)


def d_selected(gradient, shape):
    """Return the gradient of B or C, which an engine made, in the layout of the argument."""
    if len(shape) == 2:  # (E N): the same everywhere
        return gradient if gradient.ndim == 2 else gradient.sum(axis=(0, 1))
    if len(shape) == 3:
        return gradient.swapaxes(1, 2)
    batch, groups, N, L = shape
    sharing = gradient.shape[2] // groups if gradient.ndim == 4 else 1
    return gradient.reshape(batch, L, groups, sharing, N).sum(axis=3).transpose(0, 2, 3, 1)


def time_major(name, values, dtype, shape):  # (B E L) -> (B L E)
    """Return a checked sequence with its steps first."""
    return np.ascontiguousarray(checked(name, values, dtype, shape).swapaxes(1, 2))


def vector(name, values, size, dtype):
    """Return a checked vector, or None for None."""
    return None if values is None else checked(name, values, dtype, (size,))


def checked(name: str, values: Any, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
    """Return an array of this shape in ``dtype``."""
    dtype_of(name, values)
    if np.shape(values) != shape:
        raise InputError(f"{name}: expected shape {shape}, found {np.shape(values)}")
    return np.asarray(values).astype(dtype, copy=False)


def dtype_of(name: str, values: Any) -> np.dtype:
    """Return the dtype to compute in for ``values``."""
    found = as_array(name, values).dtype
    if found.name not in DTYPES:
        raise InputError(
            f"{name}: expected real floating-point numbers of up to 64 bits, found {found}"
        )
    return compute_dtype(DTYPES[found.name])  # in native byte order


def require_writeable(name: str, values: Any) -> None:
    """Refuse, before any work is done, what cannot be changed in place."""
    if not isinstance(values, np.ndarray) or not values.flags.writeable:
        found = "a read-only one" if isinstance(values, np.ndarray) else shown(values)
        raise InputError(f"{name}: expected a NumPy array to change in place, found {found}")


def shape_of(name: str, values: Any, ndim: int) -> tuple[int, ...]:
    """Return the shape of an array of ``ndim`` dimensions with rows and channels."""
    shape = as_array(name, values).shape
    if len(shape) != ndim or 0 in shape[:2]:
        raise InputError(
            f"{name}: expected {ndim} dimensions, the first two above 0, found shape {shape}"
        )
    return shape
