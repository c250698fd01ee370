"""MambaConfig: every size and switch of a model, read from either dialect of ``config.json``.

Hugging Face's dialect has ``hidden_size``; the original mamba-ssm one has ``d_model`` and
``ssm_cfg`` instead. Where a file has both, only Hugging Face's names count: copies of released
checkpoints disagree with themselves in the other dialect.
"""

import inspect
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from .checks import SIZE_LIMIT, choice, flag, integer, number, shown, token_ids
from .equations import ACTIVATIONS, DISCRETISATIONS
from .errors import ConfigError, UnsupportedModelError
from .files import make_folder, own_file, read_json_object, write_json
from .hub import CONFIG_FILES, locate, split_hub_options

CONFIG_NAME = "config.json"

SELECTIVE = ("delta", "B", "C")
"""What follows from the input in Mamba: the step size, and the ways in and out of the state."""

T = TypeVar("T")


def with_field_signature(cls: type[T]) -> type[T]:
    """Give a dataclass that takes its fields by name their signature, for help() and editors."""
    by_name, rest = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    own = [f for f in fields(cast(Any, cls)) if f.name != "extra"]
    parameters = [inspect.Parameter(f.name, by_name, default=f.default) for f in own]
    cast(Any, cls).__signature__ = inspect.Signature(
        [*parameters, inspect.Parameter("options", rest)]
    )
    return cls


@with_field_signature
@dataclass(eq=False)
class MambaConfig:
    """The configuration of a Mamba model, with the names and defaults of transformers.

    Keys that this class does not know are kept in ``extra``, can be read as attributes and are
    written back by ``to_dict`` and ``save_pretrained``.

    Raises ConfigError, naming the field, for a value that no model can have.
    """

    model_type: ClassVar[str] = "mamba"

    vocab_size: int = 50280
    hidden_size: int = 768
    state_size: int = 16
    num_hidden_layers: int = 32
    layer_norm_epsilon: float = 1e-5
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    expand: int | float = 2
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    initializer_range: float = 0.1
    residual_in_fp32: bool = True
    time_step_rank: int = cast(int, "auto")  # "auto": ceil(hidden_size / 16)
    time_step_scale: float = 1.0
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_init_scheme: str = "random"
    time_step_floor: float = 1e-4
    rescale_prenorm_residual: bool = False
    use_cache: bool = True
    use_mambapy: bool = False
    use_associative_scan: bool = True
    tie_word_embeddings: bool = True
    intermediate_size: int = cast(int, None)  # None: int(expand * hidden_size)
    output_hidden_states: bool = False
    return_dict: bool = True
    discretisation: str = "mamba"  # ours: one of equations.DISCRETISATIONS, to study the others
    selective: tuple[str, ...] = (
        SELECTIVE  # ours: what follows from the input, see reference.select
    )
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __init__(self, /, **options: Any):
        known = {f.name: f for f in fields(self) if f.name != "extra"}
        for name, f in known.items():
            default = f.default if f.default is not MISSING else None
            setattr(self, name, options.pop(name, default))
        options.pop("model_type", None)
        self.extra = options
        self.validate()

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are no fields: unknown keys of the file.
        if not name.startswith("__") and name in self.__dict__.get("extra", ()):
            return self.extra[name]
        raise AttributeError(f"MambaConfig has no field {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MambaConfig) and self.to_dict() == other.to_dict()

    def validate(self) -> None:
        """Check every field, and fill in ``intermediate_size`` and an automatic rank.

        Raises ConfigError for the first field that is wrong.
        """
        for name in ("vocab_size", "hidden_size", "state_size", "num_hidden_layers", "conv_kernel"):
            setattr(self, name, integer(name, getattr(self, name)))
        for name in ("layer_norm_epsilon", "time_step_min", "time_step_max", "expand"):
            number(name, getattr(self, name), low=0, above=True)
        for name in ("initializer_range", "time_step_scale", "time_step_floor"):
            number(name, getattr(self, name), low=0)
        for f in fields(self):
            if isinstance(f.default, bool):
                setattr(self, f.name, flag(f.name, getattr(self, f.name)))
        for name in ("pad_token_id", "bos_token_id"):
            if getattr(self, name) is not None:
                setattr(self, name, integer(name, getattr(self, name), low=0))
        if self.eos_token_id is not None:
            self.eos_token_id = token_ids("eos_token_id", self.eos_token_id)
        choice("hidden_act", self.hidden_act, ACTIVATIONS)
        choice("discretisation", self.discretisation, DISCRETISATIONS)
        self.selective = _checked_selective(self.selective)
        choice(
            "time_step_init_scheme", self.time_step_init_scheme, ("random", "uniform", "constant")
        )
        if self.time_step_min > self.time_step_max:
            raise ConfigError(
                f"time_step_min: expected at most time_step_max = {self.time_step_max:g}, "
                f"found {self.time_step_min:g}"
            )
        # An explicit intermediate_size wins over expand, as in transformers.
        if self.intermediate_size is None:
            channels = self.expand * self.hidden_size
            if channels > SIZE_LIMIT or channels < 1:
                raise ConfigError(
                    f"expand: expected expand * hidden_size from 1 to {SIZE_LIMIT}, "
                    f"found {shown(self.expand)} * {self.hidden_size}"
                )
            self.intermediate_size = int(channels)
        self.intermediate_size = integer("intermediate_size", self.intermediate_size)
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        self.time_step_rank = integer("time_step_rank", self.time_step_rank)

    # --- to and from files --------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> "MambaConfig":
        """Return the configuration that a ``config.json`` of either dialect describes.

        ``overrides`` replace fields by their transformers names. Raises ConfigError for a bad
        value and UnsupportedModelError for another architecture.
        """
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"expected a dictionary with names as keys, found {shown(values)}")
        values = dict(values)
        if "hidden_size" not in values and "d_model" in values:
            values = _from_mamba_ssm(values)
        _require_mamba(values)
        for derived, sources in _DERIVED.items():  # what follows from an override follows anew
            if any(source in overrides for source in sources):
                values.pop(derived, None)
        return cls(**values | overrides)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> "MambaConfig":
        """Read ``config.json`` from a folder or from the Hugging Face hub.

        ``options``: those of ``hub.HubOptions`` (revision, token, cache_dir, local_files_only,
        subfolder); any other name overrides a field. Raises FileMissingError, ConfigError or
        UnsupportedModelError.
        """
        hub_options, overrides = split_hub_options(options)
        folder = locate(name_or_path, CONFIG_FILES, hub_options)
        return cls.from_file(own_file(folder, CONFIG_NAME), **overrides)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **overrides: Any) -> "MambaConfig":
        """Read one JSON file; errors name it."""
        values = read_json_object(path)
        try:
            return cls.from_dict(values, **overrides)
        except ConfigError as error:
            raise type(error)(f"{Path(path)}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return every field and every unknown key, as ``config.json`` would hold them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        if self.discretisation == "mamba":
            del own["discretisation"]  # what every other reader takes for granted
        if self.selective == SELECTIVE:
            del own["selective"]
        else:
            own["selective"] = list(self.selective)
        return {**self.extra, **own, "model_type": self.model_type}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into ``folder``, creating it if needed."""
        write_json(make_folder(folder) / CONFIG_NAME, self.to_dict())


def _checked_selective(names: Any) -> tuple[str, ...]:
    """Return the names in the order of ``SELECTIVE``; raises ConfigError for any other."""
    listed = isinstance(names, (list, tuple))
    if not listed or any(not isinstance(n, str) or n not in SELECTIVE for n in names):
        expected = ", ".join(map(repr, SELECTIVE))
        raise ConfigError(
            f"selective: expected a list with some of {expected}, found {shown(names)}"
        )
    return tuple(name for name in SELECTIVE if name in names)


_DERIVED = {
    "intermediate_size": ("expand", "hidden_size"),
    "time_step_rank": ("hidden_size",),
}
"""Fields that the configuration computes where they are not given, and from which others."""


# --- other dialects and other architectures ----------------------------------------------------

_SSM_LAYER_KEYS = {
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "time_step_rank",
    "bias": "use_bias",
    "conv_bias": "use_conv_bias",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_init": "time_step_init_scheme",
    "dt_scale": "time_step_scale",
    "dt_init_floor": "time_step_floor",
}
_SSM_ONLY = ("d_model", "n_layer", "ssm_cfg", "rms_norm", "pad_vocab_size_multiple")


def _from_mamba_ssm(values: dict[str, Any]) -> dict[str, Any]:
    """Translate the keys of a mamba-ssm ``config.json``; keys with no counterpart stay."""
    layer = values.get("ssm_cfg") or {}
    if not isinstance(layer, dict):
        raise ConfigError(f"ssm_cfg: expected an object, found {shown(layer)}")
    if layer.get("layer", "Mamba1") != "Mamba1":
        raise UnsupportedModelError(
            f"ssm_cfg.layer: expected 'Mamba1', found {shown(layer['layer'])}"
        )
    if values.get("rms_norm", True) is not True:
        raise UnsupportedModelError(
            "rms_norm: expected true (LayerNorm is not supported), "
            f"found {shown(values['rms_norm'])}"
        )
    for name in ("attn_layer_idx", "d_intermediate"):
        if values.get(name):
            raise UnsupportedModelError(
                f"{name}: expected none, found {shown(values[name])} (attention and MLP blocks are "
                "not supported)"
            )
    translated = {k: v for k, v in values.items() if k not in _SSM_ONLY}
    translated |= {_SSM_LAYER_KEYS[k]: v for k, v in layer.items() if k in _SSM_LAYER_KEYS}
    unknown = {k: v for k, v in layer.items() if k not in _SSM_LAYER_KEYS and k != "layer"}
    translated |= {"ssm_cfg": unknown} if unknown else {}
    translated["hidden_size"] = values["d_model"]
    translated["num_hidden_layers"] = values.get("n_layer", 64)
    multiple = integer("pad_vocab_size_multiple", values.get("pad_vocab_size_multiple", 8))
    vocab_size = integer("vocab_size", values.get("vocab_size", 50277))
    translated["vocab_size"] = -(-vocab_size // multiple) * multiple
    translated["tie_word_embeddings"] = translated.pop("tie_embeddings", True)
    return translated


def _require_mamba(values: Mapping[str, Any]) -> None:
    """Refuse the configuration of another architecture by name."""
    found = values.get("model_type", "mamba")
    if found != "mamba":
        raise UnsupportedModelError(f"model_type: expected 'mamba', found {shown(found)}")
    names = values.get("architectures") or ()
    if not isinstance(names, (list, tuple)):
        raise ConfigError(f"architectures: expected a list of names, found {shown(names)}")
    for name in names:
        if not isinstance(name, str) or name not in (
            "MambaForCausalLM",
            "MambaModel",
            "MambaLMHeadModel",
        ):
            raise UnsupportedModelError(
                f"architectures: expected MambaForCausalLM or MambaModel, found {shown(name)}"
            )
    if "hidden_size" not in values:
        raise UnsupportedModelError(
            "expected hidden_size (Hugging Face) or d_model (mamba-ssm), found neither: "
            "not the configuration of a Mamba model"
        )
