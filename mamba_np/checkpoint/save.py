"""From parameters to safetensors files, in Hugging Face's layout.

All files are written under temporary names and take their own only when every one is complete: a
full disk or an interrupt while writing leaves the old model as it was, and a model can be saved
over the very files that it is mapped from.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checks import shown
from ..config import MambaConfig
from ..errors import InputError
from ..files import make_folder, replacing, write_json
from ..params import Params
from .folder import SAFETENSORS
from .names import HEAD, LAYER, MODEL, PREFIX, layer_key, parts, shapes
from .tensors import STORED

Arrays = dict[str, NDArray]

LINE = 64
"""Bytes of a cache line: the numbers of a file begin on one."""

PREFIXES = ("", "K", "M", "G", "T")
UNITS = {"": 1} | {
    f"{prefix}{ending}": base**power
    for ending, base in (("B", 1000), ("IB", 1024))
    for power, prefix in enumerate(PREFIXES)
}
_OURS = re.compile(r"model(-[0-9]{5,}-of-[0-9]{5,})?\.safetensors(\.index\.json)?")


def state_dict(params: Params) -> Arrays:
    """Return the parameters by their names in a Hugging Face checkpoint, without copying.

    A tied head is left out; without a head the names lack ``backbone.``, as in the files of a
    bare MambaModel. The convolution has its checkpoint shape, (E, 1, K).
    """
    arrays = {}
    for key, field, owner in parts(params):
        array = getattr(owner, field)
        name = key.removeprefix(PREFIX) if params.lm_head is None else key
        arrays[name] = array[:, None, :] if field == "conv" else array
    return arrays


def check_params(params: Params, config: MambaConfig) -> None:
    """Raise InputError naming the first array whose shape is not what ``config`` says."""
    if not isinstance(params, Params):
        raise InputError(f"params: expected Params, found {shown(params)}")
    found = {key: getattr(owner, field).shape for key, field, owner in parts(params)}
    expected = {MODEL[f].name: shape for f, shape in shapes(config, MODEL).items()}
    tied = params.lm_head is None or params.tied
    if tied:
        del expected[HEAD]
    if params.lm_head is not None and params.tied != config.tie_word_embeddings:
        raise InputError(
            f"params: expected a head that is {'' if config.tie_word_embeddings else 'not '}the "
            "embeddings (tie_word_embeddings), found otherwise"
        )
    if len(params.layers) != config.num_hidden_layers:
        raise InputError(
            f"params: expected {config.num_hidden_layers} layers (num_hidden_layers), "
            f"found {len(params.layers)}"
        )
    for i in range(config.num_hidden_layers):
        expected |= {layer_key(i, f): shape for f, shape in shapes(config, LAYER).items()}
    expected = {k: s[::2] if k.endswith("conv1d.weight") else s for k, s in expected.items()}
    for key in expected | found:
        if expected.get(key) != found.get(key):
            raise InputError(
                f"params: {key}: expected shape {expected.get(key)}, found {found.get(key)}"
            )


def save_params(
    folder: str | os.PathLike[str], params: Params, *, max_shard_size: int | str = "5GB"
) -> list[Path]:
    """Write the parameters as safetensors, each array in its own dtype; return the files.

    More than ``max_shard_size`` (bytes, or text such as "200MB") is split over several files with
    an index; a tensor is never split. Weight files of an earlier save that are not part of this
    one are removed at the end. Raises InputError for a bad size or dtype, CheckpointError if the
    folder's name is taken by a file.
    """
    arrays = {name: np.asarray(array) for name, array in state_dict(params).items()}
    for name, array in arrays.items():
        if array.dtype not in STORED.values():
            raise InputError(f"{name}: expected one of {', '.join(STORED)}, found {array.dtype}")
    shards = list(_split(arrays, parse_size(max_shard_size)))
    folder = make_folder(folder)
    files = _file_names(len(shards))
    with ExitStack() as commits:
        # The last to enter is the first to get its name: the index comes after all its shards.
        if len(shards) > 1:
            index = commits.enter_context(replacing(folder / SAFETENSORS.index))
            write_json(index, _index(dict(zip(files, shards, strict=True))))
        for file, shard in zip(files, shards, strict=True):
            write_safetensors(commits.enter_context(replacing(folder / file)), shard)
        if len(shards) > 1:
            commits.push(partial(_forget_index, folder))
    files += [SAFETENSORS.index] if len(shards) > 1 else []
    for entry in folder.iterdir():
        if _OURS.fullmatch(entry.name) and entry.name not in files:
            entry.unlink()
    return [folder / file for file in files]


def _forget_index(folder: Path, error: type[BaseException] | None, *_: object) -> None:
    """Remove an old index just before its shards are replaced.

    Should that stop halfway, nothing admits a mixture of old shards and new ones.
    """
    if error is None:
        (folder / SAFETENSORS.index).unlink(missing_ok=True)


def parse_size(size: int | str) -> int:
    """Return a size given in bytes or as text, in bytes."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?I?B|)\s*", str(size).upper())
    amount = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if isinstance(size, bool) or not isinstance(size, (int, str)) or amount < 1:
        raise InputError(
            f"max_shard_size: expected bytes, or text such as '5GB' or '200MB', found {shown(size)}"
        )
    return amount


def _split(arrays: Arrays, limit: int) -> Iterator[Arrays]:
    shard: Arrays = {}
    for name, array in arrays.items():
        if shard and sum(a.nbytes for a in shard.values()) + array.nbytes > limit:
            yield shard
            shard = {}
        shard[name] = array
    yield shard


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SAFETENSORS.single]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _index(shards: dict[str, Arrays]) -> dict[str, dict]:
    arrays = [array for shard in shards.values() for array in shard.values()]
    metadata = {
        "total_parameters": sum(array.size for array in arrays),
        "total_size": sum(array.nbytes for array in arrays),
    }
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    return {"metadata": metadata, "weight_map": weight_map}


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """Write one safetensors file, array by array: nothing is gathered in memory.

    The format: the header's length in eight bytes, the header as JSON, the numbers back to back.
    """
    dtype_names = {dtype: name for name, dtype in STORED.items()}
    # Wide numbers first, after a header padded to a cache line: each array can be mapped, and
    # most rows begin where the processor reads fastest.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": dtype_names[array.dtype],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % LINE)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
