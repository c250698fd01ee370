"""The gradients of the scan alone: every layout against differences, and against torch.autograd."""

import numpy as np
import pytest
from differences import assert_gradients
from test_ops import BAD_SCANS, BOOLEANS, close, pairwise, scan_inputs, strided
from tolerances import assert_close_to_scale, tolerance

from mamba_np import ops
from mamba_np.errors import InputError

LAYOUTS = ["fixed", "shared", "group1", "group2", "group4"]
GRID = pairwise(
    length=[1, 2, 9, 33],
    B=LAYOUTS,
    C=LAYOUTS,
    D=BOOLEANS,
    z=BOOLEANS,
    delta_bias=BOOLEANS,
    softplus=BOOLEANS,
    last=BOOLEANS,
    initial=BOOLEANS,
)


def case_inputs(rng, case, dim=4, dstate=8):
    """Return the array arguments of one case of the grid, in float64."""
    length = case["length"]
    inputs = scan_inputs(rng, np.float64, length, case["B"], dim=dim, dstate=dstate)
    inputs["C"] = scan_inputs(rng, np.float64, length, case["C"], dim=dim, dstate=dstate)["C"]
    if case["D"]:
        inputs["D"] = rng.normal(size=dim)
    if case["z"]:
        inputs["z"] = rng.normal(size=(2, dim, length))
    if case["delta_bias"]:
        inputs["delta_bias"] = 0.5 * rng.random(dim)
    if case["initial"]:
        inputs["initial_state"] = rng.normal(size=(2, dim, dstate))
    return inputs


def outputs_of(rng, inputs):
    """Return dy and d_last_state."""
    rows, dim, _ = inputs["u"].shape
    return rng.normal(size=inputs["u"].shape), rng.normal(size=(rows, dim, inputs["A"].shape[1]))


@pytest.mark.parametrize("case", GRID)
def test_gradients_by_differences(case, rng):
    inputs = case_inputs(rng, case)
    dy, d_last = outputs_of(rng, inputs)
    options = {"delta_softplus": case["softplus"]}
    last = {"d_last_state": d_last} if case["last"] else {}
    found = ops.selective_scan_backward(dy, **inputs, **options, **last)
    assert set(found) == set(inputs)
    assert_gradients(
        lambda **changed: ops.selective_scan(**changed, **options, return_last_state=True),
        inputs, (dy, d_last if case["last"] else np.zeros_like(d_last)), found, rng,
    )  # fmt: skip


def torch_scan(torch, u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
               initial_state=None):  # fmt: skip
    """The scan of the tests' oracle in tensors: a loop over positions and nothing else."""
    rows, dim, length = u.shape

    def each(M):  # -> (rows, dim, N, length)
        if M.ndim == 2:
            return M[None, :, :, None].expand(rows, -1, -1, length)
        M = M[:, None] if M.ndim == 3 else M
        return M.repeat_interleave(dim // M.shape[1], dim=1)

    B, C = each(B), each(C)
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = torch.nn.functional.softplus(delta) if delta_softplus else delta
    h = torch.zeros(rows, *A.shape, dtype=u.dtype) if initial_state is None else initial_state
    ys = []
    for t in range(length):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        ys.append((h * C[..., t]).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * torch.nn.functional.silu(z)), h


@pytest.mark.parametrize("case", GRID)
def test_gradients_by_torch(case, rng):
    torch = pytest.importorskip("torch")
    inputs = case_inputs(rng, case)
    dy, d_last = outputs_of(rng, inputs)
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in inputs.items()}
    y, h = torch_scan(torch, **leaves, delta_softplus=case["softplus"])
    loss = (y * torch.tensor(dy)).sum()
    loss = loss + (h * torch.tensor(d_last)).sum() if case["last"] else loss
    loss.backward()
    found = ops.selective_scan_backward(
        dy,
        **inputs,
        delta_softplus=case["softplus"],
        d_last_state=d_last if case["last"] else None,
    )
    for name, leaf in leaves.items():
        theirs = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        close(found[name], theirs, np.float64, name)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (3, 5, 1), (2, 24, 16)])
def test_other_sizes(sizes, rng):
    batch, dim, dstate = sizes
    inputs = scan_inputs(rng, np.float64, 37, "shared", batch, dim, dstate)
    dy, d_last = outputs_of(rng, inputs)
    found = ops.selective_scan_backward(dy, **inputs, d_last_state=d_last)
    assert_gradients(
        lambda **changed: ops.selective_scan(**changed, return_last_state=True),
        inputs, (dy, d_last), found, rng,
    )  # fmt: skip


ALL = {"length": 33, "D": True, "z": True, "delta_bias": True, "initial": True}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_is_close_to_float64(layout, rng):
    inputs = case_inputs(rng, ALL | {"B": layout, "C": layout})
    dy, d_last = outputs_of(rng, inputs)
    wide = ops.selective_scan_backward(dy, **inputs, delta_softplus=True, d_last_state=d_last)
    narrow = {name: a.astype(np.float32) for name, a in inputs.items()}
    found = ops.selective_scan_backward(dy, **narrow, delta_softplus=True, d_last_state=d_last)
    for name, expected in wide.items():
        assert found[name].dtype == np.float32, name
        assert_close_to_scale(found[name], expected, tolerance("gradient", "float32"), name)


@pytest.mark.parametrize("dtype", [np.float16, ">f4"])
def test_the_arithmetic_of_other_dtypes_is_in_float32(dtype, rng):
    inputs = {n: a.astype(dtype) for n, a in scan_inputs(rng, np.float64, 9, "group2").items()}
    dy, _ = outputs_of(rng, inputs)
    found = ops.selective_scan_backward(dy, **inputs)
    wide = {name: a.astype(np.float32) for name, a in inputs.items()}
    for name, expected in ops.selective_scan_backward(dy, **wide).items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], expected)


@pytest.mark.parametrize("layout", ["fixed", "shared", "group2"])
def test_strided_and_read_only_inputs_and_lists(layout, rng):
    inputs = case_inputs(rng, ALL | {"B": layout, "C": layout})
    inputs["dy"], inputs["d_last_state"] = outputs_of(rng, inputs)
    expected = ops.selective_scan_backward(**inputs)
    views = {name: strided(a) for name, a in inputs.items()}
    for view in views.values():
        view.flags.writeable = False
    lists = {name: a.tolist() for name, a in inputs.items()}
    for found in (ops.selective_scan_backward(**views), ops.selective_scan_backward(**lists)):
        for name, a in expected.items():
            close(found[name], a, np.float64, name)  # sums take another order in other strides


def test_the_gradients_are_the_callers_own(rng):
    inputs = case_inputs(rng, ALL | {"B": "shared", "C": "fixed"})
    inputs["dy"], inputs["d_last_state"] = outputs_of(rng, inputs)
    before = {name: a.copy() for name, a in inputs.items()}
    for gradient in ops.selective_scan_backward(**inputs).values():
        gradient[...] = 0
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)


def test_by_position_in_the_order_of_the_scan(rng):
    inputs = case_inputs(rng, ALL | {"B": "shared", "C": "shared", "initial": False})
    dy, _ = outputs_of(rng, inputs)
    found = ops.selective_scan_backward(dy, *inputs.values(), True)
    expected = ops.selective_scan_backward(dy, **inputs, delta_softplus=True)
    assert all(np.array_equal(found[name], a) for name, a in expected.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_step(layout, rng):
    inputs = case_inputs(rng, ALL | {"length": 0, "B": layout, "C": layout})
    dy, d_last = outputs_of(rng, inputs)
    found = ops.selective_scan_backward(dy, **inputs, d_last_state=d_last)
    assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in inputs.items()}
    assert np.array_equal(found["initial_state"], d_last)
    assert not np.shares_memory(found["initial_state"], d_last)
    assert not found["A"].any()


BAD = [
    *BAD_SCANS,
    ("dy", lambda a: a[:1], "shape"),
    ("dy", lambda a: a.swapaxes(1, 2), "shape"),
    ("dy", lambda a: a.astype(np.int64), "floating"),
    ("d_last_state", lambda a: a[..., :1], "shape"),
    ("d_last_state", lambda a: a > 0, "floating"),
]


@pytest.mark.parametrize(("name", "spoil", "word"), BAD)
def test_bad_arguments_are_named(name, spoil, word, rng):
    inputs = scan_inputs(rng, np.float64, 6, "shared")
    inputs |= {"D": rng.random(4), "z": rng.random((2, 4, 6)), "delta_bias": rng.random(4)}
    inputs["initial_state"] = rng.random((2, 4, 8))
    inputs["dy"], inputs["d_last_state"] = outputs_of(rng, inputs)
    inputs[name] = spoil(inputs[name])
    with pytest.raises(InputError, match=rf"^{name}: expected .*{word}.*found"):
        ops.selective_scan_backward(**inputs)
