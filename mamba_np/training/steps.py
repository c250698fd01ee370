"""One step of training: from some batches to weights that have moved once.

A batch is a mapping with ``input_ids`` and ``labels`` (B, L), and ``attention_mask`` (B, L) where
something is masked, as transformers' collators make them. Labels are usually the ids themselves:
they are shifted inside, and those that are -100 or masked are not predicted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import number, shown
from ..errors import InputError, TrainingError
from ..gradients import loss_and_gradients
from ..inputs import check_batch, check_labels
from ..reference import IGNORED_LABEL
from .optimiser import AdamW, Arrays, clip, global_norm

Batch = Mapping[str, Any]
GradientFunction = Callable[..., tuple[Any, dict[str, NDArray]]]
"""What ``loss_and_gradients`` is: of (model, input_ids, labels, attention_mask)."""

NEEDED, ALLOWED = {"input_ids", "labels"}, {"input_ids", "labels", "attention_mask"}


class StepResult(NamedTuple):
    """What a step of training has done."""

    loss: float
    """The mean loss of all predicted tokens before the step, in nats."""
    grad_norm: float
    """The norm of all gradients, before clipping."""
    tokens: int
    """How many tokens were predicted."""


def training_step(
    model: Any,
    optimiser: AdamW,
    batches: Sequence[Batch],
    lr: float | None = None,
    max_grad_norm: float | None = None,
    *,
    gradients_of: GradientFunction = loss_and_gradients,
) -> StepResult:
    """Update the optimiser's parameters once, by the gradients of one or more batches.

    The loss is the mean over the predicted tokens of all batches: batches that are cut in parts
    give the same step, in less memory. ``lr`` is this step's learning rate, the optimiser's own
    unless given; ``max_grad_norm`` the norm above which gradients are scaled down.
    ``gradients_of`` may be another function with the arguments of ``loss_and_gradients``.

    Raises InputError for what cannot be computed with, and TrainingError naming the step and the
    parameter if the loss or a gradient is NaN or infinite. Nothing has been changed then.
    """
    _check_ownership(model, optimiser)
    if max_grad_norm is not None:
        max_grad_norm = number("max_grad_norm", max_grad_norm, low=0, above=True, error=InputError)
    counts = _count_labels(model, batches)
    where = f"step {optimiser.step + 1}"
    loss, gradients = _accumulate(model, optimiser, batches, counts, gradients_of)
    norm = global_norm(gradients)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(f"{where}: {_blame(model, loss, norm, gradients)}")
    if max_grad_norm is not None:
        clip(gradients, norm, max_grad_norm)
    optimiser.update(gradients, lr)
    return StepResult(loss, norm, sum(counts))


def _accumulate(
    model: Any,
    optimiser: AdamW,
    batches: Sequence[Batch],
    counts: Sequence[int],
    gradients_of: GradientFunction,
) -> tuple[float, dict[str, NDArray]]:
    """Return the loss and the gradients of all batches, each weighted by its predicted tokens.

    Ends early, with that batch's own gradients, when a loss is not finite.
    """
    loss, total, total_count = 0.0, {}, sum(counts)
    for batch, count in zip(batches, counts, strict=True):
        if not count:  # its loss is the mean of nothing
            continue
        mask = batch.get("attention_mask")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # told as an error
            own, gradients = gradients_of(model, batch["input_ids"], batch["labels"], mask)
        gradients = _trained(gradients, optimiser)
        if not math.isfinite(own):
            return float(own), gradients
        weight = count / total_count
        loss += float(own) * weight
        for name, gradient in gradients.items():
            if weight != 1:
                gradient *= weight
            if name in total:
                total[name] += gradient
            else:
                total[name] = gradient
    return loss, total


def _trained(gradients: Arrays, optimiser: AdamW) -> dict[str, NDArray]:
    """Return the gradients of the optimiser's parameters alone: others count in no norm."""
    missing = next((name for name in optimiser.parameters if name not in gradients), None)
    if missing is not None:
        raise InputError(f"optimiser: expected parameters of the model, found {shown(missing)}")
    return {name: gradients[name] for name in optimiser.parameters}


def _check_ownership(model: Any, optimiser: AdamW) -> None:
    """Raise InputError if the optimiser would move arrays that the model does not compute with."""
    if not hasattr(model, "state_dict") or not isinstance(optimiser, AdamW):
        raise InputError(
            f"training_step: expected a model and an AdamW, found {shown(model)} and "
            f"{shown(optimiser)}"
        )
    arrays = model.state_dict()
    for name, moved in optimiser.parameters.items():
        array = arrays.get(name, moved)
        if moved.ctypes.data != array.ctypes.data or moved.shape != array.shape:
            raise InputError(
                f"optimiser: expected the model's own array for {name}, found another; make the "
                "optimiser from model.state_dict(), after model.make_writeable()"
            )


def _count_labels(model: Any, batches: Sequence[Batch]) -> list[int]:
    """Return how many tokens of each batch are predicted; raises InputError naming the batch."""
    if isinstance(batches, (Mapping, str)) or not isinstance(batches, Sequence):
        raise InputError(f"batches: expected a list of batches, found {shown(batches)}")
    counts = []
    for i, batch in enumerate(batches):
        keys = set(batch) if isinstance(batch, Mapping) else set()
        if not NEEDED <= keys <= ALLOWED:
            found = ", ".join(sorted(map(str, keys))) or shown(batch)
            raise InputError(
                f"batches[{i}]: expected input_ids, labels and, if needed, attention_mask, "
                f"found {found}"
            )
        try:
            counts.append(_predicted(model, batch))
        except InputError as error:
            raise InputError(f"batches[{i}]: {error}") from None
    if not any(counts):
        raise InputError("batches: expected at least one label to predict, found none")
    return counts


def _predicted(model: Any, batch: Batch) -> int:
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    checked = check_batch(model.config, model.compute_dtype, ids, None, mask)
    labels = check_labels(batch["labels"], checked.shape, model.config.vocab_size)
    # The first token of a row is predicted by nothing, and masked ones are absent.
    return int(np.count_nonzero(checked.pack(labels, IGNORED_LABEL)[:, 1:] != IGNORED_LABEL))


def _blame(model: Any, loss: float, norm: float, gradients: dict[str, NDArray]) -> str:
    """Say what is not finite: a weight if one is, else what the backward pass met first."""
    weight = model.find_non_finite()
    # The backward pass goes from the last parameter to the first, and carries on what it meets.
    wrong = (name for name in reversed(gradients) if not np.isfinite(gradients[name]).all())
    first = next(wrong, None)
    found = f"a loss of {loss:g}" if not math.isfinite(loss) else f"gradients of norm {norm:g}"
    text = f"expected a finite loss and finite gradients, found {found}"
    if first is not None:
        text += f"; the backward pass met NaN or infinity first at {first}"
    if weight is not None:
        text += f"; {weight} itself holds NaN or infinity"
    return text
