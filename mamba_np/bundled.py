"""The small checkpoint that comes with the package, so that the first text needs no download."""

from pathlib import Path

BUNDLED_NAME = "starter"


def bundled_model_path() -> Path:
    """Return the folder of the bundled model, in Hugging Face's format.

    It can be passed wherever a model's name or folder is expected.
    """
    return Path(__file__).parent / "models" / BUNDLED_NAME
