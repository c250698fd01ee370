"""Tokens along an axis: how many are named, in which letters, and what happens to odd ones."""

import warnings
from itertools import pairwise

import numpy as np
import pytest

from mamba_np.plot import token_axis, tokens

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import font_manager, pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def _tidy():
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return pyplot.figure(figsize=(10, 10)).add_subplot()


def shown(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def named(count):
    return [f"t{i}" for i in range(count)]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_up_to_forty_tokens_all_have_names(ax, count):
    token_axis(ax.xaxis, named(count))
    assert shown(ax.xaxis) == named(count)
    np.testing.assert_array_equal(ax.xaxis.get_ticklocs(), range(count))
    assert ax.get_xlabel() == "token"
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {90}


@pytest.mark.parametrize(("count", "step"), [(41, 3), (60, 3), (100, 5), (200, 10)])
def test_beyond_some_have(ax, count, step):
    token_axis(ax.yaxis, named(count), name="output at token")
    assert shown(ax.yaxis) == named(count)[::step]
    assert 10 <= len(shown(ax.yaxis)) <= 20
    assert ax.get_ylabel() == f"output at token (1 in {step} named)"
    assert {tick.get_rotation() for tick in ax.get_yticklabels()} == {0}


@pytest.mark.parametrize("count", [201, 5000])
def test_long_texts_have_positions(ax, count):
    token_axis(ax.xaxis, named(count))
    ax.set_xlim(-0.5, count - 0.5)
    ax.figure.draw_without_rendering()
    inside = [place for place in ax.get_xticks() if 0 <= place < count]
    assert 3 <= len(inside) <= 10
    assert all(float(place).is_integer() for place in inside)
    assert ax.get_xlabel() == "token (position)"


@pytest.mark.parametrize("inches", [1.0, 2.0, 4.0])
def test_small_axes_have_as_many_names_as_fit(inches):
    ax = pyplot.figure(figsize=(inches, inches)).add_axes((0, 0, 1, 1))
    token_axis(ax.xaxis, named(40))
    count = len(shown(ax.xaxis))
    assert count <= inches * 72 / tokens.SIZE
    assert count >= 0.4 * inches * 72 / tokens.SIZE
    ax.set_xlim(-0.5, 39.5)
    ax.figure.canvas.draw()
    boxes = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_special_tokens_are_in_italics(ax):
    spelled = ["<|endoftext|>", "Once", "</s>", "[CLS]", "<b>", "[x]", "<pad>", "</s>x"]
    token_axis(ax.xaxis, spelled, tokens=spelled)
    styles = [tick.get_style() for tick in ax.get_xticklabels()]
    italic = [name for name, style in zip(spelled, styles, strict=True) if style == "italic"]
    assert italic == ["<|endoftext|>", "</s>", "[CLS]", "<pad>"]
    token_axis(ax.yaxis, spelled)
    assert {tick.get_style() for tick in ax.get_yticklabels()} == {"normal"}


def test_names_that_shared_axes_hide_are_no_error():
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True)
    spelled = ["Once", "</s>"]
    for ax in (above, below):
        token_axis(ax.xaxis, spelled, tokens=spelled)
    figure.canvas.draw()
    assert shown(below.xaxis) == spelled
    assert [t.get_style() for t in below.get_xticklabels()] == ["normal", "italic"]
    assert not above.get_xticklabels()


def test_no_token_is_read_as_a_formula(ax):
    labels = ["$x^", "$", "$$", "\\frac", "_", "a$b$"]
    token_axis(ax.xaxis, labels)
    ax.figure.canvas.draw()  # a formula that is none would raise here
    assert shown(ax.xaxis) == labels
    assert not any(tick.get_parse_math() for tick in ax.get_xticklabels())


def test_signs_of_the_labels_need_no_other_font():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts, families = tokens.readable(["·a", "↵", "⇥", "‥", "⟨EC⟩", "abc…"])
    assert texts == ["·a", "↵", "⇥", "‥", "⟨EC⟩", "abc…"]
    assert families[0] == tokens.FAMILY
    assert set(families[1:]) <= {"DejaVu Sans"}


def test_what_no_font_has_is_shown_by_number_with_advice(monkeypatch, ax):
    monkeypatch.setattr(tokens, "OTHERS", ())
    with pytest.warns(UserWarning, match=r"no font here can draw .*fonts-noto-cjk"):
        token_axis(ax.xaxis, ["한", "a", "b한"])
    assert shown(ax.xaxis) == ["⟨D55C⟩", "a", "b⟨D55C⟩"]
    ax.figure.canvas.draw()  # matplotlib would warn of a glyph that it lacks


def test_other_fonts_are_used_where_they_are_installed(monkeypatch, ax):
    """A sign that the first family lacks and that a font which comes with matplotlib has."""
    names = font_manager.get_font_names()
    other = next(one for one in ("STIXGeneral", "cmsy10") if one in names)
    fonts = [
        font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=family)))
        for family in (tokens.FAMILY, other)
    ]
    sign = next(
        chr(c) for c in range(0x2100, 0x2C00)
        if fonts[1].get_char_index(c) and not fonts[0].get_char_index(c)
    )  # fmt: skip
    monkeypatch.setattr(tokens, "OTHERS", ("No Such Font", "DejaVu Serif Display", other))
    before = dict(matplotlib.rcParams)
    token_axis(ax.xaxis, ["a", sign])
    assert shown(ax.xaxis) == ["a", sign]
    assert ax.get_xticklabels()[1].get_fontfamily()[-1] == other
    assert "No Such Font" not in ax.get_xticklabels()[1].get_fontfamily()
    ax.figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_a_font_that_helps_nothing_is_not_used(monkeypatch):
    monkeypatch.setattr(tokens, "OTHERS", ("DejaVu Sans",))
    assert tokens.readable(["plain"]) == (["plain"], [tokens.FAMILY])
    with pytest.warns(UserWarning, match="font"):
        assert tokens.readable(["한"])[1] == [tokens.FAMILY]


@pytest.mark.parametrize(("count", "step"), [(1, 1), (12, 1), (24, 2), (64, 6)])
def test_layers_are_named_by_their_numbers(ax, count, step):
    layers = np.arange(count) + 3
    tokens.layer_axis(ax.yaxis, layers)
    assert shown(ax.yaxis) == [str(one) for one in layers[::step]]
    assert len(shown(ax.yaxis)) <= 12
    assert ax.get_ylabel() == "layer"
