"""Run one trained model with each rule of discretisation: how much does the rule matter?

    python tools/discretisation.py story.txt --bytes 40000

One line for each rule of ``equations.DISCRETISATIONS``: bits per byte of the text, and how much
more than with the rule that the model was trained with.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

from mamba_np import AutoTokenizer, MambaConfig, MambaForCausalLM, bundled_model_path, score_text
from mamba_np.equations import DISCRETISATIONS
from mamba_np.errors import NonFiniteError


def bits_per_byte(folder: str | Path, rule: str, text: bytes) -> float | None:
    """Return the model's bits per byte with a rule; None where its states leave all numbers."""
    config = replace(MambaConfig.from_pretrained(folder), discretisation=rule)
    model = MambaForCausalLM.from_pretrained(folder, config=config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        return score_text(model, tokenizer, io.BytesIO(text)).bits_per_byte
    except NonFiniteError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="a text in UTF-8")
    parser.add_argument("--bytes", type=int, default=40_000, help="how much of it is read")
    parser.add_argument("--model", default=bundled_model_path(), help="a folder; else the bundled")
    options = parser.parse_args()
    text = options.file.read_bytes()[: options.bytes].decode("utf-8", "ignore").encode()
    print("| rule | bits per byte | more |\n|---|---|---|")
    trained = None
    for rule in DISCRETISATIONS:
        found = bits_per_byte(options.model, rule, text)
        trained = found if trained is None else trained
        if found is None or trained is None:
            print(f"| {rule} | states grow without end | |")
        else:
            print(f"| {rule} | {found:.4f} | {found / trained - 1:+.2%} |", flush=True)


if __name__ == "__main__":
    main()
