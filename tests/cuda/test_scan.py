"""The scan's kernels as compiled, executed by the emulator, against the float64 oracle."""

from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

import ml_dtypes
import naive
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ARCHITECTURES, Empty, InPlace, empty, run
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq
from mamba_np.cuda import scan, scan_chunks, scan_lanes, scan_steps, scan_trace
from mamba_np.errors import InputError

FORMS = {"channels": scan.channel_scan, "lanes": scan_lanes.lane_scan}
RTOL = tolerance("gpu scan", "float32")
SCRATCH = 7  # columns of ``selected`` that no scan may look at


class Inputs(NamedTuple):
    """What a scan reads, as kernels have it, and its sizes."""

    x: np.ndarray  # (B, L, E)
    raw: np.ndarray  # (B, L, E)
    xz: np.ndarray  # (B, L, 2E)
    selected: np.ndarray  # (B, L, M)
    A: np.ndarray  # (E, N4)
    D: np.ndarray  # (E)
    dt_bias: np.ndarray  # (E)
    lengths: np.ndarray  # (B)
    h: np.ndarray  # (B, E, N4)
    N: int
    gated: bool

    @property
    def N4(self):
        return self.A.shape[1]

    @property
    def sizes(self):
        return self.x.shape[1], self.x.shape[2], self.selected.shape[2]

    def oracle(self):
        """Return y (B, L, E), 0 past the ends, and the last states (B, E, N), float64."""
        N, N4 = self.N, self.N4
        y, h = np.zeros(self.x.shape), self.h[..., :N].astype(np.float64)
        A = self.A[:, :N] / eq.LOG2_E
        for b, length in enumerate(self.lengths):
            rows = (slice(b, b + 1), slice(0, length))
            u, delta = (np.swapaxes(a[rows], 1, 2) for a in (self.x, self.raw))
            B, C = (np.swapaxes(self.selected[rows][..., k : k + N], 1, 2) for k in (0, N4))
            more = {}
            if self.gated:
                z = np.swapaxes(self.xz[rows][..., self.x.shape[2] :], 1, 2)
                more = dict(D=self.D, z=z, delta_bias=self.dt_bias, delta_softplus=True)
            found, last = naive.selective_scan(
                u, delta, A, B, C, initial_state=h[b : b + 1], **more
            )
            y[b, :length], h[b] = found[0].T, last[0]
        return y, h


def inputs(rng, L, *, lengths=None, texts=1, E=128, N=16, gated=True):
    """Return random inputs: pads are zero, what must not be read is NaN."""
    lengths = [L] * texts if lengths is None else lengths
    texts, N4 = len(lengths), -(-N // 4) * 4

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def states(array):
        array[..., N:] = 0
        return array

    raw = normal(texts, L, E) * 3  # softplus in its bends and beyond
    selected = np.full((texts, L, 2 * N4 + SCRATCH + 1), np.nan, np.float32)
    for k in (0, N4):
        selected[..., k : k + N4] = states(normal(texts, L, N4))
    xz = normal(texts, L, 2 * E) * 2
    xz[..., :E] = np.nan
    A = states(-np.exp(normal(E, N4)) * np.float32(eq.LOG2_E))
    if not gated:
        raw, xz = np.abs(raw) / 3, np.full_like(xz, np.nan)
    return Inputs(
        normal(texts, L, E), raw, xz, selected, A, normal(E), normal(E),
        np.array(lengths, np.int32), states(normal(texts, E, N4)), N, gated,
    )  # fmt: skip


def scanned(i, form="channels", *, arch=90, out="float32"):
    """Run one form; return y (B, L, E) and the states (B, E, N4)."""
    kernel = FORMS[form](i.N, out, i.gated)
    L, E, M = i.sizes
    y, h = empty(*i.x.shape, dtype=np.uint16 if out == "bfloat16" else np.float32), i.h.copy()
    grid = scan.blocks_of(form, E), len(i.lengths), 1
    arguments = i.x, i.raw, i.xz, i.selected, i.A, i.D, i.dt_bias, i.lengths, InPlace(h), y
    run(kernel, grid, *arguments, L, E, M, L, arch=arch)
    return (y.array.view(ml_dtypes.bfloat16) if out == "bfloat16" else y.array), h


def assert_scan(i, y, h, rtol=RTOL):
    expected, last = i.oracle()
    assert_close_to_scale(np.asarray(y, np.float64), expected, rtol, "y")
    assert_close_to_scale(h[..., : i.N], last, RTOL, "h")
    assert not h[..., i.N :].any(), "padded states moved"
    for b, length in enumerate(i.lengths):
        assert not y[b, length:].astype(np.float32).any(), "outputs past the end"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("L", [1, 3, 4, 31, 32, 33, 65, 100])
def test_every_length(rng, form, L):
    i = inputs(rng, L)
    assert_scan(i, *scanned(i, form))


@pytest.mark.parametrize(
    ("form", "N"),
    [(form, N) for form in FORMS for N in (1, 3, 4, 12, 32, 64) if (form, N) != ("channels", 64)],
)
def test_every_number_of_states(rng, form, N):
    i = inputs(rng, 35, N=N, texts=2)
    assert_scan(i, *scanned(i, form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_texts_that_end_early(rng, form, arch):
    i = inputs(rng, 37, lengths=[37, 0, 6], E=256)
    assert_scan(i, *scanned(i, form, arch=arch))


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_outputs_are_the_others_rounded(rng, form):
    i = inputs(rng, 9, lengths=[9, 5])
    y, h = scanned(i, form, out="bfloat16")
    exact, same = scanned(i, form)
    assert np.array_equal(y, exact.astype(ml_dtypes.bfloat16))
    assert np.array_equal(h, same)
    assert_scan(i, y, h, rtol=tolerance("gpu scan", "bfloat16"))


@pytest.mark.parametrize("form", FORMS)
def test_the_bare_operator(rng, form):
    i = inputs(rng, 21, lengths=[21, 2], gated=False, N=3)
    i.D[:], i.dt_bias[:] = np.nan, np.nan
    assert_scan(i, *scanned(i, form))


@pytest.mark.parametrize("form", FORMS)
def test_extreme_inputs(rng, form):
    """Step sizes from 1e-38 to 500, decays of nothing and everything, wide-open gates."""
    i = inputs(rng, 16)
    i.raw[:], i.xz[..., 128:] = (
        rng.uniform(-85, 500, i.raw.shape),
        rng.uniform(-1e4, 1e4, i.x.shape),
    )
    i.A[:, ::2] *= 1e4
    assert_scan(i, *scanned(i, form))


@settings(max_examples=8)
@given(st.data())
def test_forms_agree_and_pieces_join(data):
    """Any form in any two pieces: the same outputs, and the same states."""
    L, N = data.draw(st.integers(2, 80)), data.draw(st.sampled_from([2, 8, 16]))
    lengths = data.draw(st.lists(st.integers(0, L), min_size=1, max_size=2))
    i = inputs(np.random.default_rng(data.draw(st.integers(0, 99))), L, lengths=lengths, N=N)
    y, h = scanned(i)
    other, last = scanned(i, "lanes")
    assert_close_to_scale(other, y, RTOL, "y by lanes")
    assert_close_to_scale(last, h, RTOL, "h by lanes")
    cut, now = data.draw(st.integers(1, L - 1)), i.h
    for piece in (slice(0, cut), slice(cut, L)):
        ends = np.clip(i.lengths - piece.start, 0, piece.stop - piece.start).astype(np.int32)
        part = i._replace(
            **{k: np.ascontiguousarray(getattr(i, k)[:, piece]) for k in Inputs._fields[:4]},
            lengths=ends, h=now,
        )  # fmt: skip
        found, now = scanned(part)
        assert_close_to_scale(found, y[:, piece], RTOL, "y in pieces")
    assert_close_to_scale(now, h, RTOL, "h in pieces")


# --- chunks ---------------------------------------------------------------------------------------


def in_chunks(i, length, arch=90, rescan="channels"):
    """Run the three kernels; return y, h, and the states that chunks began with."""
    L, E, M = i.sizes
    texts = len(i.lengths)
    plan = scan.Plan("chunks", -(-L // length), length)
    states, channels = scan_chunks.scratch(plan, texts, E, i.N4)
    ends, sums = np.full(states, np.nan, np.float32), np.full(channels, np.nan, np.float32)
    run(
        scan_chunks.chunk_states(i.N, i.gated), (E // scan.THREADS, texts, plan.count),
        i.x, i.raw, i.selected, i.A, i.dt_bias, i.lengths, Empty(ends), Empty(sums),
        L, E, M, length, arch=arch,
    )  # fmt: skip
    h, y = i.h.copy(), empty(*i.x.shape)
    grid = E * i.N4 // scan.THREADS, texts
    run(
        scan_chunks.carry(i.N), grid,
        InPlace(ends), sums, i.A, InPlace(h), E, plan.count, arch=arch,
    )  # fmt: skip
    starts = ends.copy()
    run(
        FORMS[rescan](i.N, "float32", i.gated), (scan.blocks_of(rescan, E), texts, plan.count),
        i.x, i.raw, i.xz, i.selected, i.A, i.D, i.dt_bias, i.lengths, InPlace(ends), y,
        L, E, M, length, arch=arch,
    )  # fmt: skip
    after = ends.reshape(texts, plan.count, E, i.N4)
    assert_close_to_scale(after[:, -1], h, RTOL, "the last chunk's states")
    return y.array, h, starts.reshape(after.shape)


@pytest.mark.parametrize(
    ("L", "length", "lengths"),
    [(100, 12, [100]), (64, 16, [64, 33]), (37, 36, [37, 0]), (9, 12, [5]), (61, 4, [61])],
)
def test_chunks_are_the_whole(rng, L, length, lengths):
    i = inputs(rng, L, lengths=lengths)
    y, h, starts = in_chunks(i, length)
    assert_scan(i, y, h)
    whole, last = scanned(i)
    assert_close_to_scale(y, whole, RTOL, "y")
    assert_close_to_scale(h, last, RTOL, "h")
    assert np.array_equal(starts[:, 0], i.h), "the first chunk begins with the states before"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_chunks_everywhere(rng, arch):
    i = inputs(rng, 50, lengths=[50, 20], E=256, N=3)
    assert_scan(i, *in_chunks(i, 8, arch)[:2])


def test_chunks_of_the_bare_operator_by_lanes(rng):
    i = inputs(rng, 40, gated=False, N=8)
    assert_scan(i, *in_chunks(i, 8, rescan="lanes")[:2])


# --- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("L", "before", "every", "lengths", "arch"),
    [(20, 0, 1, [20], 90), (33, 5, 4, [33, 0], 75), (12, 7, 10, [7, 12], 120), (5, 1, 9, [5], 90)],
)
def test_traces_are_what_the_scan_computes(rng, L, before, every, lengths, arch):
    i = inputs(rng, L, lengths=lengths, N=3, E=256)
    chosen = rng.permutation(256)[:37].astype(np.int32)
    texts, (_, E, M), c = len(lengths), i.sizes, len(chosen)
    kept = (before + L) // every - before // every
    delta, y = empty(texts, L, c), empty(texts, L, c)
    states = empty(texts, kept, c, i.N4) if kept else np.zeros(4, np.float32)
    run(
        scan_trace.tracing_scan(i.N), (-(-c // scan_trace.THREADS), texts),
        i.x, i.raw, i.selected, i.A, i.dt_bias, i.lengths, i.h, chosen, delta, y, states,
        L, E, M, c, before, every, arch=arch,
    )  # fmt: skip
    exact = naive.each(naive.softplus, (i.raw + i.dt_bias.astype(np.float64))[..., chosen])
    counts = np.arange(L) < i.lengths[:, None]
    assert_close_to_scale(delta.array, exact * counts[..., None], RTOL, "delta")
    A, h = i.A[chosen], i.h[:, chosen]
    bare = i._replace(x=i.x[..., chosen], raw=exact, A=A, h=h, gated=False)
    assert_close_to_scale(y.array, bare.oracle()[0], RTOL, "y")
    steps = [t for t in range(1, L + 1) if (before + t) % every == 0]
    assert len(steps) == kept
    for p, t in enumerate(steps):
        ends = np.minimum(i.lengths, t)
        h = bare._replace(lengths=ends).oracle()[1]
        assert_close_to_scale(states.array[:, p, :, : i.N], h, RTOL, f"states after {t}")


def test_a_trace_without_softplus(rng):
    i = inputs(rng, 6, gated=False, N=4)
    chosen = np.array([3, 100], np.int32)
    delta, y, states = empty(1, 6, 2), empty(1, 6, 2), empty(1, 1, 2, 4)
    run(
        scan_trace.tracing_scan(4, gated=False), (1, 1),
        i.x, i.raw, i.selected, i.A, i.dt_bias, i.lengths, i.h, chosen, delta, y, states,
        6, 128, i.sizes[2], 2, 0, 6,
    )  # fmt: skip
    expected, last = i.oracle()
    assert np.array_equal(delta.array, i.raw[..., chosen])
    assert_close_to_scale(y.array, expected[..., chosen], RTOL, "y")
    assert_close_to_scale(states.array[:, 0], last[:, chosen], RTOL, "h")


# --- what is compiled, and when -------------------------------------------------------------------


def test_forms_for_many_and_few_channels():
    processors = 132
    assert scan.choose(8, 4096, 4096, processors) == scan.Plan("channels", 1, 4096)
    assert scan.choose(1, 2048, 5120, processors) == scan.Plan("lanes", 1, 2048)
    assert scan.choose(1, 100, 1536, processors) == scan.Plan("lanes", 1, 100)
    assert scan.choose(1, 4096, 1536, processors) == scan.Plan("chunks", 22, 188)
    assert scan.choose(8, 4096, 4096, processors, N=33) == scan.Plan("lanes", 1, 4096)
    assert scan.choose(1, 4096, 64 * 32, processors).form == "chunks"  # 264 warps of lanes: half
    assert scan.choose(1, 4096, 68 * 32, processors).form == "lanes"
    assert scan.choose(1, 256, 1536, processors) == scan.Plan("chunks", 4, 64)
    assert scan.choose(1, 255, 1536, processors).form == "lanes"


@given(st.integers(1, 64), st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 200))
def test_plans_cover_all_steps(texts, L, groups, processors):
    plan = scan.choose(texts, L, 128 * groups, processors)
    assert (plan.count - 1) * plan.length < L <= plan.count * plan.length
    assert plan.form == "chunks" or plan.count == 1
    assert plan.form != "chunks" or plan.length >= scan.SHORTEST_CHUNK
    assert scan_chunks.scratch(plan, texts, 128, 16) == (
        texts * plan.count * 128 * 16,
        texts * plan.count * 128,
    )


def test_states_that_have_no_room_are_refused():
    threads, lanes = scan_steps.MOST_OF_A_THREAD, scan_steps.MOST_STATES
    for make, most in (
        (scan.channel_scan, threads), (scan_chunks.chunk_states, threads),
        (scan_lanes.lane_scan, lanes), (scan_chunks.carry, lanes), (scan_trace.tracing_scan, lanes),
    ):  # fmt: skip
        for N in (0, most + 1):
            expected = f"state_size: expected 1 to {most} in this kernel, found {N}"
            with pytest.raises(InputError, match=expected):
                make(N)


def test_other_outputs_are_refused():
    for make in FORMS.values():
        with pytest.raises(
            InputError, match="out: expected one of float32, bfloat16, found 'int8'"
        ):
            make(16, "int8")
