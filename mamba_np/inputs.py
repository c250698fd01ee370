"""The door of the model: every array that a caller passes is checked here, once.

Behind it, ids are in the vocabulary, shapes agree and masked positions are gone: a row's real
tokens are packed to its front and ``lengths`` says how many there are. A masked token is
therefore exactly as if it were absent, wherever it stands.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checks import SIZE_LIMIT, integer, shown
from .config import MambaConfig
from .errors import InputError
from .reference import IGNORED_LABEL


class Packing(NamedTuple):
    """How the unmasked positions of a batch move to the front of their rows."""

    order: NDArray  # (B, L): the position that comes at each place; the unmasked ones first
    lengths: NDArray  # (B): how many positions of each row are unmasked

    @classmethod
    def of(cls, mask: NDArray) -> "Packing":
        """Return the packing of a boolean mask (B, L)."""
        return cls(np.argsort(~mask, axis=1, kind="stable"), mask.sum(axis=1))

    def pack(self, x: NDArray, fill: Any) -> NDArray:
        """Return x (B, L, ...) packed and cut to the longest row; ``fill`` ends the others."""
        longest = self.lengths.max()
        order = self.order[:, :longest]
        packed = np.take_along_axis(x, _expand(order, x.ndim), axis=1)
        packed[np.arange(longest) >= self.lengths[:, None]] = fill
        return packed

    def unpack(self, x: NDArray) -> NDArray:
        """Undo ``pack``: each result returns to its position; masked positions get zeros."""
        rows, L = self.order.shape
        result = np.zeros((rows, L, *x.shape[2:]), x.dtype)
        real = np.arange(x.shape[1]) < self.lengths[:, None]
        row, place = np.nonzero(real)
        result[row, self.order[row, place]] = x[row, place]
        return result


class Batch(NamedTuple):
    """One call's input: ids or embeddings, not packed yet, and how to pack them."""

    shape: tuple[int, int]  # (B, L)
    ids: NDArray | None  # (B, L) int64
    embeddings: NDArray | None  # (B, L, D)
    packing: Packing | None  # None: no position is masked

    @property
    def lengths(self) -> NDArray | None:
        """How many positions of each packed row count (B); None: all of them."""
        return None if self.packing is None else self.packing.lengths

    def pack(self, x: NDArray, fill: Any = 0) -> NDArray:
        """Return x (B, L, ...) without its masked positions, as ``Packing.pack`` does."""
        return x if self.packing is None else self.packing.pack(x, fill)

    def unpack(self, x: NDArray) -> NDArray:
        """Undo ``pack``."""
        return x if self.packing is None else self.packing.unpack(x)


def check_batch(
    config: MambaConfig,
    dtype: np.dtype,
    input_ids: Any,
    inputs_embeds: Any,
    attention_mask: Any,
    *,
    has_past: bool = False,
) -> Batch:
    """Check one call's input; exactly one of ids and embeddings is needed.

    Raises InputError naming the argument, the first bad value and its position.
    """
    require_one(input_ids, inputs_embeds)
    if input_ids is None:
        ids, D = None, config.hidden_size
        embeddings = check_embeddings("inputs_embeds", inputs_embeds, D, dtype)
        shape = embeddings.shape[:2]
    else:
        ids, embeddings = as_matrix("input_ids", input_ids), None
        shape = ids.shape
    mask = check_mask(attention_mask, shape, has_past=has_past)
    if ids is not None:
        ids = check_ids(ids, config.vocab_size, mask)
    return Batch(shape, ids, embeddings, None if mask is None else Packing.of(mask))


def _expand(index: NDArray, ndim: int) -> NDArray:
    return index.reshape(index.shape + (1,) * (ndim - 2))


def require_one(input_ids: Any, inputs_embeds: Any) -> None:
    """Raise InputError unless exactly one of the two is given."""
    if (input_ids is None) == (inputs_embeds is None):
        found = "neither" if input_ids is None else "both"
        raise InputError(f"expected exactly one of input_ids and inputs_embeds, found {found}")


def check_mask(attention_mask: Any, shape: tuple[int, int], *, has_past: bool) -> NDArray | None:
    """Return a boolean mask (B, L), or None where nothing is masked.

    With a cache, a mask that also covers the past (B, past + L) is accepted; its end counts.
    Raises InputError for other shapes and for values other than 0 and 1.
    """
    if attention_mask is None:
        return None
    mask = as_array("attention_mask", attention_mask)
    covers_past = has_past and mask.ndim == 2 and mask.shape[1] > shape[1]
    mask = mask[:, -shape[1] :] if covers_past else mask
    if mask.shape != shape:
        raise InputError(f"attention_mask: expected shape {shape}, found {mask.shape}")
    wrong = (mask != 0) & (mask != 1) if mask.dtype.kind in "biuf" else np.ones(shape, bool)
    if wrong.any():
        raise InputError(f"attention_mask: expected 0 or 1, found {_first(mask, wrong)}")
    return None if mask.all() else mask.astype(bool)


def check_ids(input_ids: Any, vocab_size: int, mask: NDArray | None = None) -> NDArray:
    """Return ids as int64 (B, L) in [0, vocab_size); under the mask anything goes and becomes 0.

    Raises InputError naming the first bad id and its position.
    """
    ids = as_matrix("input_ids", input_ids)
    if mask is not None:
        ids = np.where(mask, ids, 0)
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        raise InputError(
            f"input_ids: expected ids from 0 to {vocab_size - 1}, found {_first(ids, wrong)}"
        )
    return ids.astype(np.int64, copy=False)


def check_labels(labels: Any, shape: tuple[int, int], vocab_size: int) -> NDArray:
    """Return labels as int64 of the given shape, each in [0, vocab_size) or -100 (ignored)."""
    values = as_matrix("labels", labels)
    if values.shape != shape:
        raise InputError(f"labels: expected shape {shape}, found {values.shape}")
    wrong = ((values < 0) & (values != IGNORED_LABEL)) | (values >= vocab_size)
    if wrong.any():
        raise InputError(
            f"labels: expected ids from 0 to {vocab_size - 1} or {IGNORED_LABEL}, "
            f"found {_first(values, wrong)}"
        )
    return values.astype(np.int64, copy=False)


def as_array(name: str, values: Any) -> NDArray:
    """Return values as an array; raises InputError for rows of different lengths."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: expected rows of equal length: {error}") from None


def as_matrix(name: str, values: Any) -> NDArray:
    """Return integers as an array (B, L) with at least one row and one column.

    Raises InputError naming the argument for other dtypes (bool and float too) and shapes.
    """
    array = as_array(name, values)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name}: expected shape (batch, length), neither of them 0, found {array.shape}"
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"{name}: expected integers, found dtype {array.dtype}")
    return array


def check_embeddings(name: str, values: Any, hidden_size: int, dtype: np.dtype) -> NDArray:
    """Return vectors (B, L, D) in the model's dtype; raises InputError for anything else."""
    array = as_array(name, values)
    if array.ndim != 3 or 0 in array.shape or array.shape[2] != hidden_size:
        raise InputError(
            f"{name}: expected shape (batch, length, {hidden_size}), found {array.shape}"
        )
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(f"{name}: expected floats, found dtype {array.dtype}")
    return array.astype(dtype, copy=False)


def check_logits_to_keep(logits_to_keep: Any, length: int) -> slice | NDArray:
    """Return the positions whose logits are wanted: the last k (0 means all), or those given."""
    if isinstance(logits_to_keep, (int, np.integer)) and not isinstance(logits_to_keep, bool):
        if logits_to_keep < 0:
            raise InputError(f"logits_to_keep: expected 0 or more, found {logits_to_keep}")
        return slice(-int(logits_to_keep), None) if logits_to_keep else slice(None)
    index = as_array("logits_to_keep", logits_to_keep)
    wrong_kind = index.ndim != 1 or index.dtype.kind not in "iu"
    if wrong_kind or ((index < -length) | (index >= length)).any():
        raise InputError(
            f"logits_to_keep: expected a count or positions below {length}, "
            f"found {shown(logits_to_keep)}"
        )
    return index


def chosen_indices(name: str, chosen: Any, count: int) -> NDArray:
    """Return int64 indices below ``count``: of a list, slice or number, from the end if negative.

    None means all. Raises InputError naming the argument.
    """
    if chosen is None or isinstance(chosen, slice):
        return np.arange(count)[chosen or slice(None)]
    listed: Any = [chosen] if isinstance(chosen, (int, np.integer)) else chosen
    if not isinstance(listed, (list, tuple, range, np.ndarray)) or np.ndim(listed) != 1:
        raise InputError(f"{name}: expected a list of indices, found {shown(chosen)}")
    low, high = -count, min(count, SIZE_LIMIT) - 1
    found = [integer(name, i, low=low, high=high, error=InputError) % count for i in listed]
    return np.array(found, np.int64)


def _first(array: NDArray, wrong: NDArray) -> str:
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{array[place]} at position {place}"
