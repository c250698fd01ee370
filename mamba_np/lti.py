"""Linear time-invariant systems: what a state space model is while delta, B and C stay the same.

One step is h_t = A_bar h_{t-1} + B_bar x_t, y_t = C h_t with the same A_bar, B_bar and C at every
t. Then y has three equal forms: the recurrence itself, a convolution of x with a fixed kernel
K_t = C A_bar^t B_bar, and a product of x with a lower triangular matrix that is constant along its
diagonals. S4 was trained as a convolution and used as a recurrence (Gu, Goel and Re 2021, sections
2.3 and 2.4; Gu and Dao 2023, section 2, equations 2 and 3). Selection gives this up: ``reference``.

A system has one channel, A_bar, B_bar and C of shape (N), or E of them, (E N). The last axes of x
fit: (L) or (L E), with any others, such as a batch, before them. (L E) below stands for both.
"""

import numpy as np
from numpy.typing import NDArray

from . import reference
from .checks import integer
from .errors import InputError


def recurrence(x, A_bar, B_bar, C, h=None):  # (L E), (E N), (E N), (E N), (E N) -> (L E), (L E N)
    """Return y and the states after each step, one step at a time (paper, equation 2).

    ``h`` is the state before the first step, zeros by default; the last of the states continues
    the sequence. Raises InputError where shapes do not fit.
    """
    A_bar, B_bar, C = _system(A_bar, B_bar, C)
    x = _input(x, A_bar.shape[:-1])
    drive = np.moveaxis(B_bar * x[..., None], -A_bar.ndim - 1, 0)  # time first: (L ... E N)
    before = np.zeros(drive.shape[1:], drive.dtype)
    if h is not None:
        if np.shape(h) not in (before.shape, A_bar.shape):
            raise InputError(f"h: expected the shape {before.shape}, found {np.shape(h)}")
        before += h
    steps = np.broadcast_to(A_bar, drive.shape)
    states = reference.recurrence(steps[None], drive[None], before[None])[0]
    states = np.moveaxis(states, 0, -A_bar.ndim - 1)
    return np.vecdot(states, C), states


def kernel(A_bar, B_bar, C, L: int) -> NDArray:  # (E N), (E N), (E N) -> (L E)
    """Return K_t = C A_bar^t B_bar for t < L: what is read of an input of 1, t steps later.

    Source: paper, equation 3a; A_bar is diagonal, and its powers are those of its numbers. Raises
    InputError where shapes do not fit, or for an L that is no positive integer.
    """
    L = integer("L", L, error=InputError)
    A_bar, B_bar, C = _system(A_bar, B_bar, C)
    powers = np.ones((L, *A_bar.shape), A_bar.dtype)
    np.cumprod(np.broadcast_to(A_bar, powers[1:].shape), axis=0, out=powers[1:])
    return np.vecdot(powers * B_bar, C)


def convolve(x, K) -> NDArray:  # (L E), (L E) -> (L E)
    """Return y_t = sum over s <= t of K_{t-s} x_s, by the fast Fourier transform.

    Source: paper, equation 3b; Gu, Goel and Re 2021, section 2.4. A product of transforms is a
    convolution on a circle: zeros behind x, as many as K is long, keep its end from coming round to
    its beginning. Errors are to the scale of the largest y, as sums over all inputs are formed.

    Raises InputError where K does not fit the last axes of x.
    """
    x, K = np.asarray(x), np.asarray(K)
    if K.ndim not in (1, 2) or x.shape[-K.ndim :] != K.shape:
        raise InputError(f"K: expected the last axes of x, of shape {x.shape}, found {K.shape}")
    time, L = -K.ndim, len(K)
    room = 1 << (2 * L - 2).bit_length()  # the next power of two: quick to transform
    spectrum = np.fft.rfft(x, room, axis=time) * np.fft.rfft(K, room, axis=0)
    y = np.fft.irfft(spectrum, room, axis=time)
    return np.take(y, np.arange(L), axis=time)


def matrix(K) -> NDArray:  # (L E) -> (E L L)
    """Return the matrix of each channel: M[t, s] = K_{t-s}, nothing above the diagonal; y = M x.

    A diagonal holds one number (a Toeplitz matrix). There are L * L in all: for short sequences.
    """
    K = np.asarray(K)
    t = np.arange(len(K))
    lag = t[:, None] - t
    M = np.where(lag >= 0, K.T[..., lag], 0)
    return M.astype(K.dtype, copy=False)


def _system(A_bar, B_bar, C):
    """Return the arrays of a system; raise InputError unless they have one shape, (N) or (E N)."""
    arrays = {"A_bar": np.asarray(A_bar), "B_bar": np.asarray(B_bar), "C": np.asarray(C)}
    shape = arrays["A_bar"].shape
    if len(shape) not in (1, 2):
        raise InputError(f"A_bar: expected the shape (N) or (E, N), found {shape}")
    for name, array in arrays.items():
        if array.shape != shape:
            raise InputError(f"{name}: expected A_bar's shape, {shape}, found {array.shape}")
    return arrays.values()


def _input(x, channels):
    """Return x as an array; raise InputError unless its last axes are L and the channels."""
    x = np.asarray(x)
    if x.ndim <= len(channels) or x.shape[x.ndim - len(channels) :] != channels:
        wanted = ", ".join(["L", *map(str, channels)])
        raise InputError(f"x: expected the shape (..., {wanted}), found {x.shape}")
    return x
