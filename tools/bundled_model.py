"""Make the language model that comes with the package again: tokenizer, training, folder and card.

    python tools/bundled_model.py tokenizer DATA RUN
    python tools/bundled_model.py train DATA RUN
    python tools/bundled_model.py finish DATA RUN FOLDER

DATA is a folder with the stories, train.txt and valid.txt: a paragraph a line, and the line
``<|endoftext|>`` after each story. RUN is a folder for the tokenizer and the checkpoints; started
again, ``train`` goes on from the last of them. FOLDER is what the package ships: weights in bf16,
and a card with the held-out bits per byte and with samples as they came.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mamba_np import AutoTokenizer, MambaConfig, MambaForCausalLM, SFTConfig, SFTTrainer
from mamba_np.scoring import score_text

VOCABULARY, END = 4096, "<|endoftext|>"
LENGTH, BATCH = 512, 8
CONFIG = MambaConfig(
    vocab_size=VOCABULARY,
    hidden_size=192,
    num_hidden_layers=6,
    initializer_range=0.02,
    rescale_prenorm_residual=True,
    torch_dtype="float32",
)


# --- tokenizer ----------------------------------------------------------------------------------


def make_tokenizer(data: Path, run: Path) -> None:
    """Learn byte-level BPE from the stories, and write it as transformers does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stories = (data / "train.txt").read_text(encoding="utf-8").split(f"{END}\n")
    tokenizer.train_from_iterator(stories, trainer)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(run / "tokenizer.json"))
    special = {f"{name}_token": END for name in ("bos", "eos", "pad", "unk")}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (run / "tokenizer_config.json").write_text(json.dumps(kind | special, indent=2) + "\n")


# --- training -----------------------------------------------------------------------------------


def train(data: Path, run: Path, steps: int, seed: int) -> None:
    """Train from random parameters, or from the run's last checkpoint."""
    arguments = SFTConfig(
        max_length=LENGTH,
        output_dir=run / "checkpoints",
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=50,
        eval_strategy="steps",
        eval_steps=500,
        save_steps=250,
        save_total_limit=2,
        seed=seed,
    )
    trainer = SFTTrainer(
        model=MambaForCausalLM(CONFIG, rng=seed),
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(run),
    )
    found = any((run / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=found)
    trainer.save_model(run / "trained")


# --- what is shipped ----------------------------------------------------------------------------

PROMPTS = ("Once upon a time", "The king said", "The little girl", "In the forest", "One morning")
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 80}


def finish(data: Path, run: Path, folder: Path) -> None:
    """Write the folder that the package ships: bf16 weights, tokenizer, card."""
    trained = MambaForCausalLM.from_pretrained(run / "trained", dtype="bfloat16")
    trained.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.save_pretrained(folder)
    model = MambaForCausalLM.from_pretrained(folder)
    with open(data / "valid.txt", "rb") as stream:
        held_out = score_text(model, tokenizer, stream)
    values = {
        "parameters": f"{model.num_parameters():,}",
        "bits": f"{held_out.bits_per_byte:.3f}",
        "tokens": f"{held_out.tokens:,}",
        "size": f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB",
        "steps": f"{steps_of(run):,}",
        "samples": "\n\n".join(f"> {sample(model, tokenizer, text)}" for text in PROMPTS),
    }
    card = (Path(__file__).parent / "bundled_model_card.md").read_text(encoding="utf-8")
    for name, value in values.items():
        card = card.replace("{" + name + "}", value)
    (folder / "README.md").write_text(card, encoding="utf-8")


def steps_of(run: Path) -> int:
    """Return how many steps the run's last checkpoint has behind it."""
    return max(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("checkpoint-*"))


def sample(model: MambaForCausalLM, tokenizer: Any, prompt: str) -> str:
    """Return what the model makes of a prompt with seed 0, as it comes."""
    inputs = tokenizer(prompt, return_tensors="np")
    ids = model.generate(**inputs, **SAMPLING, seed=0)
    return tokenizer.decode(ids[0], skip_special_tokens=True).replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["tokenizer", "train", "finish"])
    parser.add_argument("data", type=Path, help="folder with train.txt and valid.txt")
    parser.add_argument("run", type=Path, help="folder of the tokenizer and the checkpoints")
    parser.add_argument("folder", type=Path, nargs="?", help="of the finished model")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.action == "tokenizer":
        make_tokenizer(options.data, options.run)
    elif options.action == "train":
        train(options.data, options.run, options.steps, options.seed)
    elif options.folder is None:
        parser.error("finish: expected the folder to write, found none")
    else:
        finish(options.data, options.run, options.folder)


if __name__ == "__main__":
    main()
