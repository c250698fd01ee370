"""AdamW (Loshchilov & Hutter 2019) and the clipping of gradients, as PyTorch has them.

Parameters are changed where they lie, some thousand numbers at a time: the five arrays that an
update reads and writes stay in the cache of a core between its operations, and nothing of a
parameter's size is allocated.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.names import LAYER, MODEL
from ..checks import number, shown
from ..errors import InputError
from ..params import DTYPES

Arrays = Mapping[str, NDArray]

BLOCK = 2**15
"""Numbers that are updated at a time."""

CLIP_EPS = 1e-6
"""What PyTorch adds to a norm before it divides by it."""

_KEPT = ("norm", "in_proj_bias", "conv_bias", "dt_bias", "A_log", "D", "out_proj_bias")
_KEPT_NAMES = (MODEL["norm_f"].name, *(LAYER[field].name for field in _KEPT))


def decays(name: str) -> bool:
    """Tell whether weight decay belongs on a parameter, by its name in a checkpoint.

    Not on A_log and D, which the authors exempt (``_no_weight_decay`` in mamba-ssm), and not on
    biases and norms, as in transformers.
    """
    return not f"backbone.{name}".endswith(_KEPT_NAMES)


class AdamW:
    """The optimiser: ``update(gradients)`` moves every parameter once, in place.

    ``parameters`` holds arrays by name: ``model.make_writeable().state_dict()``, or some of it.
    They are float32 or float64, and their moments have their dtype. ``weight_decay`` is decoupled
    from the gradient, as in ``torch.optim.AdamW``; ``no_decay`` names the parameters without it,
    those for which ``decays`` is false unless it is given.

    ``step`` counts the updates. ``exp_avg`` and ``exp_avg_sq`` hold the running means of the
    gradients and of their squares, by parameter; all three may be set to go on from elsewhere.

    Raises InputError naming the argument or the array that cannot be used.
    """

    def __init__(
        self,
        parameters: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_decay: Collection[str] | None = None,
    ):
        self.parameters = dict(parameters)
        for name, array in self.parameters.items():
            _check_parameter(name, array)
        self.lr = number("lr", lr, low=0, error=InputError)
        self.betas = _check_betas(betas)
        self.eps = number("eps", eps, low=0, error=InputError)
        self.weight_decay = number("weight_decay", weight_decay, low=0, error=InputError)
        self.no_decay = self._check_no_decay(no_decay)
        self.step = 0
        self.exp_avg = {name: np.zeros_like(a) for name, a in self.parameters.items()}
        self.exp_avg_sq = {name: np.zeros_like(a) for name, a in self.parameters.items()}

    def update(self, gradients: Arrays, lr: float | None = None) -> None:
        """Take one step; ``lr`` is the learning rate of this step alone.

        ``gradients`` has an array of its shape and dtype for each parameter, and may have others.
        Raises InputError before anything is changed.
        """
        rate = self.lr if lr is None else number("lr", lr, low=0, error=InputError)
        for name, parameter in self.parameters.items():
            _check_gradient(name, gradients.get(name), parameter)
        self.step += 1
        for name, parameter in self.parameters.items():
            decay = 1.0 if name in self.no_decay else 1 - rate * self.weight_decay
            arrays = parameter, gradients[name], self.exp_avg[name], self.exp_avg_sq[name]
            self._move(arrays, rate, decay)

    def _move(self, arrays: tuple[NDArray, ...], lr: float, decay: float) -> None:
        """Update one parameter from (parameter, gradient, exp_avg, exp_avg_sq), block by block.

        PyTorch's operations in PyTorch's order, its ``_single_tensor_adam``.
        """
        beta1, beta2 = self.betas
        size = lr / (1 - beta1**self.step)
        root = math.sqrt(1 - beta2**self.step)
        scratch = np.empty(min(BLOCK, arrays[0].size), arrays[0].dtype)
        for p, g, m, v in _blocks(*arrays):
            t = scratch[: p.size]
            if decay != 1:
                p *= decay
            np.subtract(g, m, out=t)
            t *= 1 - beta1
            m += t
            v *= beta2
            np.multiply(g, 1 - beta2, out=t)
            t *= g
            v += t
            np.sqrt(v, out=t)
            t /= root
            t += self.eps
            np.divide(m, t, out=t)
            t *= size
            p -= t

    def _check_no_decay(self, no_decay: Collection[str] | None) -> frozenset[str]:
        if no_decay is None:
            return frozenset(name for name in self.parameters if not decays(name))
        names = [no_decay] if isinstance(no_decay, str) else no_decay
        unknown = next((name for name in names if name not in self.parameters), None)
        if unknown is not None:
            raise InputError(f"no_decay: expected names of parameters, found {shown(unknown)}")
        return frozenset(names)


def global_norm(gradients: Arrays) -> float:
    """Return the Euclidean norm of all gradients as one vector, summed in float64."""
    total = 0.0
    for name in sorted(gradients):  # the same sum to the last bit, whatever order they came in
        for (block,) in _blocks(gradients[name]):
            wide = block.astype(np.float64)
            total += float(wide @ wide)
    return math.sqrt(total)


def clip_by_global_norm(gradients: Arrays, max_norm: float) -> float:
    """Scale all gradients, in place, to a common norm of at most ``max_norm``; return their norm.

    As ``torch.nn.utils.clip_grad_norm_``; the norm is the one before, and summed in float64. A norm
    that is not finite makes all gradients NaN or 0. Raises InputError for a negative ``max_norm``.
    """
    norm = global_norm(gradients)
    clip(gradients, norm, max_norm)
    return norm


def clip(gradients: Arrays, norm: float, max_norm: float) -> None:
    """Do what ``clip_by_global_norm`` does, to gradients whose norm is known."""
    factor = number("max_norm", max_norm, low=0, error=InputError) / (norm + CLIP_EPS)
    if factor >= 1:
        return
    with np.errstate(invalid="ignore"):  # infinity times 0
        for gradient in gradients.values():
            gradient *= factor


def _blocks(*arrays: NDArray) -> Iterator[tuple[NDArray, ...]]:
    """Yield the same BLOCK numbers of each array, until all have been seen."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)


def _check_parameter(name: str, array: Any) -> None:
    trainable = (DTYPES["float32"], DTYPES["float64"])
    if not isinstance(array, np.ndarray) or array.dtype not in trainable:
        found = array.dtype if isinstance(array, np.ndarray) else shown(array)
        raise InputError(
            f"{name}: expected an array of float32 or float64 to train, found {found}; load the "
            "model in one of them"
        )
    if not array.flags.writeable:
        raise InputError(
            f"{name}: expected an array that can be written to, found a read-only one; call "
            "model.make_writeable() first"
        )
    if not array.flags.c_contiguous:  # its blocks would be copies
        raise InputError(f"{name}: expected an array in C order, found strides {array.strides}")


def _check_gradient(name: str, gradient: Any, parameter: NDArray) -> None:
    found = getattr(gradient, "dtype", None), getattr(gradient, "shape", None)
    if found != (parameter.dtype, parameter.shape):
        what = "none" if gradient is None else f"{found[0]} of shape {found[1]}"
        raise InputError(
            f"gradients: {name}: expected {parameter.dtype} of shape {parameter.shape}, "
            f"found {what}"
        )


def _check_betas(betas: Any) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise InputError(f"betas: expected two numbers, found {shown(betas)}")
    below = math.nextafter(1, 0)
    first, second = (number("betas", b, 0, below, error=InputError) for b in betas)
    return first, second
