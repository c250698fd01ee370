"""``mamba-np convert``: any layout and dtype that can be read, to Hugging Face safetensors."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import click

from .common import DTYPES, dtype_name, format_bytes, hub_options, source_of


@click.command("convert", short_help="Write a checkpoint as Hugging Face safetensors.")
@click.argument("source", metavar="SOURCE")
@click.argument("dest", metavar="DEST")
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Dtype of the matrices [default: as stored]."
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Of one weights file.",
)
@click.option("--force", is_flag=True, help="Write into a folder that holds files already.")
@hub_options
def command(source: str, dest: str, dtype: str | None, **options: Any) -> None:
    """Write SOURCE as a Hugging Face checkpoint in safetensors into the folder DEST.

    SOURCE is a folder or hub id in Hugging Face's or mamba-ssm's layout, with safetensors or a
    pytorch_model.bin. config.json is translated; tokenizer and generation files are copied.

    \b
    Examples:
      mamba-np convert state-spaces/mamba-130m ./mamba-130m-hf
      mamba-np convert ./mamba-130m-hf ./mamba-130m-bf16 --dtype bfloat16
    """
    from ..model import MambaForCausalLM

    max_shard_size, force = options.pop("max_shard_size"), options.pop("force")
    hub = source_of(source, options).hub
    target = Path(dest)
    folder = _locate(source, hub)
    _check_target(target, folder, force)
    # Weights that keep their dtype are mapped, not read: at most one copy is in memory.
    model = MambaForCausalLM.from_pretrained(folder, dtype=dtype or stored_dtype(folder))
    model.save_pretrained(target, max_shard_size=max_shard_size)
    _copy_others(folder, target)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    click.echo(
        f"{dest}: {model.num_parameters():,} parameters, {model.dtype}, {format_bytes(written)}"
    )


def _locate(source: str, hub: dict[str, Any]) -> Path:
    """Return the folder with the weights, and fetch the tokenizer's files if there are any."""
    from ..checkpoint import locate_model
    from ..errors import FileMissingError
    from ..hub import GENERATION_FILES, TOKENIZER_FILES, HubOptions, locate

    options = HubOptions(**hub)
    folder = locate_model(source, options)
    if not Path(source).is_dir():
        with contextlib.suppress(FileMissingError):  # the original repositories have none
            locate(source, TOKENIZER_FILES + GENERATION_FILES, options)
    return folder


def _check_target(target: Path, source: Path, force: bool) -> None:
    """Refuse to write over the source, or into a folder that holds something else."""
    from ..errors import CheckpointError
    from ..files import make_folder

    make_folder(target)
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{target}: expected another folder than the source")
    found = next(iter(sorted(target.iterdir())), None)
    if found is not None and not force:
        raise CheckpointError(
            f"{target}: expected a new or empty folder, found {found.name} in it; "
            "--force writes all the same"
        )


def stored_dtype(folder: Path) -> str:
    """Return the dtype in which the files of a folder keep the embedding matrix.

    Where there is none, or one of no known dtype, any will do: loading says what is wrong.
    """
    from ..checkpoint import headers

    embeddings = (info for name, info in headers(folder).items() if "embeddings" in name)
    return next((dtype_name(info) for info in embeddings if dtype_name(info) in DTYPES), "float32")


def _copy_others(source: Path, target: Path) -> None:
    from ..files import replacing, require_regular_file
    from ..hub import GENERATION_FILES, TOKENIZER_FILES

    for name in TOKENIZER_FILES + GENERATION_FILES:
        if (source / name).exists():
            with replacing(target / name) as temporary:
                shutil.copyfile(require_regular_file(source / name), temporary)
