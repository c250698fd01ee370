"""From a folder to parameters.

Everything is compared with the configuration first, from the tables of contents alone: whether
each tensor is there, its shape, its dtype. Then the arrays are made. A tensor that is missing is
an error; no weight is ever made up.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import MambaConfig
from ..errors import CheckpointError, NonFiniteError
from ..params import MATRICES, Layer, Params, as_dtype, field_dtype
from .folder import stored_tensors
from .names import HEAD, LAYER, MODEL, canonical, layer_index, layer_key, shapes
from .tensors import STORED, TensorInfo, TensorReader, same_numbers

Tensors = dict[str, TensorInfo]


def headers(folder: str | os.PathLike[str]) -> Tensors:
    """Return what the weight files of a folder hold, by Hugging Face's names.

    mamba-ssm's names, and those of a bare MambaModel, are translated. Tensors that no Mamba model
    has keep their names. No weight is read. Raises CheckpointError, FileMissingError or
    UnsafeFileError.
    """
    tensors: Tensors = {}
    for name, tensor in stored_tensors(folder).items():
        key = canonical(name)
        if key in tensors:
            raise CheckpointError(f"{tensor}: expected once, found also as {tensors[key].name!r}")
        tensors[key] = tensor
    return tensors


def stored_dtype(folder: str | os.PathLike[str]) -> np.dtype:
    """Return the narrowest dtype that holds every matrix in the files of a folder exactly.

    Raises CheckpointError if a matrix is not of a floating-point dtype, or if there is none, and
    what ``headers`` raises.
    """
    names = {MODEL[f].name if f in MODEL else LAYER[f].name for f in MATRICES}
    matrices = [t for key, t in headers(folder).items() if key.endswith(tuple(names))]
    found = {tensor.dtype: tensor for tensor in matrices}
    wrong = next((tensor for dtype, tensor in found.items() if dtype not in STORED), None)
    if wrong is not None or not found:
        where, what = (folder, "no matrix") if wrong is None else (wrong, wrong.dtype)
        raise CheckpointError(
            f"{where}: expected one of the dtypes {', '.join(STORED)}, found {what}"
        )
    if len(found) == 1:
        return STORED[found.popitem()[0]]
    # Neither 16-bit dtype holds all numbers of the other.
    return STORED["F64"] if "F64" in found else STORED["F32"]


def read_params(
    folder: str | os.PathLike[str],
    config: MambaConfig,
    dtype: str | np.dtype = "float32",
    *,
    head: bool = True,
) -> Params:
    """Return the parameters that the weight files of a folder hold, as read-only arrays.

    ``dtype`` is how matrices are kept; few and sensitive numbers stay in float32, or float64 in a
    float64 model (``params.field_dtype``). What the files hold in that dtype is mapped, not
    copied. ``head=False`` leaves lm_head out.

    Raises FileMissingError, CheckpointError or UnsafeFileError, naming the file and the tensor,
    for anything missing, misshapen, of another dtype or damaged, and NonFiniteError for NaN and
    infinity among the norms, biases, convolutions, A_log and D. Warns about tensors that are not
    used.
    """
    storage = as_dtype(dtype)
    tensors = headers(folder)
    expected = _expected(Path(folder), tensors, config, head)
    for key, shape in expected.items():
        _check(Path(folder), tensors.get(key), key, shape)
    _warn_of_unused(folder, tensors.keys() - expected.keys() - {HEAD})
    return _load(tensors, config, storage, head)


def _expected(
    folder: Path, tensors: Tensors, config: MambaConfig, head: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the model needs, by key."""
    # Count the layers that are there before looping over as many as the configuration claims.
    claimed = config.num_hidden_layers
    found = {i for i in map(layer_index, tensors) if i is not None and i < claimed}
    if len(found) < claimed:
        missing = min(set(range(len(found) + 1)) - found)
        raise CheckpointError(
            f"{folder}: expected {claimed} layers (num_hidden_layers), found {len(found)}; "
            f"tensor {layer_key(missing, 'norm')!r} is missing"
        )
    model, layer = shapes(config, MODEL), shapes(config, LAYER)
    if not head or (config.tie_word_embeddings and HEAD not in tensors):
        del model["lm_head"]
    expected = {MODEL[field].name: shape for field, shape in model.items()}
    for i in range(claimed):
        expected |= {layer_key(i, field): shape for field, shape in layer.items()}
    return expected


def _check(folder: Path, tensor: TensorInfo | None, key: str, shape: tuple[int, ...]) -> None:
    if tensor is None:
        hint = "; is the model tied (tie_word_embeddings)?" if key == HEAD else ""
        raise CheckpointError(
            f"{folder}: tensor {key!r}: expected shape {shape}, found no such tensor{hint}"
        )
    if tensor.shape != shape:
        raise CheckpointError(f"{tensor}: expected shape {shape}, found {tensor.shape!s:.200}")
    if tensor.dtype not in STORED:
        raise CheckpointError(
            f"{tensor}: expected one of the dtypes {', '.join(STORED)}, found {tensor.dtype}"
        )


def _warn_of_unused(folder: str | os.PathLike[str], keys: set[str]) -> None:
    if keys:
        some = ", ".join(f"{key!r:.80}" for key in sorted(keys)[:4])
        rest = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        warnings.warn(f"{folder}: tensors that are not used: {some}{rest}", stacklevel=3)


def _load(tensors: Tensors, config: MambaConfig, storage: np.dtype, head: bool) -> Params:
    reader = TensorReader()

    def load(key: str, field: str) -> NDArray:
        tensor = tensors[key]
        array = reader.read(tensor, field_dtype(field, storage))
        if field not in MATRICES and not np.isfinite(array).all():
            raise NonFiniteError(f"{tensor}: expected finite numbers, found NaN or infinity")
        return array.reshape(array.shape[0], -1) if field == "conv" else array

    def load_layer(i: int) -> Layer:
        absent: dict[str, Any] = dict.fromkeys(LAYER)  # None is a bias that is left out
        own = {field: load(layer_key(i, field), field) for field in shapes(config, LAYER)}
        return Layer(**absent | own)

    embeddings = load(MODEL["embeddings"].name, "embeddings")
    layers = tuple(load_layer(i) for i in range(config.num_hidden_layers))
    norm_f = load(MODEL["norm_f"].name, "norm_f")
    if not head:
        lm_head = None
    elif config.tie_word_embeddings:
        _check_tie(tensors)
        lm_head = embeddings
    else:
        lm_head = load(HEAD, "lm_head")
    return Params(embeddings, layers, norm_f, lm_head)


def _check_tie(tensors: Tensors) -> None:
    """Refuse a head that is stored although tied, and differs: using either would be a guess."""
    if HEAD in tensors and not same_numbers(tensors[HEAD], tensors[MODEL["embeddings"].name]):
        raise CheckpointError(
            f"{tensors[HEAD]}: expected the numbers of the embeddings, since tie_word_embeddings "
            "is true, found others; set it to false in config.json to use this head"
        )
