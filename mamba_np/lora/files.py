"""PEFT's files: ``adapter_config.json``, ``adapter_model.safetensors`` and a model card.

As with a model's weights, everything is compared with the configurations from the table of
contents alone before an array is made, and no number is ever made up.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import safetensors_file, torch_zip
from ..checkpoint.tensors import STORED, TensorInfo, TensorReader
from ..config import MambaConfig
from ..errors import (
    CheckpointError,
    ConfigError,
    FileMissingError,
    NonFiniteError,
    UnsupportedModelError,
)
from ..files import json_text, make_folder, own_file, replacing
from ..hub import HubOptions, locate, pinned
from ..pretrained import PretrainedModel
from .config import ADAPTER_CONFIG, LoraConfig
from .targets import INERT, PREFIX, REFUSED, Arrays, Target, find_targets

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
CARD = "README.md"

_FACTOR = re.compile(
    re.escape(PREFIX) + r"(?P<module>[\w.]{1,200})\.(?:lora_[AB]\.weight|lora_embedding_[AB])"
)


class Adapter(NamedTuple):
    """What an adapter's folder holds."""

    config: LoraConfig
    targets: tuple[Target, ...]
    arrays: Arrays  # read-only


def locate_adapter(name_or_path: str | os.PathLike[str], options: HubOptions) -> Path:
    """Return a local folder with an adapter.

    From the hub comes PyTorch's pickled file only where there is no other. Raises FileMissingError.
    """
    folder = locate(name_or_path, (ADAPTER_CONFIG, WEIGHTS), options)
    if os.path.lexists(folder / WEIGHTS):
        return folder
    return locate(name_or_path, (PICKLED,), pinned(folder, options))


def read_adapter(folder: Path, model: PretrainedModel) -> Adapter:
    """Return the adapter of a folder for a model, its arrays in the dtype that it computes in.

    Raises FileMissingError, ConfigError for what cannot be adapted, CheckpointError naming the
    tensor that is missing, unknown, misshapen or of another dtype, UnsupportedModelError for a
    dt_proj that is changed, NonFiniteError for NaN and infinity, UnsafeFileError for a link that
    leads out of the folder.
    """
    path = own_file(folder, ADAPTER_CONFIG)
    lora = LoraConfig.from_file(path)
    tensors = _stored(folder)
    matches = map(_FACTOR.fullmatch, tensors)
    try:
        targets = find_targets(model.config, lora, {m["module"] for m in matches if m})
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from None
    expected = {name: shape for target in targets for name, shape in target.shapes.items()}
    copies = {target.copy: target for target in targets if target.layer is None}
    _check_names(folder, tensors, expected, copies, model.config)
    for name, shape in expected.items():
        _check(tensors[name], shape, f" by the model and by r and rank_pattern in {ADAPTER_CONFIG}")
    reader = TensorReader()
    for name in copies.keys() & tensors.keys():
        _check_copy(reader, tensors[name], copies[name].matrix(model.params))
    arrays = {name: _read(reader, tensors[name], model.compute_dtype) for name in expected}
    for target in targets:
        if target.field == INERT and all(arrays[name].any() for name in target.names):
            raise UnsupportedModelError(
                f"{tensors[target.names[1]]}: expected zeros, found other numbers: "
                f"{REFUSED[INERT]}, but they count once PEFT has merged them; merge them there to "
                "have them"
            )
    return Adapter(lora, targets, arrays)


def _stored(folder: Path) -> dict[str, TensorInfo]:
    for name, read_header in (
        (WEIGHTS, safetensors_file.read_header),
        (PICKLED, torch_zip.read_header),
    ):
        if os.path.lexists(folder / name):
            return read_header(own_file(folder, name))
    raise FileMissingError(f"{folder}: expected {WEIGHTS} or {PICKLED}, found neither")


def _check_names(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    copies: Collection[str],
    config: MambaConfig,
) -> None:
    for name, tensor in tensors.items():
        if name not in expected and name not in copies:
            raise CheckpointError(
                f"{tensor}: expected factors of the {len(expected) // 2} matrices that "
                f"{ADAPTER_CONFIG} names in a model of {config.num_hidden_layers} layers, "
                "found another tensor"
            )
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"{folder}: tensor {name!r}: expected shape {shape}, found no such tensor"
            )


def _check(tensor: TensorInfo, shape: tuple[int, ...], why: str = "") -> None:
    if tensor.shape != shape:
        raise CheckpointError(f"{tensor}: expected shape {shape}{why}, found {tensor.shape!s:.200}")
    if tensor.dtype not in STORED:
        raise CheckpointError(
            f"{tensor}: expected one of the dtypes {', '.join(STORED)}, found {tensor.dtype}"
        )


def _check_copy(reader: TensorReader, tensor: TensorInfo, matrix: NDArray) -> None:
    """Check PEFT's copy of a base matrix: with another one the adapter would mean something else.

    The base may be held in a narrower dtype here.
    """
    _check(tensor, matrix.shape)
    copy = reader.read(tensor, STORED[tensor.dtype])
    if not np.array_equal(copy.astype(matrix.dtype, copy=False), matrix):
        raise CheckpointError(
            f"{tensor}: expected the base model's own numbers, of which PEFT stores a copy, "
            "found others: the adapter was made for another model"
        )


def _read(reader: TensorReader, tensor: TensorInfo, dtype: np.dtype) -> NDArray:
    array = reader.read(tensor, dtype)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{tensor}: expected finite numbers, found NaN or infinity")
    return array


def save_adapter(
    folder: str | os.PathLike[str], config: LoraConfig, arrays: Mapping[str, NDArray]
) -> None:
    """Write an adapter's three files; a model card that is there already stays as it is.

    Raises ConfigError for a configuration that JSON cannot hold, FileMissingError for what cannot
    be written, CheckpointError if the folder's name is taken by a file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = make_folder(folder)
    # As PEFT does: who loads an adapter to train it says so.
    small = {ADAPTER_CONFIG: json_text(ADAPTER_CONFIG, config.to_dict() | {"inference_mode": True})}
    if not os.path.lexists(folder / CARD):
        small[CARD] = _card(config).encode()
    path = folder / WEIGHTS
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise FileMissingError(f"{path}: cannot be written: {error}") from error
    for name, text in small.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(text)


def _card(config: LoraConfig) -> str:
    """Return a model card that the hub can read; JSON's strings are YAML's too."""
    base = config.base_model_name_or_path
    lines = ["---", *([f"base_model: {json.dumps(base)}"] if base else []), "library_name: peft"]
    lines += ["tags:", "- lora", "- mamba", "---", "", "# LoRA adapter of a Mamba model", ""]
    lines += [f"Base model: {base or 'not recorded'}.", ""]
    targets = config.target_modules
    named = ", ".join(targets) if isinstance(targets, list) else targets
    lines += [f"Rank {config.r}, alpha {config.lora_alpha:g}, on {named}. Load it with"]
    lines += ["`PeftModel.from_pretrained(base_model, folder)` of mamba_np or of PEFT."]
    return "\n".join(lines) + "\n"
