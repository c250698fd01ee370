"""AutoConfig and AutoModelForCausalLM: the doors that code written for transformers looks for.

Both read ``config.json`` and lead to the one architecture of this package; a configuration of
another architecture is refused by name.
"""

import os
from typing import Any

from .config import MambaConfig
from .model import MambaForCausalLM, MambaModel


class AutoConfig:
    """Door to MambaConfig."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> MambaConfig:
        """Return ``MambaConfig.from_pretrained(name_or_path, **options)``."""
        return MambaConfig.from_pretrained(name_or_path, **options)


class AutoModel:
    """Door to MambaModel."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> MambaModel:
        """Return ``MambaModel.from_pretrained(name_or_path, **options)``."""
        return MambaModel.from_pretrained(name_or_path, **options)

    @staticmethod
    def from_config(config: MambaConfig, **options: Any) -> MambaModel:
        """Return a new model with random parameters, ``MambaModel(config, **options)``."""
        return MambaModel(config, **options)


class AutoModelForCausalLM:
    """Door to MambaForCausalLM."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> MambaForCausalLM:
        """Return ``MambaForCausalLM.from_pretrained(name_or_path, **options)``."""
        return MambaForCausalLM.from_pretrained(name_or_path, **options)

    @staticmethod
    def from_config(config: MambaConfig, **options: Any) -> MambaForCausalLM:
        """Return a new model with random parameters, ``MambaForCausalLM(config, **options)``."""
        return MambaForCausalLM(config, **options)
