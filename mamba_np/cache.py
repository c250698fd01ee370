"""MambaCache: all that a model remembers of what it has read, in a size that never grows.

For each block the cache holds the last K inputs of the convolution and the state h. Outside, they
are (B, E, K) and (B, E, N) as transformers has them; inside, channels come last, the order in
which a compiled engine can stream. The outside arrays are views: writing into them works.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .checks import integer, shown
from .config import MambaConfig
from .errors import CacheError, FileMissingError
from .files import replacing, require_regular_file
from .params import as_dtype, compute_dtype
from .reference import State

FILE_FORMAT = "mamba_np.cache.1"
NAMES = ("conv_states", "ssm_states")
HEADER_LIMIT = 2**20  # of a state file, in bytes; two tensors need a few hundred


class Away(Protocol):
    """The states of a cache in another memory, such as a GPU's."""

    def fetch(self, conv: NDArray, ssm: NDArray) -> None:
        """Copy the windows (blocks, B, K, E) and states (blocks, B, N, E) into these arrays."""
        ...


class MambaCache:
    """The recurrent state of every block for a batch of sequences.

    ``dtype`` is float32 or float64; a 16-bit name means the float32 that such models compute in.
    A new cache is all zeros: nothing has been read.
    """

    def __init__(
        self,
        config: MambaConfig,
        batch_size: int = 1,
        dtype: Any = np.float32,
        *,
        fingerprint: str | None = None,
    ):
        if not isinstance(config, MambaConfig):
            raise CacheError(f"config: expected a MambaConfig, found {shown(config)}")
        batch_size = integer("batch_size", batch_size, error=CacheError)
        shape = (config.num_hidden_layers, batch_size)
        E, dtype = config.intermediate_size, compute_dtype(as_dtype(dtype))
        conv = np.zeros((*shape, config.conv_kernel, E), dtype)
        self._home = conv, np.zeros((*shape, config.state_size, E), dtype)
        self.away: Away | None = None
        """Where an engine has newer states than those at home: see ``memory``."""
        self.fingerprint = fingerprint
        """Which model filled this cache, or None while no model has."""

    @classmethod
    def _of(cls, conv: NDArray, ssm: NDArray, fingerprint: str | None) -> "MambaCache":
        cache = cls.__new__(cls)
        # Engines count on memory in this order, which indexing with a list does not keep.
        cache._home = np.ascontiguousarray(conv), np.ascontiguousarray(ssm)
        cache.away, cache.fingerprint = None, fingerprint
        return cache

    def __getstate__(self) -> dict[str, Any]:
        conv, ssm = self.memory  # states travel as arrays, wherever they were
        return self.__dict__ | {"_home": (conv, ssm)}

    @property
    def conv_states(self) -> tuple[NDArray, ...]:
        """Per block, the last K inputs of the convolution, oldest first: (B, E, K) views.

        Write into them: ``cache.conv_states[i][...] = x``.
        """
        return tuple(self.memory[0].swapaxes(2, 3))

    @property
    def ssm_states(self) -> tuple[NDArray, ...]:
        """Per block, the state h after the last token: (B, E, N) views."""
        return tuple(self.memory[1].swapaxes(2, 3))

    @property
    def batch_size(self) -> int:
        """How many sequences the cache holds."""
        return self._home[1].shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the states: float32 or float64."""
        return self._home[1].dtype

    @property
    def nbytes(self) -> int:
        """Memory of the states in bytes; it does not depend on how much has been read."""
        return sum(part.nbytes for part in self._home)

    def __repr__(self) -> str:
        blocks, rows, N, E = self._home[1].shape
        return f"MambaCache({blocks} blocks, batch_size={rows}, E={E}, N={N}, {self.dtype})"

    # --- the same states elsewhere -------------------------------------------------------------

    def copy(self) -> "MambaCache":
        """Return a cache with states of its own: both can go on in different directions."""
        conv, ssm = self.memory
        return self._of(conv.copy(), ssm.copy(), self.fingerprint)

    def select(self, rows: Any) -> "MambaCache":
        """Return a new cache with the given rows of the batch, in that order; rows may repeat.

        ``rows`` is a sequence of integers or a boolean mask over the batch. Raises CacheError for
        a row that does not exist, or for no rows at all.
        """
        try:
            chosen = np.arange(self.batch_size)[np.atleast_1d(np.asarray(rows))]
        except (IndexError, ValueError) as error:
            raise CacheError(f"rows: expected rows 0 to {self.batch_size - 1}: {error}") from None
        if chosen.size == 0 or chosen.ndim != 1:
            raise CacheError(f"rows: expected a list of at least one row, found {shown(rows)}")
        conv, ssm = self.memory
        return self._of(conv[:, chosen], ssm[:, chosen], self.fingerprint)

    def reset(self) -> None:
        """Forget everything, in place: as if nothing had been read, by any model."""
        for part in self._home:
            part[:] = 0
        self.away = self.fingerprint = None

    # --- files ---------------------------------------------------------------------------------

    def save(
        self, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the states to a safetensors file, whole or not at all.

        The tensors are ``conv_states`` (blocks, B, E, K) and ``ssm_states`` (blocks, B, E, N).
        ``metadata`` is kept in the file's header, for the caller's own use. Raises
        FileMissingError if the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {
            name: np.ascontiguousarray(part.swapaxes(2, 3))
            for name, part in zip(NAMES, self.memory, strict=True)
        }
        own = {"format": FILE_FORMAT, "fingerprint": self.fingerprint or ""}
        with replacing(path, follow_link=True) as temporary:
            try:
                save_file(tensors, temporary, metadata={**(metadata or {}), **own})
            except SafetensorError as error:  # a full disk, for one
                raise FileMissingError(f"{path}: cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MambaCache":
        """Read a file that ``save`` wrote.

        Raises FileMissingError if there is none, CacheError naming the file if it is damaged or
        holds something else. Whether it fits a model is checked when the model is called.
        """
        from safetensors import SafetensorError, safe_open

        path = require_regular_file(path)
        try:
            with open(path, "rb") as file:
                header = int.from_bytes(file.read(8), "little")
            if header > HEADER_LIMIT:
                raise ValueError(f"a header of {header} bytes")
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                _check_dtypes({name: file.get_slice(name).get_dtype() for name in NAMES})
                conv, ssm = (file.get_tensor(name) for name in NAMES)
        except OSError as error:
            raise FileMissingError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (SafetensorError, ValueError) as error:
            raise CacheError(f"{path}: expected a saved MambaCache, found: {error}") from None
        _check_loaded(path, metadata, conv, ssm)
        conv, ssm = (np.ascontiguousarray(state.swapaxes(2, 3)) for state in (conv, ssm))
        return cls._of(conv, ssm, metadata.get("fingerprint") or None)

    # --- for the model -------------------------------------------------------------------------

    @property
    def memory(self) -> tuple[NDArray, NDArray]:
        """The windows (blocks, B, K, E) and states (blocks, B, N, E), which an engine advances.

        An engine that has advanced them elsewhere says so in ``away``: they are fetched then, and
        since the arrays may be written to from now on, they are the only ones that count.
        """
        if self.away is not None:
            self.away.fetch(*self._home)
            self.away = None
        return self._home

    def read(self) -> list[State]:
        """Return the state of each block, as views."""
        return [State(*pair) for pair in zip(self.conv_states, self.ssm_states, strict=True)]

    def write(self, states: list[State], first: int = 0) -> None:
        """Replace the states of the blocks from ``first`` on, in place."""
        conv, ssm = self.memory
        for i, (window, h) in enumerate(states, start=first):
            conv[i], ssm[i] = window.swapaxes(1, 2), h.swapaxes(1, 2)

    def check(
        self, config: MambaConfig, batch_size: int, dtype: np.dtype, fingerprint: str | None = None
    ) -> None:
        """Raise CacheError unless this cache fits the model and batch of a call."""
        sizes = (config.num_hidden_layers, batch_size)
        E, K, N = config.intermediate_size, config.conv_kernel, config.state_size
        shapes = (*sizes, K, E), (*sizes, N, E)
        for name, found, expected in zip(NAMES, self._home, shapes, strict=True):
            if found.shape != expected:
                shapes = [(s[0], s[1], s[3], s[2]) for s in (expected, found.shape)]
                raise CacheError(
                    f"cache_params.{name}: expected (blocks, B, E, ...) = {shapes[0]} for this "
                    f"model and batch, found {shapes[1]}"
                )
        if self.dtype != dtype:
            raise CacheError(f"cache_params: expected states of {dtype}, found {self.dtype}")
        if None not in (fingerprint, self.fingerprint) and fingerprint != self.fingerprint:
            raise CacheError(
                f"cache_params: expected the state of this model ({fingerprint}), found that of "
                f"another one ({self.fingerprint:.80})"
            )


def check_cache(
    cache: Any,
    config: MambaConfig,
    batch_size: int,
    dtype: np.dtype,
    fingerprint: str | None = None,
) -> None:
    """Raise CacheError unless ``cache`` is a MambaCache that fits the model and batch of a call."""
    if not isinstance(cache, MambaCache):
        raise CacheError(f"cache_params: expected a MambaCache, found {shown(cache)}")
    cache.check(config, batch_size, dtype, fingerprint)


def _check_dtypes(dtypes: dict[str, str]) -> None:
    for name, dtype in dtypes.items():
        if dtype not in ("F32", "F64"):
            raise ValueError(f"{name} of dtype {dtype}, not float32 or float64")


def _check_loaded(path, metadata: dict[str, str], conv: NDArray, ssm: NDArray) -> None:
    if metadata.get("format") != FILE_FORMAT:
        found = metadata.get("format")
        raise CacheError(f"{path}: expected the format {FILE_FORMAT!r}, found {shown(found)}")
    fits = conv.ndim == ssm.ndim == 4 and conv.shape[:2] == ssm.shape[:2]
    if not fits or conv.shape[2] != ssm.shape[2] or 0 in conv.shape + ssm.shape:
        raise CacheError(
            f"{path}: expected conv_states (blocks, B, E, K) and ssm_states (blocks, B, E, N), "
            f"found {conv.shape} and {ssm.shape}"
        )
    if conv.dtype != ssm.dtype:
        raise CacheError(f"{path}: expected states of one dtype, found {conv.dtype}, {ssm.dtype}")
    for name, state in (("conv_states", conv), ("ssm_states", ssm)):
        if not np.isfinite(state).all():
            raise CacheError(f"{path}: {name}: expected finite numbers, found NaN or infinity")
