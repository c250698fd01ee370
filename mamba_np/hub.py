"""Where the files of a model are: a local folder, or a snapshot of a Hugging Face repository.

huggingface_hub does the downloading, caching and checking, and is imported only when a name is
not a folder. Its environment variables (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT ...) hold.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import FileMissingError, UnsafeFileError

CONFIG_FILES = ("config.json",)
GENERATION_FILES = ("generation_config.json",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class HubOptions:
    """Which copy of a hub repository to use; all pass through to huggingface_hub."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    subfolder: str = ""


def split_hub_options(options: dict[str, Any]) -> tuple[HubOptions, dict[str, Any]]:
    """Return the hub's options and all the others."""
    names = {f.name for f in fields(HubOptions)}
    mine = {k: v for k, v in options.items() if k in names}
    return HubOptions(**mine), {k: v for k, v in options.items() if k not in names}


def locate(
    name_or_path: str | os.PathLike[str],
    patterns: Sequence[str],
    options: HubOptions = HubOptions(),
) -> Path:
    """Return a local folder that holds the files of ``name_or_path`` matching ``patterns``.

    A folder of that name wins over a hub id; nothing is then downloaded, and files that are not
    there are the reader's to report. Of a hub repository, only the files that match are fetched.
    A path object is never taken for a hub id.
    Raises FileMissingError if there is neither, or if the hub cannot give the files, saying why;
    UnsafeFileError for a ``subfolder`` that leaves the model.
    """
    name = os.path.expanduser(os.fspath(name_or_path))
    inner = _subfolder(options.subfolder)
    if os.path.isdir(name):
        return _inside(Path(name), inner)
    if os.path.lexists(name):
        raise FileMissingError(
            f"{name}: expected the folder of a model, found a file; pass its folder, "
            f"{os.path.dirname(name) or '.'!r}"
        )
    if not isinstance(name_or_path, str) or _looks_like_a_path(name):
        raise FileMissingError(
            f"{name}: expected the folder of a model, found no such folder; models of the Hugging "
            "Face hub have names like 'state-spaces/mamba-130m-hf'"
        )
    return _inside(_snapshot(name, [str(inner / p) for p in patterns], options), inner)


def pinned(folder: Path, options: HubOptions) -> HubOptions:
    """Return ``options`` with the very revision that ``folder`` came from.

    Further files of the same model then match those already there, even if the repository has
    moved on in between. Of a local folder, ``options`` as they are.
    """
    for _ in PurePosixPath(options.subfolder).parts:
        folder = folder.parent
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return replace(options, revision=folder.name) if is_snapshot else options


def _subfolder(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UnsafeFileError(f"subfolder: expected a folder inside the model, found {name!r}")
    return path


def _inside(folder: Path, inner: PurePosixPath) -> Path:
    folder = folder / inner
    if inner.parts and not folder.is_dir():
        raise FileMissingError(f"{folder}: expected the model's subfolder, found no such folder")
    return folder


def _looks_like_a_path(name: str) -> bool:
    """Tell names that only a path can have from ``name`` and ``owner/name``."""
    only_paths = name[:1] in ("", ".", "~", "/") or name.endswith("/") or name.count("/") > 1
    return only_paths or any(character in name for character in "\\:\0")


def _snapshot(name: str, patterns: list[str], options: HubOptions) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=options.revision,
            token=options.token,
            cache_dir=None if options.cache_dir is None else Path(options.cache_dir),
            local_files_only=options.local_files_only,
            allow_patterns=patterns,
        )
    # The library's own errors and those of whichever HTTP client its version has: no common base.
    except Exception as error:
        raise FileMissingError(_explain(name, options, error)) from error
    return Path(folder)


def _explain(name: str, options: HubOptions, error: Exception) -> str:
    """Say what was looked for, why it did not come, and what to do."""
    from huggingface_hub import constants, errors

    start = f"{name}: expected a folder or a model of the Hugging Face hub"
    revision = f" at revision {options.revision!r}" if options.revision else ""
    if isinstance(error, errors.HFValidationError):
        return f"{start}, found no such folder, and no hub model can have that name: {error}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{start}, found one with restricted access: ask for it at {constants.ENDPOINT}/{name}"
            ", then log in with `hf auth login` or pass token=..."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{start}, found neither; if the model is private, log in with `hf auth login` or "
            "pass token=..."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{start}{revision}, found the model without that revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{start}, found no such folder{_not_cached(name, revision, options, error)}"
    return f"{start}, found no such folder, and the hub failed: {type(error).__name__}: {error}"


def _not_cached(name: str, revision: str, options: HubOptions, error: Exception) -> str:
    from huggingface_hub import constants

    command = f"hf download {name}" + (f" --revision {options.revision}" if revision else "")
    missing = f" and no complete copy{revision} in the hub's cache"
    if options.local_files_only:
        return f"{missing}; local_files_only=True forbids a download. With network: `{command}`"
    if constants.HF_HUB_OFFLINE:
        return f"{missing}; HF_HUB_OFFLINE forbids a download. With network: `{command}`"
    reason = error.__cause__ or error
    return f"{missing}; the hub cannot be reached: {type(reason).__name__}: {reason}"
