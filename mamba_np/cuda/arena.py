"""A model's parameters and states as they lie in a GPU's memory.

Every matrix keeps its dtype; rows and channels are padded with zeros to whole steps of the kernels,
so that no kernel has to ask where a channel ends. Padded channels stay zero all the way.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..config import MambaConfig
from ..params import Layer, Params
from .device import Block, Device, upload_new

CHANNELS = 128
"""Channels that a block of threads takes: widths are multiples of it."""


def padded(size: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-size // step) * step


class Sizes(NamedTuple):
    """The model's sizes by their letters, and what kernels see of them."""

    layers: int
    D: int
    E: int
    N: int
    R: int
    K: int
    D_pad: int
    E_pad: int
    N4: int
    R8: int

    @property
    def M(self) -> int:
        """Columns of what x_proj makes: B, C, then what step sizes are made of."""
        return padded(2 * self.N4 + self.R8, 8)

    @classmethod
    def of(cls, c: MambaConfig) -> "Sizes":
        """Return the sizes of a configuration."""
        D, E, N, R = c.hidden_size, c.intermediate_size, c.state_size, int(c.time_step_rank)
        pads = padded(D, CHANNELS), padded(E, CHANNELS), padded(N, 4), padded(R, 8)
        return cls(c.num_hidden_layers, D, E, N, R, c.conv_kernel, *pads)

    @classmethod
    def of_states(cls, conv: NDArray, ssm: NDArray) -> "Sizes":
        """Return the sizes that states alone have; those of a model besides are 0."""
        (layers, _, K, E), N = conv.shape, ssm.shape[2]
        return cls(layers, 0, E, N, 0, K, 0, padded(E, CHANNELS), padded(N, 4), 0)


class Matrix(NamedTuple):
    """A matrix (rows, width): its dtype's name, its numbers, and the scales of int8 ones."""

    kind: str
    values: Block
    rows: int
    width: int
    scales: Block | None = None
    group: int = 0


@dataclass(frozen=True, eq=False)
class DeviceLayer:
    """One block's parameters; vectors are float32."""

    norm: Block  # (D_pad)
    in_proj: Matrix  # (2 E_pad, D_pad): x, then z
    in_proj_bias: Block  # (2 E_pad)
    conv: Block  # (K, E_pad)
    conv_bias: Block  # (E_pad)
    x_proj: Matrix  # (M, E_pad): B, C, then what step sizes are made of
    dt_proj: Matrix  # (E_pad, R8)
    dt_bias: Block  # (E_pad)
    A_per_octave: Block  # (E_pad, N4)
    D: Block  # (E_pad)
    out_proj: Matrix  # (D_pad, E_pad)
    out_proj_bias: Block  # (D_pad)


@dataclass(frozen=True, eq=False)
class DeviceParams:
    """All parameters."""

    sizes: Sizes
    embeddings: Matrix  # (V, D_pad)
    layers: tuple[DeviceLayer, ...]
    norm_f: Block
    lm_head: Matrix | None
    biases: tuple[bool, bool]  # whether in_proj and out_proj have one


ALL = [(0, slice(None))]
"""Every row where it is."""


def upload(device: Device, params: Params, config: MambaConfig) -> DeviceParams:
    """Copy a model's parameters to a device, one array after another."""
    s = Sizes.of(config)
    vocabulary = ALL, len(params.embeddings), s.D_pad
    embeddings = _matrix(device, params.embeddings, *vocabulary)
    head = embeddings
    if not params.tied and params.lm_head is not None:
        head = _matrix(device, params.lm_head, *vocabulary)
    first = params.layers[0] if params.layers else None
    return DeviceParams(
        s,
        embeddings,
        tuple(upload_layer(device, layer, s) for layer in params.layers),
        _vector(device, params.norm_f, s.D_pad),
        None if params.lm_head is None else head,
        biases=(
            first is not None and first.in_proj_bias is not None,
            first is not None and first.out_proj_bias is not None,
        ),
    )


def one_layer(device: Device, layer: Layer, s: Sizes) -> DeviceParams:
    """Copy a single block to a device, as a model of which there is no more."""
    found = upload_layer(device, layer, s)
    biases = layer.in_proj_bias is not None, layer.out_proj_bias is not None
    return DeviceParams(s, found.out_proj, (found,), found.norm, None, biases)


def nbytes(params: Params, config: MambaConfig) -> int:
    """Return about how much memory ``upload`` takes; what padding adds besides is little."""
    total = 0
    s = Sizes.of(config)
    for layer in params.layers:
        total += sum(getattr(part, "nbytes", 0) for part in vars(layer).values())
        total += 4 * s.E_pad * (s.N4 + s.K + 5)
    total += params.embeddings.nbytes
    if params.lm_head is not None and not params.tied:
        total += params.lm_head.nbytes
    return total


def upload_layer(device: Device, layer: Layer, s: Sizes) -> DeviceLayer:
    """Copy one block's parameters to a device."""
    E, R, N = s.E, s.R, s.N
    halves = [(0, slice(E)), (s.E_pad, slice(E, 2 * E))]
    selected = [
        (0, slice(R, R + N)),
        (s.N4, slice(R + N, R + 2 * N)),
        (2 * s.N4, slice(R)),
    ]
    A = eq.per_octave(eq.continuous_A(np.asarray(layer.A_log, np.float32)))
    return DeviceLayer(
        norm=_vector(device, layer.norm, s.D_pad),
        in_proj=_matrix(device, layer.in_proj, halves, 2 * s.E_pad, s.D_pad),
        in_proj_bias=_vector(device, layer.in_proj_bias, 2 * s.E_pad, halves),
        conv=_vector(device, layer.conv.T, s.E_pad),
        conv_bias=_vector(device, layer.conv_bias, s.E_pad),
        x_proj=_matrix(device, layer.x_proj, selected, s.M, s.E_pad),
        dt_proj=_matrix(device, layer.dt_proj, ALL, s.E_pad, s.R8),
        dt_bias=_vector(device, layer.dt_bias, s.E_pad),
        A_per_octave=upload_new(device, _placed(A, ALL, s.E_pad, s.N4)),
        D=_vector(device, layer.D, s.E_pad),
        out_proj=_matrix(device, layer.out_proj, ALL, s.D_pad, s.E_pad),
        out_proj_bias=_vector(device, layer.out_proj_bias, s.D_pad),
    )


def _placed(matrix: NDArray, places: Any, rows: int, width: int) -> NDArray:
    """Return a matrix with blocks of its rows at other places, between zeros."""
    if matrix.shape == (rows, width) and len(places) == 1:
        return np.ascontiguousarray(matrix)
    found = np.zeros((rows, width), matrix.dtype)
    for first, chosen in places:
        part = matrix[chosen]
        found[first : first + len(part), : part.shape[1]] = part
    return found


def _matrix(device: Device, matrix: Any, places: Any, rows: int, width: int) -> Matrix:
    if hasattr(matrix, "scales"):
        values = upload_new(device, _placed(matrix.values, places, rows, width))
        groups = padded(width, matrix.group) // matrix.group
        scales = upload_new(device, _placed(matrix.scales, places, rows, groups))
        return Matrix("int8", values, rows, width, scales, matrix.group)
    numbers = _placed(matrix, places, rows, width)
    return Matrix(matrix.dtype.name, upload_new(device, numbers), rows, width)


def _vector(device: Device, array: NDArray | None, width: int, places: Any = None) -> Block:
    """Upload a vector, or vectors of channels (n, E), padded with zeros; None is zeros."""
    if array is None:
        return device.allocate(4 * width)
    found = np.zeros((*array.shape[:-1], width), np.float32)
    for first, chosen in places or ALL:
        part = array[..., chosen]
        found[..., first : first + part.shape[-1]] = part
    return upload_new(device, found)


# --- states, and what a layer makes of tokens -----------------------------------------------------


class Seen(NamedTuple):
    """Where the quantities of some tokens lie before the scan, a row for each token."""

    x: Block  # (T, E_pad): after the activation
    gate: tuple[Block, int]  # (T, 2 E_pad) or (T, E_pad), and the column where z begins
    selected: Block  # (T, M): B, C, then what step sizes are made of
    raw: Block  # (T, E_pad): step sizes before bias and softplus
    h: int  # the address of the states (E_pad, N4) before the first of them


class DeviceStates:
    """What a batch of texts left behind, on the device; ``fetch`` brings it home.

    ``window`` (layers, B, K, E_pad), ``h`` (layers, B, E_pad, N4).
    """

    def __init__(self, device: Device, sizes: Sizes, texts: int):
        self.device, self.texts = device, texts
        s = sizes
        self._shapes = (s.layers, texts, s.K, s.E_pad), (s.layers, texts, s.E_pad, s.N4)
        self.window, self.h = (device.allocate(4 * int(np.prod(shape))) for shape in self._shapes)
        self.token: Any = None
        """The way of one token that advances them (``token.Token``), once there was one."""

    def places(self, layer: int) -> tuple[int, int]:
        """Return where one layer's windows and states begin."""
        blocks, layers = (self.window, self.h), self._shapes[0][0]
        window, h = (block.address + layer * (block.nbytes // layers) for block in blocks)
        return window, h

    def send(self, conv: NDArray, ssm: NDArray) -> None:
        """Copy windows (layers, B, K, E) and states (layers, B, N, E) to the device."""
        for block, shape, home in self._pairs(conv, ssm):
            wide = np.zeros(shape, np.float32)
            wide[..., : home.shape[2], : home.shape[3]] = home
            self.device.upload(block, wide)

    def fetch(self, conv: NDArray, ssm: NDArray) -> None:
        """Copy them back."""
        for block, shape, home in self._pairs(conv, ssm):
            wide = np.empty(shape, np.float32)
            self.device.download(block, wide)
            home[:] = wide[..., : home.shape[2], : home.shape[3]]

    def _pairs(self, conv: NDArray, ssm: NDArray) -> Any:
        arrays = conv, ssm.swapaxes(2, 3)  # a channel's states lie together on the device
        return zip((self.window, self.h), self._shapes, arrays, strict=True)
