"""The gradients of an adapter: the chain rule from those of the matrices that it changes."""

from typing import Any

import numpy as np

from ..checks import shown
from ..errors import InputError
from ..gradients import loss_and_gradients
from .model import PeftModel
from .targets import Arrays


def lora_loss_and_gradients(
    peft_model: PeftModel, input_ids: Any, labels: Any, attention_mask: Any = None
) -> tuple[np.float64, Arrays]:
    """Return the loss of the adapted model, and its gradient with respect to A and B.

    The arguments are those of ``loss_and_gradients``, (B, L); the gradients have the names and
    shapes of ``peft_model.state_dict()``. With W' = W + s * B @ A they are
    dA = s * B^T @ dW' and dB = s * dW' @ A^T.

    Raises InputError for input that the model refuses, for adapters that are switched off, and
    for ``lora_dropout``: it drops inputs of the adapter alone, which no matrix W' can do.
    """
    if not isinstance(peft_model, PeftModel):
        raise InputError(f"peft_model: expected a PeftModel, found {shown(peft_model)}")
    if peft_model.disabled:
        raise InputError("peft_model: expected adapters that are on, found disable_adapter()")
    dropout = peft_model.active_peft_config.lora_dropout
    if dropout:
        raise InputError(f"lora_dropout: expected 0 for training, found {dropout:g}")
    loss, full = loss_and_gradients(peft_model.effective, input_ids, labels, attention_mask)
    arrays, gradients = peft_model.state_dict(), {}
    for target in peft_model.targets:
        gradients |= target.gradients(full[target.key], arrays)
    return loss, gradients
