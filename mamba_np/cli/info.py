"""``mamba-np info``: what a checkpoint is, from its headers alone."""

import math
from pathlib import Path
from typing import Any

import click

from .common import (
    DTYPES,
    chosen_model,
    dtype_name,
    format_bytes,
    hub_options,
    json_option,
    print_json,
)

GROUPS = (  # in the order of the forward pass
    ("embeddings", ("embeddings.",)),
    ("norms", ("norm.", "norm_f.")),
    ("in_proj", ("in_proj.",)),
    ("conv1d", ("conv1d.",)),
    ("x_proj", ("x_proj.",)),
    ("dt_proj", ("dt_proj.",)),
    ("A_log", ("A_log",)),
    ("D", (".D",)),
    ("out_proj", ("out_proj.",)),
    ("lm_head", ("lm_head.",)),
)


HELP = """Describe a checkpoint: configuration, parameters, memory, files.

MODEL is a folder or a hub id; without it, the bundled model. Weights are not read, only the
headers of their files.

\b
Examples:
  mamba-np info
  mamba-np info state-spaces/mamba-130m-hf --json
"""


@click.command("info", help=HELP, short_help="Describe a checkpoint.")
@click.argument("model", required=False)
@click.option("-m", "--model", "model_option", metavar="MODEL", help="The same as MODEL.")
@json_option
@hub_options
def command(model: str | None, model_option: str | None, **options: Any) -> None:
    """Run ``mamba-np info``."""
    if model is not None and model_option is not None:
        raise click.UsageError("Expected one model, found MODEL and --model.")
    as_json = options.pop("as_json")
    chosen = chosen_model(model if model is not None else model_option, options)
    facts = describe(chosen.name, chosen.hub)
    if as_json:
        print_json(facts)
    else:
        print_table(facts)


def describe(name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a checkpoint without reading its weights."""
    from ..checkpoint import headers, locate_model
    from ..config import CONFIG_NAME, MambaConfig
    from ..hub import HubOptions

    folder = locate_model(name, HubOptions(**hub))
    config = MambaConfig.from_file(folder / CONFIG_NAME)
    tensors = headers(folder)
    learnt = _without_tied_copy(tensors, config)
    return {
        "model": name,
        "folder": str(folder),
        "config": config.to_dict(),
        "parameters": sum(_size(info) for info in learnt.values()),
        "parameters_by_group": _by_group(learnt),
        "stored": _by_dtype(tensors),
        "weights_bytes": {dtype: _weights_bytes(learnt, dtype) for dtype in DTYPES},
        "state_bytes_per_sequence": {
            "float32": _state_bytes(config, 4),
            "float64": _state_bytes(config, 8),
        },
        "files": {path.name: path.stat().st_size for path in _files(folder, tensors)},
    }


def _without_tied_copy(tensors: dict[str, Any], config: Any) -> dict[str, Any]:
    """Leave out a head that is stored although it is the embedding matrix."""
    tied = config.tie_word_embeddings
    return {k: v for k, v in tensors.items() if not (tied and k.startswith("lm_head."))}


def _files(folder: Path, tensors: dict[str, Any]) -> list[Path]:
    """Return the model's files: those that hold tensors, and those with known names."""
    from .. import hub

    known = (
        *hub.CONFIG_FILES, *hub.GENERATION_FILES, *hub.TOKENIZER_FILES, *hub.SAFETENSORS_FILES
    )  # fmt: skip
    present = {folder / name for name in known if (folder / name).is_file()}
    return sorted(present | {info.file for info in tensors.values()})


def _size(info: Any) -> int:
    return math.prod(info.shape)


def _by_group(tensors: dict[str, Any]) -> dict[str, int]:
    sizes = dict.fromkeys((name for name, _ in GROUPS), 0) | {"other": 0}
    for tensor, info in tensors.items():
        found = (name for name, marks in GROUPS if any(mark in tensor for mark in marks))
        sizes[next(found, "other")] += _size(info)
    return {name: size for name, size in sizes.items() if size}


def _by_dtype(tensors: dict[str, Any]) -> dict[str, dict[str, int]]:
    stored: dict[str, dict[str, int]] = {}
    for info in tensors.values():
        entry = stored.setdefault(dtype_name(info), {"tensors": 0, "parameters": 0})
        entry["tensors"] += 1
        entry["parameters"] += _size(info)
    return stored


def _weights_bytes(tensors: dict[str, Any], dtype: str) -> int:
    """Return the memory of the weights once loaded: only matrices are kept in 16 bits."""
    from ..params import MATRICES, as_dtype, compute_dtype

    storage = as_dtype(dtype)
    matrices = tuple(f"{name}.weight" for name in MATRICES)
    return sum(
        _size(info) * (storage if name.endswith(matrices) else compute_dtype(storage)).itemsize
        for name, info in tensors.items()
    )


def _state_bytes(config: Any, itemsize: int) -> int:
    per_channel = config.conv_kernel + config.state_size
    return config.num_hidden_layers * config.intermediate_size * per_channel * itemsize


# --- the table -------------------------------------------------------------------------------

SHOWN = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "state_size",
    "conv_kernel", "time_step_rank", "hidden_act", "use_bias", "use_conv_bias",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def print_table(facts: dict[str, Any]) -> None:
    """Print the facts as aligned sections."""
    config = facts["config"]
    click.echo(f"{facts['model']}\n")
    _section("Configuration", {name: str(config[name]) for name in SHOWN})
    total = facts["parameters"]
    shares = {
        name: f"{size:>15,}  {size / total:6.1%}"
        for name, size in facts["parameters_by_group"].items()
    }
    _section("Parameters", shares | {"total": f"{total:>15,}"})
    _section(
        "Stored as",
        {
            dtype: f"{entry['parameters']:>15,}  in {entry['tensors']} tensors"
            for dtype, entry in facts["stored"].items()
        },
    )
    _section(
        "Memory for the weights",
        {dtype: f"{format_bytes(n):>15}" for dtype, n in facts["weights_bytes"].items()},
    )
    _section(
        "State per sequence, of any length",
        {d: f"{format_bytes(n):>15}" for d, n in facts["state_bytes_per_sequence"].items()},
    )
    _section(
        f"Files in {facts['folder']}",
        {name: f"{format_bytes(size):>15}" for name, size in facts["files"].items()},
        last=True,
    )


def _section(title: str, rows: dict[str, str], *, last: bool = False) -> None:
    click.echo(title)
    width = max(19, *(len(name) for name in rows))
    for name, text in rows.items():
        click.echo(f"  {name:<{width}}  {text}")
    if not last:
        click.echo()
