"""Low-rank adapters (LoRA: Hu et al. 2021) in the names and the files of Hugging Face's PEFT.

A matrix W (O, I) that an adapter changes is used as W + scaling * B @ A, with A (r, I) and B (O, r)
small: the adapted model is a model like any other, whose parameters are computed from both.
``config`` says what is adapted and how strongly, ``targets`` which matrices that are, ``files``
reads and writes PEFT's files, ``model`` joins a model and an adapter, ``gradients`` has their
gradients.
"""

from .config import LoraConfig
from .gradients import lora_loss_and_gradients
from .model import PeftModel, get_peft_model
from .targets import count_trainable

__all__ = [
    "LoraConfig",
    "PeftModel",
    "count_trainable",
    "get_peft_model",
    "lora_loss_and_gradients",
]
