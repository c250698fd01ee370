"""What can be asked of a run. Imports nothing heavy: the command line reads it for its help."""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GROUPS = ("limits", "decode", "prefill", "scan", "load", "start", "memory", "training", "size")
PEERS = ("llama.cpp", "transformers", "mambapy")
DTYPES = ("float32", "bfloat16", "float16", "int8")
FORMATS = ("F32", "F16", "BF16", "Q8_0")
"""Of llama.cpp's files."""

FLOATS = 2**27
"""Numbers in the array whose reading is timed: 512 MB, more than any cache."""

SHAPE = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
"""Of the model that is made where none is given: that of the published 130m checkpoint."""

SCAN = {"L": 2048, "E": 1536, "N": 16}
"""Steps, channels and states of the scan that is measured alone."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    only: tuple[str, ...] = GROUPS
    model: Path | None = None  # a checkpoint's folder; None: random weights of ``SHAPE``
    work: Path | None = None  # for files that are made; None: see ``work_folder``
    llama_bench: Path | None = None
    peers: tuple[str, ...] = PEERS
    backend: str = "cpu"
    dtypes: tuple[str, ...] = DTYPES
    threads: tuple[int, ...] = (1, 2)
    lengths: tuple[int, ...] = (128, 512, 2048)  # of prompts
    memory_lengths: tuple[int, ...] = (4000, 100000)
    training: tuple[tuple[int, int], ...] = ((1, 256), (4, 256), (4, 512))  # texts and their tokens
    training_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)  # of one text, for memory
    blocks: int = 5
    seconds: float = 1.5  # of a block, at least
    floats: int = FLOATS
    scan: dict[str, int] = field(default_factory=lambda: dict(SCAN))


QUICK: dict[str, Any] = {
    "lengths": (128,),
    "memory_lengths": (1000, 4000),
    "training": ((1, 256),),
    "training_lengths": (128, 256),
    "blocks": 2,
    "seconds": 0.2,
}
"""Options of a run that shows that all works, and no speeds to rely on."""


def work_folder() -> Path:
    """Return where models are made unless another folder is named; they are kept there."""
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"mamba_np-bench-{owner}"
