"""Which files of a folder hold the weights: one file, or shards with an index.

A file's name from an index, or a link's target, may come from a stranger. Only plain names of
files in the model's own folder are followed, and links only within it or into the blobs of a
Hugging Face cache.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, FileMissingError, UnsafeFileError
from ..files import own_file, read_json_object
from ..hub import (
    CONFIG_FILES,
    GENERATION_FILES,
    PICKLE_FILES,
    SAFETENSORS_FILES,
    HubOptions,
    locate,
    pinned,
)
from . import safetensors_file, torch_zip
from .tensors import TensorInfo

INDEX_LIMIT = 8 * 2**20
"""Largest shard index read, in bytes; that of the largest Mamba is below 100 kB."""
SHARD_LIMIT = 1000
"""Most shards that are fetched from the hub."""


class Layout(NamedTuple):
    """One way of keeping weights in a folder."""

    single: str
    index: str
    suffix: str
    read_header: Callable[[Path], dict[str, TensorInfo]]


SAFETENSORS = Layout(*SAFETENSORS_FILES, ".safetensors", safetensors_file.read_header)
PICKLE = Layout(*PICKLE_FILES, ".bin", torch_zip.read_header)
LAYOUTS = (SAFETENSORS, PICKLE)
"""In order of preference, as transformers has it: safetensors first, one file before shards."""


def locate_model(name_or_path: str | os.PathLike[str], options: HubOptions | None = None) -> Path:
    """Return a local folder with a model's configuration and weights.

    From the hub come the configurations and the safetensors files, all shards that an index
    names; only of a model that has none, PyTorch's pickled files. Raises FileMissingError, and
    CheckpointError or UnsafeFileError for a bad index.
    """
    files = (*CONFIG_FILES, *GENERATION_FILES, *SAFETENSORS_FILES)
    options = options or HubOptions()
    folder = locate(name_or_path, files, options)
    options = pinned(folder, options)
    if not any(os.path.lexists(folder / name) for name in SAFETENSORS_FILES):
        folder = locate(name_or_path, PICKLE_FILES, options)
    for layout in LAYOUTS:
        if os.path.lexists(folder / layout.single):
            return folder
        if os.path.lexists(folder / layout.index):
            shards = set(_weight_map(folder, layout).values())
            if len(shards) > SHARD_LIMIT:
                raise CheckpointError(
                    f"{folder / layout.index}: expected at most {SHARD_LIMIT} files, "
                    f"found {len(shards)}"
                )
            return locate(name_or_path, sorted(shards), options)
    return folder


def stored_tensors(folder: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Return what the weight files of a folder hold, by the names in the files.

    Raises FileMissingError if there are none, CheckpointError if they are damaged or contradict
    each other, UnsafeFileError if they lead out of the folder.
    """
    folder = Path(folder)
    for layout in LAYOUTS:
        if os.path.lexists(folder / layout.single):
            return layout.read_header(own_file(folder, layout.single))
        if os.path.lexists(folder / layout.index):
            return _sharded(folder, layout)
    expected = f"{SAFETENSORS.single}, {SAFETENSORS.index} or {PICKLE.single}"
    if not folder.is_dir():
        raise FileMissingError(f"{folder}: expected a folder with {expected}, found no folder")
    names = sorted(entry.name for entry in folder.iterdir())[:8]
    raise FileMissingError(
        f"{folder}: expected {expected}, found {', '.join(names) or 'an empty folder'}"
    )


def _sharded(folder: Path, layout: Layout) -> dict[str, TensorInfo]:
    weight_map = _weight_map(folder, layout)
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in layout.read_header(own_file(folder, shard)).items():
            if name in tensors:
                raise CheckpointError(
                    f"{tensor}: expected in one shard, found in {tensors[name].file.name} too"
                )
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            found = f"found it in {tensors[name].file.name}" if name in tensors else "found none"
            raise CheckpointError(
                f"{folder / layout.index}: tensor {name!r:.80}: expected in {shard}, {found}"
            )
    return tensors


def _weight_map(folder: Path, layout: Layout) -> dict[str, str]:
    """Return {tensor name: file name} from an index, every file name being a plain one."""
    path = own_file(folder, layout.index)
    weight_map = read_json_object(path, CheckpointError, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: expected weight_map: {{tensor: file}}, found none")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(
                f"{path}: weight_map[{tensor!r:.80}]: expected a file name, found {shard!r:.80}"
            )
        plain = not shard.startswith((".", "~")) and not set(shard) & set('/\\:\0*?[]"<>|')
        if not plain or not shard.endswith(layout.suffix):
            raise UnsafeFileError(
                f"{path}: weight_map[{tensor!r:.80}]: expected the name of a {layout.suffix} "
                f"file in the same folder, found {shard!r:.80}"
            )
    return weight_map
