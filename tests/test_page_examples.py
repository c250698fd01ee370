"""The examples of the Mamba page of transformers' documentation run with one import changed.

They are written here as they stand there; ``translate`` makes the change. The name of the published
checkpoint leads to a small reference checkpoint, through huggingface_hub's own cache, and that of
the data set to a file. What is expected was made with transformers 5.23.0 and torch 2.13.0 from the
same files.
"""

import json
import shutil

import fake_hub
import numpy as np
import pytest
from conftest import FIXTURES
from tolerances import assert_close_to_scale, tolerance

from mamba_np import MambaForCausalLM, PeftModel

GENERATION = """
from transformers import MambaConfig, MambaForCausalLM, AutoTokenizer
import torch

tokenizer = AutoTokenizer.from_pretrained("state-spaces/mamba-130m-hf")
model = MambaForCausalLM.from_pretrained("state-spaces/mamba-130m-hf")
input_ids = tokenizer("Hey how are you doing?", return_tensors= "pt")["input_ids"]

out = model.generate(input_ids, max_new_tokens=10)
print(tokenizer.batch_decode(out))
"""

CONFIGURATION = """
from transformers import MambaConfig, MambaModel

# Initializing a Mamba configuration
configuration = MambaConfig()

# Initializing a model (with random weights) from the configuration
model = MambaModel(configuration)

# Accessing the model configuration
configuration = model.config
"""

MODEL = """
from transformers import AutoTokenizer, MambaModel
import torch

tokenizer = AutoTokenizer.from_pretrained("state-spaces/mamba-130m-hf")
model = MambaModel.from_pretrained("state-spaces/mamba-130m-hf")

inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
outputs = model(**inputs)

last_hidden_states = outputs.last_hidden_state
"""

CAUSAL_LM = """
import torch
from transformers import AutoTokenizer, MambaForCausalLM

tokenizer = AutoTokenizer.from_pretrained("state-spaces/mamba-130m-hf")
model = MambaForCausalLM.from_pretrained("state-spaces/mamba-130m-hf")

inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
outputs = model(**inputs, labels=inputs["input_ids"])
loss = outputs.loss
logits = outputs.logits
"""

FINE_TUNING = """
from datasets import load_dataset
from trl import SFTTrainer
from peft import LoraConfig
from transformers import AutoTokenizer, AutoModelForCausalLM, TrainingArguments
model_id = "state-spaces/mamba-130m-hf"
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(model_id)
dataset = load_dataset("Abirate/english_quotes", split="train")
training_args = TrainingArguments(
    output_dir="./results",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    logging_dir='./logs',
    logging_steps=10,
    learning_rate=2e-3
)
lora_config =  LoraConfig(
        r=8,
        target_modules=["x_proj", "embeddings", "in_proj", "out_proj"],
        task_type="CAUSAL_LM",
        bias="none"
)
trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    args=training_args,
    peft_config=lora_config,
    train_dataset=dataset,
    dataset_text_field="quote",
)
trainer.train()
"""

# The same as TRL 1 has it: the key of the texts is the configuration's, the tokenizer renamed.
TODAY = (
    FINE_TUNING.replace("import SFTTrainer", "import SFTConfig, SFTTrainer")
    .replace(", TrainingArguments", "")
    .replace("TrainingArguments(", "SFTConfig(")
    .replace("    logging_dir='./logs',\n", "")
    .replace("learning_rate=2e-3", 'learning_rate=2e-3,\n    dataset_text_field="quote"')
    .replace("tokenizer=tokenizer", "processing_class=tokenizer")
    .replace('    dataset_text_field="quote",\n)', ")")
)

NEW_IDS = [53, 53, 230, 24, 140, 266, 6, 234, 230, 267]
NEW_TEXT = "UU\ufffd8\ufffdmo&\ufffd\ufffdat"
HIDDEN_LAST = [0.1220788, -0.4242943, 0.8028543, -0.0927813, -0.356661, 0.9300752, 1.7345277]
LOGITS_LAST = [-1.3380671, -1.7090147, -0.9251021, -2.7647913, -1.128188, -0.1106672, 1.7337208]
LOSS = 7.425483703613281


def translate(example: str) -> str:
    """Return an example of the page for this package."""
    for old, new in (
        ("import torch\n", ""),
        ("from transformers", "from mamba_np"),
        ("from peft", "from mamba_np"),
        ("from trl", "from mamba_np"),
        ("from datasets import load_dataset\n", ""),
        ('load_dataset("Abirate/english_quotes", split="train")', '"quotes.jsonl"'),
        ('"pt"', '"np"'),
    ):
        example = example.replace(old, new)
    return example


@pytest.fixture
def run(tmp_path):
    """Run an example as a program; return what the lines in ``report`` print as JSON."""

    def run(example: str, report: str) -> tuple[list[str], dict]:
        cache = tmp_path / "hub"
        fake_hub.publish(cache, "state-spaces/mamba-130m-hf", FIXTURES / "models" / "base_silu")
        report = f"\nimport json\nprint(json.dumps({report}))\n"
        printed = fake_hub.run_offline(translate(example) + report, cache, tmp_path)
        *lines, last = printed.splitlines()
        return lines, json.loads(last)

    return run


def test_generation(run):
    lines, found = run(GENERATION, "{'prompt': input_ids.tolist(), 'out': out.tolist()}")
    assert found["out"] == [found["prompt"][0] + NEW_IDS]
    assert lines == [repr(["Hey how are you doing?" + NEW_TEXT])]


def test_configuration(run):
    report = (
        "{'same': model.config is configuration, 'sizes': [configuration.hidden_size, "
        "configuration.num_hidden_layers, configuration.vocab_size, configuration.state_size],"
        "'parameters': model.num_parameters()}"
    )
    _, found = run(CONFIGURATION, report)
    assert found["same"]
    V, D, E, N, R, K = 50280, 768, 1536, 16, 48, 4
    block = D + 2 * E * D + E * K + E + (R + 2 * N) * E + E * R + E + E * N + E + D * E
    assert found["sizes"] == [D, 32, V, N]
    assert found["parameters"] == V * D + 32 * block + D


def test_model(run):
    report = "{'shape': last_hidden_states.shape, 'last': last_hidden_states[0, -1].tolist()}"
    _, found = run(MODEL, report)
    assert found["shape"] == [1, 19, 64]
    assert_close_to_scale(found["last"][:7], HIDDEN_LAST, tolerance("model", "float32"))


def test_causal_lm(run):
    report = "{'loss': float(loss), 'shape': logits.shape, 'last': logits[0, -1].tolist()}"
    _, found = run(CAUSAL_LM, report)
    assert found["shape"] == [1, 19, 323]
    assert_close_to_scale(found["last"][:7], LOGITS_LAST, tolerance("model", "float32"))
    assert_close_to_scale(found["loss"], LOSS, tolerance("model", "float32"), "loss")


@pytest.mark.parametrize("example", [FINE_TUNING, TODAY], ids=["page", "today"])
def test_fine_tuning(run, tmp_path, example):
    shutil.copy(FIXTURES / "quotes.jsonl", tmp_path)
    report = (
        "{'losses': [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry],"
        "'logits': trainer.model([[3, 1, 4]]).logits[0, -1].tolist(),"
        "'steps': trainer.state.global_step, 'parameters': "
        "trainer.model.get_nb_trainable_parameters()}"
    )
    lines, found = run(example, report)
    assert lines == []
    assert (len(found["losses"]), found["steps"]) == (3, 30)
    assert found["losses"][0] > found["losses"][1] > found["losses"][2]
    V, D, E, R, N, r = 323, 64, 128, 4, 16, 8
    adapter = r * (V + D) + 3 * r * ((D + 2 * E) + (E + R + 2 * N) + (E + D))
    assert found["parameters"][0] == adapter
    base = MambaForCausalLM.from_pretrained(FIXTURES / "models" / "base_silu")
    assert found["parameters"][1] == adapter + base.num_parameters()
    trained = PeftModel.from_pretrained(base, tmp_path / "results" / "checkpoint-30")
    logits = trained([[3, 1, 4]]).logits[0, -1]
    assert_close_to_scale(logits, found["logits"], tolerance("law", "float32"))
    assert not np.allclose(logits, base([[3, 1, 4]]).logits[0, -1], atol=0.1)
