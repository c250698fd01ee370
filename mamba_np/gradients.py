"""The loss of a language model, and its gradient with respect to every parameter."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backward, reference
from .checkpoint.names import HEAD, MODEL, layer_key
from .checks import shown
from .errors import InputError
from .inputs import check_batch, check_labels
from .int8 import refuse
from .model import MambaForCausalLM
from .reference import IGNORED_LABEL, State


def loss_and_gradients(
    model: MambaForCausalLM, input_ids: Any, labels: Any, attention_mask: Any = None
) -> tuple[np.float64, dict[str, NDArray]]:
    """Return the loss of ``model(input_ids, attention_mask, labels=labels)`` and its gradients.

    ``input_ids``, ``labels`` and ``attention_mask`` are (B, L) as for the model. The gradients have
    the shapes of the parameters and their names in a checkpoint, and the dtype that the model
    computes in; a tied head adds to the gradient of the embeddings. With no label to predict the
    loss is nan and the gradients are zeros.

    Raises InputError for input that the model refuses, for int8 weights and for discretisations
    other than Mamba's own.
    """
    _check_model(model)
    config, params, dtype = model.config, model.params, model.compute_dtype
    batch = check_batch(config, dtype, input_ids, None, attention_mask)
    labels = batch.pack(check_labels(labels, batch.shape, config.vocab_size), IGNORED_LABEL)
    ids = batch.pack(batch.ids)
    x = reference.embed(ids, params.embeddings, dtype)
    start = _zero_state(config, len(x), dtype)
    kept = []
    for layer in params.layers:
        u = reference.rms_norm(x, layer.norm, config.layer_norm_epsilon)
        steps, _ = reference.mixer_steps(u, layer, config, start, batch.lengths)
        kept.append((x, u, steps))
        x = x + reference.linear(steps.gated, layer.out_proj, layer.out_proj_bias)
    final = reference.rms_norm(x, params.norm_f, config.layer_norm_epsilon)
    loss, d_final, d_head = backward.d_cross_entropy(final, params.lm_head, labels)
    gradients: dict[str, NDArray] = {}
    d_x, gradients[MODEL["norm_f"].name] = backward.d_rms_norm(
        d_final, x, params.norm_f, config.layer_norm_epsilon
    )
    for i, layer in reversed(list(enumerate(params.layers))):
        x, u, steps = kept.pop()
        mixer = backward.d_mixer(d_x, u, layer, config, steps, start, batch.lengths)
        d_residual, d_norm = backward.d_rms_norm(mixer.u, x, layer.norm, config.layer_norm_epsilon)
        d_x = d_x + d_residual
        for field, gradient in {"norm": d_norm, **mixer.parameters}.items():
            gradients[layer_key(i, field)] = gradient
    d_embeddings = backward.d_embed(d_x, ids, config.vocab_size)
    if params.tied:
        d_embeddings += d_head
    else:
        gradients[HEAD] = d_head
    gradients[MODEL["embeddings"].name] = d_embeddings
    shaped = {name: gradients[name].reshape(a.shape) for name, a in model.state_dict().items()}
    return loss, shaped


def _check_model(model: Any) -> None:
    if not isinstance(model, MambaForCausalLM):
        raise InputError(f"model: expected a MambaForCausalLM, found {shown(model)}")
    refuse(model.params, "loss_and_gradients", "load the model in another dtype")
    if model.config.discretisation != "mamba":
        raise InputError(
            "config.discretisation: expected 'mamba' for gradients, "
            f"found {model.config.discretisation!r}"
        )


def _zero_state(config, rows: int, dtype) -> State:
    E = config.intermediate_size
    window = np.zeros((rows, E, config.conv_kernel), dtype)
    return State(window, np.zeros((rows, E, config.state_size), dtype))
