"""Plots by what they are made of: arrays, lines, ticks, scales and labels; no pixels."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import bundled_model_path
from small_model import CHANNEL, LAYER, SMALL, small_model
from test_laws import make_model
from tolerances import assert_close_to_scale, tolerance

from mamba_np import AutoTokenizer, MambaForCausalLM, analysis, plot
from mamba_np.errors import InputError, NonFiniteError
from mamba_np.interventions import Ablate, CutPath, ScaleDelta
from mamba_np.plot import figures, images, memory, overview
from mamba_np.trace import QUANTITIES

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import colors, pyplot  # noqa: E402

BOTTOM_UP = "lower"

AXES = {
    "delta": lambda m, t, **o: plot.delta(t, **o),
    "delta of a layer": lambda m, t, **o: plot.delta(t, LAYER, **o),
    "half_life": lambda m, t, **o: plot.half_life(t, **o),
    "hidden_attention": lambda m, t, **o: plot.hidden_attention(t, LAYER, **o),
    "attention of a channel": lambda m, t, **o: plot.hidden_attention(t, LAYER, CHANNEL, **o),
    "mixer_attention": lambda m, t, **o: plot.mixer_attention(m, t.ids, LAYER, CHANNEL, **o),
    "contributions": lambda m, t, **o: plot.contributions(m, t.ids, LAYER, **o),
    "contributions at one": lambda m, t, **o: plot.contributions(m, t.ids, LAYER, -1, **o),
    "receptive_field": lambda m, t, **o: plot.receptive_field(t, **o),
    "receptive_field of a layer": lambda m, t, **o: plot.receptive_field(t, LAYER, **o),
    "similarity": lambda m, t, **o: plot.similarity(t, LAYER, **o),
    "logit_lens": lambda m, t, **o: plot.logit_lens(m, t, positions=range(len(t))[-30:], **o),
    "relevance": lambda m, t, **o: plot.relevance(m, t.ids, **o),
    "state_shares": lambda m, t, **o: plot.state_shares(t, LAYER, **o),
    "influence": lambda m, t, **o: plot.influence(t, **o),
    "influence of a layer": lambda m, t, **o: plot.influence(t, LAYER, **o),
    "survival": lambda m, t, **o: plot.survival(t, **o),
    "residual_norm": lambda m, t, **o: plot.residual_norm(t, **o),
    "latest": lambda m, t, **o: plot.latest(t, **o),
    "what_if": lambda m, t, **o: plot.what_if(m, t.ids, ScaleDelta(2), **o),
    "what_if of one": lambda m, t, **o: plot.what_if(m, t.ids, Ablate(layers=0), at=-1, **o),
}  # fmt: skip
FIGURES = {
    "state": lambda m, t, **o: plot.state(t, LAYER, CHANNEL, **o),
    "strengths": lambda m, t, **o: plot.strengths(t, **o),
    "state_size": lambda m, t, **o: plot.state_size(t, training_length=4, **o),
    "dashboard": lambda m, t, **o: plot.dashboard(t, LAYER, **o),
    "dashboard of a channel": lambda m, t, **o: plot.dashboard(t, LAYER, CHANNEL, **o),
}
OF_A_MODEL = {  # that is, of no trace: a bad argument of each, and what is wrong
    "mixer_attention": ("channel", [LAYER, 18]),
    "contributions": ("layer", [3]),
    "contributions at one": ("at", [LAYER, 8]),
    "relevance": ("token", [17]),
    "what_if": ("intervene", [2.0]),
    "what_if of one": ("layers", [Ablate(layers=9)]),
}
WIDE = images.COLUMNS + 76


@pytest.fixture
def model(dtype):
    return small_model(dtype)


@pytest.fixture
def trace(model):
    return trace_of(model, 12)


def trace_of(model, length, **options):
    ids = np.random.default_rng(5).integers(17, size=length)
    return model.trace(ids, capture=tuple(QUANTITIES), **options)


@pytest.fixture(autouse=True)
def _tidy():
    """Settings stay as they are; a figure that a test was given is closed after it."""
    before = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == before


def image_of(ax):
    (image,) = ax.images
    return image


def values_of(ax):
    return image_of(ax).get_array()


def bars_of(ax):
    """Return the sum of all bars drawn (L)."""
    parts = [patch.get_data().values for patch in ax.patches]
    longest = max(map(len, parts))
    return np.sum([part for part in parts if len(part) == longest], axis=0)


def bar_label(ax):
    """Return what the axes' colour bar says."""
    (bar,) = ax.child_axes
    return bar.get_ylabel()


def close(found, expected, dtype):
    assert_close_to_scale(found, expected, tolerance("law", dtype), "plot")


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AXES)
def test_one_axes_in_and_out(name):
    model, (figure, ax) = small_model(), pyplot.subplots()
    text = trace_of(model, 5)
    assert AXES[name](model, text, ax=ax) is ax
    assert pyplot.get_fignums() == [figure.number]
    own = AXES[name](model, text)
    assert isinstance(own, type(ax))
    assert pyplot.get_fignums() == [figure.number, own.figure.number]


@pytest.mark.parametrize("name", FIGURES)
def test_one_figure_in_and_out(name):
    model, figure = small_model(), pyplot.figure()
    text = trace_of(model, 5)
    assert FIGURES[name](model, text, figure=figure) is figure
    assert pyplot.get_fignums() == [figure.number]
    half = pyplot.figure().subfigures(1, 2)[0]
    assert FIGURES[name](model, text, figure=half) is half
    own = FIGURES[name](model, text)
    assert isinstance(own, pyplot.Figure)
    assert len(pyplot.get_fignums()) == 3


@pytest.mark.parametrize("length", [1, 60, WIDE])
@pytest.mark.parametrize("name", [*AXES, *FIGURES])
def test_any_length_can_be_drawn_and_says_what_it_shows(name, length):
    model = small_model()
    some = {"layers": [LAYER], "channels": [0, CHANNEL]} if length == WIDE else {}
    drawn = (AXES | FIGURES)[name](model, trace_of(model, length, **some))
    figure = drawn if name in FIGURES else drawn.figure
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert ax.get_ylabel()
        assert len(ax.xaxis.get_ticklocs()) <= 41
        assert len(ax.patches) <= 40
        assert len(ax.child_axes) >= len(ax.images)
        assert all(bar.get_ylabel() for bar in ax.child_axes)
        for image, bar in zip(ax.images, ax.child_axes, strict=False):
            assert ("(log)" in bar.get_ylabel()) == isinstance(image.norm, colors.LogNorm)
            assert image.get_array().shape[1] <= max(images.COLUMNS, len(image.get_array()))
            check_colours(image)
    assert figure.axes[-1].get_xlabel()


def check_colours(image):
    """Pictures survive grey print: the more, the lighter; zero is white where there are signs."""
    colours = image.cmap(np.linspace(0, 1, 65))[:, :3]
    if image.norm.vmin < 0:
        assert image.norm.vmin == -image.norm.vmax
        assert (colours[32] > 0.95).all()
    else:
        assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > -2e-3).all()


@pytest.mark.parametrize("name", sorted((AXES | FIGURES).keys() - OF_A_MODEL.keys()))
def test_what_a_trace_lacks_is_named_and_no_figure_is_left(name):
    model = small_model()
    text = model.trace(np.arange(8), capture=("logits",))
    with pytest.raises(InputError, match=r"trace: expected one that holds|channel: expected"):
        (AXES | FIGURES)[name](model, text)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("what", OF_A_MODEL)
def test_what_a_model_lacks_is_named_and_no_figure_is_left(what):
    named, options = OF_A_MODEL[what]
    with pytest.raises(InputError, match=rf"{named}: expected"):
        getattr(plot, what.partition(" ")[0])(small_model(), np.arange(8), *options)
    assert not pyplot.get_fignums()


def test_missing_matplotlib_is_named(monkeypatch, trace):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(plot.MissingPackageError, match=r"pip install matplotlib") as caught:
        plot.half_life(trace)
    assert isinstance(caught.value, ImportError)


def test_another_missing_package_is_not_blamed_on_matplotlib():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        figures.library("no_such_package")


# --- memory ---------------------------------------------------------------------------------------


def test_delta_of_all_layers(trace, dtype):
    ax = plot.delta(trace)
    close(values_of(ax), np.exp(np.log(trace.delta).mean(axis=2)), dtype)
    assert image_of(ax).origin == BOTTOM_UP
    norm = image_of(ax).norm
    assert isinstance(norm, colors.LogNorm)
    close((norm.vmin, norm.vmax), (values_of(ax).min(), values_of(ax).max()), dtype)
    assert image_of(ax).get_cmap().name == "cividis"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in ax.get_xticklabels()] == list(trace.labels)
    assert ax.get_xlim() == (-0.5, 11.5)
    kept = replace(trace, delta_geometric_mean=None)
    close(values_of(plot.delta(kept)), values_of(ax), dtype)
    without = replace(trace, delta=None)
    close(values_of(plot.delta(without)), values_of(ax), dtype)


def test_delta_of_traced_layers_alone(model):
    text = trace_of(model, 6, layers=[2, 0])
    ax = plot.delta(text)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2", "0"]
    assert image_of(plot.delta(text, norm=colors.Normalize(0, 1), cmap="magma")).norm.vmax == 1


def test_delta_of_channels_from_slow_to_fast(trace):
    ax = plot.delta(trace, LAYER)
    rate = trace.delta[LAYER].mean(axis=0) * np.abs(trace.A[LAYER]).mean(axis=1)
    order = np.argsort(rate)
    assert not (order == np.arange(18)).all()
    assert (values_of(ax) == trace.delta[LAYER][:, order].T).all()
    assert "rows" not in ax.get_title(loc="left")


def test_delta_of_many_channels_is_binned_by_their_median(monkeypatch, trace):
    monkeypatch.setattr(memory, "ROWS", 5)
    ax = plot.delta(trace, LAYER)
    rate = trace.delta[LAYER].mean(axis=0) * np.abs(trace.A[LAYER]).mean(axis=1)
    rows = [
        np.median(trace.delta[LAYER][:, some], axis=1)
        for some in np.split(np.argsort(rate), [4, 8, 12, 15])
    ]
    np.testing.assert_array_equal(values_of(ax), rows)
    assert "18 channels in 5 rows" in ax.get_title(loc="left")


def test_half_lives_of_channels_stand_beside_them(trace):
    ax = plot.delta(trace, LAYER)
    rate = np.sort(trace.delta[LAYER].mean(axis=0) * np.abs(trace.A[LAYER]).mean(axis=1))
    np.testing.assert_array_equal(ax.get_yticks(), np.arange(0, 18, 3))
    found = [float(label.get_text()) for label in ax.get_yticklabels()]
    np.testing.assert_allclose(found, np.log(2) / rate[::3], rtol=0.05, atol=0.5)
    assert found == sorted(found, reverse=True)
    still = plot.delta(replace(trace, delta=np.zeros_like(trace.delta)), LAYER)
    assert {label.get_text() for label in still.get_yticklabels()} == {"inf"}


def test_the_latest_tokens_move_on_while_a_text_is_generated(model):
    tracer, ax = model.tracer(capture=("delta_geometric_mean",)), None
    for n, _ in enumerate(tracer.stream([[3, 1]], max_new_tokens=8, do_sample=True, seed=1)):
        drawn, text = plot.latest(tracer.trace, count=3, ax=ax), tracer.trace
        assert ax is None or drawn is ax
        ax, values = drawn, text.delta_geometric_mean
        shown = np.full((3, 3), np.nan)
        shown[:, : n + 2] = values[:, -3:]
        np.testing.assert_array_equal(values_of(ax).filled(np.nan), shown)
        names = [label.get_text() for label in ax.get_xticklabels()]
        assert names == [*text.labels[-3:], *[""] * (1 - n)]
        norm = image_of(ax).norm
        np.testing.assert_allclose((norm.vmin, norm.vmax), (values.min(), values.max()))
        assert ax.get_title(loc="left").endswith(f"{n + 2} tokens so far")
        assert bar_label(ax) == "mean Δ (log)"
    assert n == 7
    assert not np.isclose(values_of(ax).min(), norm.vmin)  # colours are for all tokens
    assert len(pyplot.get_fignums()) == 1
    for count in (0, 201):
        with pytest.raises(InputError, match="count"):
            plot.latest(tracer.trace, count=count, ax=ax)
    assert image_of(ax)  # an error leaves the picture


def test_half_lives_are_counted_in_octaves(trace, dtype):
    ax = plot.half_life(trace)
    ridges = [patch.get_data() for patch in ax.patches]
    assert len(ridges) == 3
    for row, (ridge, mark) in enumerate(zip(ridges, ax.lines, strict=False)):
        found = analysis.steady_half_life(trace, row)
        counts = np.histogram(found, ridge.edges)[0]
        assert counts.sum() > 0.98 * found.size
        np.testing.assert_allclose(ridge.values, row + 0.9 * counts / counts.max())
        assert ridge.baseline == row
        middle = mark.get_xdata()[0]
        assert abs(np.log2(middle) - np.log2(np.median(found))) <= 1 / 8
    edges = ridges[0].edges
    np.testing.assert_allclose(edges[1:] / edges[:-1], 2 ** (1 / 8))
    np.testing.assert_allclose(np.log2(edges[[0, -1]]) % 1, 0, atol=1e-9)
    assert ax.get_xlim() == (edges[0], edges[-1])
    assert ax.xaxis.get_transform().base == 2
    assert [text.get_text() for text in ax.texts] == [" convolution: 4 ", " text: 12 "]
    assert [line.get_xdata()[0] for line in ax.lines[3:]] == [4, 12]


@pytest.mark.parametrize("width", [3, 4, 5, 12])
def test_names_of_guides_lie_apart_however_near_these_are(width, model):
    ax = plot.half_life(
        trace_of(model, 4), ax=pyplot.figure(figsize=(3, 3)).add_subplot(), conv_kernel=width
    )
    ax.figure.draw_without_rendering()
    one, other = (text.get_window_extent() for text in ax.texts)
    assert one.x1 <= other.x0
    named = {
        line.get_xdata()[0]: text.get_text()
        for line, text in zip(ax.lines[3:], ax.texts, strict=True)
    }
    assert named == {4: " text: 4 ", width: f" convolution: {width} "} or width == 4


def test_half_lives_beyond_the_ends_and_without_guides(trace):
    far = replace(trace, delta=np.zeros_like(trace.delta))  # nothing is ever forgotten
    ax = plot.half_life(far, conv_kernel=0)
    assert ax.get_xlim()[1] == 2**20
    assert not ax.texts
    near = replace(trace, delta=np.full_like(trace.delta, 1e6))
    assert plot.half_life(near).get_xlim()[0] == 2**-4
    with pytest.raises(InputError, match="conv_kernel"):
        plot.half_life(trace, conv_kernel=-1)


def test_long_texts_are_counted_in_blocks(monkeypatch, trace):
    whole = [patch.get_data().values for patch in plot.half_life(trace).patches]
    monkeypatch.setattr(memory, "BLOCK", 5 * trace.A[0].size)
    parts = [patch.get_data().values for patch in plot.half_life(trace).patches]
    np.testing.assert_array_equal(parts, whole)


def test_strengths_are_three_strips(trace):
    figure = plot.strengths(trace)
    panels = [ax for ax in figure.axes if ax.images]
    expected = [analysis.strengths(trace, layer) for layer in range(3)]
    for ax, name in zip(panels, ("write", "keep", "read"), strict=True):
        assert ax.get_title(loc="left") == name
        np.testing.assert_array_equal(values_of(ax), [getattr(one, name) for one in expected])
        assert isinstance(image_of(ax).norm, colors.LogNorm) == (name != "keep")
        assert image_of(ax).origin == BOTTOM_UP
    assert panels[0].get_shared_x_axes().joined(panels[0], panels[2])
    assert [t.get_text() for t in panels[2].get_xticklabels()] == list(trace.labels)


def test_state_shares_are_stacked(trace):
    ax = plot.state_shares(trace, LAYER)
    strata = [patch.get_data() for patch in ax.patches]
    assert len(strata) == 12
    for s, stratum in enumerate(strata):
        for t in range(12):
            lengths = analysis.state_shares(trace, LAYER, t)
            expected = lengths[s] / lengths.sum() if s <= t else 0
            assert stratum.values[t] - stratum.baseline[t] == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(strata[-1].values, 1)
    np.testing.assert_array_equal(strata[0].edges, np.arange(13) - 0.5)
    assert ax.get_ylim() == (0, 1)


def test_state_shares_of_a_long_text_are_in_groups(model):
    text = trace_of(model, 100)
    ax = plot.state_shares(text, LAYER, positions=10)
    strata = [patch.get_data() for patch in ax.patches]
    assert len(strata) == 32
    assert len(strata[0].values) == 10
    assert strata[0].edges[0] == -0.5
    assert strata[0].edges[-1] == 99.5
    lengths = analysis.state_shares(text, LAYER, 99)
    assert strata[0].values[-1] == pytest.approx(lengths[:4].sum() / lengths.sum(), rel=1e-5)
    assert strata[0].edges[1] == 5.5
    assert ax.child_axes[0].get_ylabel() == "read from position"
    assert [t.get_text() for t in ax.child_axes[0].get_yticklabels()][:2] == ["0", "16"]
    with pytest.raises(InputError, match="positions"):
        plot.state_shares(text, LAYER, positions=0)


def test_influence(trace):
    expected = [analysis.influence(trace, layer) for layer in range(3)]
    ax = plot.influence(trace)
    np.testing.assert_array_equal(values_of(ax), expected)
    np.testing.assert_array_equal(bars_of(plot.influence(trace, LAYER)), expected[LAYER])


def test_survival_is_sorted(trace):
    ax = plot.survival(trace)
    assert len(ax.lines) == 3
    for layer, line in enumerate(ax.lines):
        np.testing.assert_array_equal(
            line.get_ydata(), np.sort(analysis.survival(trace, layer), axis=None)
        )
        np.testing.assert_allclose(line.get_xdata()[[0, -1]], [0.5 / 54, 53.5 / 54])
    assert [t.get_text() for t in ax.child_axes[0].get_yticklabels()] == ["0", "1", "2"]


# --- overview -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [None, CHANNEL])
def test_dashboard_is_five_panels_over_the_tokens(trace, channel, dtype):
    layers, steps, halves, write, attention = plot.dashboard(trace, LAYER, channel).axes[:5]
    some = slice(None) if channel is None else [channel]
    delta, B = trace.delta[LAYER][:, some], trace.B[LAYER]
    close(values_of(layers), np.exp(np.log(trace.delta).mean(axis=2)), dtype)
    close(bars_of(steps), np.exp(np.log(delta).mean(axis=1)), dtype)
    written = (delta * trace.x[LAYER][:, some])[:, :, None] * B[:, None]
    close(bars_of(write), np.sqrt(np.square(written).sum(axis=(1, 2))), dtype)
    band, middle = (patch.get_data() for patch in halves.patches)
    found = np.log(2) / (delta[:, :, None] * -trace.A[LAYER][some])
    for drawn, q in ((band.baseline, 0.1), (middle.values, 0.5), (band.values, 0.9)):
        expected = np.quantile(found, q, axis=(1, 2), method="nearest")
        np.testing.assert_allclose(drawn, expected, rtol=1e-5)
    (text,) = halves.lines
    assert text.get_ydata()[0] == 12
    assert halves.get_yscale() == "log"
    alone = plot.hidden_attention(trace, LAYER, channel)
    np.testing.assert_array_equal(values_of(attention), values_of(alone))
    assert attention.get_aspect() == "auto"
    for ax in (layers, steps, halves, write):
        assert ax.get_shared_x_axes().joined(ax, attention)
        assert not ax.get_xlabel()
    assert [t.get_text() for t in attention.get_xticklabels()] == list(trace.labels)
    for ax in (steps, attention):
        title = ax.get_title(loc="left")
        assert f"layer {LAYER}" in title
        assert (f"channel {CHANNEL}" in title) == (channel is not None)


def test_dashboard_of_some_channels_and_layers(model):
    text = trace_of(model, 6, layers=[LAYER], channels=[0, CHANNEL])
    figure = plot.dashboard(text, LAYER, CHANNEL)
    close(bars_of(figure.axes[1]), text.delta[0, :, 1], np.float32)
    assert "mean" not in figure.axes[1].get_title(loc="left")
    with pytest.raises(InputError, match="channel"):
        plot.dashboard(text, LAYER, 1)
    with pytest.raises(InputError, match="layer"):
        plot.dashboard(text, LAYER + 1)


@pytest.mark.parametrize("name", ["delta", "B", "C", "x", "y"])
@pytest.mark.parametrize("channel", [None, CHANNEL])
def test_a_dashboard_names_each_quantity_that_it_lacks(trace, name, channel):
    without = replace(trace, **{name: None}, delta_geometric_mean=None)
    with pytest.raises(InputError, match=f"capture=\\('{name}'"):
        plot.dashboard(without, LAYER, channel)
    assert not pyplot.get_fignums()


def test_half_lives_of_a_dashboard_are_found_in_blocks(monkeypatch, trace):
    whole = plot.dashboard(trace, LAYER).axes[2].patches[0].get_data()
    monkeypatch.setattr(overview, "BLOCK", 5 * trace.A[LAYER].size)
    parts = plot.dashboard(trace, LAYER).axes[2].patches[0].get_data()
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.baseline, whole.baseline)


def test_a_dashboard_without_a_step_forgets_nothing(trace):
    still = plot.dashboard(replace(trace, delta=np.zeros_like(trace.delta)), LAYER)
    assert np.isinf(still.axes[2].patches[1].get_data().values).all()
    still.draw_without_rendering()


# --- attention ------------------------------------------------------------------------------------


def test_hidden_attention_of_one_channel(trace):
    alpha = analysis.hidden_attention(trace, LAYER, CHANNEL)
    ax = plot.hidden_attention(trace, LAYER, CHANNEL)
    shown = values_of(ax)
    np.testing.assert_array_equal(shown.mask, np.triu(np.ones((12, 12), bool), 1))
    np.testing.assert_array_equal(np.asarray(shown), alpha)
    norm = image_of(ax).norm
    assert norm.vmin == -norm.vmax
    assert norm.vmax == np.quantile(np.abs(alpha[np.tril_indices(12)]).astype(float), 0.995)
    assert image_of(ax).get_cmap().name == "RdBu_r"
    assert str(CHANNEL) in bar_label(ax)
    assert image_of(ax).origin == "upper"
    assert [t.get_text() for t in ax.get_yticklabels()] == list(trace.labels)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input from token", "output at token")
    assert f"layer {LAYER}" in ax.get_title(loc="left")


def test_hidden_attention_of_all_channels(trace, dtype):
    alpha = analysis.mean_hidden_attention(trace, LAYER)
    ax = plot.hidden_attention(trace, LAYER)
    np.testing.assert_array_equal(np.asarray(values_of(ax)), alpha)
    norm = image_of(ax).norm
    assert isinstance(norm, colors.LogNorm)
    assert norm.vmax == pytest.approx(alpha.max())
    assert norm.vmin == pytest.approx(1e-3 * alpha.max())
    assert norm.clip
    assert image_of(ax).get_cmap().name == "magma"
    other = plot.hidden_attention(trace, LAYER, norm=colors.Normalize(0, 2), cmap="cividis")
    assert image_of(other).norm.vmax == 2
    assert image_of(other).get_cmap().name == "cividis"


def test_mixer_attention(model, trace):
    ax = plot.mixer_attention(model, trace.ids, LAYER, CHANNEL)
    expected = analysis.mixer_attention(model, trace.ids, LAYER, CHANNEL)
    np.testing.assert_array_equal(np.asarray(values_of(ax)), expected)
    assert image_of(ax).norm.vmin == -image_of(ax).norm.vmax
    assert [t.get_text() for t in ax.get_xticklabels()] == list(trace.labels)


def test_contributions(model, trace):
    ax = plot.contributions(model, trace.ids, LAYER)
    expected = analysis.contribution_norms(model, trace.ids, LAYER)
    np.testing.assert_array_equal(np.asarray(values_of(ax)), expected)
    assert values_of(ax).mask[0, 1]
    at = plot.contributions(model, trace.ids, LAYER, 7)
    np.testing.assert_allclose(bars_of(at)[:8], expected[7, :8], rtol=1e-4, atol=1e-7)
    assert not bars_of(at)[8:].any()
    (rest,) = at.patches[-1].get_data().values
    bias = analysis.contributions(model, trace.ids, LAYER, 7).bias
    assert rest == pytest.approx(np.linalg.norm(bias))
    assert at.get_xticklabels()[-1].get_text() == "biases"
    assert at.get_xlim() == (-0.5, 12.5)
    assert at.get_title(loc="left").endswith("at 7")


def test_receptive_fields(trace):
    ax = plot.receptive_field(trace, share=0.5)
    found = [
        analysis.receptive_field(analysis.mean_hidden_attention(trace, layer), 0.5)
        for layer in range(3)
    ]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["mean distance", "reach of 50%"]
    for line, name in zip(ax.lines, ("mean_distance", "reach"), strict=True):
        means = [getattr(one, name).mean() for one in found]
        np.testing.assert_allclose(line.get_ydata(), means)
    for band, name in zip(ax.collections, ("mean_distance", "reach"), strict=True):
        ends = np.quantile([getattr(one, name) for one in found], [0.1, 0.9], axis=1)
        assert set(band.get_paths()[0].vertices[:, 1]) == set(ends.flat)
    one = plot.receptive_field(trace, LAYER)
    expected = analysis.receptive_field(analysis.mean_hidden_attention(trace, LAYER))
    np.testing.assert_array_equal(one.lines[0].get_ydata(), expected.mean_distance)
    np.testing.assert_array_equal(one.lines[1].get_ydata(), expected.reach)
    assert one.get_xlim() == (-0.5, 11.5)


def test_similarity(trace):
    ax = plot.similarity(trace, LAYER, "B", "C")
    np.testing.assert_array_equal(values_of(ax), analysis.similarity(trace, LAYER, "B", "C"))
    assert (image_of(ax).norm.vmin, image_of(ax).norm.vmax) == (-1, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("C of token", "B of token")
    assert bar_label(ax) == "cosine of B and C"


# --- states ---------------------------------------------------------------------------------------


def test_state_lines_and_strips(trace):
    figure = plot.state(trace, LAYER, CHANNEL)
    lines, *strips = figure.axes[:4]
    fastest_first = np.argsort(trace.A[LAYER, CHANNEL])
    for line, n in zip(lines.lines, fastest_first, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), trace.h[LAYER, :, CHANNEL, n])
        np.testing.assert_array_equal(line.get_xdata(), np.arange(12))
    assert len(lines.lines) == 3 + 1  # and the zero
    for ax, name in zip(strips, ("x", "delta", "y"), strict=True):
        np.testing.assert_array_equal(bars_of(ax), getattr(trace, name)[LAYER, :, CHANNEL])
    assert [t.get_text() for t in strips[-1].get_xticklabels()] == list(trace.labels)
    assert f"layer {LAYER}, channel {CHANNEL}" in lines.get_title(loc="left")


def test_states_at_some_positions_and_at_most_sixteen(dtype):
    text = trace_of(
        make_model(replace(SMALL, state_size=40), dtype=dtype), 12, every=5, channels=[3, CHANNEL]
    )
    lines = plot.state(text, LAYER, CHANNEL).axes[0].lines
    assert len(lines) == 16 + 1
    np.testing.assert_array_equal(lines[0].get_xdata(), [4, 9])
    np.testing.assert_array_equal(
        lines[15].get_ydata(), text.h[LAYER, :, 1, np.argmax(text.A[LAYER, 1])]
    )
    with pytest.raises(InputError, match="channel"):
        plot.state(text, LAYER, 4)


def test_state_size(trace):
    figure = plot.state_size(trace, training_length=9)
    norms, ranks = figure.axes[:2]
    for layer in range(3):
        np.testing.assert_array_equal(norms.lines[layer].get_xdata(), np.arange(1, 13))
        np.testing.assert_array_equal(
            norms.lines[layer].get_ydata(), analysis.state_size(trace, layer).norm
        )
        np.testing.assert_array_equal(
            ranks.lines[layer].get_ydata(), analysis.effective_rank(trace, layer)
        )
    assert norms.lines[3].get_xdata()[0] == ranks.lines[3].get_xdata()[0] == 9
    assert (norms.get_yscale(), ranks.get_yscale(), ranks.get_xscale()) == ("log", "linear", "log")
    assert ranks.get_ylabel().endswith("of 3")
    assert ranks.get_ylim()[0] == 0
    assert len(plot.state_size(trace).axes[0].lines) == 3


def test_state_size_counts_the_tokens_read_before(model):
    tracer = model.tracer(capture=("h",), every=2)
    cache = tracer([[1, 2, 3, 4, 5]], use_cache=True).cache_params
    tracer([[6, 7, 8, 9]], cache_params=cache)
    figure = plot.state_size(tracer.last)
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), [6, 8])


def test_residual_norm(trace, dtype):
    ax = plot.residual_norm(trace)
    np.testing.assert_array_equal(values_of(ax), trace.residual_norm)
    close(
        values_of(plot.residual_norm(replace(trace, residual_norm=None))),
        trace.residual_norm,
        dtype,
    )


# --- predictions ----------------------------------------------------------------------------------


def test_logit_lens_names_the_likeliest(model, trace):
    ax = plot.logit_lens(model, trace, positions=[0, -1])
    lens = analysis.logit_lens(model, trace, k=1)
    close(values_of(ax), lens.probabilities[:, [0, 11], 0], values_of(ax).dtype)
    assert [text.get_text() for text in ax.texts] == [str(i) for i in lens.ids[:, [0, 11], 0].flat]
    assert [text.get_position() for text in ax.texts[:3]] == [(0, 0), (1, 0), (0, 1)]
    assert (image_of(ax).norm.vmin, image_of(ax).norm.vmax) == (0, 1)
    assert image_of(ax).origin == BOTTOM_UP
    assert [t.get_text() for t in ax.get_xticklabels()] == [trace.labels[0], trace.labels[-1]]
    assert ax.get_ylabel() == "after layer"
    assert bar_label(ax) == "probability"


def test_logit_lens_writes_so_that_it_can_be_read():
    model = MambaForCausalLM.from_pretrained(bundled_model_path())
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    text = model.trace("Once upon a time there was a", capture=("residual",))
    ax = plot.logit_lens(model, text)
    lens = analysis.logit_lens(model, text, k=1)
    assert len(ax.texts) == lens.ids.size
    for drawn, i, p in zip(ax.texts, lens.ids.flat, lens.probabilities.flat, strict=True):
        spelled = tokenizer.decode([i]).replace(" ", "·").replace("\n", "↵")
        assert drawn.get_text() == spelled or drawn.get_text() == f"{spelled[:7]}…"
        assert drawn.get_color() == ("black" if p > 0.5 else "white")
        assert not drawn.get_parse_math()


def test_logit_lens_cuts_names_to_what_fits_into_a_cell(model, trace):
    class Words:
        def convert_ids_to_tokens(self, ids):
            return [f"eight{i:03}" if i % 2 else "nineteen!" for i in ids]

        def stream_decoder(self):
            return None

    texts = plot.logit_lens(model, trace, tokenizer=Words()).texts
    ids = analysis.logit_lens(model, trace, k=1).ids
    expected = [f"eight{i:03}" if i % 2 else "ninetee…" for i in ids.flat]
    assert len(set(expected)) > 2
    assert [text.get_text() for text in texts] == expected


def test_logit_lens_of_too_many_tokens_says_what_to_do(model):
    text = trace_of(model, 31)
    with pytest.raises(InputError, match=r"positions: expected 1 to 30 .* found 31; choose some"):
        plot.logit_lens(model, text)
    with pytest.raises(InputError, match=r"found 0"):
        plot.logit_lens(model, text, positions=[])
    with pytest.raises(InputError, match=r"at: expected"):
        plot.logit_lens(model, text, positions=[31])
    assert not pyplot.get_fignums()


def test_relevance_beside_the_logit(model, trace):
    found = analysis.relevance(model, trace.ids, 3, at=7)
    ax = plot.relevance(model, trace.ids, 3, at=7)
    np.testing.assert_array_equal(bars_of(ax), found.tokens)
    assert (found.tokens < 0).any()
    assert (found.tokens > 0).any()
    signs = [np.sign(patch.get_data().values).sum() for patch in ax.patches[:2]]
    assert signs[0] > 0 > signs[1]
    assert [patch.get_facecolor()[:3] for patch in ax.patches] == [
        colors.to_rgb(c) for c in (figures.POSITIVE, figures.NEGATIVE, figures.REST)
    ]
    assert ax.patches[2].get_data().values == pytest.approx([found.bias])
    total = found.tokens.sum(dtype=float) + found.bias
    assert f"add up to {total:.4g}, logit {found.logit:.4g}" in ax.get_title(loc="left")
    assert ax.get_title(loc="left").startswith(f"3 after {trace.labels[7]} (7):")
    assert ax.get_xticklabels()[-1].get_text() == "biases"


CHANGES = [ScaleDelta(3.0), Ablate(layers=2), CutPath(source=2)]


def log_p_of(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_what_if_of_a_text(model, trace):
    whole = log_p_of(model(trace.ids[None]).logits[0])
    with model.intervene(*CHANGES):
        changed = log_p_of(model(trace.ids[None]).logits[0])
    sums, expected = [], []
    for one in (whole, changed):
        expected.append([0.0, *one[np.arange(11), trace.ids[1:]]])
        sums.append(np.sum(expected[-1]))
    ax = plot.what_if(model, trace.ids, *CHANGES)
    close(bars_of(ax), np.subtract(expected[1], expected[0]), model.dtype)
    assert bars_of(ax)[1:].all()
    assert [t.get_text() for t in ax.get_xticklabels()] == list(trace.labels)
    assert ax.get_title(loc="left") == f"what if: log p {sums[0]:.2f} → {sums[1]:.2f}"
    assert not bars_of(plot.what_if(model, trace.ids, ScaleDelta(1))).any()


def test_what_if_of_the_next_token(model, trace):
    ids = trace.ids[:9]
    whole = log_p_of(model(ids[None]).logits[0, -1])
    with model.intervene(*CHANGES):
        changed = log_p_of(model(ids[None]).logits[0, -1])
    order = np.argsort(-np.maximum(whole, changed))[:5]
    assert not np.array_equal(order, np.argsort(-whole)[:5])
    assert not np.array_equal(order, np.argsort(-changed)[:5])
    for at in (8, -4):
        ax = plot.what_if(model, trace.ids, *CHANGES, at=at, k=5)
        close(bars_of(ax), (changed - whole)[order], model.dtype)
        assert [t.get_text() for t in ax.get_xticklabels()] == [str(i) for i in order]
        assert ax.get_xlabel() == "next after position 8"
    assert len(bars_of(plot.what_if(model, trace.ids, *CHANGES, at=8))) == 10


@pytest.mark.parametrize(("name", "options"), [("at", {"at": 12}), ("k", {"at": 0, "k": 18})])
def test_bad_arguments_of_what_if(name, options):
    with pytest.raises(InputError, match=rf"^{name}: expected"):
        plot.what_if(small_model(), np.arange(12), *CHANGES, **options)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("at", [None, 3])
def test_what_if_of_logits_that_are_not_finite(at):
    model = small_model()
    model.params.norm_f[0] = np.nan
    with pytest.raises(NonFiniteError, match="logits"):
        plot.what_if(model, np.arange(8), *CHANGES, at=at)
    assert not pyplot.get_fignums()


# --- scales and colours ---------------------------------------------------------------------------


def test_logarithmic_scales():
    values = np.array([0.0, np.nan, np.inf, 1.0, 10.0, 1000.0])
    norm, extend = figures.log_norm(values)
    assert (norm.vmin, norm.vmax, extend) == (1.0, 1000.0, "min")
    norm, extend = figures.log_norm(values[3:])
    assert (norm.vmin, norm.vmax, extend) == (1.0, 1000.0, "neither")
    assert figures.log_norm(np.array([2.0]))[0].vmin == 1.0
    assert figures.log_norm(np.zeros(3))[0].vmin == 0.5
    norm, extend = figures.log_norm(np.arange(1, 101.0), share=0.1)
    assert (norm.vmin, norm.vmax, extend) == (pytest.approx(10.9), pytest.approx(90.1), "both")
    norm, extend = figures.log_norm(values, floor=0.1)
    assert (norm.vmin, norm(0.0), extend) == (100.0, 0.0, "min")


def test_signed_scales():
    values = np.array([0.0, np.nan, -3.0, 2.0, 0.0])
    norm, extend = figures.signed_norm(values)
    assert (norm.vmin, norm.vmax, extend) == (-3.0, 3.0, "neither")
    assert figures.signed_norm(np.zeros(2))[0].vmax == 1.0
    norm, extend = figures.signed_norm(np.array([-9.0, 1.0, 1.0, 1.0]), share=0.5)
    assert (norm.vmax, extend) == (1.0, "min")
    assert figures.signed_norm(-np.array([-9.0, 1.0, 1.0, 1.0]), share=0.5)[1] == "max"


def test_points_have_marks_up_to_sixty():
    assert [figures.marker_for(count) for count in (1, 60, 61)] == ["o", "o", None]


def test_wide_pictures_have_columns_of_means(monkeypatch):
    monkeypatch.setattr(images, "COLUMNS", 4)
    _, ax = pyplot.subplots()
    values = np.arange(20.0).reshape(2, 10)
    image = images.rows_of(ax, values, None, "magma")
    expected = [[0.5, 3, 5.5, 8], [10.5, 13, 15.5, 18]]
    np.testing.assert_array_equal(image.get_array(), expected)
    assert list(image.get_extent()) == [-0.5, 9.5, -0.5, 1.5]
    assert image.get_interpolation() == "nearest"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.007, 0.013, [0.008, 0.01, 0.012]), (1, 50, [1, 2, 5, 10, 20, 50]), (1, 1e4, [1, 10, 100])],
)
def test_marks_of_logarithmic_axes_are_plain_numbers(low, high, expected):
    figure, ax = pyplot.subplots()
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    figures.plain_log(ax.yaxis, low, high)
    figure.draw_without_rendering()
    ticks = [t for t in ax.get_yticklabels(which="both") if low <= t.get_position()[1] <= high]
    shown = [t.get_text() for t in ticks if t.get_text()]
    assert {f"{one:g}" for one in expected} <= set(shown)
    assert len(shown) <= 9


def test_a_colour_bar_is_as_tall_as_its_axes(trace):
    ax = plot.hidden_attention(trace, LAYER)
    ax.figure.canvas.draw()
    (bar,) = ax.child_axes
    own, other = bar.get_window_extent(), ax.get_window_extent()
    assert own.y0 == pytest.approx(other.y0)
    assert own.y1 == pytest.approx(other.y1)
    assert own.x0 > other.x1
    tight = bar.get_tightbbox(ax.figure.canvas.get_renderer())
    assert tight.x1 <= ax.figure.bbox.x1


def test_the_style_sheet_is_one_that_matplotlib_takes():
    with pyplot.style.context(plot.STYLE):
        assert matplotlib.rcParams["axes.spines.top"] is False
