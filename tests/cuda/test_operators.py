"""``mamba_np.ops`` on the GPU's engine, beside loops in float64."""

import naive
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from test_engine import gpu as gpu  # the fixture
from tolerances import assert_close_to_scale, tolerance

from mamba_np import ops
from mamba_np.cuda import driver, scan
from mamba_np.errors import BackendError


@pytest.fixture(autouse=True)
def _there_is_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(driver, "gpu", lambda: gpu)


def inputs(rng, texts=2, E=5, L=7, N=3, groups=None):
    """Return u, delta, A, B, C, D, z, bias, h in mamba-ssm's layout, float32."""
    shared = (texts, N, L) if groups is None else (texts, groups, N, L)
    shapes = (texts, E, L), (texts, E, L), (E, N), shared, shared, (E,), (texts, E, L), (E,)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (*shapes, (texts, E, N))]
    arrays[2] = -np.exp(arrays[2])
    return arrays


def same(found, expected):
    for name, ours, theirs in zip(("y", "h"), found, expected, strict=True):
        assert ours.dtype == np.float32
        assert_close_to_scale(ours, theirs, tolerance("scan", "float32"), name)


@pytest.mark.parametrize(
    "sizes", [{}, {"texts": 1, "E": 130, "L": 3, "N": 16}, {"L": 1, "E": 1, "N": 1}]
)
def test_the_scan_alone(rng, sizes):
    u, delta, A, B, C, D, z, bias, h = inputs(rng, **sizes)
    more = {"D": D, "z": z, "delta_bias": bias, "delta_softplus": True, "initial_state": h}
    found = ops.selective_scan(u, delta, A, B, C, **more, return_last_state=True, backend="cuda")
    same(found, naive.selective_scan(u, delta, A, B, C, **more))


def test_given_steps_and_nothing_else(rng):
    u, delta, A, B, C, *_ = inputs(rng)
    delta = np.abs(delta)
    found = ops.selective_scan(u, delta, A, B, C, return_last_state=True, backend="cuda")
    same(found, naive.selective_scan(u, delta, A, B, C))


def test_chunks_of_a_long_text(rng, gpu, monkeypatch):
    u, delta, A, B, C, *_, bias, h = inputs(rng, texts=1, E=4, L=260)
    monkeypatch.setattr(gpu, "processors", 132)
    assert scan.choose(1, 260, 128, gpu.processors, 3).form == "chunks"
    more = {"delta_bias": bias, "delta_softplus": True, "initial_state": h}
    found = ops.selective_scan(u, delta, A, B, C, **more, return_last_state=True, backend="cuda")
    same(found, naive.selective_scan(u, delta, A, B, C, **more))


def test_nothing_to_scan(rng):
    u, delta, A, B, C, *_, h = inputs(rng, L=0)
    y, last = ops.selective_scan(
        u, delta, A, B, C, initial_state=h, return_last_state=True, backend="cuda"
    )
    assert y.shape == u.shape
    assert np.array_equal(last, h)


def test_channels_with_b_and_c_of_their_own_are_refused(rng):
    u, delta, A, B, C, *_ = inputs(rng, E=4, groups=2)
    with pytest.raises(BackendError, match="B or C of their own; 'numpy' has"):
        ops.selective_scan(u, delta, A, B, C, delta_softplus=True, backend="cuda")


def test_float64_is_refused(rng):
    u, delta, A, B, C, *_ = (array.astype(np.float64) for array in inputs(rng))
    with pytest.raises(BackendError, match="computing in float64"):
        ops.selective_scan(u, delta, A, B, C, delta_softplus=True, backend="cuda")
