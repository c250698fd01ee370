"""The gradients of the scan alone: every layout against differences, and against torch.autograd.

float32 is computed by kernels, and float64, which those two judge, is their judge.
"""

import tracemalloc

import hypothesis
import numpy as np
import pytest
from differences import assert_gradients
from hypothesis import strategies as st
from test_ops import BAD_SCANS, BOOLEANS, close, pairwise, scan_inputs, strided
from tolerances import assert_close_to_scale, tolerance

from mamba_np import backward, get_num_threads, ops, set_num_threads
from mamba_np.errors import BackendError, InputError
from mamba_np.kernels import scan_gradients
from mamba_np.kernels.scan import STEPS

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


# --- in float32, compiled ----------------------------------------------------------------------

RTOL = tolerance("gradient", "float32")


@pytest.fixture(autouse=True)
def restored_threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


def assert_kernels(inputs, dy, d_last=None, **options):
    """Compare what float32 gives with what float64 gives; return it."""
    wide = ops.selective_scan_backward(dy, **inputs, **options, d_last_state=d_last)
    narrow = {name: a.astype(np.float32) for name, a in inputs.items()}
    found = ops.selective_scan_backward(dy, **narrow, **options, d_last_state=d_last)
    assert set(found) == set(wide)
    for name, expected in wide.items():
        assert found[name].dtype == np.float32, name
        assert_close_to_scale(found[name], expected, RTOL, name)
    return found


@pytest.fixture
def kernels_alone(monkeypatch):
    """Let NumPy's scan in float32 fail: then kernels have computed."""
    numpy_alone = backward.d_selective_scan

    def checked(dy, *args):
        assert dy.dtype == np.float64, "computed by NumPy"
        return numpy_alone(dy, *args)

    monkeypatch.setattr(backward, "d_selective_scan", checked)


@pytest.mark.parametrize("case", GRID)
def test_kernels_of_every_layout(case, kernels_alone, rng):
    inputs = case_inputs(rng, case)
    dy, d_last = outputs_of(rng, inputs)
    d_last = d_last if case["last"] else None
    assert_kernels(inputs, dy, d_last, delta_softplus=case["softplus"])


ALL = {"length": 33, "D": True, "z": True, "delta_bias": True, "initial": True}


@pytest.mark.parametrize("length", [STEPS - 1, STEPS, STEPS + 1, 3 * STEPS + 5])
@pytest.mark.parametrize("dstate", [1, 2, 3, 4, 5, 7, 16])
def test_kernels_at_the_ends_of_blocks_and_of_fours(length, dstate, kernels_alone, rng):
    inputs = case_inputs(rng, ALL | {"length": length, "B": "shared", "C": "group2"}, 6, dstate)
    assert_kernels(inputs, *outputs_of(rng, inputs), delta_softplus=True)


@hypothesis.given(st.data())
def test_kernels_of_any_sizes(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2 * STEPS + 3))
    dstate, parts = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 3, 6]))
    dim = 6 * data.draw(st.integers(1, 7))
    inputs = case_inputs(rng, ALL | {"length": length, "B": "fixed", "C": "fixed"}, dim, dstate)
    inputs = {name: a[:1].repeat(batch, 0) if a.ndim == 3 else a for name, a in inputs.items()}
    shapes = [(dim, dstate), (batch, dstate, length)]
    shapes += [(batch, n, dstate, length) for n in (parts, 1, 2, 3)]
    for name in ("u", "z", "B", "C"):
        own = inputs[name].shape if name in "uz" else data.draw(st.sampled_from(shapes))
        inputs[name] = rng.normal(size=own)
    dy, d_last = outputs_of(rng, inputs)
    assert_kernels(inputs, dy, d_last, delta_softplus=data.draw(st.booleans()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_kernels_in_any_number_of_threads(threads, layout, kernels_alone, rng):
    set_num_threads(threads)
    inputs = case_inputs(rng, ALL | {"length": STEPS + 9, "B": layout, "C": layout}, 36, 6)
    inputs = inputs if layout != "group4" else inputs | {"B": inputs["B"][:, :3]}
    dy, d_last = outputs_of(rng, inputs)
    first = assert_kernels(inputs, dy, d_last)
    again = assert_kernels(inputs, dy, d_last)
    assert all(np.array_equal(first[name], a) for name, a in again.items())


def test_kernels_forget_what_decays_at_once(kernels_alone, rng):
    inputs = case_inputs(rng, ALL | {"B": "shared", "C": "shared"})
    inputs["A"] *= 1e6
    assert_kernels(inputs, *outputs_of(rng, inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_does_not_grow_with_the_states(layout, rng):
    set_num_threads(1)
    inputs = case_inputs(rng, ALL | {"length": 40 * STEPS, "B": layout, "C": layout}, 64, 64)
    narrow = {name: a.astype(np.float32) for name, a in inputs.items()}
    dy = np.ones(narrow["u"].shape, np.float32)
    ops.selective_scan_backward(dy, **narrow)  # compiled before it is measured
    tracemalloc.start()
    ops.selective_scan_backward(dy, **narrow)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    states = dy.nbytes * 64
    own = sum(narrow[name].nbytes for name in ("B", "C"))
    assert peak < 20 * dy.nbytes + 4 * own < states


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda a: a | {"A": -a["A"]}, {}),
        (lambda a: a | {"delta": -a["delta"]}, {}),
        (lambda a: a | {"delta_bias": a["delta_bias"] - np.float32(0.3)}, {}),
        (lambda a: a, {"backend": "numpy"}),
        (lambda a: {name: array.astype(np.float64) for name, array in a.items()}, {}),
    ],
)
def test_what_is_left_to_numpy(change, options, monkeypatch, rng):
    monkeypatch.setattr(scan_gradients, "selective_scan_backward", None)
    inputs = {n: a.astype(np.float32) for n, a in case_inputs(rng, ALL | NARROW).items()}
    inputs = change(inputs)
    dy, d_last = outputs_of(rng, inputs)
    found = ops.selective_scan_backward(dy, **inputs, d_last_state=d_last, **options)
    wide = {name: a.astype(np.float64) for name, a in inputs.items()}
    for name, expected in ops.selective_scan_backward(dy, **wide, d_last_state=d_last).items():
        assert_close_to_scale(found[name], expected, RTOL, name)


NARROW = {"B": "shared", "C": "group2"}


def test_steps_below_zero_before_a_softplus_are_the_kernels(kernels_alone, rng):
    inputs = case_inputs(rng, ALL | NARROW)
    inputs["delta"] -= 2
    assert_kernels(inputs, *outputs_of(rng, inputs), delta_softplus=True)
    assert_kernels(inputs, *outputs_of(rng, inputs), delta_softplus=1)


def test_kernels_for_float64_are_refused(rng):
    inputs = case_inputs(rng, ALL | NARROW)
    dy, _ = outputs_of(rng, inputs)
    with pytest.raises(BackendError, match="computing in float64"):
        ops.selective_scan_backward(dy, **inputs, backend="cpu")


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ">f4"])
def test_the_arithmetic_of_other_dtypes_is_in_float32(dtype, rng):
    inputs = {n: a.astype(dtype) for n, a in scan_inputs(rng, np.float64, 9, "group2").items()}
    dy, _ = outputs_of(rng, inputs)
    found = ops.selective_scan_backward(dy, **inputs)
    wide = {name: a.astype(np.float32) for name, a in inputs.items()}
    for name, expected in ops.selective_scan_backward(dy, **wide).items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["fixed", "shared", "group2"])
def test_strided_and_read_only_inputs_and_lists(layout, dtype, rng):
    inputs = case_inputs(rng, ALL | {"B": layout, "C": layout})
    inputs["dy"], inputs["d_last_state"] = outputs_of(rng, inputs)
    inputs = {name: a.astype(dtype) for name, a in inputs.items()}
    expected = ops.selective_scan_backward(**inputs)
    views = {name: strided(a) for name, a in inputs.items()}
    for view in views.values():
        view.flags.writeable = False
    lists = {name: a.tolist() for name, a in inputs.items()}
    for found in (ops.selective_scan_backward(**views), ops.selective_scan_backward(**lists)):
        for name, a in expected.items():
            # Sums take another order in other strides; lists are in float64.
            assert_close_to_scale(found[name], a, tolerance("gradient", dtype), name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("dim", "dstate"), [(4, 8), (16, 1)])
def test_the_gradients_are_the_callers_own(dim, dstate, dtype, rng):
    inputs = case_inputs(rng, ALL | {"B": "shared", "C": "fixed"}, dim, dstate)
    inputs["dy"], inputs["d_last_state"] = outputs_of(rng, inputs)
    inputs = {name: a.astype(dtype) for name, a in inputs.items()}
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_step(layout, dtype, rng):
    inputs = case_inputs(rng, ALL | {"length": 0, "B": layout, "C": layout})
    inputs = {name: a.astype(dtype) for name, a in inputs.items()}
    dy, d_last = (a.astype(dtype) for a in outputs_of(rng, inputs))
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
