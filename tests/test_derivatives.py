"""Each derivative against differences of its equation, and against torch.autograd."""

import math

import naive
import numpy as np
import pytest
from differences import assert_gradients, slope
from tolerances import assert_close_to_scale, tolerance

from mamba_np import derivatives as d
from mamba_np import equations as eq

DTYPES = [np.float32, np.float64]
# No point as near to a kink (0 and 6) as differences reach.
GRID = np.linspace(-8, 8, 161) + 0.0123
NAMES = {f.__name__: f for f in d.DERIVATIVES}
TORCH = {
    "silu": lambda F, x: F.silu(x),
    "gelu": lambda F, x: F.gelu(x),
    "gelu_tanh": lambda F, x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda F, x: x * F.sigmoid(1.702 * x),
    "relu": lambda F, x: F.relu(x),
    "relu2": lambda F, x: F.relu(x) ** 2,
    "relu6": lambda F, x: F.relu6(x),
    "leaky_relu": lambda F, x: F.leaky_relu(x, 0.01),
    "mish": lambda F, x: F.mish(x),
    "sigmoid": lambda F, x: F.sigmoid(x),
    "tanh": lambda F, x: F.tanh(x),
    "softplus": lambda F, x: F.softplus(x),
    "identity": lambda F, x: x * 1,
}


@pytest.fixture(params=sorted(NAMES))
def name(request):
    return request.param


def derivative(name):
    return d.DERIVATIVES[NAMES[name]]


def torch_slopes(name, x):
    """Return what torch.autograd makes of an activation at each x."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(x, requires_grad=True)
    TORCH[name](torch.nn.functional, x).sum().backward()
    return x.grad.numpy()


def test_every_activation_has_a_derivative():
    assert set(d.DERIVATIVES) == set(eq.ACTIVATIONS.values())
    assert set(NAMES) == set(TORCH)


def test_activations_by_differences(name):
    found = derivative(name)(GRID)
    expected = slope(lambda h: NAMES[name](GRID + h))
    assert_close_to_scale(found, expected, tolerance("difference", "float64"), name)


def test_activations_by_torch(name):
    # The kinks are among the points: there the derivative is a convention, and torch's is ours.
    x = np.concatenate([GRID, [-1e4, -30.0, -0.0, 0.0, 6.0, 19.9, 20.1, 30.0, 1e4]])
    expected = torch_slopes(name, x)
    assert_close_to_scale(derivative(name)(x), expected, tolerance("derivative", "float64"), name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_keep_dtype_and_shape_and_warn_of_nothing(name, dtype):
    x = np.array([[-1e4, -200.0, -0.0], [0.0, 200.0, 1e4]], dtype)  # warnings are errors here
    found = derivative(name)(x)
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert np.isfinite(found).all()
    assert derivative(name)(dtype(0.5)).dtype == dtype


def test_activations_in_float32(name):
    x = GRID.astype(np.float32)
    expected = derivative(name)(x.astype(np.float64))
    assert_close_to_scale(derivative(name)(x), expected, tolerance("derivative", "float32"), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("function", "formula"),
    [
        (d.d_sigmoid, lambda x: 1 / (2 + math.exp(x) + math.exp(-x))),
        (d.d_softplus, lambda x: 1 / (1 + math.exp(-x))),
    ],
)
def test_what_vanishes_is_right_for_each_value(function, formula, dtype):
    # The form s (1 - s) of the first would have no digit left above 17 in float32.
    x = np.linspace(-19, 19, 77).astype(dtype)
    found, expected = function(x), naive.each(formula, x)
    error = np.abs(found / expected - 1)
    worst = int(error.argmax())
    assert error[worst] <= tolerance("derivative", dtype), f"at {x[worst]}: {error[worst]:.3g}"


def test_softplus_has_slope_one_where_it_is_x():
    assert list(d.d_softplus(np.float64([20.1, 50, 1e4]))) == [1, 1, 1]


# --- the model's other formulas ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_continuous_A(dtype, rng):
    A_log, dA = rng.normal(size=(2, 3, 4)).astype(dtype)
    found = d.d_continuous_A(dA, eq.continuous_A(A_log), A_log)
    assert found.dtype == dtype
    expected = dA * slope(lambda h: eq.continuous_A(A_log.astype(np.float64) + h))
    step = "difference" if dtype == np.float64 else "derivative"
    assert_close_to_scale(found, expected, tolerance(step, dtype), "dA_log")


@pytest.mark.parametrize("dtype", DTYPES)
def test_continuous_A_is_constant_beyond_its_largest(dtype):
    A_log = np.array([79, 80, 81, 1e4], dtype)
    found = d.d_continuous_A(np.ones(4, dtype), eq.continuous_A(A_log), A_log)
    assert found.dtype == dtype
    assert list(found < 0) == [True, True, False, False]
    assert list(found[2:]) == [0, 0]


def test_state_update(rng):
    dh, h, exponent, drive = rng.normal(size=(4, 5, 3))
    exponent = -np.abs(exponent)
    found = d.d_state_update(dh, h, np.exp(exponent))
    inputs = {"h": h, "exponent": exponent, "drive": drive}
    assert_gradients(
        lambda h, exponent, drive: eq.state_update(h, eq.exp(exponent), drive),
        inputs, dh, dict(zip(inputs, found, strict=True)), rng,
    )  # fmt: skip


def test_output(rng):
    d_out, y, x, z = rng.normal(size=(4, 2, 7, 5))
    D = rng.normal(size=5)
    dy, dz = d.d_output(d_out, y, x, D, z)
    gradients = {"y": dy, "z": dz, "x": dy * D, "D": (dy * x).sum(axis=(0, 1))}
    assert_gradients(eq.output, {"y": y, "x": x, "D": D, "z": z}, d_out, gradients, rng)


def test_normed(rng):
    def normed(x):
        rms = eq.root_mean_square(np.mean(x * x, axis=-1, keepdims=True), 1e-2)
        return x / rms

    x, dy = rng.normal(size=(2, 4, 6))
    y = normed(x)
    found = d.d_normed(dy, y, x / y, np.mean(dy * y, axis=-1, keepdims=True))
    assert_gradients(normed, {"x": x}, dy, {"x": found}, rng)


def test_cross_entropy(rng):
    scores, targets = 3 * rng.normal(size=(4, 9)), np.array([0, 8, 3, 3])
    found = d.d_cross_entropy(scores, np.eye(9)[targets], 4)
    assert_gradients(
        lambda scores: -eq.log_probability(scores, targets) / 4,
        {"scores": scores}, np.ones(4), {"scores": found}, rng,
    )  # fmt: skip
    assert np.abs(found.sum(axis=-1)).max() <= tolerance("derivative", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_formulas_keep_their_dtype_and_warn_of_nothing(dtype):
    big, one = np.array([-1e4, 0, 1e4], dtype), np.ones(3, dtype)
    found = [
        *d.d_state_update(big, big, one),
        *d.d_output(one, big, one, one, big),
        d.d_normed(one, one, one, one),
        d.d_cross_entropy(big, np.eye(3, dtype=dtype)[0], dtype(2)),
    ]
    assert all(a.dtype == dtype for a in found)
    assert all(np.isfinite(a).all() for a in found)


def test_formulas_by_torch(rng):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    wide = {"dtype": torch.float64, "requires_grad": True}
    y, x, D, z, d_out = rng.normal(size=(5, 3, 4))
    leaves = [torch.tensor(a, **wide) for a in (y, x, D, z)]
    ((leaves[0] + leaves[2] * leaves[1]) * F.silu(leaves[3]) * torch.tensor(d_out)).sum().backward()
    dy, dz = d.d_output(d_out, y, x, D, z)
    expected = [leaf.grad.numpy() for leaf in leaves]
    for found, theirs in zip((dy, dy * D, dy * x, dz), expected, strict=True):
        assert_close_to_scale(found, theirs, tolerance("derivative", "float64"), "output")
    scores, targets = torch.tensor(x, **wide), [3, 0, 1]
    F.cross_entropy(scores, torch.tensor(targets)).backward()
    found = d.d_cross_entropy(x, np.eye(4)[targets], 3)
    theirs = scores.grad.numpy()
    assert_close_to_scale(found, theirs, tolerance("derivative", "float64"), "cross_entropy")
