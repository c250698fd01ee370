"""The errors this package raises on purpose.

Every one is a ``MambaError`` and also the built-in error that people catch for such a case
(``ValueError``, ``FileNotFoundError``, ...). A message names the file, tensor or argument, what
was expected and what was found.
"""


class MambaError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(MambaError, ValueError):
    """A configuration field has a value that no Mamba model can have."""


class UnsupportedModelError(ConfigError):
    """The files describe another architecture, or a variant that is not implemented here."""


class CheckpointError(MambaError, ValueError):
    """The weights' files are damaged, contradict each other or do not fit the configuration."""


class FileMissingError(CheckpointError, FileNotFoundError):
    """A file or folder that is needed does not exist, or is not a regular file."""


class UnsafeFileError(CheckpointError):
    """A file asks for something a checkpoint never needs: code, or files outside its folder."""


class TokenizerError(MambaError, ValueError):
    """A tokenizer's files are damaged, or it cannot do what was asked."""


class InputError(MambaError, ValueError):
    """An argument of a model call (ids, embeddings, mask, labels, option) cannot be used."""


class CacheError(MambaError, ValueError):
    """A cache does not belong to this model or this batch."""


class NonFiniteError(MambaError, ArithmeticError):
    """A weight, state or logit is NaN or infinite where only finite numbers make sense."""


class TrainingError(MambaError, ArithmeticError):
    """A step of training met a NaN or infinite loss or gradient; the weights are as before it."""


class BackendError(MambaError, RuntimeError):
    """The backend that was asked for is unknown or not available on this machine."""
