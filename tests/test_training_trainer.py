"""Trainer and SFTTrainer: what they do to a model, log, keep and refuse."""

import io
import itertools
import json
import os
import signal
import sys

import numpy as np
import pytest
from kills import killed
from test_training_state import flip
from tolerances import tolerance

from mamba_np import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM
from mamba_np.errors import CheckpointError, ConfigError, InputError, TrainingError
from mamba_np.gradients import loss_and_gradients
from mamba_np.lora import LoraConfig, get_peft_model
from mamba_np.training import (
    AdamW,
    DataCollatorForLanguageModeling,
    Schedule,
    SFTConfig,
    SFTTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    callbacks,
    collate,
    epoch_order,
    evaluation,
    latest_checkpoint,
)
from mamba_np.training.callbacks import interrupts_held

WORDS = ("be", "yourself", "so", "many", "books", "time", "live", "dream", "little", "always")
QUOTES = [
    {"quote": f"{a} {b} and {b} {a}.", "author": "?", "tags": [a]}
    for a, b in itertools.islice(itertools.permutations(WORDS, 2), 40)
]
CONFIG = MambaConfig(vocab_size=13, hidden_size=8, num_hidden_layers=2, state_size=4)
ROWS = [{"input_ids": np.random.default_rng(i).integers(1, 13, 3 + i % 6)} for i in range(11)]
TIMES = ("runtime", "per_second")
RUN, LAW = tolerance("run", "float64"), tolerance("law", "float64")


@pytest.fixture
def tokenizer(model_path):
    return AutoTokenizer.from_pretrained(model_path("base_silu"))


@pytest.fixture
def base(model_path):
    return AutoModelForCausalLM.from_pretrained(model_path("base_silu"))


def small(dtype="float32"):
    return MambaForCausalLM(CONFIG, rng=0, backend="numpy", dtype=dtype)


def arguments(folder, **options):
    defaults = {
        "output_dir": folder,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
    }
    return TrainingArguments(**defaults | options)


def trainer_of(folder, model=None, rows=ROWS, **options):
    keys = ("eval_dataset", "callbacks", "data_collator")
    own = {key: options.pop(key) for key in keys if key in options}
    model = small() if model is None else model
    return Trainer(model, arguments(folder, **options), train_dataset=rows, **own)


def bits(trainer):
    """Return what a run leaves, without what the clock says."""
    arrays = {name: a.tobytes() for name, a in trainer.model.state_dict().items()}
    history = [
        {k: v for k, v in entry.items() if not k.endswith(TIMES)}
        for entry in trainer.state.log_history
    ]
    return arrays, history, trainer.state.global_step, trainer.state.epoch


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class StopAt(TrainerCallback):
    def __init__(self, step, how=None):
        self.step, self.how = step, how

    def on_step_end(self, args, state, control, **options):
        if state.global_step == self.step:
            if self.how is None:
                control.should_training_stop = True
            else:
                self.how()


# --- SFTTrainer -------------------------------------------------------------------------------


def test_both_spellings_are_one_run(model_path, tmp_path, tokenizer):
    lora = LoraConfig(r=4, target_modules=["in_proj"])
    common = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1}
    common["learning_rate"] = 1e-3  # its default is another in TRL

    def run(args, **options):
        model = AutoModelForCausalLM.from_pretrained(model_path("base_silu"))
        trainer = SFTTrainer(model, args, train_dataset=QUOTES, peft_config=lora, **options)
        assert trainer.tokenizer is trainer.processing_class
        trainer.train()
        return bits(trainer)

    data = {"dataset_text_field": "quote", "packing": True}
    old = TrainingArguments(tmp_path / "old", **common)
    new = SFTConfig(output_dir=tmp_path / "new", max_length=16, **data, **common)
    assert run(old, tokenizer=tokenizer, max_seq_length=16, **data) == run(
        new, processing_class=tokenizer
    )


def test_an_adapter_of_a_model_in_16_bits(model_path, tmp_path):
    folder = model_path("sharded_bf16")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    size = model.config.vocab_size
    rows = [{"input_ids": [i % size for i in range(k, k + 6)]} for k in range(4)]
    args = arguments(tmp_path, num_train_epochs=8, logging_steps=4, save_strategy="epoch")
    lora = LoraConfig(r=2, target_modules="all-linear")
    trainer = SFTTrainer(model, args, train_dataset=rows, peft_config=lora)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history[:-1]]
    assert losses[-1] < losses[0]
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    assert {array.dtype.name for array in trainer.model.state_dict().values()} == {"float32"}


def test_a_model_may_be_named(model_path, tmp_path):
    config = SFTConfig(tmp_path, dataset_text_field="quote", max_steps=1, max_seq_length=8)
    trainer = SFTTrainer(str(model_path("base_silu")), config, train_dataset=QUOTES[:4])
    assert trainer.train().global_step == 1
    assert max(len(row.ids) for row in trainer.train_rows) == 8
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    for name, array in trainer.model.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint-1").eos_token_id is not None


def test_sft_arguments_are_checked(tmp_path, tokenizer, base):
    for options, message in [
        ({"packing_strategy": "bfd"}, "packing_strategy: expected 'wrapped', found 'bfd'"),
        ({"max_length": 1}, "max_length: expected an integer from 2"),
        ({"dataset_text_field": 3}, "dataset_text_field: expected a string, found 3"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SFTConfig(tmp_path, **options)
    lora = LoraConfig(target_modules=["in_proj"])
    with pytest.raises(InputError, match="peft_config: expected None"):
        SFTTrainer(get_peft_model(base, lora), train_dataset=QUOTES, peft_config=lora)
    args = SFTConfig(tmp_path, completion_only_loss=True)
    with pytest.raises(InputError, match="completion_only_loss: expected false with formatting_f"):
        SFTTrainer(base, args, train_dataset=QUOTES, formatting_func=str, tokenizer=tokenizer)
    with pytest.raises(InputError, match="args: expected SFTConfig or TrainingArguments"):
        SFTTrainer(base, {"output_dir": "x"}, train_dataset=QUOTES)


# --- a run is its steps --------------------------------------------------------------------------


def test_a_run_is_what_its_steps_are_by_hand(tmp_path):
    """Accumulation, the last partial batch, the order of each epoch, the schedule, clipping."""
    options = {"gradient_accumulation_steps": 2, "warmup_steps": 2, "weight_decay": 0.1}
    trainer = trainer_of(tmp_path, small("float64"), max_grad_norm=0.5, logging_steps=1, **options)
    assert trainer.train().global_step == 6  # 11 rows: 2 * 2 + 2 * 2 + (2 + 1), twice
    model = small("float64").make_writeable()
    optimiser = AdamW(model.state_dict(), weight_decay=0.1)
    schedule, losses = Schedule(1e-2, 6, 2), []
    for epoch in range(2):
        order = epoch_order(11, 42, epoch)
        for rows in (order[:4], order[4:8], order[8:]):
            batch = collate([trainer.train_rows[i] for i in rows])
            loss, gradients = loss_and_gradients(
                model, batch["input_ids"], batch["labels"], batch.get("attention_mask")
            )
            norm = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
            scale = min(1.0, 0.5 / (norm + 1e-6))
            gradients = {name: (g * scale).astype(g.dtype) for name, g in gradients.items()}
            losses.append((float(loss), norm, schedule(optimiser.step)))
            optimiser.update(gradients, schedule(optimiser.step))
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(trainer.model.state_dict()[name], array, rtol=0, atol=RUN)
    keys = ("loss", "grad_norm", "learning_rate")
    found = [[entry[key] for key in keys] for entry in trainer.state.log_history[:-1]]
    np.testing.assert_allclose(found, losses, rtol=RUN)


def test_log_history_is_that_of_transformers(tmp_path):
    trainer = trainer_of(tmp_path)
    result = trainer.train()
    *steps, last = trainer.state.log_history
    assert [list(entry) for entry in steps] == [
        ["loss", "grad_norm", "learning_rate", "epoch", "step"]
    ] * 6
    assert [entry["step"] for entry in steps] == [2, 4, 6, 8, 10, 12]
    assert [entry["epoch"] for entry in steps] == pytest.approx([i / 3 for i in range(1, 7)])
    assert (
        last["train_loss"]
        == result.training_loss
        == pytest.approx(np.mean([entry["loss"] for entry in steps]))
    )
    assert (last["step"], last["epoch"], result.global_step) == (12, 2.0, 12)
    assert {"train_runtime", "train_samples_per_second"} <= result.metrics.keys()
    assert trainer.state.max_steps == 12
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"logging_strategy": "no"}, []),
        ({"logging_strategy": "epoch"}, [6, 12]),
        ({"logging_steps": 5, "logging_first_step": True}, [1, 5, 10]),
        ({"max_steps": 3}, [2]),
        ({"num_train_epochs": 0.5, "logging_steps": 1}, [1, 2, 3]),
    ],
)
def test_when_logs_are_made(tmp_path, options, steps):
    trainer = trainer_of(tmp_path, **options)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history[:-1]] == steps


def test_evaluation(tmp_path):
    trainer = trainer_of(tmp_path, eval_dataset=ROWS[:5], eval_strategy="steps", eval_steps=5)
    before = trainer.evaluate()
    total, count = 0.0, 0
    for one in ROWS[:5]:
        ids = one["input_ids"][None]
        total += float(trainer.model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert before["eval_loss"] == pytest.approx(total / count, rel=tolerance("law", "float32"))
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in found] == [5, 10]
    assert found[-1]["eval_loss"] < before["eval_loss"]
    half = [{"input_ids": range(1, 13)}, {"input_ids": [1, 2], "labels": [1, 2]}]
    assert trainer.evaluate(half)["eval_loss"] > 0
    with pytest.raises(InputError, match="eval_dataset: expected data to evaluate on"):
        trainer_of(tmp_path).evaluate()
    assert trainer_of(tmp_path).evaluate(ROWS[:5])["eval_loss"] == before["eval_loss"]


@pytest.mark.parametrize("tokens", [1, 2, 6, 512])
def test_the_loss_in_pieces_is_the_loss(monkeypatch, rng, tokens):
    monkeypatch.setattr(evaluation, "TOKENS", tokens)
    model, ids = small("float64"), rng.integers(0, 13, (3, 9))
    labels = np.where(rng.random((3, 9)) < 0.3, -100, ids)
    for mask in (np.ones((3, 9), int), (rng.random((3, 9)) < 0.7).astype(int), np.tri(3, 9, 2)):
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        expected = float(model(**batch).loss)
        assert evaluation.mean_loss(model, [batch]) == pytest.approx(expected, rel=LAW)
        assert evaluation.mean_loss(model, [batch, batch]) == pytest.approx(expected, rel=LAW)
    assert np.isnan(evaluation.mean_loss(model, []))


def test_a_folder_brings_its_validation(tmp_path, tokenizer, base):
    for name in ("train", "valid"):
        lines = (json.dumps({"text": one["quote"]}) for one in QUOTES[:6])
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    args = arguments(tmp_path, eval_strategy="epoch", num_train_epochs=1)
    trainer = Trainer(base, args, train_dataset=tmp_path, tokenizer=tokenizer)
    trainer.train()
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 1


def test_collators(tmp_path):
    plain = trainer_of(tmp_path)
    plain.train()
    other = trainer_of(tmp_path, data_collator=DataCollatorForLanguageModeling(mlm=False))
    other.train()
    assert bits(other) == bits(plain)


def test_callbacks_are_told_and_may_stop_a_run(tmp_path):
    told = []

    class Watch(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                return lambda args, state, control, **options: told.append(name)
            return super().__getattribute__(name)

    trainer = trainer_of(tmp_path, callbacks=[Watch(), StopAt(3)], save_strategy="steps")
    assert trainer.train().global_step == 3
    assert told[0] == "on_train_begin"
    assert told[-1] == "on_train_end"
    assert told.count("on_step_end") == 3
    assert told.count("on_log") == 2


def test_events_come_in_transformers_order(tmp_path):
    told = []

    class Watch(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                return lambda args, state, control, **options: told.append(name[3:])
            return super().__getattribute__(name)

    # Its class will do, as in transformers.
    options = {"save_strategy": "epoch", "logging_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = trainer_of(
        tmp_path, rows=ROWS[:4], eval_dataset=ROWS[:2], callbacks=[Watch], **options
    )
    trainer.train()
    step = ["step_begin", "step_end"]
    epoch = ["epoch_begin", *step, *step, "epoch_end", "log", "log", "evaluate", "save"]
    assert told == ["train_begin", *epoch, *epoch, "log", "train_end"]


def test_what_a_callback_may_ask_for(tmp_path):
    class Ask(TrainerCallback):
        def on_step_begin(self, args, state, control, **options):
            control.should_save = state.global_step == 2

        def on_epoch_end(self, args, state, control, **options):
            control.should_evaluate = True

        def on_step_end(self, args, state, control, **options):
            control.should_log = state.global_step == 1

    trainer = trainer_of(tmp_path, logging_strategy="no", eval_dataset=ROWS[:2])
    trainer.add_callback(Ask())
    trainer.train()
    *history, _ = trainer.state.log_history
    assert [(entry["step"], "loss" in entry) for entry in history] == [
        (1, True), (6, False), (12, False),
    ]  # fmt: skip
    assert names(tmp_path) == ["checkpoint-3"]
    with pytest.raises(AttributeError, match="should_epoch_stop"):  # not in silence
        trainer.control.should_epoch_stop = True


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 6, 7])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, stop, lora):
    def model():
        config = LoraConfig(r=2, target_modules=["in_proj", "embeddings"])
        return get_peft_model(small(), config, rng=1) if lora else small()

    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    undisturbed = trainer_of(tmp_path / "whole", model(), **options)
    expected = undisturbed.train()
    first = trainer_of(tmp_path / "parts", model(), callbacks=[StopAt(stop, stop_it)], **options)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert first.state.global_step == stop
    again = trainer_of(tmp_path / "parts", model(), resume_from_checkpoint=True, **options)
    result = again.train()
    assert bits(again) == bits(undisturbed)
    assert result.training_loss == expected.training_loss
    assert names(tmp_path / "parts") == ["checkpoint-11", "checkpoint-12"]
    for name in names(tmp_path / "parts" / "checkpoint-12"):
        if name not in ("manifest.json", "training_args.json"):
            paths = [tmp_path / part / "checkpoint-12" / name for part in ("whole", "parts")]
            assert paths[0].read_bytes() == paths[1].read_bytes(), name


class Say(TrainerCallback):
    def __init__(self, said):
        self.said = said

    def on_save(self, args, state, control, **options):
        self.said(state.global_step)


def long_run(folder, said, **options):
    """Train with dropped checkpoints, from the latest one there is, if any."""
    defaults = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": 200}
    resume = latest_checkpoint(folder) is not None
    options = {"resume_from_checkpoint": resume} | defaults | options
    trainer = trainer_of(folder, callbacks=[Say(said)], **options)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_run_that_is_killed_twenty_times_is_the_undisturbed_one(tmp_path):
    interrupted = killed("test_training_trainer", "long_run", tmp_path / "killed", seed=1)
    assert len(interrupted) == 20
    assert "write" in interrupted
    reached = int(latest_checkpoint(tmp_path / "killed").name.partition("-")[2])
    assert 2 * 20 <= reached < 200
    undisturbed = long_run(tmp_path / "whole", print, save_strategy="no")
    assert bits(long_run(tmp_path / "killed", print)) == bits(undisturbed)
    assert names(tmp_path / "killed") == ["checkpoint-199", "checkpoint-200"]


def stop_it():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_lets_the_step_end(tmp_path):
    def twice():
        stop_it()
        stop_it()

    trainer = trainer_of(
        tmp_path, callbacks=[StopAt(2, stop_it)], save_strategy="steps", save_steps=2
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert names(tmp_path) == ["checkpoint-2"]  # of the step that was asked to be the last
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    trainer = trainer_of(tmp_path / "b", callbacks=[StopAt(2, twice)], save_strategy="epoch")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (tmp_path / "b").exists()


def test_a_second_ctrl_c_comes_at_once():
    passed = []

    def twice():
        with interrupts_held():
            stop_it()
            passed.append(1)
            stop_it()
            passed.append(2)

    def once():
        with interrupts_held():
            stop_it()
            passed.append(3)
        passed.append(4)

    for function in (twice, once):
        with pytest.raises(KeyboardInterrupt):
            function()
    assert passed == [1, 3]
    with interrupts_held() as release:
        release()


def test_which_steps_are_kept(tmp_path):
    for name, options, steps in [
        ("a", {"save_strategy": "steps", "save_steps": 5}, [10, 12, 5]),
        ("b", {"save_strategy": "epoch"}, [12, 6]),
        ("c", {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 1}, [12]),
    ]:
        trainer_of(tmp_path / name, **options).train()
        assert names(tmp_path / name) == [f"checkpoint-{step}" for step in steps]
    trainer_of(tmp_path / "d").train()
    assert not (tmp_path / "d").exists()


def test_checkpoints_of_another_run_are_not_taken_for_ones_own(tmp_path):
    trainer_of(tmp_path, save_strategy="epoch").train()
    with pytest.raises(CheckpointError, match="overwrite_output_dir=True"):
        trainer_of(tmp_path, save_strategy="epoch").train()
    trainer_of(tmp_path, save_strategy="epoch", overwrite_output_dir=True, max_steps=6).train()
    assert names(tmp_path) == ["checkpoint-6"]
    with pytest.raises(InputError, match=r"expected the 11 rows of the run in .*, found 5"):
        trainer_of(tmp_path, rows=ROWS[:5]).train(resume_from_checkpoint=True)
    one = ROWS[3]["input_ids"]
    for other in (
        {"input_ids": one[:-1]},
        {"input_ids": one, "labels": [-100, *one[1:-1], -100]},
        {"input_ids": one[::-1], "labels": one},
    ):
        with pytest.raises(InputError, match=r"expected the 11 rows .*, found others"):
            trainer_of(tmp_path, rows=[*ROWS[:3], other, *ROWS[4:]]).train(
                resume_from_checkpoint=True
            )
    with pytest.warns(UserWarning, match="other arguments than it began with: max_steps was 6"):
        trainer_of(tmp_path, max_steps=8).train(resume_from_checkpoint=tmp_path / "checkpoint-6")
    other = MambaForCausalLM(MambaConfig(**CONFIG.to_dict() | {"hidden_size": 16}), rng=0)
    with pytest.raises(CheckpointError, match="expected float32 of shape"):
        trainer_of(tmp_path, other, max_steps=6).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-6" / "training_args.json").unlink()
    with pytest.raises(CheckpointError, match="training_args"):
        trainer_of(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-6")
    with pytest.raises(CheckpointError, match="expected a checkpoint to resume from, found none"):
        trainer_of(tmp_path / "new").train(resume_from_checkpoint=True)


def test_going_back_is_no_crash_at_the_next_checkpoint(tmp_path):
    def run(**options):
        defaults = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
        return trainer_of(tmp_path, **defaults | options)

    undisturbed = run()
    undisturbed.train()
    early = run(resume_from_checkpoint=tmp_path / "checkpoint-2")
    before = bits(early)
    with pytest.raises(CheckpointError, match="checkpoint-6: expected no checkpoint of an earlier"):
        early.train()
    assert bits(early) == before
    flip(tmp_path / "checkpoint-6" / "optimizer.safetensors")  # which is written anew
    with pytest.raises(CheckpointError, match="checkpoint-4: expected no checkpoint of an earlier"):
        early.train()
    early = run(resume_from_checkpoint=tmp_path / "checkpoint-2", overwrite_output_dir=True)
    early.train()
    assert bits(early) == bits(undisturbed)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_an_adapter_of_another_scaling_is_not_gone_on_with(tmp_path):
    def run(**options):
        config = LoraConfig(**{"r": 2, "target_modules": ["in_proj"]} | options)
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
        return trainer_of(tmp_path, get_peft_model(small(), config, rng=1), **options)

    run().train()
    assert run().train(resume_from_checkpoint=True).global_step == 2
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.mixer\.in_proj with rank 2 and a scaling of 4"
    ):
        run(lora_alpha=16).train(resume_from_checkpoint=True)


def test_save_model(tmp_path, base, tokenizer):
    trainer = Trainer(
        base, arguments(tmp_path), train_dataset=QUOTES[:0] or ROWS, tokenizer=tokenizer
    )
    trainer.save_model()
    trainer.save_model(tmp_path / "b")
    for folder in (tmp_path, tmp_path / "b"):
        assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(names(folder))


# --- what cannot be done -------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_a_run(tmp_path):
    model = small().make_writeable()
    model.state_dict()["backbone.norm_f.weight"][0] = np.nan
    with pytest.raises(TrainingError, match="step 1: expected a finite loss"):
        trainer_of(tmp_path, model).train()


def test_a_trainer_checks_what_it_is_given(tmp_path):
    with pytest.raises(InputError, match="model: expected a MambaForCausalLM or a PeftModel"):
        Trainer(None, train_dataset=ROWS)
    with pytest.raises(InputError, match=r"args: expected TrainingArguments, found \{\}"):
        Trainer(small(), {}, train_dataset=ROWS)
    with pytest.raises(InputError, match="train_dataset: expected data to train on, found None"):
        Trainer(small(), arguments(tmp_path)).train()
    with pytest.raises(ConfigError, match="eval_strategy: expected 'no' without an eval_dataset"):
        trainer_of(tmp_path, eval_strategy="steps")
    with pytest.raises(InputError, match="expected ids below the model's vocab_size, 13, found 99"):
        trainer_of(tmp_path, rows=[{"input_ids": [1, 99]}])
    with pytest.raises(InputError, match="expected an array of float32 or float64 to train"):
        trainer_of(tmp_path, MambaForCausalLM(CONFIG, rng=0, dtype="bfloat16")).train()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(folder, monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    trainer_of(folder, max_steps=3, logging_steps=2, **options).train()
    return [] if stream is None else stream.getvalue().splitlines()


def first_words(lines):
    return [line.split()[0] for line in lines]


def test_a_terminal_shows_a_bar_and_logs(tmp_path, monkeypatch):
    stream = Terminal()
    lines_of(tmp_path, monkeypatch, stream)
    text = stream.getvalue()
    assert "3/3 " in text
    assert "tokens/s" in text
    assert "learning_rate 0.006667" in text
    assert "train_runtime" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_elsewhere_and_without_a_bar_each_log_is_a_line(tmp_path, monkeypatch, stream):
    options = {"disable_tqdm": True} if stream is Terminal else {}
    monkeypatch.setattr(callbacks, "TICK", 0.0 if options else 1e9)
    evaluated = {"eval_dataset": ROWS[:2], "eval_strategy": "steps", "eval_steps": 3}
    found = lines_of(tmp_path, monkeypatch, stream(), **options, **evaluated, eval_on_start=True)
    assert first_words(found) == ["eval_loss", "loss", "eval_loss", "train_runtime"]
    assert found[1].endswith("  step 2")


def test_a_run_without_logs_tells_that_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "TICK", 0.0)
    found = lines_of(tmp_path, monkeypatch, io.StringIO())
    assert first_words(found) == ["step", "step", "loss", "step", "train_runtime"]
    assert found[0].startswith("step 1 of 3, loss ")
    assert found[0].endswith(" tokens/s")
    now = iter([0, 29, 31, 40, 62, 62, 62])  # began; steps, of which the second is the first line
    monkeypatch.setattr(callbacks, "TICK", 30.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(now))
    display = callbacks.Display(None, 9, 5)
    for _ in range(2):
        display.step(2.0, 310)
    display.step(2.0, 310)
    found = sys.stderr.getvalue().splitlines()[len(found) :]
    assert found == ["step 7 of 9, loss 2, 20 tokens/s"]


def test_a_closed_stderr_stops_nothing(tmp_path, monkeypatch, capsys):
    assert lines_of(tmp_path, monkeypatch, None) == []
    assert capsys.readouterr().out == ""
