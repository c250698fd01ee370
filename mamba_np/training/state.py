"""Checkpoints of a run: folders from which it goes on as if it had never stopped, bit for bit.

    checkpoint-120/
        config.json, model.safetensors, ...   the model, as save_pretrained writes it
        optimizer.safetensors                 exp_avg.<parameter> and exp_avg_sq.<parameter>
        trainer_state.json                    counters, losses, random generators, AdamW's settings
        manifest.json                         size and SHA-256 of each of these files

Wherever a run is killed, and even if the power fails, each checkpoint-<step> is whole: see
``folders``. One folder of checkpoints belongs to one run at a time. "Bit for bit" holds on one
machine with one number of threads, as sums are added in other orders elsewhere.
"""

import dataclasses
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.safetensors_file import read_header
from ..checkpoint.save import write_safetensors
from ..checkpoint.tensors import STORED, TensorInfo, TensorReader
from ..checks import integer, shown
from ..errors import CheckpointError, FileMissingError, InputError, MambaError
from ..files import json_text, make_folder, read_json_object
from ..model import MambaForCausalLM
from . import folders
from .optimiser import AdamW, Arrays

OPTIMIZER, STATE = "optimizer.safetensors", "trainer_state.json"

STATE_LIMIT = 2**28
"""Largest trainer_state.json read, in bytes: some million logged steps."""

MOMENTS = ("exp_avg", "exp_avg_sq")
_SETTINGS = ("lr", "betas", "eps", "weight_decay", "no_decay")
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


@dataclasses.dataclass
class TrainerState:
    """Where a run is, besides its weights and moments. What it means is up to the run.

    ``generators`` are kept with all their state but the seed that they began with, which only
    ``Generator.spawn`` would need. ``log_history`` holds what JSON can.
    """

    epoch: int = 0
    """Passes over the data that are complete."""
    data_position: int = 0
    """How much of the current pass is used up."""
    seed: int = 0
    log_history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    generators: dict[str, np.random.Generator] = dataclasses.field(default_factory=dict)


class Checkpoint(NamedTuple):
    """A run as it was when it was saved. The model is writeable, and the optimiser's."""

    model: MambaForCausalLM
    optimiser: AdamW
    state: TrainerState


# --- saving ------------------------------------------------------------------------------------


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: Any,
    optimiser: AdamW,
    state: TrainerState,
    *,
    save_total_limit: int | None = None,
) -> Path:
    """Write ``folder``/checkpoint-<optimiser.step> and return its path.

    ``model`` is a MambaForCausalLM, or another with ``save_pretrained`` and ``state_dict``.
    The weights keep the dtype that they are trained in: what came from bfloat16 and is trained in
    float32 is saved in float32. With ``save_total_limit``, only that many complete checkpoints are
    kept, this one and the newest before it; older ones go when this one is safe. If anything
    fails, what was in the folder stays.

    Raises InputError for an optimiser of other parameters than the model's, ConfigError for a log
    that JSON cannot hold, CheckpointError if the step has a sound checkpoint already, and
    FileMissingError for what cannot be written.
    """
    foreign = optimiser.parameters.keys() - model.state_dict().keys()
    if foreign:
        raise InputError(f"optimiser: expected parameters of the model, found {min(foreign)!r}")
    if save_total_limit is not None:
        integer("save_total_limit", save_total_limit, error=InputError)
    folder = make_folder(folder)
    path = folder / f"checkpoint-{optimiser.step}"
    if folders.is_sound(path):
        raise CheckpointError(f"{path}: expected no checkpoint of this step yet, found one")
    text = json_text(path / STATE, _state_values(optimiser, state))
    try:
        folders.remove_left_overs(folder, _NAME)
        part = folders.part_of(path)
        part.mkdir()
        try:
            model.save_pretrained(part)
            write_safetensors(part / OPTIMIZER, _moments(optimiser))
            (part / STATE).write_bytes(text)
            folders.publish(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if save_total_limit is not None:
            _remove_older(folder, optimiser.step, save_total_limit)
    except MambaError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileMissingError(f"{path}: cannot be written: {reason}") from error
    return path


def _remove_older(folder: Path, step: int, limit: int) -> None:
    """Keep ``limit`` checkpoints, ``step`` and the newest complete ones before it."""
    older = [path for at, path in checkpoints(folder) if at < step and folders.is_complete(path)]
    for path in older[limit - 1 :]:
        folders.discard(path)


def _moments(optimiser: AdamW) -> dict[str, NDArray]:
    return {
        f"{moment}.{name}": array
        for moment in MOMENTS
        for name, array in getattr(optimiser, moment).items()
    }


def _state_values(optimiser: AdamW, state: TrainerState) -> dict[str, Any]:
    settings = {name: getattr(optimiser, name) for name in _SETTINGS}
    return {
        **{f.name: getattr(state, f.name) for f in dataclasses.fields(state)},
        "generators": {name: _plain(g) for name, g in state.generators.items()},
        "global_step": optimiser.step,
        "optimizer": settings | {"no_decay": sorted(optimiser.no_decay)},
    }


def _plain(generator: np.random.Generator) -> dict[str, Any]:
    """Return the state of a random generator as what JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    return plain(generator.bit_generator.state)


# --- finding -----------------------------------------------------------------------------------


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest sound checkpoint of a folder; None if there is none, or no folder.

    Every file is read and compared with the manifest. Warns about those that are damaged.
    """
    folder = Path(folder)
    for _, path in checkpoints(folder) if folder.is_dir() else []:
        try:
            folders.verify(path)
        except CheckpointError as error:
            warnings.warn(f"{path} is left out: {error}", stacklevel=2)
        else:
            return path
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of what is named like a checkpoint, the newest first."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)


# --- loading -----------------------------------------------------------------------------------


def load_checkpoint(path: str | os.PathLike[str], *, backend: str = "auto") -> Checkpoint:
    """Return the run that a folder checkpoint-<step> holds, with the weights in their own dtype.

    Raises CheckpointError naming the file that is damaged, or does not fit the others.
    """
    path = Path(path)
    folders.verify(path)  # before anything is made of it
    model = MambaForCausalLM.from_pretrained(path, dtype="auto", backend=backend).make_writeable()
    arrays, trained = model.state_dict(), read_header(path / OPTIMIZER)
    parameters = {n: a for n, a in arrays.items() if f"{MOMENTS[0]}.{n}" in trained}
    return Checkpoint(model, *_load(path, parameters))


def load_training(path: str | os.PathLike[str], parameters: Arrays) -> tuple[AdamW, TrainerState]:
    """Return a checkpoint without its model: an optimiser of ``parameters``, and the state.

    For models that ``load_checkpoint`` cannot load: an adapter, say, that was loaded from the same
    folder onto its base. ``parameters`` are what was trained, by name. Raises as it does.
    """
    folders.verify(Path(path))
    return _load(Path(path), parameters)


def _load(path: Path, parameters: Arrays) -> tuple[AdamW, TrainerState]:
    values = read_json_object(path / STATE, CheckpointError, STATE_LIMIT)
    tensors = read_header(path / OPTIMIZER)
    odd = tensors.keys() ^ {f"{moment}.{name}" for moment in MOMENTS for name in parameters}
    if odd:
        raise CheckpointError(
            f"{path / OPTIMIZER}: expected two moments of each trained parameter, found otherwise: "
            f"{min(odd)!r}"
        )
    try:
        settings = {name: values["optimizer"][name] for name in _SETTINGS}
        optimiser = AdamW(parameters, **settings)
        optimiser.step = integer("global_step", values["global_step"], 0, error=CheckpointError)
        state = _state(values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / STATE}: expected what save_checkpoint writes: {error}"
        ) from None
    reader = TensorReader()
    for name, moment in _moments(optimiser).items():
        _check_moment(tensors[name], moment)
        moment[...] = reader.read(tensors[name], moment.dtype)
    return optimiser, state


def _check_moment(tensor: TensorInfo, moment: NDArray) -> None:
    if tensor.shape != moment.shape or STORED.get(tensor.dtype) != moment.dtype:
        raise CheckpointError(
            f"{tensor}: expected {moment.dtype} of shape {moment.shape}, "
            f"found {tensor.dtype} of shape {tensor.shape}"
        )


def _state(values: dict[str, Any]) -> TrainerState:
    state = TrainerState(**{f.name: values[f.name] for f in dataclasses.fields(TrainerState)})
    generators = {name: _generator(value) for name, value in values["generators"].items()}
    return dataclasses.replace(state, generators=generators)


def _generator(value: dict[str, Any]) -> np.random.Generator:
    if value["bit_generator"] not in _GENERATORS:
        raise ValueError(f"no generator is called {shown(value['bit_generator'])}")
    bits = getattr(np.random, value["bit_generator"])(0)
    bits.state = value
    return np.random.Generator(bits)
