"""Bounds on what a tokenizer.json may ask for: the tokenizers package sets none of its own.

A file of some kilobytes can make the shortest text long without end. The package then runs out of
memory, which ends the process, so such a file is refused before the package sees it. The stages
are normalizers, pre-tokenizers, decoders and post-processors, alone or in a "Sequence".
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checks import shown
from ..errors import TokenizerError

FIELDS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MEMBERS = ("normalizers", "pretokenizers", "processors", "decoders")
"""Where a Sequence keeps its stages, in the order of FIELDS."""
STAGE_LIMIT = 32
"""Most stages of one kind, and most parts of a template; published files have fewer than ten."""
GROWTH_LIMIT = 8192
"""Most bytes that a byte of text may become, with the worst characters for every stage: in stages
like those of ALBERT, which are many, they are about 3000."""
TEMPLATE_IDS, TEMPLATE_CHARACTERS = 1024, 2**15
"""Most ids of a template's special tokens, and most characters of their names."""

GROWTH = {
    "NFC": 3,
    "NFD": 3,
    "NFKC": 11,  # U+FDFA: 3 bytes become 33
    "NFKD": 11,
    "BertNormalizer": 8,  # NFD, lower case and spaces around ideographs
    "ByteLevel": 4,  # two bytes for each, and a space in front
    "Metaspace": 4,  # any character for a space, and one in front
}
"""How much longer, in bytes, a stage makes text at most; types that are not here do not."""


def check_stages(path: Path, content: dict[str, Any]) -> None:
    """Refuse stages that are too many or make text too long; raises TokenizerError naming them."""
    growth = 1.0
    for field in FIELDS:
        growth = 1.0 if field == "decoder" else growth  # decoding starts from short text again
        for name, stage in _stages(path, field, content.get(field)):
            growth *= _growth(f"{path}: {name}", stage)
            if growth > GROWTH_LIMIT:
                raise TokenizerError(
                    f"{path}: {name}: expected stages that make text at most {GROWTH_LIMIT} times "
                    f"as long, found {growth:.3g} times up to here"
                )


def _stages(path: Path, field: str, stage: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the object of every stage of a field, Sequences opened."""
    waiting = [] if stage is None else [(field, stage)]
    count = 0
    while waiting:
        name, stage = waiting.pop()
        count += 1
        if count > STAGE_LIMIT:
            raise TokenizerError(
                f"{path}: {field}: expected at most {STAGE_LIMIT} stages, found more"
            )
        # An object without a type might be taken for any stage that has its fields.
        if not isinstance(stage, dict) or not isinstance(stage.get("type"), str):
            raise TokenizerError(
                f"{path}: {name}: expected an object with a type, found {shown(stage)}"
            )
        yield name, stage
        for key in MEMBERS:
            members = stage.get(key, [])
            if not isinstance(members, list):
                raise TokenizerError(
                    f"{path}: {name}.{key}: expected a list, found {shown(members)}"
                )
            numbered = list(enumerate(members[: STAGE_LIMIT + 1]))
            waiting += [(f"{name}.{key}[{i}]", member) for i, member in reversed(numbered)]


def _growth(name: str, stage: dict[str, Any]) -> float:
    """Return how many bytes a byte of text may become; raises TokenizerError for a bad stage.

    What a stage does is read from its fields as well as from its type, since the tokenizers
    package guesses the type when it knows none of that name.
    """
    growth = float(GROWTH.get(stage["type"], 1))
    if "add_prefix_space" in stage or "replacement" in stage:
        growth = max(growth, GROWTH["ByteLevel"])
    if "content" in stage:
        growth *= _replace_growth(stage.get("pattern"), _size(stage["content"]))
    if "prepend" in stage:
        growth *= 1 + _size(stage["prepend"])
    if stage["type"] == "Precompiled" or "precompiled_charsmap" in stage:
        growth *= _longest_replacement(name, stage.get("precompiled_charsmap"))
    if stage["type"] == "TemplateProcessing" or "special_tokens" in stage:
        growth *= _copies(name, stage)
    return growth


def _size(text: Any) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def _replace_growth(pattern: Any, size: int) -> float:
    literal = pattern.get("String") if isinstance(pattern, dict) else pattern
    if isinstance(literal, str) and literal:
        return max(1.0, size / _size(literal))
    return 1.0 + size  # a regular expression, or "", can match between any two characters


def _longest_replacement(name: str, text: Any) -> int:
    """Return the most bytes that a character map puts in the place of one character.

    The map is: four bytes with the size of a tree, the tree, texts that end with a zero byte. The
    tokenizers package reserves the size without looking whether it can be true.
    """
    name = f"{name}.precompiled_charsmap"
    try:
        charsmap = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        charsmap = None
    if charsmap is None or len(charsmap) < 4:
        raise TokenizerError(f"{name}: expected a map in base64, found {shown(text)}")
    size, rest = int.from_bytes(charsmap[:4], "little"), charsmap[4:]
    if size > len(rest):
        raise TokenizerError(
            f"{name}: expected a map whose tree has at most the {len(rest)} bytes that follow, "
            f"found {size}"
        )
    return max(1, *map(len, rest[size:].split(b"\0")))


def _copies(name: str, stage: dict[str, Any]) -> int:
    """Return how often a template repeats the text, and refuse large templates."""
    copies = 1
    for key in ("single", "pair"):
        parts = stage.get(key) or []
        if not isinstance(parts, list) or len(parts) > STAGE_LIMIT:
            found = f"{len(parts)}" if isinstance(parts, list) else shown(parts)
            raise TokenizerError(
                f"{name}.{key}: expected a list of at most {STAGE_LIMIT} parts, found {found}"
            )
        texts = [part for part in parts if not (isinstance(part, dict) and "SpecialToken" in part)]
        # A pair is two texts, so that each is there half as often.
        copies = max(copies, len(texts) if key == "single" else (len(texts) + 1) // 2)
    ids, characters = _extent(stage.get("special_tokens"))
    if ids > TEMPLATE_IDS or characters > TEMPLATE_CHARACTERS:
        raise TokenizerError(
            f"{name}.special_tokens: expected at most {TEMPLATE_IDS} ids in "
            f"{TEMPLATE_CHARACTERS} characters, found {ids} ids in {characters}"
        )
    return copies


def _extent(value: Any) -> tuple[int, int]:
    """Return how many numbers and how many characters there are in nested lists and objects."""
    numbers = characters = 0
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            characters += len(value)
        elif value is not None:
            numbers += 1
    return numbers, characters
