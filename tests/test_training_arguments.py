"""TrainingArguments: transformers' names and defaults, and what is refused by name."""

import pytest

from mamba_np.errors import ConfigError
from mamba_np.training import SFTConfig, TrainingArguments


def test_arguments_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours, theirs = TrainingArguments(), transformers.TrainingArguments.__dataclass_fields__
    defaults = {name: f.default for name, f in theirs.items()}
    for name, value in ours.to_dict().items():
        if name in defaults and name != "output_dir":
            assert value == defaults[name], name
    for name, f in theirs.items():  # every one is known here at its default
        default = f.default_factory() if callable(f.default_factory) else f.default
        TrainingArguments(**{name: default})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fp16": True}, "fp16: expected None, false, 0 or nothing"),
        ({"deepspeed": "ds.json"}, "deepspeed: expected None"),
        ({"optim": "adafactor"}, "optim: expected 'adamw_torch'"),
        ({"report_to": "wandb"}, "report_to: expected 'none'"),
        ({"dataloader_num_workers": 4}, "dataloader_num_workers: expected 0, found 4"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: expected one of linear"),
        ({"save_strategy": "best"}, "save_strategy: expected one of no, steps, epoch"),
        ({"learning_rate": -1}, "learning_rate: expected a finite number of at least 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected an integer"),
        ({"logging_steps": 0.1}, "logging_steps: expected an integer"),
        ({"num_train_epochs": 0}, "num_train_epochs: expected a finite number above 0"),
        ({"adam_beta1": 1.0}, "adam_beta1"),
        ({"eval_steps": 0}, "eval_steps: expected an integer"),
        ({"warmup_ratio": 2}, "warmup_ratio"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingArguments(**options)


def test_arguments_that_ask_for_nothing_are_taken():
    TrainingArguments("out", report_to=[], fp16=False, optim="adamw_torch", logging_dir="./logs")
    with pytest.raises(TypeError, match="unexpected argument 'learning_rat'"):
        TrainingArguments(learning_rat=1)
    assert TrainingArguments(evaluation_strategy="epoch").eval_strategy == "epoch"
    assert TrainingArguments(warmup_steps=0.1).get_warmup_steps(25) == 3
    assert TrainingArguments(warmup_ratio=0.1).get_warmup_steps(25) == 3
    assert TrainingArguments(warmup_steps=7, warmup_ratio=0.1).get_warmup_steps(25) == 7


def test_arguments_and_defaults_are_those_of_trl():
    config = SFTConfig()
    assert (config.learning_rate, config.logging_steps, config.max_length) == (2e-5, 10, 1024)
    SFTConfig(  # as TRL 1 has them, but for packing_strategy, which does nothing without packing
        model_init_kwargs=None, chat_template_path=None, dataset_kwargs=None, dataset_num_proc=4,
        eos_token=None, truncation_mode="keep_start", shuffle_dataset=False, padding_free=False,
        pad_to_multiple_of=None, eval_packing=None, assistant_only_loss=False, pad_token=None,
        loss_type="chunked_nll", activation_offloading=False, gradient_checkpointing=False,
        logging_dir="./logs",
    )  # fmt: skip
    for options, message in [
        ({"assistant_only_loss": True}, "assistant_only_loss: expected None, false"),
        ({"loss_type": "dft"}, "loss_type: expected 'nll' or 'chunked_nll' or None, found 'dft'"),
        ({"fp16": True}, "fp16: expected None, false"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SFTConfig(**options)
    with pytest.raises(TypeError, match=r"TrainingArguments.*'assistant_only_loss'"):
        TrainingArguments(assistant_only_loss=False)
