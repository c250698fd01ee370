"""The small checkpoints that come with the package, so that nothing has to be downloaded first."""

from pathlib import Path

from .errors import InputError

BUNDLED = ("stories", "induction_heads")
"""Their names; the first is what the CLI uses unless told otherwise. Each has a card, README.md."""


def bundled_model_path(name: str = BUNDLED[0]) -> Path:
    """Return the folder of a bundled model, in Hugging Face's format.

    "stories" is a language model of 2.3 million parameters with its tokenizer; "induction_heads"
    the paper's synthetic task (section 4.1.2) on 16 tokens, 66 thousand parameters. The folder can
    be passed wherever a model's name or folder is expected. Raises InputError for another name.
    """
    if name not in BUNDLED:
        raise InputError(f"name: expected one of {', '.join(BUNDLED)}, found {name!r}")
    return Path(__file__).parent / "models" / name
