"""GenerationConfig: every option of ``generate``, with the names of transformers.

A value can be given in three places; the nearest wins: an argument of the call, the
``generation_config`` argument, the model's own ``generation_config``. Each configuration therefore
remembers which of its fields were given and which only have their defaults.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from .checks import flag, integer, number, shown, token_ids
from .config import MambaConfig, with_field_signature
from .errors import ConfigError, InputError
from .files import make_folder, own_file, read_json_object, write_json
from .hub import GENERATION_FILES, locate, split_hub_options

DEFAULT_NEW_TOKENS = 20
"""How many tokens are made where neither max_length nor max_new_tokens is given."""

TEXTS_LIMIT, FILE_TEXTS_LIMIT = 8192, 64
"""Most texts or beams of one row that a caller, or a file, can ask for: each has its own state."""

LOWEST_TEMPERATURE = 1e-100  # below, dividing logits by it could overflow


# --- checks of single values: each returns the value or raises naming the field ---------------


def _early_stopping(name: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and not (isinstance(value, str) and value == "never"):
        raise ConfigError(f"{name}: expected true, false or 'never', found {shown(value)}")
    return value


def _token_ids(name: str, value: Any) -> int | list[int]:
    if isinstance(value, (list, tuple)) and not value:
        raise ConfigError(f"{name}: expected an id or a list of ids, found an empty list")
    return token_ids(name, value)


def _strings(name: str, value: Any) -> str | list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings:
        raise ConfigError(f"{name}: expected a string or a list of strings, found {shown(value)}")
    for one in strings:
        if not isinstance(one, str) or not one:
            raise ConfigError(f"{name}: expected strings that are not empty, found {shown(one)}")
    return value if isinstance(value, str) else list(strings)


_at_least_0, _at_least_1 = partial(integer, low=0), partial(integer, low=1)
_texts = partial(integer, low=1, high=TEXTS_LIMIT)
_share = partial(number, low=0, high=1)

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_length": _at_least_1,
    "max_new_tokens": _at_least_1,
    "min_new_tokens": _at_least_0,
    "num_beams": _texts,
    "num_return_sequences": _texts,
    "temperature": partial(number, low=0),
    "top_k": _at_least_0,
    "top_p": _share,
    "min_p": _share,
    "repetition_penalty": partial(number, low=0, above=True),
    "no_repeat_ngram_size": _at_least_0,
    "length_penalty": number,
    "early_stopping": _early_stopping,
    "bos_token_id": _at_least_0,
    "eos_token_id": _token_ids,
    "pad_token_id": _at_least_0,
    "stop_strings": _strings,
    "seed": partial(integer, low=0, high=2**64 - 1),
}


@with_field_signature
@dataclass(eq=False)
class GenerationConfig:
    """How to continue a prompt; names and defaults are those of transformers.

    ``max_length`` counts the prompt (its padded width), ``max_new_tokens`` does not. Where one
    place gives both, the latter wins; otherwise the nearer place does. Where neither is given, 20
    new tokens are made whatever the prompt's length. Unknown keys, also those of options that are
    not implemented here, are kept in ``extra``, can be read as attributes and are saved again;
    ``generate`` does not use them.

    Raises ConfigError, naming the field, for a value that makes no sense. None means not given.
    """

    max_length: int = DEFAULT_NEW_TOKENS
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    stop_strings: str | list[str] | None = None
    seed: int | None = None
    use_cache: bool = True
    output_scores: bool = False
    output_logits: bool = False
    output_hidden_states: bool = False
    return_dict_in_generate: bool = False
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __init__(self, /, **options: Any):
        known = _DEFAULTS
        vars(self).update(known, extra={}, _given=set())
        for name, value in options.items():
            if name not in known:
                self.extra[name] = value
            elif value is not None:
                setattr(self, name, value)
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value
        if name in _DEFAULTS:
            self._given.add(name)

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are no fields: unknown keys of the file.
        if not name.startswith("__") and name in self.__dict__.get("extra", ()):
            return self.extra[name]
        raise AttributeError(f"GenerationConfig has no field {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    def validate(self) -> None:
        """Check every field; raises ConfigError for the first one that is wrong."""
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value is None and default is None:
                continue
            vars(self)[name] = _CHECKS.get(name, flag)(name, value)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text; empty where there is none."""
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)

    @property
    def fill_token_id(self) -> int | None:
        """What stands behind the end of a finished row: the pad id, else the first eos id."""
        eos = self.eos_token_ids
        return self.pad_token_id if self.pad_token_id is not None else eos[0] if eos else None

    def new_tokens(self, prompt_length: int) -> int:
        """Return how many tokens may be made after a prompt of the given (padded) length.

        Raises InputError if the prompt alone is as long as ``max_length``.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if "max_length" not in self._given:
            return DEFAULT_NEW_TOKENS
        if prompt_length >= self.max_length:
            raise InputError(
                f"max_length: expected more than the prompt's {prompt_length} tokens, found "
                f"{self.max_length}; max_new_tokens counts the new ones only"
            )
        return self.max_length - prompt_length

    # --- where values come from ---------------------------------------------------------------

    def updated(self, options: Mapping[str, Any]) -> "GenerationConfig":
        """Return a copy in which ``options`` replace fields; None switches an option off.

        A ``max_length`` among them also replaces a ``max_new_tokens`` given before. Raises
        TypeError for a name that is no field, InputError for a value that makes no sense.
        """
        known = _DEFAULTS
        copy = GenerationConfig(**self.extra)
        vars(copy).update({name: getattr(self, name) for name in known}, _given=set(self._given))
        if options.get("max_length") is not None:
            copy.max_new_tokens = None
        for name, value in options.items():
            if name not in known:
                raise TypeError(_unknown_option(name))
            setattr(copy, name, _OFF.get(name, known[name]) if value is None else value)
            if name == "max_length" and value is None:
                copy._given.discard(name)
        try:
            copy.validate()
        except ConfigError as error:
            raise InputError(str(error)) from None
        return copy

    def given(self) -> dict[str, Any]:
        """Return the fields that were given a value, without the unknown keys."""
        return {name: getattr(self, name) for name in _DEFAULTS if name in self._given}

    # --- to and from files --------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> "GenerationConfig":
        """Return the configuration that a ``generation_config.json`` describes."""
        return cls(**{**values, **overrides})

    @classmethod
    def from_model_config(cls, config: MambaConfig) -> "GenerationConfig":
        """Return the configuration of a model that has no file of its own: its special ids."""
        eos = config.eos_token_id if config.eos_token_id != [] else None
        return cls(
            bos_token_id=config.bos_token_id, eos_token_id=eos, pad_token_id=config.pad_token_id
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], **options: Any
    ) -> "GenerationConfig":
        """Read ``generation_config.json`` from a folder or from the Hugging Face hub.

        ``options``: those of ``hub.HubOptions``; any other name overrides a field. Raises
        FileMissingError if there is no such file, ConfigError naming it if it is wrong.
        """
        hub_options, overrides = split_hub_options(options)
        folder = locate(name_or_path, GENERATION_FILES, hub_options)
        path = own_file(Path(folder), GENERATION_FILES[0])
        values = read_json_object(path)
        try:
            for name in ("num_beams", "num_return_sequences"):
                if values.get(name) is not None:
                    integer(name, values[name], high=FILE_TEXTS_LIMIT)
            return cls.from_dict(values, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were given and the unknown keys: what the file would hold."""
        return {**self.extra, **self.given()}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``generation_config.json`` into ``folder``, creating it if needed."""
        write_json(make_folder(folder) / GENERATION_FILES[0], self.to_dict())


def combine(
    own: GenerationConfig, passed: GenerationConfig | None, options: Mapping[str, Any]
) -> GenerationConfig:
    """Return the configuration of a call: ``options`` win over ``passed``, that over ``own``.

    Raises InputError where fields do not fit together, and what ``updated`` raises.
    """
    config = own
    if passed is not None:
        if not isinstance(passed, GenerationConfig):
            kind = type(passed).__name__
            raise InputError(f"generation_config: expected a GenerationConfig, found {kind}")
        config = config.updated(passed.given())
    config = config.updated(options)
    if config.do_sample and config.temperature < LOWEST_TEMPERATURE:
        raise InputError(
            f"temperature: expected a number above 0, found {config.temperature!r}; for the "
            "likeliest token every time set do_sample=False"
        )
    one_text = config.num_beams == 1 and not config.do_sample
    if config.num_return_sequences > config.num_beams and (one_text or config.num_beams > 1):
        hint = "; without sampling all would be the same" if one_text else ""
        raise InputError(
            f"num_return_sequences: expected at most num_beams = {config.num_beams}, "
            f"found {config.num_return_sequences}{hint}"
        )
    return config


_OFF = {"top_k": 0}
"""What None switches an option to, where that is not the option's default."""


_DEFAULTS: dict[str, Any] = {
    f.name: f.default for f in fields(GenerationConfig) if f.name != "extra"
}
"""Every option's default value, in order."""


def _unknown_option(name: str) -> str:
    """Return the message for an option that does not exist, with the nearest that does."""
    known = [*_DEFAULTS, "attention_mask", "inputs_embeds", "cache_params", "logits_processor"]
    known += ["stopping_criteria", "streamer", "tokenizer", "generation_config"]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"generate() has no option {name!r}{hint}"
