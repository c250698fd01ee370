"""Checkpoint keys and shapes of every field: one table, used for reading and for writing.

Hugging Face's keys are the ones in the table. Others are translated to them: mamba-ssm says
``embedding`` for ``embeddings``, and the files of a bare MambaModel leave out ``backbone.``.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..config import MambaConfig
from ..params import Layer, Params

PREFIX = "backbone."
HEAD = "lm_head.weight"


class Key(NamedTuple):
    """The name of a field's tensor, and its shape in the letters of ``params``."""

    name: str
    shape: str


MODEL = {
    "embeddings": Key("backbone.embeddings.weight", "V D"),
    "norm_f": Key("backbone.norm_f.weight", "D"),
    "lm_head": Key(HEAD, "V D"),
}
LAYER = {
    "norm": Key("norm.weight", "D"),
    "in_proj": Key("mixer.in_proj.weight", "2E D"),
    "in_proj_bias": Key("mixer.in_proj.bias", "2E"),
    "conv": Key("mixer.conv1d.weight", "E 1 K"),  # the 1: each channel sees itself alone
    "conv_bias": Key("mixer.conv1d.bias", "E"),
    "x_proj": Key("mixer.x_proj.weight", "R+2N E"),
    "dt_proj": Key("mixer.dt_proj.weight", "E R"),
    "dt_bias": Key("mixer.dt_proj.bias", "E"),
    "A_log": Key("mixer.A_log", "E N"),
    "D": Key("mixer.D", "E"),
    "out_proj": Key("mixer.out_proj.weight", "D E"),
    "out_proj_bias": Key("mixer.out_proj.bias", "D"),
}

_IN_LAYER = "|".join(re.escape(key.name) for key in LAYER.values())
_KNOWN = re.compile(
    r"(?:backbone\.)?(?:(?P<embeddings>embeddings?\.weight)|"
    rf"(?P<rest>norm_f\.weight|layers\.(?P<layer>0|[1-9][0-9]{{0,8}})\.(?:{_IN_LAYER})))"
)


def layer_key(index: int, field: str) -> str:
    """Return the key of a layer's field."""
    return f"{PREFIX}layers.{index}.{LAYER[field].name}"


def canonical(name: str) -> str:
    """Return Hugging Face's key for a key of any dialect; a key of no field stays as it is."""
    match = _KNOWN.fullmatch(name)
    if match is None:
        return name
    return MODEL["embeddings"].name if match["embeddings"] else PREFIX + match["rest"]


def layer_index(name: str) -> int | None:
    """Return the layer that a Hugging Face key belongs to; None if to no layer."""
    match = _KNOWN.fullmatch(name)
    return int(match["layer"]) if match and match["layer"] else None


def shapes(config: MambaConfig, table: dict[str, Key]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each field of ``MODEL`` or ``LAYER`` that a model of ``config`` has."""
    absent = () if config.use_bias else ("in_proj_bias", "out_proj_bias")
    absent += () if config.use_conv_bias else ("conv_bias",)
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "E": config.intermediate_size,
        "2E": 2 * config.intermediate_size,
        "N": config.state_size,
        "R": config.time_step_rank,
        "R+2N": config.time_step_rank + 2 * config.state_size,
        "K": config.conv_kernel,
        "1": 1,
    }
    return {
        field: tuple(sizes[letter] for letter in key.shape.split())
        for field, key in table.items()
        if field not in absent
    }


def parts(params: Params) -> Iterator[tuple[str, str, Layer | Params]]:
    """Yield (key, field, owner) of every array in the model's order; a tied head is left out."""
    yield MODEL["embeddings"].name, "embeddings", params
    for i, layer in enumerate(params.layers):
        for field in LAYER:
            if getattr(layer, field) is not None:
                yield layer_key(i, field), field, layer
    yield MODEL["norm_f"].name, "norm_f", params
    if params.lm_head is not None and not params.tied:
        yield HEAD, "lm_head", params
