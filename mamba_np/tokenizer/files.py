"""Reading a tokenizer's files with care: they come from strangers.

``tokenizer.json`` alone says how text becomes ids and back. ``tokenizer_config.json``, and beside
it ``special_tokens_map.json`` in older repositories, name the special tokens and the padding side.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import number, shown
from ..errors import FileMissingError, TokenizerError
from ..files import own_file, read_json_object
from ..hub import TOKENIZER_FILES
from .stages import check_stages

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_NAME, CONFIG_NAME, SPECIAL_NAME = TOKENIZER_FILES
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("additional_special_tokens", "extra_special_tokens")
SIDES = ("left", "right")
TOKENIZER_LIMIT = 12 * 2**20
"""Largest tokenizer.json read, in bytes: more than three times that of any published Mamba."""
PROBLEM_LENGTH = 300
"""Most characters shown of an error of the tokenizers package, which may cite the file."""
UNLIMITED = int(1e30)
"""The ``model_max_length`` of a model without a limit; transformers writes this number."""


@dataclass
class TokenizerSettings:
    """What a tokenizer's files say beside tokenizer.json."""

    special: dict[str, str] = field(default_factory=dict)  # "bos_token": "<|endoftext|>", ...
    extra: list[str] = field(default_factory=list)  # special tokens without a role
    model_max_length: int = UNLIMITED
    padding_side: str = "right"
    truncation_side: str = "right"
    raw: dict[str, Any] = field(default_factory=dict)  # the file, to be written back

    @classmethod
    def read(cls, folder: Path) -> "TokenizerSettings":
        """Read the settings of a folder; a file that is not there says nothing.

        Raises TokenizerError naming the file and the field.
        """
        path = folder / CONFIG_NAME
        raw = _optional(folder, CONFIG_NAME) or {}
        return cls(
            special=_special_tokens(folder, raw),
            extra=[_content(path, name, t) for name in LISTS for t in _listed(path, name, raw)],
            model_max_length=_max_length(path, raw.get("model_max_length")),
            padding_side=_side(path, "padding_side", raw),
            truncation_side=_side(path, "truncation_side", raw),
            raw=raw,
        )


def _optional(folder: Path, name: str) -> dict[str, Any] | None:
    """Return what a JSON file of the folder holds, or None if it is not there."""
    if not os.path.lexists(folder / name):
        return None
    return read_json_object(own_file(folder, name), TokenizerError)


def _special_tokens(folder: Path, raw: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens by role.

    As transformers has it, the older file wins over a configuration that does not list its added
    tokens. Over one that does, it only fills gaps.
    """
    sources = [(folder / CONFIG_NAME, raw)]
    legacy = _optional(folder, SPECIAL_NAME)
    if legacy is not None:
        sources.append((folder / SPECIAL_NAME, legacy))
    if "added_tokens_decoder" in raw:
        sources.reverse()
    return {
        role: _content(path, role, values[role])
        for path, values in sources  # of two values, the later stays
        for role in ROLES
        if values.get(role) is not None
    }


def _content(path: Path, name: str, token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise TokenizerError(
            f"{path}: {name}: expected a token's text, or an object with it as 'content', "
            f"found {shown(token)}"
        )
    try:
        content.encode()
    except UnicodeEncodeError:
        raise TokenizerError(
            f"{path}: {name}: expected Unicode text, found a lone surrogate in {shown(content)}"
        ) from None
    return content


def _listed(path: Path, name: str, raw: dict[str, Any]) -> list[Any]:
    tokens = raw.get(name) or []
    if not isinstance(tokens, list | dict):
        raise TokenizerError(f"{path}: {name}: expected a list of tokens, found {shown(tokens)}")
    return list(tokens.values()) if isinstance(tokens, dict) else tokens


def _max_length(path: Path, value: Any) -> int:
    if value is None:
        return UNLIMITED
    number(f"{path}: model_max_length", value, low=1, error=TokenizerError)
    return int(value)  # not of the float, which would round large integers


def _side(path: Path, name: str, raw: dict[str, Any]) -> str:
    side = raw.get(name) or "right"
    if side not in SIDES:
        raise TokenizerError(f"{path}: {name}: expected 'left' or 'right', found {shown(side)}")
    return side


# --- tokenizer.json ------------------------------------------------------------------------------


def read_tokenizer(folder: Path) -> "tokenizers.Tokenizer":
    """Return the tokenizers package's object for a folder's ``tokenizer.json``.

    Raises FileMissingError if there is no such file, and TokenizerError naming the file if
    nothing can be done with it.
    """
    import tokenizers

    path = folder / TOKENIZER_NAME
    if not os.path.lexists(path):
        raise FileMissingError(
            f"{folder}: expected a {TOKENIZER_NAME}, found none. The original state-spaces "
            "repositories come without one; they use the tokenizer of EleutherAI/gpt-neox-20b: "
            'AutoTokenizer.from_pretrained("EleutherAI/gpt-neox-20b")'
        )
    content = read_json_object(own_file(folder, TOKENIZER_NAME), TokenizerError, TOKENIZER_LIMIT)
    _check_model(path, content.get("model"))
    check_stages(path, content)
    with refusing(f"{path}: expected a tokenizer that the tokenizers package can use"):
        # What was checked is what is built; padding and truncation are done per call, not here.
        content |= {"padding": None, "truncation": None}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        del content  # parsed, it can take 25 times as much memory as the text
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.encode("a")  # a template that names a token it does not define fails only here
    return tokenizer


def tokenizer_json(tokenizer: "tokenizers.Tokenizer") -> bytes:
    """Return the text of a tokenizer.json: indented, unless that would be too long to be read."""
    text = tokenizer.to_str(pretty=True).encode()
    return text if len(text) <= TOKENIZER_LIMIT else tokenizer.to_str(pretty=False).encode()


@contextlib.contextmanager
def refusing(expectation: str) -> Iterator[None]:
    """Turn whatever goes wrong in the tokenizers package into a TokenizerError.

    The package raises bare ``Exception``. Its Rust panics arrive as ``PanicException``, which
    derives from BaseException and cannot be imported, so it is known by its name.
    """
    try:
        yield
    except BaseException as problem:
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        text = str(problem)
        text = text if len(text) <= PROBLEM_LENGTH else f"{text[:PROBLEM_LENGTH]}..."
        raise TokenizerError(f"{expectation}, found: {text}") from None


def _check_model(path: Path, model: Any) -> None:
    """Refuse merges whose result is no token: the tokenizers package may panic on them."""
    if not isinstance(model, dict):
        raise TokenizerError(f"{path}: model: expected an object, found {type(model).__name__}")
    vocab, merges = model.get("vocab"), model.get("merges")
    prefix = model.get("continuing_subword_prefix") or ""
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(prefix, str):
        return  # no byte-pair encoding, or a structure that the package refuses itself
    for merge in merges:
        pair = _pair(merge)
        if pair is None:
            continue
        left, right = pair
        joined = left + right[len(prefix) :]
        if joined not in vocab or len(right) < len(prefix):
            raise TokenizerError(
                f"{path}: merges: expected {shown(left)} + {shown(right)} to give a token "
                f"of the vocabulary, found that {shown(joined)} is none"
            )


def _pair(merge: Any) -> tuple[str, str] | None:
    """Return the two sides of a merge: "a b" or ["a", "b"]; None for anything else."""
    if isinstance(merge, str):
        merge = [] if merge.startswith("#version") else merge.split(" ")
    if isinstance(merge, list) and len(merge) == 2 and all(isinstance(s, str) for s in merge):
        return merge[0], merge[1]
    return None
