"""PeftModel: a model and an adapter, used together, trained, saved, or merged into one.

An adapted model is a MambaForCausalLM whose matrices are the changed ones. It is computed when it
is needed, and again when the adapter's numbers are no longer those that it was computed from.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import shown
from ..config import MambaConfig
from ..errors import ConfigError, InputError, NonFiniteError
from ..generation import GenerateOutput, GenerationConfig, TokenStream
from ..hub import split_hub_options
from ..int8 import refuse
from ..interventions import Change
from ..model import MambaForCausalLM
from ..outputs import MambaCausalLMOutput
from ..params import Params, map_arrays
from ..trace import Trace
from ..trace.labels import tokenizer_of
from .config import ALL_LINEAR, LoraConfig
from .files import locate_adapter, read_adapter, save_adapter
from .targets import INERT, LINEAR, REFUSED, Arrays, Target, check_names, find_targets

TIED_MERGE = (
    "merge_and_unload: the adapter of the embeddings changes the lookup of tokens only, but the "
    "head is the same matrix (tie_word_embeddings) and now changes with it, as in PEFT: logits "
    "differ from those of the adapted model. untie=True keeps them, with a head of its own"
)


class _Made(NamedTuple):
    """An adapted model, and all that it was computed from."""

    base: tuple[Params, MambaConfig]
    arrays: Arrays
    model: MambaForCausalLM


class PeftModel:
    """A MambaForCausalLM with a LoRA adapter. Made by ``get_peft_model`` or ``from_pretrained``.

    The base model is never changed. Its weights may be stored in 16 bits: the adapted ones are
    computed and kept in float32, since small changes would be lost in rounding.
    """

    def __init__(
        self,
        model: MambaForCausalLM,
        peft_config: LoraConfig,
        targets: tuple[Target, ...],
        arrays: Arrays,
    ):
        self.base_model = model
        self.peft_config = {"default": peft_config}
        self.targets = targets
        self.disabled = False
        self._arrays = {name: array.copy() for name, array in arrays.items()}
        for array in self._arrays.values():
            array.flags.writeable = not peft_config.inference_mode
        self._made: _Made | None = None

    # --- files ----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        model: MambaForCausalLM,
        name_or_path: str | os.PathLike[str],
        *,
        is_trainable: bool = False,
        **options: Any,
    ) -> "PeftModel":
        """Join a model and the adapter in a folder or on the Hugging Face hub.

        ``is_trainable`` allows the adapter to be changed. ``options``: those of
        ``hub.HubOptions``. Raises FileMissingError, ConfigError, CheckpointError, NonFiniteError
        or UnsafeFileError naming the file, InputError for a model that cannot be adapted.
        """
        hub_options, unknown = split_hub_options(options)
        if unknown:
            raise TypeError(f"from_pretrained() got unexpected arguments: {', '.join(unknown)}")
        _check_model(model)
        folder = locate_adapter(name_or_path, hub_options)
        adapter = read_adapter(folder, model)
        inert = next((t.module for t in adapter.targets if t.field == INERT), None)
        if is_trainable and inert is not None:
            raise ConfigError(f"is_trainable: expected False for {inert}: {REFUSED[INERT]}")
        config = _changed(adapter.config, inference_mode=not is_trainable)
        return cls(model, config, adapter.targets, adapter.arrays)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter alone, as PEFT does: two files and a model card.

        Raises FileMissingError for what cannot be written, CheckpointError if the folder's name
        is taken by a file.
        """
        save_adapter(folder, self.active_peft_config, self._arrays)

    def __repr__(self) -> str:
        trainable, total = self.get_nb_trainable_parameters()
        return f"PeftModel({trainable:,} of {total:,} parameters trainable, {self.base_model!r})"

    # --- parameters -----------------------------------------------------------------------------

    @property
    def active_peft_config(self) -> LoraConfig:
        """The adapter's configuration."""
        return self.peft_config["default"]

    def state_dict(self) -> Arrays:
        """Return the adapter's arrays by their names in PEFT's files, as read-only views."""
        views = {name: array.view() for name, array in self._arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        return views

    def trainable(self) -> Arrays:
        """Return the adapter's arrays by name, to be changed in place: the model follows.

        Raises InputError for an adapter that was loaded without ``is_trainable=True``.
        """
        if self.active_peft_config.inference_mode:
            raise InputError(
                "inference_mode: expected an adapter to train, found true; load it with "
                "PeftModel.from_pretrained(..., is_trainable=True)"
            )
        return dict(self._arrays)

    def find_non_finite(self) -> str | None:
        """Return the name of the first array of adapter or base that holds NaN or infinity."""
        wrong = (name for name, array in self._arrays.items() if not np.isfinite(array).all())
        return next(wrong, None) or self.base_model.find_non_finite()

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many numbers can be trained, and how many there are: a tied head once."""
        own = sum(array.size for array in self._arrays.values())
        trainable = 0 if self.active_peft_config.inference_mode else own
        return trainable, own + self.base_model.num_parameters()

    def print_trainable_parameters(self) -> None:
        """Print the two counts in PEFT's words."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    # --- the adapted model ----------------------------------------------------------------------

    @property
    def effective(self) -> MambaForCausalLM:
        """The model that is used: the adapted one, or the base inside ``disable_adapter``.

        It is computed anew when a number of the adapter has changed, or the base model has got
        other parameters; an earlier one stays as it was. Parameters of the base that are changed
        in place are not noticed. Raises InputError if adapter and base no longer fit.
        """
        if self.disabled:
            return self.base_model
        base = self.base_model.params, self.base_model.config
        if self._made is None or not _same(self._made, base, self._arrays):
            self._made = None  # one of them at a time in memory
            arrays = {name: array.copy() for name, array in self._arrays.items()}
            params = _adapted(_widened(base[0], self.compute_dtype), self.targets, arrays)
            self._made = _Made(base, arrays, _model_like(self.base_model, params))
        self._made.model.generation_config = self.generation_config
        return self._made.model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Use the base model alone inside a ``with`` block."""
        before, self.disabled = self.disabled, True
        try:
            yield
        finally:
            self.disabled = before

    def merge_and_unload(self, *, untie: bool = False) -> MambaForCausalLM:
        """Return a new model with the changes added to its matrices, in the base's own dtype.

        Where embeddings are adapted and the head is tied to them, the one matrix gets the change,
        as in PEFT, and a warning says that logits differ; with ``untie=True`` the head keeps the
        base's matrix, logits stay, and the new model is not tied. Raises NonFiniteError for
        numbers too large for that dtype.
        """
        base = self.base_model
        params = _adapted(base.params, self.targets, self._arrays)
        for target in self.targets:
            if not np.isfinite(target.matrix(params)).all():
                raise NonFiniteError(
                    f"{target.key}: expected finite numbers that {base.dtype} can hold, "
                    "found others"
                )
        if base.params.tied and not params.tied and not untie:
            warnings.warn(TIED_MERGE, stacklevel=2)
            params = replace(params, lm_head=params.embeddings)
        return _model_like(base, params)

    def get_base_model(self) -> MambaForCausalLM:
        """Return the model without the adapter."""
        return self.base_model

    # --- what a MambaForCausalLM does -----------------------------------------------------------

    @property
    def config(self) -> MambaConfig:
        """The base model's configuration."""
        return self.base_model.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's defaults for ``generate``."""
        return self.base_model.generation_config

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which the base's matrices are stored."""
        return self.base_model.dtype

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of activations, of the adapter and of the adapted matrices."""
        return self.base_model.compute_dtype

    def __call__(self, *arguments: Any, **options: Any) -> MambaCausalLMOutput:
        """Score every next token; see MambaForCausalLM."""
        return self.effective(*arguments, **options)

    forward = __call__

    def generate(self, *arguments: Any, **options: Any) -> NDArray | GenerateOutput:
        """Continue a prompt; see MambaForCausalLM."""
        return self.effective.generate(*arguments, **options)

    def stream(self, *arguments: Any, **options: Any) -> TokenStream:
        """Continue a prompt step by step; see MambaForCausalLM."""
        return self.effective.stream(*arguments, **options)

    def trace(self, *arguments: Any, **options: Any) -> Trace:
        """Read one text and return what goes on inside; see MambaForCausalLM."""
        if options.get("tokenizer") is None:  # the adapted model came from no files
            options["tokenizer"] = tokenizer_of(self.base_model)
        return self.effective.trace(*arguments, **options)

    def intervene(self, *changes: Change) -> AbstractContextManager[MambaForCausalLM]:
        """Change the adapted model, as it is now, while a block lasts; see MambaForCausalLM."""
        return self.effective.intervene(*changes)

    def new_cache(self, batch_size: int = 1) -> Any:
        """Return an empty cache for the adapted model, which fits no other: not the base."""
        return self.effective.new_cache(batch_size)


def get_peft_model(
    model: MambaForCausalLM,
    peft_config: LoraConfig,
    *,
    rng: np.random.Generator | int | None = None,
) -> PeftModel:
    """Join a model and a new adapter, drawn from ``rng`` (a NumPy Generator or a seed).

    At first it changes nothing, unless ``init_lora_weights`` is false: of the two factors of a
    matrix one is zero. Raises InputError for a model that cannot be adapted, ConfigError for
    target modules that are not there or cannot be adapted.
    """
    _check_model(model)
    if not isinstance(peft_config, LoraConfig):
        raise InputError(f"peft_config: expected a LoraConfig, found {shown(peft_config)}")
    targets = find_targets(model.config, peft_config)
    check_names(model.config, peft_config)
    generator, scheme = np.random.default_rng(rng), peft_config.init_lora_weights
    arrays: Arrays = {}
    for target in targets:
        arrays |= target.initial(generator, model.compute_dtype, scheme)
    if peft_config.target_modules == ALL_LINEAR:  # PEFT would take dt_proj for one of them
        peft_config = _changed(peft_config, target_modules=list(LINEAR))
    if peft_config.base_model_name_or_path is None and model._loaded is not None:
        peft_config = _changed(peft_config, base_model_name_or_path=model._loaded[1].name_or_path)
    return PeftModel(model, peft_config, targets, arrays)


def _check_model(model: Any) -> None:
    if not isinstance(model, MambaForCausalLM):
        raise InputError(f"model: expected a MambaForCausalLM, found {shown(model)}")
    refuse(model.params, "an adapter", "load the model in another dtype")


def _changed(config: LoraConfig, **changes: Any) -> LoraConfig:
    return LoraConfig(**config.to_dict() | changes)


def _same(made: _Made, base: tuple[Params, MambaConfig], arrays: Arrays) -> bool:
    if made.base[0] is not base[0] or made.base[1] is not base[1]:
        return False
    return all(np.array_equal(array, made.arrays[name]) for name, array in arrays.items())


def _widened(params: Params, dtype: np.dtype) -> Params:
    """Return parameters whose matrices all have ``dtype``: kernels expect one dtype for all."""

    def wide(_: str, array: NDArray) -> NDArray:
        result = array.astype(dtype, copy=False)
        if result is not array:
            result.flags.writeable = False  # so that an engine may prepare it once
        return result

    return params if params.embeddings.dtype == dtype else map_arrays(wide, params)


def _adapted(params: Params, targets: tuple[Target, ...], arrays: Arrays) -> Params:
    """Return ``params`` with changed matrices, each in the dtype it had; a tied head stays.

    Raises InputError for a matrix that has another shape by now.
    """
    changes: dict[int | None, Arrays] = {}
    for target in targets:
        matrix, result = target.matrix(params), target.change(arrays)
        if matrix.shape != result.shape:
            raise InputError(
                f"{target.key}: expected shape {result.shape}, which the adapter was made for, "
                f"found {matrix.shape}"
            )
        with np.errstate(over="ignore"):  # float16; a merge looks for what became infinite
            result += matrix.astype(result.dtype, copy=False)
            result = result.astype(matrix.dtype, copy=False)
        result.flags.writeable = False
        changes.setdefault(target.layer, {})[target.field] = result
    layers = [replace(layer, **changes.get(i, {})) for i, layer in enumerate(params.layers)]
    return replace(params, layers=tuple(layers), **changes.get(None, {}))


def _model_like(base: MambaForCausalLM, params: Params) -> MambaForCausalLM:
    """Return a model of these parameters, tied or not as they are, and else like the base."""
    config = base.config
    if params.tied != config.tie_word_embeddings:
        config = MambaConfig(**config.to_dict() | {"tie_word_embeddings": params.tied})
    model = MambaForCausalLM(config, params=params, backend=base.requested_backend)
    model.generation_config = base.generation_config
    return model
