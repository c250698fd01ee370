"""What the state keeps: half-lives, what each token writes and reads, and who is still there.

Every function takes a trace and one of its layers and returns arrays over the traced channels (c),
tokens (L) and states (N). The recurrence is h_t = A_bar_t h_{t-1} + B_bar_t x_t, y_t = C_t h_t
(paper, equations 2a and 2b).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .parts import dynamics, exponential, of_layer, position


def half_life(trace: Any, layer: int) -> NDArray:  # (L c N) float64
    """Return after how many further tokens at most half is left of what each token writes.

    The smallest k with exp(A (S_{t+k} - S_t)) <= 1/2, where S_t = delta_1 + ... + delta_t; inf
    where the text ends before. Needs delta and B. Raises InputError as ``Trace.need`` does.
    """
    d = exponential(trace, layer)
    time = np.cumsum(d.delta, axis=0, dtype=np.float64)  # (L c)
    needed = eq.half_life(1.0, d.A.astype(np.float64))  # (c N)
    found, tokens = np.empty((len(time), *d.A.shape)), np.arange(len(time))
    for channel, S in enumerate(time.T):
        reached = np.searchsorted(S, S[:, None] + needed[channel])  # where S is that large at last
        found[:, channel] = np.where(reached < len(S), reached - tokens[:, None], np.inf)
    return found


def steady_half_life(trace: Any, layer: int) -> NDArray:  # (L c N)
    """Return the half-life in tokens if the step size stayed: ln 2 / (delta |A|).

    Not a whole number; 0.1 means that a token forgets all but 2**-10 of what was there before it.
    Needs delta and B.
    """
    d = exponential(trace, layer)
    return eq.half_life(d.delta[..., None], d.A)


def survival(trace: Any, layer: int) -> NDArray:  # (c N)
    """Return which share of what the first token writes is left at the end: channels that are near
    1 are global, near 0 local (LongMamba, arXiv:2504.16053). Needs delta, B.
    """
    d = exponential(trace, layer)
    time = d.delta[1:].sum(axis=0, dtype=np.float64)
    return eq.exp(time[:, None] * d.A)


class Strengths(NamedTuple):
    """How much each token moves a layer's state, (L) each."""

    write: NDArray
    """The length of B_bar x, what the token adds, over channels and states."""
    keep: NDArray
    """The mean of A_bar, what it leaves of the rest: 1 keeps all, 0 forgets all."""
    read: NDArray
    """The length of C h over channels: what the block gets of the state."""


def strengths(trace: Any, layer: int) -> Strengths:
    """Return what each token writes, keeps and reads. Needs delta, B, x and y."""
    x, y = of_layer(trace, layer, "x"), of_layer(trace, layer, "y")
    write, keep = np.empty((2, len(x)), x.dtype)
    for now, A_bar, B_bar in dynamics(trace, layer).blocks():
        write[now] = np.linalg.norm(B_bar * x[now, :, None], axis=(1, 2))
        keep[now] = A_bar.mean(axis=(1, 2))
    return Strengths(write, keep, np.linalg.norm(y, axis=1))


def state_shares(trace: Any, layer: int, at: int = -1) -> NDArray:  # (t + 1)
    """Return how much of each token so far lives in the state after token ``at``: the length of
    its part of h_t = sum over s of A_bar_t ... A_bar_{s+1} B_bar_s x_s. Needs delta, B and x.
    """
    x, d = of_layer(trace, layer, "x"), dynamics(trace, layer)
    at = position(at, len(x))
    squares = np.zeros(at + 1)
    for channels in d.groups(at + 1):
        A_bar, B_bar = d.steps(slice(at + 1), channels)
        parts = kept_until_the_end(A_bar) * B_bar * x[: at + 1, channels, None]
        squares += np.square(parts, dtype=np.float64).sum(axis=(1, 2))
    return eq.sqrt(squares)


def state_parts(trace: Any, layer: int, channel: int, at: int = -1) -> NDArray:  # (t + 1 N)
    """Return what each token so far has in one channel's state after token ``at``; the sum over
    tokens is h (where the text began with an empty state). Needs delta, B and x.
    """
    column, x = trace.column(channel), of_layer(trace, layer, "x")
    at = position(at, len(x))
    A_bar, B_bar = dynamics(trace, layer).steps(slice(at + 1), [column])
    return (kept_until_the_end(A_bar) * B_bar)[:, 0] * x[: at + 1, [column]]


def influence(trace: Any, layer: int) -> NDArray:  # (L)
    """Return how much each token's write can be seen in later outputs: the sum of g_s |B_bar_s x_s|
    with g_t = |C_t| + A_bar_{t+1} g_{t+1}, over channels and states (after arXiv:2511.17970).
    Needs delta, B, C and x.
    """
    x, C, d = of_layer(trace, layer, "x"), of_layer(trace, layer, "C"), dynamics(trace, layer)
    found, g = np.zeros(len(x), x.dtype), np.zeros_like(d.A)
    for now, A_bar, B_bar in d.blocks(backward=True):
        written = np.abs(B_bar * x[now, :, None])
        for i in reversed(range(len(A_bar))):
            t = now.start + i
            g = np.abs(C[t]) + g
            found[t] = (g * written[i]).sum()
            g = np.abs(A_bar[i]) * g
    return found


def kept_until_the_end(A_bar: NDArray) -> NDArray:  # (L c N) -> (L c N)
    """Return the product of all later A_bar, 1 for the last token."""
    kept = np.ones_like(A_bar)
    np.cumprod(A_bar[:0:-1], axis=0, out=kept[-2::-1])
    return kept
