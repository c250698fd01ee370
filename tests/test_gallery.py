"""The scripts of the gallery run as they stand, and between them show every plot."""

import ast
import runpy
from pathlib import Path

import pytest

from mamba_np import plot

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("plot_*.py"))
LINES = 25
NO_PICTURES = {"STYLE", "MissingPackageError", "token_axis"}


@pytest.fixture(autouse=True)
def _tidy():
    yield
    pyplot.close("all")


def drawn_by(script):
    """Return the names of the plots that a script calls."""
    calls = [n.func for n in ast.walk(ast.parse(script.read_text("utf-8"))) if hasattr(n, "func")]
    return [f.attr for f in calls if ast.unparse(f).startswith("plot.")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_makes_its_figures(script, monkeypatch):
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    runpy.run_path(str(script), run_name="__main__")
    assert len(shown) == len(drawn_by(script)) > 0
    for number in shown:
        pyplot.figure(number).canvas.draw()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_has_a_title(script):
    text = script.read_text("utf-8")
    assert text.count("\n") <= LINES
    title, line, *_ = ast.get_docstring(ast.parse(text)).splitlines()
    assert title.endswith("?")
    assert line == "=" * len(title)


def test_every_plot_is_in_the_gallery():
    assert {name for script in SCRIPTS for name in drawn_by(script)} == (
        set(plot.__all__) - NO_PICTURES
    )
