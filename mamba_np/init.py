"""Random parameters for a new model, in each of the field's three conventions.

``transformers-4.53`` (the default) is what transformers did up to 4.53, the era of its Mamba page;
``transformers-5`` what it does since 4.54; ``mamba-ssm`` what the authors' code does. They differ
in the projections, the convolution's bias and the embeddings; the recurrence (A_log, D, dt) is
the same in all three: paper, section 3.6.
"""

import math

import numpy as np
from numpy.typing import NDArray

from . import equations as eq
from .config import MambaConfig
from .errors import InputError
from .params import Layer, Params, as_dtype, compute_dtype, convert

SCHEMES = ("transformers-4.53", "transformers-5", "mamba-ssm")


def init_params(
    config: MambaConfig,
    rng: np.random.Generator | int | None = None,
    *,
    scheme: str = "transformers-4.53",
    dtype: str | np.dtype = "float32",
    head: bool = True,
) -> Params:
    """Return random parameters for ``config``, reproducible from a Generator or a seed.

    ``head=False`` leaves lm_head out. Raises InputError for an unknown scheme or dtype.
    """
    storage = as_dtype(dtype)
    draws = _Draws(np.random.default_rng(rng), compute_dtype(storage), scheme)
    V, D = config.vocab_size, config.hidden_size
    std = 0.02 if scheme == "mamba-ssm" else config.initializer_range
    embeddings = draws.normal(std, V, D)
    layers = tuple(_layer(config, draws) for _ in range(config.num_hidden_layers))
    lm_head = embeddings if head else None
    if head and not config.tie_word_embeddings:
        lm_head = _linear(config, draws, V, D)
    params = Params(embeddings, layers, draws.full(1, D), lm_head)
    return convert(params, storage)


def init_layer(
    config: MambaConfig,
    rng: np.random.Generator | int | None = None,
    *,
    scheme: str = "transformers-4.53",
) -> Layer:
    """Return random float32 parameters for one layer; arguments and errors as ``init_params``."""
    return _layer(config, _Draws(np.random.default_rng(rng), np.dtype(np.float32), scheme))


class _Draws:
    """Random arrays of one dtype, in one convention."""

    def __init__(self, rng: np.random.Generator, dtype: np.dtype, scheme: str):
        if scheme not in SCHEMES:
            raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, found {scheme!r}")
        self.rng, self.dtype, self.scheme = rng, dtype, scheme

    def unit(self, *shape: int) -> NDArray:  # U(0, 1)
        return self.rng.random(shape, self.dtype.type)

    def uniform(self, bound: float, *shape: int) -> NDArray:  # U(-bound, bound)
        array = self.unit(*shape)
        array *= 2 * bound
        array -= bound
        return array

    def normal(self, std: float, *shape: int) -> NDArray:  # N(0, std)
        array = self.rng.standard_normal(shape, self.dtype.type)
        array *= std
        return array

    def full(self, value: float, *shape: int) -> NDArray:
        return np.full(shape, value, self.dtype)


def _layer(config: MambaConfig, draws: _Draws) -> Layer:
    D, E, N = config.hidden_size, config.intermediate_size, config.state_size
    R, K = config.time_step_rank, config.conv_kernel
    modern = draws.scheme == "transformers-5"

    def linear_bias(outputs: int) -> NDArray | None:
        return draws.full(0, outputs) if config.use_bias else None

    def conv_bias() -> NDArray | None:
        if not config.use_conv_bias:
            return None
        return draws.full(0, E) if modern else draws.uniform(1 / math.sqrt(K), E)

    return Layer(
        norm=draws.full(1, D),
        in_proj=_linear(config, draws, 2 * E, D),
        in_proj_bias=linear_bias(2 * E),
        conv=draws.uniform(1 / math.sqrt(K), E, K),
        conv_bias=conv_bias(),
        x_proj=_linear(config, draws, R + 2 * N, E),
        dt_proj=_dt_proj(config, draws),
        dt_bias=_dt_bias(config, draws),
        A_log=np.tile(np.log(np.arange(1, N + 1, dtype=draws.dtype)), (E, 1)),  # S4D-Real
        D=draws.full(1, E),
        out_proj=draws.uniform(1 / math.sqrt(E), D, E) / _depth_scale(config, draws.scheme),
        out_proj_bias=linear_bias(D),
    )


def _linear(config: MambaConfig, draws: _Draws, outputs: int, inputs: int) -> NDArray:
    """Return the matrix (outputs, inputs) of a projection."""
    if draws.scheme == "transformers-5":
        return draws.normal(config.initializer_range, outputs, inputs)
    return draws.uniform(1 / math.sqrt(inputs), outputs, inputs)


def _depth_scale(config: MambaConfig, scheme: str) -> float:
    """Return what out_proj is divided by, so that the residual's variance does not grow."""
    rescale = scheme == "mamba-ssm" or config.rescale_prenorm_residual
    return math.sqrt(config.num_hidden_layers) if rescale else 1.0


def _dt_proj(config: MambaConfig, draws: _Draws) -> NDArray:  # (E, R)
    R = config.time_step_rank
    bound = config.time_step_scale / math.sqrt(R)
    if config.time_step_init_scheme == "uniform":  # documented, and leaves torch's own default
        return draws.uniform(1 / math.sqrt(R), config.intermediate_size, R)
    if config.time_step_init_scheme == "constant":
        return draws.full(bound, config.intermediate_size, R)
    return draws.uniform(bound, config.intermediate_size, R)


def _dt_bias(config: MambaConfig, draws: _Draws) -> NDArray:  # (E)
    """Return the bias that makes softplus(bias) log-uniform in [time_step_min, time_step_max]."""
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    dt = np.exp(low + (high - low) * draws.unit(config.intermediate_size))
    dt = np.maximum(dt, config.time_step_floor)
    return eq.inverse_softplus(dt)
