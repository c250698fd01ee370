"""SFTTrainer: fine-tuning on texts, whole or by an adapter, with TRL's names, new and old."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..auto import AutoModelForCausalLM
from ..checks import shown
from ..config import with_field_signature
from ..errors import ConfigError, InputError
from ..lora import LoraConfig, PeftModel, get_peft_model
from .arguments import TrainingArguments
from .data import MAX_LENGTH, DataOptions
from .trainer import Trainer

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "dataset_num_proc": (),
    "eval_packing": (None,),
    "loss_type": ("nll", "chunked_nll", None),
    "pad_to_multiple_of": (),
    "shuffle_dataset": (True, False),
    "truncation_mode": ("keep_start",),
}
_OFF = (
    *("activation_offloading", "assistant_only_loss", "chat_template_path", "dataset_kwargs"),
    *("eos_token", "model_init_kwargs", "pad_token", "padding_free"),
)
"""TRL's arguments, as ``arguments.NEUTRAL`` and ``arguments.OFF`` have those of transformers."""


@with_field_signature
@dataclass(eq=False)
class SFTConfig(TrainingArguments):
    """TrainingArguments, and how texts become rows, with TRL's names and defaults.

    Rows have at most ``max_length`` tokens (``max_seq_length`` is its old name; None: any number).
    ``packing`` fills them with several texts and cuts what does not fit
    (``packing_strategy="wrapped"``, the one strategy here). ``completion_only_loss`` None predicts
    completions only where the data has prompts and completions. ``dataset_text_field`` is the key
    of texts. Raises as TrainingArguments.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = TrainingArguments.neutral | _NEUTRAL
    off: ClassVar[tuple[str, ...]] = (*TrainingArguments.off, *_OFF)

    learning_rate: float = 2e-5
    logging_steps: int = 10
    dataset_text_field: str = "text"
    max_length: int | None = MAX_LENGTH
    packing: bool = False
    packing_strategy: str = "wrapped"
    completion_only_loss: bool | None = None

    def __init__(self, output_dir: str | os.PathLike[str] | None = None, /, **options: Any):
        if "max_seq_length" in options:
            options["max_length"] = options.pop("max_seq_length")
        super().__init__(output_dir, **options)

    def validate(self) -> None:
        """Check every argument. Raises ConfigError for the first that is wrong."""
        super().validate()
        if self.packing_strategy != "wrapped":
            raise ConfigError(
                f"packing_strategy: expected 'wrapped', found {shown(self.packing_strategy)}"
            )
        if not isinstance(self.dataset_text_field, str):
            raise ConfigError(
                f"dataset_text_field: expected a string, found {shown(self.dataset_text_field)}"
            )
        try:
            self.data_options()
        except InputError as error:
            raise ConfigError(str(error)) from None

    def data_options(
        self, formatting_func: Callable[[dict[str, Any]], str] | None = None
    ) -> DataOptions:
        """Return what the arguments say of the data."""
        return DataOptions(
            self.max_length,
            self.packing,
            self.dataset_text_field,
            self.completion_only_loss,
            formatting_func,
        )


class SFTTrainer(Trainer):
    """A Trainer for texts, ``{"text"}`` or ``{"prompt", "completion"}``, and for adapters.

    Two ways of calling it do the same: TRL's present one, with ``processing_class`` and an
    SFTConfig, and its old one, with ``tokenizer``, ``dataset_text_field``, ``max_seq_length`` and
    ``packing`` as arguments of the trainer and plain TrainingArguments.

    ``model`` may be a folder or hub id; the tokenizer is then, unless it is given, the one beside
    it. With ``peft_config`` (a LoraConfig) a new adapter is made, drawn from ``args.seed``, and
    trained alone; checkpoints and ``save_model`` hold the adapter. ``formatting_func`` makes the
    text of an example. Raises as Trainer and ``get_peft_model``.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        tokenizer: Any = None,
        callbacks: Sequence[Any] | None = None,
        peft_config: LoraConfig | None = None,
        dataset_text_field: str | None = None,
        max_seq_length: int | None = None,
        packing: bool | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ):
        own = {
            "dataset_text_field": dataset_text_field,
            "max_length": max_seq_length,
            "packing": packing,
        }
        args = _config(args, {name: value for name, value in own.items() if value is not None})
        self._options = args.data_options(formatting_func)
        given = tokenizer if processing_class is None else processing_class
        model, given = _loaded(model, given)
        if peft_config is not None:
            if isinstance(model, PeftModel):
                raise InputError(
                    "peft_config: expected None for a model that has an adapter already, "
                    f"found {shown(peft_config)}"
                )
            model = get_peft_model(model, peft_config, rng=args.seed)
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, given, callbacks=callbacks
        )

    def data_options(self) -> DataOptions:
        """Return how examples become rows."""
        return self._options


def _config(args: TrainingArguments | None, own: dict[str, Any]) -> SFTConfig:
    """Return the arguments of a run as an SFTConfig, with those of the trainer itself."""
    if args is not None and not isinstance(args, TrainingArguments):
        raise InputError(f"args: expected SFTConfig or TrainingArguments, found {shown(args)}")
    if isinstance(args, SFTConfig) and not own:
        return args
    given = {} if args is None else {f.name: getattr(args, f.name) for f in fields(args)}
    return SFTConfig(**given | own)


def _loaded(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Load a model that was named, and the tokenizer beside a model that came without one."""
    if isinstance(model, (str, os.PathLike)):
        if tokenizer is None:
            from ..tokenizer import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model)
        model = AutoModelForCausalLM.from_pretrained(model)
    return model, tokenizer
