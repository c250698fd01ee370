"""LoraConfig: what an adapter changes and how strongly, as ``adapter_config.json`` has it."""

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ..checks import choice, flag, integer, number, shown
from ..config import with_field_signature
from ..errors import ConfigError, UnsupportedModelError
from ..files import make_folder, own_file, read_json_object, write_json
from ..hub import locate, split_hub_options

ADAPTER_CONFIG = "adapter_config.json"

ALL_LINEAR = "all-linear"

WITHOUT_EFFECT = ("peft_version", "revision", "auto_mapping", "megatron_core", "qalora_group_size")
"""PEFT's keys that change nothing by themselves, whatever they hold."""

NAMES_LIMIT = 1000
"""Most names in ``target_modules`` and in each pattern; the largest Mamba has below 600 modules."""

_PLAIN = re.compile(r"\^?[\w.\\]+")


@with_field_signature
@dataclass(eq=False)
class LoraConfig:
    """The configuration of a LoRA adapter, with the names and defaults of PEFT.

    ``target_modules`` is a list of module names or their ends ("in_proj", "layers.0.mixer.x_proj"),
    a regular expression that must match whole names, or "all-linear" for in_proj, x_proj and
    out_proj. ``rank_pattern`` and ``alpha_pattern`` give modules, named like that or by a regular
    expression for the end of their names, a rank or alpha of their own.

    Options of PEFT that this class does not know are kept in ``extra`` and written back while they
    are off: null, false, 0 or empty. Raises ConfigError, naming the option, for one that is on and
    for a value that cannot be used.
    """

    peft_type: ClassVar[str] = "LORA"

    r: int = 8
    target_modules: list[str] | str | None = None
    lora_alpha: int | float = 8
    lora_dropout: float = 0.0
    bias: str = "none"
    task_type: str | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None  # None: {}
    alpha_pattern: dict[str, int | float] | None = None  # None: {}
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str = True
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __init__(self, /, **options: Any):
        _require_lora(options.pop("peft_type", self.peft_type))
        for f in fields(self):
            if f.name != "extra":
                default = f.default if f.default is not MISSING else None
                setattr(self, f.name, options.pop(f.name, default))
        self.extra = options
        self.validate()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoraConfig) and self.to_dict() == other.to_dict()

    def validate(self) -> None:
        """Check every option. Raises ConfigError for the first that is wrong."""
        self.r = integer("r", self.r)
        number("lora_alpha", self.lora_alpha)
        number("lora_dropout", self.lora_dropout, low=0, high=1)
        choice("bias", self.bias, ("none",))
        for name in ("use_rslora", "fan_in_fan_out", "inference_mode"):
            setattr(self, name, flag(name, getattr(self, name)))
        if self.task_type is not None:
            kind = getattr(self.task_type, "value", self.task_type)  # PEFT has an enumeration
            self.task_type = choice("task_type", kind, ("CAUSAL_LM",))
        if not isinstance(self.init_lora_weights, bool) and self.init_lora_weights != "gaussian":
            raise ConfigError(
                "init_lora_weights: expected true, false or 'gaussian', "
                f"found {shown(self.init_lora_weights)}"
            )
        if self.base_model_name_or_path is not None:
            self.base_model_name_or_path = os.fspath(self.base_model_name_or_path)
        self.target_modules = _names(self.target_modules)
        self.rank_pattern = _pattern("rank_pattern", self.rank_pattern, integer)
        self.alpha_pattern = _pattern("alpha_pattern", self.alpha_pattern, number)
        off = {"modules_to_save": self.modules_to_save, "fan_in_fan_out": self.fan_in_fan_out}
        for name, value in (off | self.extra).items():
            if value and name not in WITHOUT_EFFECT:
                raise ConfigError(
                    f"{name!r:.80}: expected null, false or nothing (this option of PEFT is not "
                    f"supported), found {shown(value)}"
                )

    # --- what it says of a module ---------------------------------------------------------------

    def chooses(self, module: str) -> bool:
        """Return whether ``target_modules`` names a module, given its full name.

        "all-linear" is not a name, and chooses none. Raises ConfigError for a bad expression.
        """
        if isinstance(self.target_modules, str):
            return _compiled("target_modules", self.target_modules).fullmatch(module) is not None
        return any(is_end(name, module) for name in self.target_modules or ())

    def rank(self, module: str) -> int:
        """Return the rank of a module's adapter, given its full name."""
        return self._special("rank_pattern", module, self.r)

    def scaling(self, module: str) -> float:
        """Return the factor of B @ A: alpha / r, or alpha / sqrt(r) with ``use_rslora``."""
        r = self.rank(module)
        alpha = self._special("alpha_pattern", module, self.lora_alpha)
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def _special(self, table: str, module: str, default: Any) -> Any:
        for key, value in getattr(self, table).items():
            if _compiled(table, rf"(?:.*\.)?(?:{key})$").match(module):
                return value
        return default

    # --- to and from files ----------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> "LoraConfig":
        """Return the configuration that an ``adapter_config.json`` describes.

        Raises ConfigError for a bad value, UnsupportedModelError for another kind of adapter.
        """
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"expected a dictionary with names as keys, found {shown(values)}")
        _require_lora(values.get("peft_type"))
        return cls(**dict(values) | overrides)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> "LoraConfig":
        """Read ``adapter_config.json`` from a folder or from the Hugging Face hub.

        ``options``: those of ``hub.HubOptions``; any other name overrides an option. Raises
        FileMissingError, ConfigError or UnsupportedModelError, naming the file.
        """
        hub_options, overrides = split_hub_options(options)
        folder = locate(name_or_path, (ADAPTER_CONFIG,), hub_options)
        return cls.from_file(own_file(folder, ADAPTER_CONFIG), **overrides)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **overrides: Any) -> "LoraConfig":
        """Read one JSON file; errors name it.

        In patterns it may have names, no regular expressions: a stranger's could run for ever.
        """
        values = read_json_object(path)
        try:
            config = cls.from_dict(values, **overrides)
            for table in ("rank_pattern", "alpha_pattern"):
                for key in getattr(config, table):
                    if not _PLAIN.fullmatch(key):
                        raise ConfigError(f"{table}: expected names of modules, found {shown(key)}")
        except ConfigError as error:
            raise type(error)(f"{Path(path)}: {error}") from None
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return every option, as ``adapter_config.json`` would hold them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **own, "peft_type": self.peft_type}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``adapter_config.json`` into ``folder``, creating it if needed."""
        write_json(make_folder(folder) / ADAPTER_CONFIG, self.to_dict())


def is_end(name: str, module: str) -> bool:
    """Return whether ``name`` is a module's full name, or what stands after one of its dots."""
    return module == name or module.endswith(f".{name}")


def _require_lora(found: Any) -> None:
    if not isinstance(found, str) or found != LoraConfig.peft_type:
        raise UnsupportedModelError(f"peft_type: expected 'LORA', found {shown(found)}")


def _names(value: Any) -> list[str] | str | None:
    """Check target_modules; PEFT makes sets of lists, so those are taken too, in order."""
    if value is None or (isinstance(value, str) and value):
        return value
    names = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
    fits = isinstance(names, (list, tuple)) and 0 < len(names) <= NAMES_LIMIT
    if fits and all(isinstance(name, str) and name for name in names):
        return list(names)
    raise ConfigError(
        f"target_modules: expected a list of at most {NAMES_LIMIT} module names, a regular "
        f"expression or 'all-linear', found {shown(value)}"
    )


def _pattern(name: str, value: Any, check: Any) -> dict[str, Any]:
    if value is not None and (not isinstance(value, dict) or len(value) > NAMES_LIMIT):
        raise ConfigError(
            f"{name}: expected {{name: number}} for at most {NAMES_LIMIT} names, "
            f"found {shown(value)}"
        )
    for key, one in (value or {}).items():
        if not isinstance(key, str):
            raise ConfigError(f"{name}: expected names as keys, found {shown(key)}")
        check(f"{name}[{key!r:.80}]", one)
    return dict(value or {})


@lru_cache(2 * NAMES_LIMIT)
def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{name}: expected a regular expression, found {shown(pattern)}: {error}"
        ) from None


def unmatched(config: LoraConfig, modules: Collection[str]) -> list[str]:
    """Return the names of ``target_modules`` that name none of the modules."""
    names = config.target_modules if isinstance(config.target_modules, list) else []
    return [name for name in names if not any(is_end(name, module) for module in modules)]
