"""The maths of Mamba, once.

Each function takes NumPy numbers or arrays that broadcast, and keeps their dtype; softmax and its
kin work over the last axis. Called on arrays they are the NumPy reference; a compiler can inline
the same text into a kernel. Nothing here knows a layout.

Symbols are the paper's (Gu & Dao 2023): ``delta`` is the step size, ``A, B, C, D`` the state space
parameters, ``h`` the state, ``x`` the input at the same position.
"""

import math

import numpy as np

# Typed, so that a compiler keeps float32 arithmetic in float32; NumPy widens them for float64.
ZERO, HALF, ONE, TWO, SIX = (np.float32(x) for x in (0, 0.5, 1, 2, 6))
SOFTPLUS_THRESHOLD = np.float32(20)  # above it, softplus(x) - x < 2.1e-9; torch returns x itself

LARGEST_A_LOG = np.float32(80)  # e**80 = 5.5e34: times any step size, still a float32

# Constants with more digits than float32 holds are Python floats: NumPy rounds them to the
# dtype of the array they meet.
LOG2_E = 1 / math.log(2)
LN_2 = np.float32(math.log(2))
SQRT_HALF = math.sqrt(0.5)
GELU_TANH_SCALE = math.sqrt(2 / math.pi)
GELU_TANH_CUBIC = 0.044715
QUICK_GELU_SCALE = 1.702
LEAK = 0.01


# --- elementary functions: what a compiler has to provide, besides abs, minimum and maximum --


def exp(x):
    """Return e**x."""
    return np.exp(x)


def exp2(x):
    """Return 2**x."""
    return np.exp2(x)


def expm1(x):
    """Return e**x - 1, exact for small x."""
    return np.expm1(x)


def log(x):
    """Return the natural logarithm of x > 0."""
    return np.log(x)


def log1p(x):
    """Return log(1 + x) for x >= 0, exact for small x; a compiler has to know it up to x = 1."""
    return np.log1p(x)


def tanh(x):
    """Return the hyperbolic tangent."""
    return np.tanh(x)


def sqrt(x):
    """Return the square root."""
    return np.sqrt(x)


_erf_of_each = np.frompyfunc(math.erf, 1, 1)


def erf(x):
    """Return the error function. NumPy has none: the C library's is called for each element."""
    x = np.asarray(x)
    return np.asarray(_erf_of_each(x), dtype=np.float64).astype(x.dtype)


def where(condition, x, y):
    """Return x where the condition holds, else y."""
    return np.where(condition, x, y)


# --- activations ----------------------------------------------------------------------------


def sigmoid(x):
    """Return 1 / (1 + e**-x), written so that no exponential overflows."""
    e = exp(-abs(x))
    return where(x >= ZERO, ONE, e) / (ONE + e)


def silu(x):
    """Return x * sigmoid(x), also called swish."""
    return x * sigmoid(x)


def softplus(x):
    """Return log(1 + e**x), and x itself above 20 as torch and mamba-ssm do.

    Written as max(x, 0) + log(1 + e**-abs(x)), which is the same and cannot overflow.
    """
    return where(x > SOFTPLUS_THRESHOLD, x, np.maximum(x, ZERO) + log1p(exp(-abs(x))))


def inverse_softplus(x):
    """Return what softplus turns into x > 0."""
    return x + np.log(-expm1(-x))


def relu(x):
    """Return max(x, 0)."""
    return np.maximum(x, ZERO)


def relu6(x):
    """Return x between 0 and 6."""
    return np.minimum(relu(x), SIX)


def leaky_relu(x):
    """Return x above 0, and a hundredth of it below."""
    return where(x >= ZERO, x, x * LEAK)


def relu2(x):
    """Return max(x, 0) squared."""
    return relu(x) * relu(x)


def gelu(x):
    """Return x times the normal distribution function of x (the exact form)."""
    return HALF * x * (ONE + erf(x * SQRT_HALF))


def gelu_tanh(x):
    """Return GELU in the tanh approximation (``gelu_new``, ``gelu_pytorch_tanh``)."""
    return HALF * x * (ONE + tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x)))


def quick_gelu(x):
    """Return x * sigmoid(1.702 x), the cheapest approximation of GELU."""
    return x * sigmoid(QUICK_GELU_SCALE * x)


def mish(x):
    """Return x * tanh(softplus(x))."""
    return x * tanh(softplus(x))


def identity(x):
    """Return x."""
    return x


ACTIVATIONS = {
    "silu": silu,
    "swish": silu,
    **dict.fromkeys(("gelu", "gelu_python"), gelu),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"),
        gelu_tanh,
    ),
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "leaky_relu": leaky_relu,
    "mish": mish,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "softplus": softplus,
    "linear": identity,
    "identity": identity,
}
"""Names that ``hidden_act`` may have."""


# --- scores and probabilities: over the last axis of an array -------------------------------


def log_softmax(scores):
    """Return the logarithms of ``softmax(scores)``."""
    shifted = scores - np.max(scores, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(exp(shifted), axis=-1, keepdims=True))


def log_probability(scores, targets):
    """Return ``log_softmax(scores)`` at each target alone, in float64.

    ``scores`` (..., V), ``targets`` (...). Exponentials are in the dtype of the scores, sums in
    float64: the error is that of the scores themselves.
    """
    top = np.max(scores, axis=-1, keepdims=True)
    total = np.sum(exp(scores - top), axis=-1, dtype=np.float64)
    chosen = np.take_along_axis(scores, targets[..., None], axis=-1)
    return log_share(chosen[..., 0], top[..., 0], total)


def log_share(chosen, top, total):
    """Return the log of one score's probability, in float64.

    ``top`` is the largest of the scores, ``total`` the sum of e**(score - top) over all.
    """
    return chosen.astype(np.float64) - top - np.log(total, dtype=np.float64)


def softmax(scores):
    """Return probabilities proportional to e**scores; a score of -inf gets none."""
    weights = exp(scores - np.max(scores, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def gumbel(v):
    """Return Gumbel noise, -log(-log(1 - v)), from a number v with 0 < v < 1 that is uniform.

    The index of the largest of scores + noise, each with its own v, is a draw from
    softmax(scores) (Maddison, Tarlow and Minka 2014, "A* sampling", section 2). Large noise comes
    from small v, of which floating-point numbers keep every digit: up to the middle -log(1 - v)
    is taken as log(1 + v / (1 - v)).
    """
    low = np.minimum(v, HALF)
    return -log(where(v > HALF, -log(ONE - v), log1p(low / (ONE - low))))


def geometric_mean(x):
    """Return the mean of x > 0 as factors count: e**mean(log x); 0 where an x is 0."""
    with np.errstate(divide="ignore"):  # log 0 = -inf, whose exponential is 0
        return exp(np.mean(np.log(x), axis=-1))


# --- the state space model (paper, section 2) -----------------------------------------------


def continuous_A(A_log):
    """Return A = -exp(A_log): negative, so that the state decays (paper, section 3.6).

    Finite for any A_log: above 80 a channel forgets everything at each step in any case.
    """
    return -exp(np.minimum(A_log, LARGEST_A_LOG))


def discretise(delta, A, B):
    """Return (A_bar, B_bar) as Mamba has them: zero-order hold for A, delta * B for B.

    The paper's equation (4) with B_bar simplified to first order, as the authors' code does.
    """
    return exp(delta * A), delta * B


def per_octave(A):
    """Return A log2(e), for ``decay``: a kernel scales A once and each of its powers is cheaper."""
    return A * LOG2_E


def decay(delta, A_per_octave):
    """Return A_bar = exp(delta * A) as a power of two, from A_per_octave = per_octave(A)."""
    return exp2(delta * A_per_octave)


def half_life(delta, A):
    """Return after how many steps of size delta half of a state is left: ln 2 / (delta |A|)."""
    return ONE / (delta * abs(A) * LOG2_E)


def discretise_zoh(delta, A, B):
    """Return (A_bar, B_bar) of the exact zero-order hold, equation (4) of the paper; A is not 0."""
    return exp(delta * A), expm1(delta * A) / A * B


def discretise_euler(delta, A, B):
    """Return (A_bar, B_bar) of the forward Euler rule; unstable where delta * A < -2."""
    return ONE + delta * A, delta * B


def discretise_bilinear(delta, A, B):
    """Return (A_bar, B_bar) of the bilinear (Tustin, trapezoidal) rule that S4 used."""
    half = HALF * delta * A
    return (ONE + half) / (ONE - half), delta / (ONE - half) * B


DISCRETISATIONS = {
    "mamba": discretise,
    "zoh": discretise_zoh,
    "euler": discretise_euler,
    "bilinear": discretise_bilinear,
}
"""Rules that turn the continuous (A, B) into one step; models are trained with "mamba"."""


def root_mean_square(mean_square, eps):
    """Return what RMSNorm divides by (Zhang and Sennrich 2019, equation 4)."""
    return sqrt(mean_square + eps)


def state_update(h, A_bar, drive):
    """Return the next state A_bar * h + drive, where drive = B_bar * x (equation 2a)."""
    return A_bar * h + drive


def compose(A_first, drive_first, A_second, drive_second):
    """Return two state updates as one: the operator of the associative scan.

    Applying (A_first, drive_first) and then (A_second, drive_second) equals applying the result.
    """
    return A_second * A_first, state_update(drive_first, A_second, drive_second)


def output(y, x, D, z):
    """Return (y + D * x) * silu(z): the skip connection, then the gate (paper, figure 3)."""
    return (y + D * x) * silu(z)
