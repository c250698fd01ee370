"""The derivatives of ``equations``, one for each formula that a backward pass goes through.

``d_f(x)`` is the slope of f at x. Formulas of several arguments give one derivative for each.
Like ``equations``, these know no layout and compile into kernels.
"""

import math

from . import equations as eq

NORMAL_PEAK = 1 / math.sqrt(2 * math.pi)


# --- activations ----------------------------------------------------------------------------


def d_sigmoid(x):
    """Return the derivative of ``sigmoid`` at x."""
    return eq.sigmoid(x) * eq.sigmoid(-x)


def d_silu(x):
    """Return the derivative of ``silu`` at x."""
    return eq.sigmoid(x) * (eq.ONE + x * eq.sigmoid(-x))


def d_softplus(x):
    """Return the derivative of ``softplus`` at x, which is 1 above 20."""
    return eq.where(x > eq.SOFTPLUS_THRESHOLD, eq.ONE, eq.sigmoid(x))


def d_relu(x):
    """Return the derivative of ``relu`` at x: 0 at 0, as torch has it."""
    return eq.where(x > eq.ZERO, eq.ONE, eq.ZERO) * d_identity(x)


def d_relu6(x):
    """Return the derivative of ``relu6`` at x: 0 at 0 and at 6, as torch has it."""
    return eq.where((x > eq.ZERO) & (x < eq.SIX), eq.ONE, eq.ZERO) * d_identity(x)


def d_leaky_relu(x):
    """Return the derivative of ``leaky_relu`` at x."""
    return eq.where(x > eq.ZERO, d_identity(x), d_identity(x) * eq.LEAK)


def d_relu2(x):
    """Return the derivative of ``relu2`` at x."""
    return eq.TWO * eq.relu(x)


def normal_density(x):
    """Return the density of the standard normal distribution at x."""
    return NORMAL_PEAK * eq.exp(-eq.HALF * x * x)


def d_gelu(x):
    """Return the derivative of ``gelu`` at x."""
    return eq.HALF * (eq.ONE + eq.erf(x * eq.SQRT_HALF)) + x * normal_density(x)


def d_tanh(x):
    """Return the derivative of ``tanh`` at x."""
    return (eq.ONE - eq.tanh(x)) * (eq.ONE + eq.tanh(x))


def d_gelu_tanh(x):
    """Return the derivative of ``gelu_tanh`` at x."""
    inner = eq.GELU_TANH_SCALE * (x + eq.GELU_TANH_CUBIC * x * x * x)
    d_inner = eq.GELU_TANH_SCALE * (eq.ONE + 3 * eq.GELU_TANH_CUBIC * x * x)
    return eq.HALF * (eq.ONE + eq.tanh(inner)) + eq.HALF * x * d_tanh(inner) * d_inner


def d_quick_gelu(x):
    """Return the derivative of ``quick_gelu`` at x."""
    scaled = eq.QUICK_GELU_SCALE * x
    return eq.sigmoid(scaled) + scaled * d_sigmoid(scaled)


def d_mish(x):
    """Return the derivative of ``mish`` at x."""
    return eq.tanh(eq.softplus(x)) + x * d_tanh(eq.softplus(x)) * d_softplus(x)


def d_identity(x):
    """Return 1 for each x."""
    return x * eq.ZERO + eq.ONE


DERIVATIVES = {
    eq.silu: d_silu,
    eq.gelu: d_gelu,
    eq.gelu_tanh: d_gelu_tanh,
    eq.quick_gelu: d_quick_gelu,
    eq.relu: d_relu,
    eq.relu2: d_relu2,
    eq.relu6: d_relu6,
    eq.leaky_relu: d_leaky_relu,
    eq.mish: d_mish,
    eq.sigmoid: d_sigmoid,
    eq.tanh: d_tanh,
    eq.softplus: d_softplus,
    eq.identity: d_identity,
}
"""The derivative of each activation."""


# --- the model's other formulas -------------------------------------------------------------


def d_continuous_A(dA, A, A_log):
    """Return dA_log of A = continuous_A(A_log): 0 where A_log is beyond its largest."""
    return eq.where(A_log > eq.LARGEST_A_LOG, eq.ZERO, dA * A)


def d_state_update(dh, h, A_bar):
    """Return (dh before, d(delta * A), d drive) of A_bar * h + drive, A_bar = exp(delta * A)."""
    return dh * A_bar, dh * h * A_bar, dh


def d_ungated(d_out, z):
    """Return dy of output(y, x, D, z), which is the gradient of D * x as well."""
    return d_out * eq.silu(z)


def d_gate(d_out, y, x, D, z):
    """Return dz of output(y, x, D, z)."""
    return d_out * (y + D * x) * d_silu(z)


def d_gate_held(d_out, y, x, D, z):
    """Return dz of output(y, x, D, z) where silu(z) is z times a sigmoid that is held constant."""
    return d_out * (y + D * x) * eq.sigmoid(z)


def d_output(d_out, y, x, D, z):
    """Return (dy, dz) of output(y, x, D, z)."""
    return d_ungated(d_out, z), d_gate(d_out, y, x, D, z)


def d_normed(dy, y, rms, mean_dy_y):
    """Return dx of y = x / rms, the root mean square of x; ``mean_dy_y`` is the mean of dy * y."""
    return (dy - y * mean_dy_y) / rms


def d_cross_entropy(scores, chosen, count):
    """Return the gradient of the mean over ``count`` positions of -log softmax(scores)[target].

    ``chosen`` is 1 at each position's target and 0 elsewhere.
    """
    return (eq.softmax(scores) - chosen) / count
