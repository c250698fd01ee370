"""Operators alone, of arrays that come from the host and go back there: for ``mamba_np.ops``."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .. import reference
from ..errors import BackendError
from .arena import CHANNELS, padded
from .device import Device, upload_new
from .scanning import Extent, Inputs, Scanner


def selective_scan(
    device: Device, x, delta, A, B, C, h, *, discretise: Callable, scan: Callable
) -> tuple[NDArray, NDArray]:
    """Do what ``reference.selective_scan`` does, on a device.

    (B L E), (B L E), (E N), (B L N), (B L N), (B E N) -> y (B L E), h (B E N). Raises BackendError
    for other rules and scans, and where channels have B or C of their own.
    """
    if discretise is not eq.discretise or scan is not reference.recurrence:
        raise BackendError("backend: 'cuda' has one rule and one scan of its own; 'numpy' has all")
    if B.ndim != 3 or C.ndim != 3:
        raise BackendError(
            "backend: 'cuda' has no kernels for channels with B or C of their own; 'numpy' has"
        )
    (texts, L, E), N = x.shape, A.shape[1]
    E_pad, N4 = padded(max(E, 1), CHANNELS), padded(N, 4)
    size = Extent(texts, L, E_pad, 2 * N4, N)
    if not texts * L * E:
        return np.zeros_like(x), h.copy()
    selected = np.concatenate([_wide(B, L, N4), _wide(C, L, N4)], axis=-1)
    states = _wide(h, E_pad, N4)
    with device.lock:
        nothing = device.allocate(4)  # where a gate, D and a bias would lie: nobody looks there
        sources = _wide(x, L, E_pad), _wide(delta, L, E_pad), selected
        rows, steps, chosen = (upload_new(device, array) for array in sources)
        per_octave = upload_new(device, _wide(eq.per_octave(A), E_pad, N4))
        lengths = upload_new(device, np.full(texts, L, np.int32))
        moving, y = upload_new(device, states), device.allocate(4 * texts * L * E_pad)
        given = Inputs(rows, steps, nothing, chosen, per_octave, nothing, nothing, lengths)
        Scanner(device)(given, moving.address, y.address, size, gated=False)
        found = np.empty((texts, L, E_pad), np.float32)
        device.download(y, found)
        device.download(moving, states)
    return np.ascontiguousarray(found[..., :E]), np.ascontiguousarray(states[:, :E, :N])


def _wide(array: NDArray, rows: int, width: int) -> NDArray:
    """Return the array (..., r, w) in float32, with zeros up to (..., rows, width)."""
    wide = np.zeros((*array.shape[:-2], rows, width), np.float32)
    wide[..., : array.shape[-2], : array.shape[-1]] = array
    return wide
