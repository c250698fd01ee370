"""The operators alone: the grids of the peers' own tests, held against the float64 oracle.

The grids are those of mamba-ssm (selective_scan, selective_state_update) and causal-conv1d, with
the lengths and switches that are commented out there, and a few sizes more. Of each grid a subset
runs in which every pair of values meets. The peers allow errors of 6e-4 to 2e-3; here it is 2e-6.
"""

import itertools
import random

import naive
import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np import ops
from mamba_np.errors import BackendError, InputError

DTYPES = {"float32": np.float32, "float64": np.float64}
BOOLEANS = [True, False]


def pairwise(**grid):
    """Return a few dictionaries such that every two values of different keys meet in one."""
    chooser = random.Random(0)
    pairs_of = lambda case: set(itertools.combinations(case.items(), 2))  # noqa: E731
    keys = list(grid)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(keys, 2)
        for x in grid[a]
        for y in grid[b]
    }
    cases = []
    while missing:
        seed = dict(chooser.choice(sorted(missing, key=repr)))
        tries = [{k: seed.get(k, chooser.choice(grid[k])) for k in keys} for _ in range(30)]
        best = max(tries, key=lambda case: len(pairs_of(case) & missing))
        missing -= pairs_of(best)
        cases.append(best)
    return [pytest.param(case, id="-".join(map(str, case.values()))) for case in cases]


def test_pairwise_reaches_every_pair():
    grid = {"a": [1, 2, 3], "b": BOOLEANS, "c": ["x", "y"]}
    cases = [p.values[0] for p in pairwise(**grid)]
    for (j, xs), (k, ys) in itertools.combinations(grid.items(), 2):
        found = {(c[j], c[k]) for c in cases}
        assert found == set(itertools.product(xs, ys))
    assert len(cases) < 12


def close(found, expected, dtype, name, step="scan"):
    assert found.dtype == dtype, f"{name}: dtype {found.dtype}"
    assert_close_to_scale(found, expected, tolerance(step, dtype), name)


# --- selective_scan ------------------------------------------------------------------------------

SCAN_LENGTHS = [1, 8, 16, 32, 64, 128, 256, 372, 512, 784, 1024, 1134, 2048, 4096]


def scan_inputs(rng, dtype, length, layout="group1", batch=2, dim=4, dstate=8):
    shapes = {
        "fixed": (dim, dstate),
        "shared": (batch, dstate, length),
        "group1": (batch, 1, dstate, length),
        "group2": (batch, 2, dstate, length),
        "group4": (batch, 4, dstate, length),
    }
    inputs = {
        "u": rng.normal(size=(batch, dim, length)),
        "delta": 0.5 * rng.random((batch, dim, length)),
        "A": -0.5 * rng.random((dim, dstate)),
        "B": rng.normal(size=shapes[layout]),
        "C": rng.normal(size=shapes[layout]),
    }
    return {name: array.astype(dtype) for name, array in inputs.items()}


@pytest.mark.parametrize(
    "case",
    pairwise(
        length=SCAN_LENGTHS,
        layout=["fixed", "shared", "group1", "group2", "group4"],
        D=BOOLEANS,
        z=BOOLEANS,
        delta_bias=BOOLEANS,
        softplus=BOOLEANS,
        last=BOOLEANS,
        initial=BOOLEANS,
        dtype=list(DTYPES),
    ),
)
def test_selective_scan(case, rng):
    dtype, length = DTYPES[case["dtype"]], case["length"]
    inputs = scan_inputs(rng, dtype, length, case["layout"])
    options = {"delta_softplus": case["softplus"]}
    if case["D"]:
        options["D"] = rng.normal(size=4).astype(dtype)
    if case["z"]:
        options["z"] = rng.normal(size=(2, 4, length)).astype(dtype)
    if case["delta_bias"]:
        options["delta_bias"] = (0.5 * rng.random(4)).astype(dtype)
    if case["initial"]:
        options["initial_state"] = rng.normal(size=(2, 4, 8)).astype(dtype)
    found = ops.selective_scan(**inputs, **options, return_last_state=case["last"])
    y, last = naive.selective_scan(**inputs, **options)
    if case["last"]:
        close(found[1], last, dtype, "last state")
        found = found[0]
    close(found, y, dtype, "y")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (3, 5, 1), (2, 24, 16)])
def test_selective_scan_of_other_sizes(sizes, dtype, rng):
    batch, dim, dstate = sizes
    inputs = scan_inputs(rng, dtype, 37, "shared", batch, dim, dstate)
    y, last = ops.selective_scan(**inputs, return_last_state=True)
    expected = naive.selective_scan(**inputs)
    close(y, expected[0], dtype, "y")
    close(last, expected[1], dtype, "last state")


def test_selective_scan_by_position_in_the_order_of_the_peers(rng):
    a = scan_inputs(rng, np.float64, 9, "shared")
    D, z, bias = rng.normal(size=4), rng.normal(size=(2, 4, 9)), rng.random(4)
    y, last = ops.selective_scan(*a.values(), D, z, bias, True, True)
    expected = naive.selective_scan(**a, D=D, z=z, delta_bias=bias, delta_softplus=True)
    close(y, expected[0], np.float64, "y")
    close(last, expected[1], np.float64, "last state")


@pytest.mark.parametrize("layout", ["shared", "group2"])
def test_selective_scan_in_pieces(layout, rng):
    inputs = scan_inputs(rng, np.float64, 50, layout)
    whole, end = ops.selective_scan(**inputs, return_last_state=True)
    state, pieces = None, []
    for start, stop in itertools.pairwise([0, 1, 3, 17, 49, 50]):
        part = {k: a if k == "A" else a[..., start:stop] for k, a in inputs.items()}
        y, state = ops.selective_scan(**part, initial_state=state, return_last_state=True)
        pieces.append(y)
    close(np.concatenate(pieces, axis=2), whole, np.float64, "y")
    close(state, end, np.float64, "last state")


def strided(array):
    """Return the same values with other strides: axes reversed in memory, every second element."""
    big = np.zeros([2 * n for n in array.shape[::-1]], array.dtype).T
    view = big[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    assert not view.flags.c_contiguous or view.size == 1
    return view


@pytest.mark.parametrize("layout", ["fixed", "shared", "group2"])
def test_selective_scan_of_strided_and_read_only_inputs(layout, rng):
    inputs = scan_inputs(rng, np.float32, 33, layout)
    options = {
        "D": rng.normal(size=4).astype(np.float32),
        "z": rng.normal(size=(2, 4, 33)).astype(np.float32),
        "initial_state": rng.normal(size=(2, 4, 8)).astype(np.float32),
    }
    expected = naive.selective_scan(**inputs, **options)
    views = {name: strided(array) for name, array in (inputs | options).items()}
    for view in views.values():
        view.flags.writeable = False
    found = ops.selective_scan(**views, return_last_state=True)
    for name, a, b in zip(("y", "last state"), found, expected, strict=True):
        close(a, b, np.float32, name)


def test_the_scan_leaves_its_arguments_alone(rng):
    inputs = scan_inputs(rng, np.float64, 12, "shared")
    inputs["initial_state"] = rng.normal(size=(2, 4, 8))
    before = {name: array.copy() for name, array in inputs.items()}
    y, last = ops.selective_scan(**inputs, return_last_state=True)
    y[:] = 0
    last[:] = 0  # results are the caller's own
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_byte_order_changes_nothing(dtype, rng):
    inputs = scan_inputs(rng, np.float64, 9, "shared")
    native = np.dtype(dtype).newbyteorder("=")
    expected = ops.selective_scan(**{n: a.astype(native) for n, a in inputs.items()})
    found = ops.selective_scan(**{n: a.astype(dtype) for n, a in inputs.items()})
    assert np.array_equal(found, expected)


def test_sixteen_bit_input_is_computed_in_float32(rng):
    inputs = {n: a.astype(np.float16) for n, a in scan_inputs(rng, np.float64, 20).items()}
    found = ops.selective_scan(**inputs)
    wide = ops.selective_scan(**{n: a.astype(np.float32) for n, a in inputs.items()})
    assert found.dtype == np.float16
    assert np.array_equal(found, wide.astype(np.float16))


BAD_SCANS = [
    ("u", lambda a: a[0], "dimensions"),
    ("u", lambda a: a.astype(int), "floating"),
    ("u", lambda a: a.astype(complex), "floating"),
    ("u", lambda a: a.astype(object), "floating"),
    ("u", lambda _: None, "float"),
    ("delta", lambda a: a[:, :, 1:], "shape"),
    ("delta", lambda a: a[:, :, :1], "shape"),  # would broadcast
    ("delta", lambda a: a > 0, "floating"),
    ("A", lambda a: a[1:], "shape"),
    ("A", lambda a: a[:1], "shape"),  # would broadcast
    ("A", lambda a: a[:, 0], "dimensions"),
    ("B", lambda a: a[:1], "shape"),
    ("B", lambda a: a[:, 1:], "shape"),
    ("B", lambda a: a[..., 1:], "shape"),
    ("B", lambda a: np.repeat(a[:, None], 3, axis=1), "groups"),
    ("B", lambda a: a[:, None, :, :][:, :0], "groups"),
    ("B", lambda a: a[0, 0], "shape"),
    ("C", lambda a: a.swapaxes(1, 2), "shape"),
    ("C", lambda a: a.astype(str), "floating"),
    ("D", lambda a: a[1:], "shape"),
    ("D", lambda a: a[:1], "shape"),
    ("D", lambda a: a[0], "shape"),
    ("z", lambda a: a[:1], "shape"),
    ("delta_bias", lambda a: a[None], "shape"),
    ("initial_state", lambda a: a[:, :, :1], "shape"),
    ("initial_state", lambda a: a.astype(np.int64), "floating"),
]


@pytest.mark.parametrize(("name", "spoil", "word"), BAD_SCANS)
def test_bad_arguments_of_the_scan_are_named(name, spoil, word, rng):
    inputs = scan_inputs(rng, np.float64, 6, "shared")
    inputs |= {"D": rng.random(4), "z": rng.random((2, 4, 6)), "delta_bias": rng.random(4)}
    inputs["initial_state"] = rng.random((2, 4, 8))
    inputs[name] = spoil(inputs[name])
    with pytest.raises(InputError, match=rf"^{name}: expected .*{word}.*found"):
        ops.selective_scan(**inputs)


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="long double is double here"
)
def test_more_precision_than_float64_is_refused_rather_than_lost(rng):
    inputs = scan_inputs(rng, np.longdouble, 6, "shared")
    with pytest.raises(InputError, match=r"^u: expected .*float.*found"):
        ops.selective_scan(**inputs)


def test_an_unknown_backend(rng):
    with pytest.raises(BackendError, match=r"backend: expected .*found 'gpu9'"):
        ops.selective_scan(**scan_inputs(rng, np.float64, 3), backend="gpu9")


# --- selective_state_update ----------------------------------------------------------------------


def update_inputs(rng, dtype, dim, dstate, batch=2):
    inputs = {
        "state": rng.normal(size=(batch, dim, dstate)),
        "x": rng.normal(size=(batch, dim)),
        "dt": rng.normal(size=(batch, dim)),
        "A": -rng.random((dim, dstate)) - 1,
        "B": rng.normal(size=(batch, dstate)),
        "C": rng.normal(size=(batch, dstate)),
    }
    return {name: array.astype(dtype) for name, array in inputs.items()}


def naive_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """One step is a scan over one position."""
    y, state = naive.selective_scan(
        x[..., None], dt[..., None], A, B[..., None], C[..., None],
        D, None if z is None else z[..., None], dt_bias, dt_softplus, initial_state=state,
    )  # fmt: skip
    return y[..., 0], state


@pytest.mark.parametrize(
    "case",
    pairwise(
        dim=[5, 2048, 2064, 4096],
        dstate=[1, 16, 32, 64],
        z=BOOLEANS,
        D=BOOLEANS,
        dt_bias=BOOLEANS,
        softplus=BOOLEANS,
        dtype=list(DTYPES),
    ),
)
def test_selective_state_update(case, rng):
    dtype, dim = DTYPES[case["dtype"]], case["dim"]
    inputs = update_inputs(rng, dtype, dim, case["dstate"])
    inputs["dt_softplus"] = case["softplus"]
    if not case["softplus"]:
        inputs["dt"] = np.abs(inputs["dt"])
    if case["z"]:
        inputs["z"] = rng.normal(size=(2, dim)).astype(dtype)
    if case["D"]:
        inputs["D"] = rng.normal(size=dim).astype(dtype)
    if case["dt_bias"]:
        shift = 4 if case["softplus"] else 0
        inputs["dt_bias"] = (rng.random(dim) - shift).astype(dtype)
    y, state = naive_update(**inputs)
    found = ops.selective_state_update(**inputs)
    close(found, y, dtype, "y")
    close(inputs["state"], state, dtype, "state, changed in place")


def test_state_update_by_position_and_with_groups(rng):
    a = update_inputs(rng, np.float64, 6, 3)
    a["B"], a["C"] = rng.normal(size=(2, 2, 2, 3))  # two groups of three channels
    D, z, bias = rng.normal(size=6), rng.normal(size=(2, 6)), rng.normal(size=6)
    y, state = naive_update(*a.values(), D, z, bias, True)
    found = ops.selective_state_update(*a.values(), D, z, bias, True)
    close(found, y, np.float64, "y")
    close(a["state"], state, np.float64, "state")


def test_state_update_in_strided_memory(rng):
    plain = update_inputs(rng, np.float32, 6, 3)
    views = {name: strided(array) for name, array in plain.items()}
    y, state = naive_update(**plain)
    close(ops.selective_state_update(**views), y, np.float32, "y")
    close(views["state"], state, np.float32, "state")


def test_steps_are_the_scan(rng):
    a = scan_inputs(rng, np.float64, 15, "shared")
    y, last = ops.selective_scan(**a, return_last_state=True)
    state = np.zeros((2, 4, 8))
    steps = [
        ops.selective_state_update(
            state, a["u"][..., t], a["delta"][..., t], a["A"], a["B"][..., t], a["C"][..., t]
        )
        for t in range(15)
    ]
    close(np.stack(steps, axis=2), y, np.float64, "y")
    close(state, last, np.float64, "state")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("state", lambda a: a[0]),
        ("state", lambda a: a.astype(int)),
        ("x", lambda a: a[:1]),
        ("x", lambda a: a[..., None]),
        ("dt", lambda a: a[:, :1]),
        ("A", lambda a: a[:1]),
        ("B", lambda a: a[:1]),
        ("B", lambda a: a[:, :1]),
        ("C", lambda a: a[0]),
        ("D", lambda a: a[:1]),
        ("z", lambda a: a[:1]),
        ("dt_bias", lambda a: a[0]),
        ("dt_bias", lambda a: a > 0),
    ],
)
def test_bad_arguments_of_the_update_are_named(name, spoil, rng):
    inputs = update_inputs(rng, np.float64, 4, 3)
    inputs |= {"D": rng.random(4), "z": rng.random((2, 4)), "dt_bias": rng.random(4)}
    inputs[name] = spoil(inputs[name])
    state = inputs["state"]
    before = np.array(state)
    with pytest.raises(InputError, match=rf"^{name}: expected .*found"):
        ops.selective_state_update(**inputs)
    assert np.array_equal(state, before)


# --- causal_conv1d -------------------------------------------------------------------------------

CONV_LENGTHS = [1, 2, 8, 16, 32, 64, 128, 129, 130, 151, 256, 372, 512, 784, 1024, 1134, 2048, 4096]


def naive_conv(x, weight, bias=None, past=None, activation=None):
    """(B E L), (E K), (E), (B E K-1) -> y (B E L), the last K-1 inputs (B E K-1)."""
    E, K = weight.shape
    ys, pasts = [], []
    for b in range(len(x)):
        window = np.zeros((E, K))
        if past is not None and K > 1:
            window[:, 1:] = past[b]
        y, window = naive.causal_conv(x[b].T.astype(np.float64), weight.astype(float), bias, window)
        ys.append(y.T)
        pasts.append(window[:, 1:])
    y = np.stack(ys)
    if activation:
        e = np.exp(-np.abs(y))
        y = y * np.where(y >= 0, 1, e) / (1 + e)
    return y, np.stack(pasts)


def conv_inputs(rng, dtype, dim, length, width, batch=2, channels_last=False):
    x = rng.standard_normal((batch, dim, length), np.float32)
    if channels_last:
        x = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    return x.astype(dtype, copy=False), rng.normal(size=(dim, width)).astype(dtype)


@pytest.mark.parametrize(
    "case",
    pairwise(
        length=CONV_LENGTHS,
        dim=[64, 64, 64, 4128],  # the large one as seldom as its pairs allow
        width=[1, 2, 3, 4, 5],
        bias=BOOLEANS,
        activation=[None, "silu", "swish"],
        channels_last=BOOLEANS,
        initial=BOOLEANS,
        final=BOOLEANS,
        dtype=list(DTYPES),
    ),
)
def test_causal_conv1d(case, rng):
    dtype, dim, width = DTYPES[case["dtype"]], case["dim"], case["width"]
    batch = 2 if case["length"] * dim < 10**6 else 1
    sizes = (dim, case["length"], width, batch, case["channels_last"])
    x, weight = conv_inputs(rng, dtype, *sizes)
    bias = rng.normal(size=dim).astype(dtype) if case["bias"] else None
    past = rng.normal(size=(batch, dim, width - 1)).astype(dtype) if case["initial"] else None
    found = ops.causal_conv1d(x, weight, bias, past, case["final"], case["activation"])
    y, end = naive_conv(x, weight, bias, past, case["activation"])
    if case["final"]:
        assert np.array_equal(found[1], end)
        found = found[0]
    close(found, y, dtype, "y", "step")


def test_convolution_of_slices_that_are_not_contiguous(rng):
    whole = rng.normal(size=(2, 12, 40)).astype(np.float32)
    weight = strided(rng.normal(size=(6, 4)).astype(np.float32))
    x = whole[:, 3:9, 1::2]
    found = ops.causal_conv1d(x, weight, return_final_states=True)
    expected = ops.causal_conv1d(x.copy(), weight.copy(), return_final_states=True)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_convolution_in_pieces(width, rng):
    x, weight = conv_inputs(rng, np.float64, 6, 20, width)
    whole, end = ops.causal_conv1d(x, weight, return_final_states=True)
    state, pieces = None, []
    for start, stop in itertools.pairwise([0, 1, 3, 12, 20]):
        y, state = ops.causal_conv1d(x[..., start:stop], weight, None, state, True)
        pieces.append(y)
    close(np.concatenate(pieces, axis=2), whole, np.float64, "y", "step")
    assert np.array_equal(state, end)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("x", lambda a: a[0]),
        ("x", lambda a: a.astype(int)),
        ("weight", lambda a: a[:, None]),  # the checkpoint's (E, 1, K)
        ("weight", lambda a: a[1:]),
        ("weight", lambda a: a[:, :0]),
        ("bias", lambda a: a[:1]),
        ("initial_states", lambda a: a[..., :1]),
        ("initial_states", lambda a: a[:1]),
        ("activation", lambda _: "relu"),
        ("activation", lambda _: True),
    ],
)
def test_bad_arguments_of_the_convolution_are_named(name, spoil, rng):
    x, weight = conv_inputs(rng, np.float64, 6, 5, 4)
    arguments = {"x": x, "weight": weight, "bias": rng.random(6), "activation": "silu"}
    arguments["initial_states"] = rng.random((2, 6, 3))
    arguments[name] = spoil(arguments[name])
    with pytest.raises(InputError, match=rf"^{name}: expected .*found"):
        ops.causal_conv1d(**arguments)


# --- causal_conv1d_update ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    pairwise(
        dim=[3, 2048, 2064, 4096],
        width=[1, 2, 3, 4, 5],
        extra=[0, 1, 3],  # a state that is longer than the width - 1 that is needed
        length=[None, 1, 4, 5, 9],
        bias=BOOLEANS,
        activation=[None, "silu"],
        dtype=list(DTYPES),
    ),
)
def test_causal_conv1d_update(case, rng):
    dtype, dim, width, length = (case[k] for k in ("dtype", "dim", "width", "length"))
    dtype, size = DTYPES[dtype], width - 1 + case["extra"]
    state = rng.normal(size=(2, dim, size)).astype(dtype)
    x, weight = conv_inputs(rng, dtype, dim, length or 1, width)
    bias = rng.normal(size=dim).astype(dtype) if case["bias"] else None
    past = state[..., size - width + 1 :].copy()
    expected, _ = naive_conv(x, weight, bias, past, case["activation"])
    seen = np.concatenate([state, x], axis=2)
    arguments = (x[..., 0] if length is None else x, state, weight, bias, case["activation"])
    y = ops.causal_conv1d_update(*arguments)
    close(y, expected[..., 0] if length is None else expected, dtype, "y", "step")
    assert np.array_equal(state, seen[..., seen.shape[2] - size :]), "state, changed in place"


def test_updates_are_the_convolution(rng):
    x, weight = conv_inputs(rng, np.float64, 6, 11, 4)
    whole = ops.causal_conv1d(x, weight, activation="silu")
    state = np.zeros((2, 6, 4))
    steps = [ops.causal_conv1d_update(x[..., t], state, weight, None, "silu") for t in range(11)]
    close(np.stack(steps, axis=2), whole, np.float64, "y", "step")
    assert np.array_equal(state, x[..., -4:])


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("x", lambda a: a[0, 0]),
        ("x", lambda a: a.astype(int)),
        ("conv_state", lambda a: a[:1]),
        ("conv_state", lambda a: a[..., :2]),
        ("conv_state", lambda a: a[0]),
        ("weight", lambda a: a[:1]),
        ("bias", lambda a: a[:1]),
        ("activation", lambda _: "tanh"),
    ],
)
def test_bad_arguments_of_the_convolutions_update_are_named(name, spoil, rng):
    x, weight = conv_inputs(rng, np.float64, 6, 5, 4)
    arguments = {"x": x, "weight": weight, "bias": rng.random(6), "activation": None}
    arguments["conv_state"] = rng.random((2, 6, 3))
    arguments[name] = spoil(arguments[name])
    before = np.array(arguments["conv_state"])
    with pytest.raises(InputError, match=rf"^{name}: expected .*found"):
        ops.causal_conv1d_update(**arguments)
    assert np.array_equal(arguments["conv_state"], before)


# --- the door ----------------------------------------------------------------------------------


def test_lists_are_arrays(rng):
    x, weight = rng.normal(size=(1, 2, 5)), rng.normal(size=(2, 3))
    found = ops.causal_conv1d(x.tolist(), weight.tolist())
    np.testing.assert_array_equal(found, ops.causal_conv1d(x, weight))
    inputs = scan_inputs(rng, np.float64, 4, "shared")
    found = ops.selective_scan(**{name: a.tolist() for name, a in inputs.items()})
    np.testing.assert_array_equal(found, ops.selective_scan(**inputs))


@pytest.mark.parametrize("bad", [[[[0.0]]], None, "x"])
def test_what_cannot_be_changed_in_place_is_refused(bad):
    one = np.zeros((1, 1))
    with pytest.raises(InputError, match="state: expected a NumPy array to change in place"):
        ops.selective_state_update(bad, one, one, one, one, one)
    with pytest.raises(InputError, match="conv_state: expected a NumPy array to change in place"):
        ops.causal_conv1d_update(one, bad, one)


def test_a_read_only_state_is_refused_before_any_work():
    state, one = np.zeros((1, 1, 1)), np.zeros((1, 1))
    state.flags.writeable = False
    with pytest.raises(InputError, match=r"state: .*found a read-only one"):
        ops.selective_state_update(state, one, one, one, one, one)


@pytest.mark.parametrize("missing", ["x", "dt", "A"])
def test_required_arguments_of_the_update_are_named(missing):
    one = np.zeros((1, 1))
    arguments = {"x": one, "dt": one, "A": one, "B": one, "C": one} | {missing: None}
    with pytest.raises(InputError, match=f"^{missing}: "):
        ops.selective_state_update(np.zeros((1, 1, 1)), **arguments)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
def test_empty_batches_and_channels_are_refused(shape):
    u = np.zeros(shape)
    A, B = np.zeros((shape[1], 2)), np.zeros((shape[0], 2, shape[2]))
    with pytest.raises(InputError, match="u: expected 3 dimensions, the first two above 0"):
        ops.selective_scan(u, u, A, B, B)


def test_the_last_state_of_nothing_is_a_copy_of_the_first():
    u, first = np.zeros((1, 2, 0)), np.ones((1, 2, 3))
    B = np.zeros((1, 3, 0))
    _, last = ops.selective_scan(
        u, u, -np.ones((2, 3)), B, B, return_last_state=True, initial_state=first
    )
    np.testing.assert_array_equal(last, first)
    assert not np.shares_memory(last, first)
