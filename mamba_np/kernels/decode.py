"""One token of each text: the step kernel's arguments, kept from call to call."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import MambaConfig
from ..errors import BackendError
from ..threads import Member, get_num_threads, run_team
from .packing import Packed, Sizes, aligned
from .step import Team, Weights, Work, step

DECODE_TEXTS = 64
"""Texts up to which a token of each goes through ``step``. With twice as many the matrix library
makes the scores sooner; with fewer it loses everywhere."""

WORTH_A_THREAD = 2**21
"""Bytes of weights that each thread of a step should read at least: waking one costs time too."""

_FLOATS = np.zeros(0, np.float32)

Look = Callable[[int, Work, NDArray, Any], None]
"""Called after each block with its number, the arrays that the kernel has left, the places (T) in
the batch of the texts that they hold, and the states (T, N, E) from before the block."""


def threads_for(weights: int) -> int:
    """Return how many threads to share the reading of so many bytes of weights."""
    return max(1, min(get_num_threads(), weights // WORTH_A_THREAD))


def decode(
    x: NDArray,
    p: Packed,
    config: MambaConfig,
    memory: tuple[NDArray, NDArray],
    lengths: NDArray | None,
    look: Look | None = None,
) -> NDArray:
    """Advance the states by one token x (B, 1, D) of each text; return (B, 1, D) normed outputs.

    Texts of length 0 stay as they are; their outputs are zeros. With ``look`` the blocks are done
    one at a time, by the same kernel, whose arrays it sees after each of them.
    """
    conv, ssm = memory
    texts = np.arange(len(x)) if lengths is None else np.flatnonzero(lengths > 0)
    if not len(texts):
        return np.zeros_like(x)
    hidden = np.zeros((len(texts), x.shape[2]), np.float32)
    inputs = np.array(x[texts, 0], order="C")  # kernels are compiled for arrays one can write to
    eps = np.float32(config.layer_norm_epsilon)
    size, s = threads_for(p.nbytes), p.sizes
    work = _work(s, len(texts), size)
    count = s.layers if look is None else 1
    for first in range(0, s.layers, count):
        some = slice(first, first + count)
        before = None if look is None else ssm[first, texts]
        w = Weights(p.addresses[some], p.norm_f, p.like, _FLOATS, p.group, eps)
        arrays = work, conv[some], ssm[some], texts, inputs, hidden
        _advance(w, s._replace(layers=count), arrays, size)
        if look is not None:
            look(first, work, texts, before)
            inputs = np.array(work.residual[0, :, : s.D], order="C")
    if len(texts) == len(x):
        return hidden[:, None]
    result = np.zeros_like(x)
    result[texts, 0] = hidden
    return result


def _advance(w: Weights, s: Sizes, arrays: tuple[Any, ...], size: int) -> None:
    def forward(member: Member) -> None:
        team = Team(member.rank, member.size, member.meeting)
        if not step(w, s, *arrays, team):
            raise BackendError("backend: expected all threads to finish a step, found one gone")

    run_team(forward, size, blas=False)


_kept = threading.local()


def _work(s: Sizes, texts: int, ranks: int) -> Work:
    """Return the arrays of a step, the same ones as last time if they still fit."""
    key = (s, texts, ranks)
    if getattr(_kept, "key", None) != key:
        _kept.key, _kept.work = key, _new_work(s, texts, ranks)
    return _kept.work


def _new_work(s: Sizes, texts: int, ranks: int) -> Work:
    def zeros(*shape: int) -> Any:
        return aligned(shape)

    return Work(
        residual=zeros(ranks, texts, s.D_pad),
        normed=zeros(ranks, texts, s.D_pad),
        inputs=zeros(texts, 2 * s.E_pad),
        x=zeros(texts, s.E_pad),
        mixed=zeros(texts, s.M_pad),
        y=zeros(texts, s.E_pad),
        out=zeros(texts, s.D_pad),
    )
