# ruff: noqa: F401
"""Mamba, the selective state space model (Gu & Dao 2023), in NumPy.

Start reading in ``equations`` and ``reference``. Importing this package imports NumPy alone; each
name below loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "MambaConfig": "config",
    "MambaModel": "model",
    "MambaForCausalLM": "model",
    "MambaBlock": "model",
    "MambaMixer": "model",
    "MambaCache": "cache",
    "MambaOutput": "outputs",
    "MambaCausalLMOutput": "outputs",
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoTokenizer": "tokenizer",
    "Tokenizer": "tokenizer",
    "BatchEncoding": "tokenizer",
    "GenerationConfig": "generation_config",
    "GenerateOutput": "generation",
    "TokenStream": "generation",
    "TextStreamer": "streamers",
    "TextIteratorStreamer": "streamers",
    "Trace": "trace",
    "Score": "scoring",
    "score": "scoring",
    "score_text": "scoring",
    "loss_and_gradients": "gradients",
    "LoraConfig": "lora",
    "PeftModel": "lora",
    "get_peft_model": "lora",
    "TrainingArguments": "training",
    "Trainer": "training",
    "TrainerCallback": "training",
    "DataCollatorForLanguageModeling": "training",
    "SFTConfig": "training",
    "SFTTrainer": "training",
    "bundled_model_path": "bundled",
    "set_num_threads": "threads",
    "get_num_threads": "threads",
    "MambaError": "errors",
}
_SUBMODULES = (
    *("analysis", "backend", "backward", "bundled", "derivatives", "equations", "errors"),
    *("interventions", "lora", "lti", "ops", "plot", "reference", "report", "scans", "scoring"),
    "training",
)

__all__ = ["__version__", *_MODULE_OF, *_SUBMODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:  # the same names for editors and type checkers
    from . import (
        analysis,
        backend,
        backward,
        bundled,
        derivatives,
        equations,
        errors,
        interventions,
        lora,
        lti,
        ops,
        plot,
        reference,
        report,
        scans,
        scoring,
        training,
    )
    from .auto import AutoConfig, AutoModel, AutoModelForCausalLM
    from .bundled import bundled_model_path
    from .cache import MambaCache
    from .config import MambaConfig
    from .errors import MambaError
    from .generation import GenerateOutput, TokenStream
    from .generation_config import GenerationConfig
    from .gradients import loss_and_gradients
    from .lora import LoraConfig, PeftModel, get_peft_model
    from .model import MambaBlock, MambaForCausalLM, MambaMixer, MambaModel
    from .outputs import MambaCausalLMOutput, MambaOutput
    from .scoring import Score, score, score_text
    from .streamers import TextIteratorStreamer, TextStreamer
    from .threads import get_num_threads, set_num_threads
    from .tokenizer import AutoTokenizer, BatchEncoding, Tokenizer
    from .trace import Trace
    from .training import (
        DataCollatorForLanguageModeling,
        SFTConfig,
        SFTTrainer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
