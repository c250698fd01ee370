"""The loss of a language model, and its gradient with respect to every parameter."""

import sys
from collections.abc import Callable, Set
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from . import backward, reference
from .checkpoint.names import parts
from .checks import shown
from .config import MambaConfig
from .errors import InputError
from .inputs import check_batch, check_labels
from .int8 import refuse
from .model import MambaForCausalLM
from .params import Layer, Params, convert
from .reference import IGNORED_LABEL, State, Steps

Engine = Callable[[Params, MambaConfig, NDArray, NDArray], tuple[np.float64, Params]]


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
    config, dtype = model.config, model.compute_dtype
    batch = check_batch(config, dtype, input_ids, None, attention_mask)
    labels = check_labels(labels, batch.shape, config.vocab_size)
    # Masked positions are gone, and what fills the ends of shorter rows predicts nothing and is
    # read by nobody: it has no part in any gradient.
    ids, labels = batch.pack(cast(NDArray, batch.ids)), batch.pack(labels, IGNORED_LABEL)
    loss, found = _engine(model)(convert(model.params, dtype), config, ids, labels)
    if model.params.tied:
        both = found.embeddings + found.lm_head
        found = replace(found, embeddings=both, lm_head=both)
    by_name = {name: getattr(owner, field) for name, field, owner in parts(found)}
    return loss, {name: by_name[name].reshape(a.shape) for name, a in model.state_dict().items()}


def forget_arrays() -> None:
    """Let go of the arrays that compiled steps of this thread have kept for the next one.

    They are as large as all of a step's activations. Where no kernel was used there are none.
    """
    training = sys.modules.get(f"{__package__}.kernels.training")
    if training is not None:
        training.between_steps.__dict__.clear()


def _check_model(model: Any) -> None:
    if not isinstance(model, MambaForCausalLM):
        raise InputError(f"model: expected a MambaForCausalLM, found {shown(model)}")
    refuse(model.params, "loss_and_gradients", "load the model in another dtype")
    if model.config.discretisation != "mamba":
        raise InputError(
            "config.discretisation: expected 'mamba' for gradients, "
            f"found {model.config.discretisation!r}"
        )


def _engine(model: MambaForCausalLM) -> Engine:
    """Return the compiled kernels where the model computes with them, else the reference."""
    asked, dtype = model.requested_backend, model.compute_dtype
    name = backends.resolve(asked, model.config, dtype, training=True)
    if name == "cpu":
        from .kernels import training

        return training.loss_and_gradients
    return by_reference


def by_reference(
    params: Params,
    config: MambaConfig,
    ids: NDArray,
    labels: NDArray,
    detach: Set[str] = backward.NOTHING,
) -> tuple[np.float64, Params]:
    """Return the loss and its gradients in the form of parameters, by the NumPy backward pass.

    ``ids`` and ``labels`` are (B, L). The gradients of ``embeddings`` and ``lm_head`` are those of
    looking up and of scoring, also where the two are one matrix. ``detach``: see ``backward``.
    """
    kept = keep(params, config, ids)
    loss, d_final, d_head = backward.d_cross_entropy(kept.final, params.lm_head, labels)
    d_x, layers, d_norm_f = d_blocks(d_final, params, config, kept, detach)
    d_embeddings = backward.d_embed(d_x, ids, config.vocab_size)
    return loss, Params(d_embeddings, layers, d_norm_f, d_head)


class Kept(NamedTuple):
    """What a forward pass made, as the way back needs it."""

    blocks: list[tuple[NDArray, NDArray, Steps]]
    """Of each block: its input x, normed u, both (B, L, D), and the mixer's steps."""
    x: NDArray  # (B, L, D): after the last block
    final: NDArray  # (B, L, D): normed: what the head meets
    start: State  # that each block began with


def keep(params: Params, config: MambaConfig, ids: NDArray) -> Kept:  # (B L)
    """Do the reference's forward pass from empty states, and keep all that it makes."""
    eps, dtype = config.layer_norm_epsilon, params.norm_f.dtype
    x = reference.embed(ids, params.embeddings, dtype)
    start = _zero_state(config, len(x), dtype)
    blocks = []
    for layer in params.layers:
        u = reference.rms_norm(x, layer.norm, eps)
        steps, _ = reference.mixer_steps(u, layer, config, start)
        blocks.append((x, u, steps))
        x = x + reference.linear(steps.gated, layer.out_proj, layer.out_proj_bias)
    return Kept(blocks, x, reference.rms_norm(x, params.norm_f, eps), start)


def d_blocks(
    d_final: NDArray, params: Params, config: MambaConfig, kept: Kept, detach: Set[str]
) -> tuple[NDArray, tuple[Layer, ...], NDArray]:
    """Return the gradients of the embedded input (B, L, D), of each layer and of ``norm_f``.

    ``d_final`` (B, L, D) is that of ``kept.final``. Blocks are forgotten on the way.
    """
    eps = config.layer_norm_epsilon
    d_x, d_norm_f = backward.d_rms_norm(d_final, kept.x, params.norm_f, eps, detach)
    layers: list[Layer] = []
    for layer in reversed(params.layers):
        x, u, steps = kept.blocks.pop()
        mixer = backward.d_mixer(d_x, u, layer, config, steps, kept.start, detach=detach)
        d_residual, d_norm = backward.d_rms_norm(mixer.u, x, layer.norm, eps, detach)
        d_x = d_x + d_residual
        absent: dict[str, Any] = dict.fromkeys(f.name for f in fields(Layer))
        layers.insert(0, Layer(**absent | mixer.parameters | {"norm": d_norm}))
    return d_x, tuple(layers), d_norm_f


def _zero_state(config: MambaConfig, rows: int, dtype: np.dtype) -> State:
    E = config.intermediate_size
    window = np.zeros((rows, E, config.conv_kernel), dtype)
    return State(window, np.zeros((rows, E, config.state_size), dtype))
