"""A model's parameters as the kernels want them, and the memory that they work in.

The large matrices stay where they are, mapped files included: kernels get their addresses. The
few small arrays whose channels do not lie next to each other in a checkpoint are copied, with
the channels last and padded to whole Lanes.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from ..config import MambaConfig
from ..errors import BackendError
from ..params import Layer, Params, may_change
from .lanes import WIDTH
from .memory import pointer
from .options import kernel

F32 = np.dtype(np.float32)


def padded(size: int) -> int:
    """Return the next multiple of 16."""
    return -(-size // WIDTH) * WIDTH


def aligned(shape: tuple[int, ...]) -> NDArray:
    """Return a float32 array of zeros that begins on a cache line, as rows of whole Lanes do."""
    count = int(np.prod(shape))
    room = np.zeros(count + WIDTH, np.float32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + count].reshape(shape)


class Sizes(NamedTuple):
    """The model's sizes, by their letters; ``_pad`` is the next multiple of 16."""

    layers: int
    D: int
    E: int
    N: int
    R: int
    K: int
    D_pad: int
    E_pad: int
    M_pad: int  # of R + 2N, what x_proj makes

    @classmethod
    def of(cls, c: MambaConfig) -> "Sizes":
        """Return the sizes of a configuration."""
        D, E, N, R = c.hidden_size, c.intermediate_size, c.state_size, int(c.time_step_rank)
        pads = padded(D), padded(E), padded(R + 2 * N)
        return cls(c.num_hidden_layers, D, E, N, R, c.conv_kernel, *pads)


class Stored(NamedTuple):
    """One large matrix (O, I) as it lies in memory."""

    values: NDArray  # (O, I) float32, uint16 (bfloat16), int16 (float16) or int8
    scales: NDArray  # (O, groups) float32 for int8, else (0, 0)
    group: int

    @property
    def float32(self) -> bool:
        """Whether the values are the weights themselves."""
        return self.values.dtype == F32

    @property
    def place(self) -> NDArray:
        """The addresses of values and scales: kernels need not know who may write there."""
        return np.array([self.values.ctypes.data, self.scales.ctypes.data], np.int64)

    @property
    def like(self) -> NDArray:
        """An empty array of the stored dtype."""
        return np.empty(0, self.values.dtype)


_NO_SCALES = np.zeros((0, 0), np.float32)
_SEEN_AS = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.int16}


def stored(matrix: Any) -> Stored:
    """Return a matrix of parameters without copying it; raises BackendError for other dtypes."""
    if hasattr(matrix, "scales"):
        return Stored(matrix.values, matrix.scales, matrix.group)
    if matrix.dtype.name not in _SEEN_AS:
        names = ", ".join(_SEEN_AS)
        raise BackendError(
            f"backend: 'cpu' computes with weights of {names} or int8, found {matrix.dtype}; "
            "'numpy' computes with all"
        )
    values = np.ascontiguousarray(matrix).view(_SEEN_AS[matrix.dtype.name])
    return Stored(values, _NO_SCALES, 0)


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """The parameters of one block; small arrays are float32, channels last, padded with zeros."""

    norm: NDArray  # (D_pad)
    in_proj: Stored
    in_proj_bias: NDArray  # (2E)
    conv: NDArray  # (K, E_pad)
    conv_bias: NDArray  # (E_pad)
    x_proj: Stored
    dt_proj: Stored
    dt_groups: NDArray  # (E_pad / 16, R, 16): dt_proj as ``groups_of_channels``
    dt_bias: NDArray  # (E_pad)
    A_per_octave: NDArray  # (E_pad / 16, N, 16), times log2(e)
    D: NDArray  # (E_pad)
    out_proj: Stored
    out_proj_bias: NDArray  # (D)

    @classmethod
    def of(cls, layer: Layer, s: Sizes) -> "PackedLayer":
        """Pack one block."""
        A = eq.per_octave(eq.continuous_A(np.asarray(layer.A_log, F32)))
        return cls(
            norm=_pad(layer.norm, s.D_pad),
            in_proj=stored(layer.in_proj),
            in_proj_bias=_vector(layer.in_proj_bias, 2 * s.E, 2 * s.E),
            conv=_pad(layer.conv.T, s.E_pad),
            conv_bias=_vector(layer.conv_bias, s.E, s.E_pad),
            x_proj=stored(layer.x_proj),
            dt_proj=stored(layer.dt_proj),
            dt_groups=groups_of_channels(layer.dt_proj),
            dt_bias=_pad(layer.dt_bias, s.E_pad),
            A_per_octave=groups_of_channels(A),
            D=_pad(layer.D, s.E_pad),
            out_proj=stored(layer.out_proj),
            out_proj_bias=_vector(layer.out_proj_bias, s.D, s.D),
        )


FIELDS = tuple(
    name
    for f in fields(PackedLayer)
    for name in ((f.name, f"{f.name}_scales") if f.type in (Stored, "Stored") else (f.name,))
)
"""The columns of the table of addresses that the one-token kernel reads."""


@dataclass(frozen=True, eq=False)
class Packed:
    """All blocks, and the address of each of their arrays."""

    sizes: Sizes
    layers: tuple[PackedLayer, ...]
    norm_f: NDArray  # (D_pad)
    addresses: NDArray = field(init=False)  # (layers, FIELDS) int64

    def __post_init__(self):
        rows = [[address for part in vars(layer).values() for address in _addresses(part)]
                for layer in self.layers]  # fmt: skip
        object.__setattr__(self, "addresses", np.array(rows, np.int64))

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all blocks: what a token has to read."""
        parts = [part for layer in self.layers for part in vars(layer).values()]
        return sum(p.values.nbytes if isinstance(p, Stored) else p.nbytes for p in parts)

    @cached_property
    def like(self) -> NDArray:
        """An empty array of the dtype that the large matrices are stored in."""
        return self.layers[0].in_proj.like

    @property
    def group(self) -> int:
        """Inputs that share a scale, in int8 matrices."""
        return self.layers[0].in_proj.group


def _addresses(part: NDArray | Stored) -> list[int]:
    arrays = [part.values, part.scales] if isinstance(part, Stored) else [part]
    return [array.ctypes.data for array in arrays]


def _pad(array: Any, width: int) -> NDArray:
    """Return a float32 copy whose last axis is extended with zeros."""
    result = aligned((*array.shape[:-1], width))
    result[..., : array.shape[-1]] = array
    return result


def groups_of_channels(array: NDArray) -> NDArray:  # (E, n) -> (E_pad / 16, n, 16)
    """Return a float32 copy in which what 16 neighbouring channels need lies together.

    A kernel that goes through the channels then reads one stream of memory, not n.
    """
    E, n = array.shape
    rows = np.zeros((padded(E), n), np.float32)
    rows[:E] = array
    result = aligned((len(rows) // WIDTH, n, WIDTH))
    result[:] = rows.reshape(-1, WIDTH, n).swapaxes(1, 2)
    return result


def _vector(array: NDArray | None, size: int, width: int) -> NDArray:
    return _pad(np.zeros(size, np.float32) if array is None else array, width)


# --- packed once ----------------------------------------------------------------------------------

_packed: "WeakKeyDictionary[Params, tuple[Packed, Watch | None]]" = WeakKeyDictionary()


def packed(params: Params, config: MambaConfig) -> Packed:
    """Return the packed parameters: packed anew if a number that was copied has changed since."""
    found = _packed.get(params)
    if found is not None and (found[1] is None or found[1].unchanged()):
        return found[0]
    changing = [array for array in _copied(params) if may_change(array)]
    in_rows = all(array.flags.forc for array in changing)
    watch = Watch(changing) if changing and in_rows else None  # first: what changes meanwhile shows
    sizes = Sizes.of(config)
    layers = tuple(PackedLayer.of(layer, sizes) for layer in params.layers)
    result = Packed(sizes, layers, _pad(params.norm_f, sizes.D_pad))
    if in_rows:
        _packed[params] = result, watch
    return result


BY_ADDRESS = ("in_proj", "x_proj", "out_proj")
"""Matrices that kernels read where they are: packing copies them only if their rows lie apart."""


def _copied(params: Params) -> list[NDArray]:
    """Return the arrays whose numbers are in the packed parameters."""
    parts: list[Any] = [params.norm_f]
    for layer in params.layers:
        for name, part in vars(layer).items():
            in_place = name in BY_ADDRESS and part.flags.c_contiguous if _is_array(part) else True
            parts += [] if in_place else [part]
    return [part for part in parts if _is_array(part)]


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray)  # neither int8 weights nor a bias that there is not


class Watch:
    """Copies of some arrays, to see whether these still hold the same bytes.

    Comparing reads each number twice, which costs a tenth of packing. A digest would read half as
    much, and miss a change once in a while.
    """

    def __init__(self, arrays: list[NDArray]):
        self._pairs = [(array, array.copy(order="K")) for array in arrays]
        places = [(a.ctypes.data, b.ctypes.data, a.nbytes // 2) for a, b in self._pairs]
        self._places = np.array(places, np.int64)

    def unchanged(self) -> bool:
        """Return whether every array is what it was, to the bit."""
        return _equal(self._places, _HALF_WORDS)


_HALF_WORDS = np.empty(0, np.uint16)
"""All dtypes of parameters are made of these."""


@kernel
def _equal(places, like):
    """Compare pairs of arrays: ``places`` (n, 3) has two addresses and a number of elements."""
    for i in range(len(places)):
        now, then = pointer(places[i, 0], like), pointer(places[i, 1], like)
        same = True
        for j in range(places[i, 2]):
            same &= now[j] == then[j]
        if not same:
            return False
    return True
