"""The page of a trace in a browser, opened as a file: keys, clicks, sizes, dark and print.

Skipped where there is no Chromium; ``browser.find`` says where one is looked for.
"""

import re
import time
from dataclasses import replace

import browser
import numpy as np
import pytest
from test_report import EVIL, TEXT

from mamba_np import analysis, report
from mamba_np.report import contents

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason="needs a Chromium on PATH (package chromium of Debian)"
)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(TEXT, capture=report.CAPTURE)


@pytest.fixture(scope="module")
def path(tmp_path_factory, model, trace):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.save_report(path, trace, model)
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def chosen(window):
    return int(
        re.match(r"Token (\d+): ", window.run("document.querySelector('h2').textContent"))[1]
    )


def text_of(window, selector):
    return window.run(f"document.querySelector({selector!r}).textContent")


def choose_layer(window, row):
    window.run(
        "(() => {const s = document.getElementById('layer');"
        f"s.value = '{row}'; s.dispatchEvent(new Event('change', {{bubbles: true}}))}})()"
    )


def test_the_first_screen_tells_the_story(window, path, trace):
    window.open(path)
    assert window.problems() == []
    levels = contents.scale(trace)[0]
    assert chosen(window) == levels.argmax()
    assert window.run("document.getElementById('chosen').getBoundingClientRect().bottom") < 900
    for panel in ("strengths", "decay", "attention", "predictions"):
        assert text_of(window, f"#{panel}")
    assert "the largest of" in text_of(window, "h2")
    assert window.run("document.querySelectorAll('.token').length") == len(trace)


def test_keys_and_clicks_choose_a_token(window, path, trace):
    window.open(path)
    window.press("Tab")
    assert window.run("document.activeElement.id") == "layer"
    start = chosen(window)
    window.press("Tab")
    assert window.run("document.activeElement.id") == f"t{start}"
    window.press("Home")
    assert chosen(window) == 0
    window.press("ArrowLeft")
    assert chosen(window) == 0
    window.press("ArrowRight")
    window.press("ArrowRight")
    window.press("Enter")
    assert chosen(window) == 2
    window.press("End")
    window.press("ArrowRight")
    assert chosen(window) == len(trace) - 1
    window.press("ArrowUp")
    upper = chosen(window)
    assert upper < len(trace) - 1
    window.press("ArrowDown")
    assert chosen(window) > upper
    window.click("#t5")
    assert chosen(window) == 5
    assert window.run("document.activeElement.id") == "t5"
    selected = "[...document.querySelectorAll('[aria-selected=\"true\"]')].map((e) => e.id)"
    assert window.run(selected) == ["t5"]
    assert window.run("[...document.querySelectorAll('[tabindex=\"0\"]')].map((e) => e.id)") == [
        "t5"
    ]
    assert window.problems() == []


def test_panels_show_the_chosen_token_and_layer(window, path, trace, model):
    window.open(path)
    window.click("#t7")
    choose_layer(window, 2)
    assert text_of(window, "h2").startswith(f"Token 7: {trace.labels[7]}, layer 2 – delta ")
    rows = window.run(
        "[...document.querySelectorAll('#strengths tbody tr')].map((r) => "
        "[...r.children].map((c) => c.textContent))"
    )
    for layer, row in enumerate(rows):
        s = analysis.strengths(trace, layer)
        delta = np.exp(np.log(trace.delta[layer, 7].astype(np.float64)).mean())
        assert row[0] == str(layer)
        shown = [float(row[1]), float(row[2]), float(row[3].rstrip(" %")) / 100, float(row[4])]
        np.testing.assert_allclose(shown, [delta, s.write[7], s.keep[7], s.read[7]], rtol=6e-3)
    alpha = analysis.mean_hidden_attention(trace, 2)
    for name, values, first in (("reads", alpha[7, :8], 0), ("read-by", alpha[8:, 7], 8)):
        shown = window.run(
            f"[...document.querySelectorAll('.lists .{name} tbody tr')].map((r) => "
            "[parseInt(r.children[0].textContent), parseFloat(r.children[1].textContent)])"
        )
        assert len(shown) == 8
        found = [values[token - first] for token, _ in shown]
        np.testing.assert_allclose([value for _, value in shown], found, rtol=0.025)
        assert min(found) >= np.sort(values)[-8] * 0.97
    lens = analysis.logit_lens(model, trace, 5)
    guesses = window.run(
        "[...document.querySelectorAll('#predictions tbody tr')].map((r) => "
        "[...r.querySelectorAll('small')].map((c) => parseFloat(c.textContent) / 100))"
    )
    np.testing.assert_allclose(guesses, lens.probabilities[:, 7], atol=0.0051)
    framed = window.run("[...document.querySelectorAll('.right b')].map((e) => e.textContent)")
    goes_on = sum((lens.ids[layer, 7] == trace.ids[8]).sum() for layer in trace.layers)
    assert framed == [trace.labels[8]] * goes_on
    left = contents.share_left(trace, 2, contents._lags(len(trace)))[7]
    words = text_of(window, "#decay p")
    lags = contents._lags(len(trace))
    last = np.isfinite(left).nonzero()[0][-1]
    assert words.startswith("Layer 2: ")
    assert f"after {lags[last]}" in words
    points = window.run("document.querySelector('.curve.picked').getAttribute('points')").split()
    y = np.array([float(point.split(",")[1]) for point in points])
    np.testing.assert_allclose((118 - y) / 110, left[: last + 1], atol=0.003)
    low, high = (float(text_of(window, end)) for end in ("#low", "#high"))
    delta = np.exp(np.log(trace.delta[2].astype(np.float64)).mean(axis=-1))
    np.testing.assert_allclose([low, high], [delta.min(), delta.max()], rtol=6e-3)
    style = "[...document.querySelectorAll('.token')].map((e) => e.style.getPropertyValue('--v'))"
    levels = np.array(window.run(style), float)
    expected = np.log(delta / delta.min()) / np.log(delta.max() / delta.min())
    np.testing.assert_allclose(levels, expected, atol=1e-3)
    assert window.problems() == []


@pytest.mark.parametrize("width", [360, 480, 768, 1200])
@pytest.mark.parametrize("token", [0, 20])
def test_nothing_is_wider_than_the_window(window, path, width, token):
    window.open(path, width=width, height=740)
    window.click(f"#t{token}")
    assert window.run("document.documentElement.scrollWidth") <= width
    wide = window.run(
        "[...document.querySelectorAll('.body')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
        ".map((e) => e.id)"
    )
    assert wide == []
    assert window.run(
        "[...document.querySelectorAll('.token')].every((e) => e.getClientRects().length === 1)"
    ), "a token is broken over two lines"


def test_the_chosen_token_of_a_long_text_is_in_sight(window, tmp_path, model):
    path = tmp_path / "long.html"
    trace = model.trace(TEXT * 7, capture=("delta_geometric_mean",))
    middle = len(trace) // 2
    delta = trace.delta_geometric_mean.copy()
    delta[:, middle] *= 10  # the page begins with the largest
    report.save_report(path, replace(trace, delta_geometric_mean=delta))
    window.open(path, width=360, height=740)
    assert chosen(window) == middle
    top, bottom, low, high = window.run(
        "['#text', '[aria-selected=\"true\"]'].flatMap((s) => {const b = "
        "document.querySelector(s).getBoundingClientRect(); return [b.top, b.bottom]})"
    )
    assert top <= low < high <= bottom
    assert window.run("document.querySelector('#text').scrollTop") > 0
    assert window.run("scrollY") == 0


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const part = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = Array.from(canvas.getImageData(0, 0, 1, 1).data, (v) => v / 255);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  const ratio = (element, under) => {
    const style = getComputedStyle(element);
    const [a, b] = [light(style.color, paper), light(under || style.backgroundColor, paper)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const tokens = [...document.querySelectorAll(".token")].map((e) => ratio(e));
  const card = getComputedStyle(document.querySelector(".panel")).backgroundColor;
  const small = document.querySelectorAll(".explanation, th, small");
  const quiet = [...small].map((e) => ratio(e, card));
  return {tokens: Math.min(...tokens), quiet: Math.min(...quiet), paper,
    spread: new Set([...document.querySelectorAll(".token")]
      .map((e) => getComputedStyle(e).backgroundColor)).size};
})()"""


@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"),
                                               ("dark", "print")])  # fmt: skip
def test_text_can_be_read_on_every_colour(window, path, scheme, media):
    window.open(path, scheme=scheme, media=media)
    found = window.run(CONTRAST)
    assert found["tokens"] >= 4.5
    assert found["quiet"] >= 4.5
    assert found["spread"] > 10
    dark = scheme == "dark" and media == "screen"
    assert (found["paper"] == "rgb(255, 255, 255)") != dark
    if media == "print":
        assert window.run("getComputedStyle(document.querySelector('.text')).maxHeight") == "none"


def test_values_run_nothing(window, tmp_path, model):
    trace = model.trace(np.arange(len(EVIL)), capture=report.CAPTURE)
    path = tmp_path / "evil.html"
    evil = (*EVIL[:-1], "<img src=x onerror=alert(1)>")
    report.save_report(path, replace(trace, labels=evil), model)
    window.open(path)
    for token in range(len(evil)):
        window.run(f"document.getElementById('t{token}').click()")
    assert window.problems() == []
    shown = window.run("[...document.querySelectorAll('.token')].map((e) => e.textContent)")
    assert shown == list(evil)
    assert window.run("document.querySelectorAll('img, b:not(.guess b), script').length") == 2


def test_panels_that_are_left_out_leave_the_rest(window, tmp_path, model):
    for captured in (("delta",), ("residual",), ("B",), ("delta", "B", "C")):
        path = tmp_path / "part.html"
        report.save_report(path, model.trace(TEXT, capture=captured), model)
        window.open(path)
        window.press("Tab")
        window.press("Tab")
        window.press("End")
        assert chosen(window) > 0
        assert window.problems() == []


def test_one_token_and_a_broken_trace_have_a_page(window, tmp_path, model, trace):
    path = tmp_path / "one.html"
    report.save_report(path, model.trace([5], capture=report.CAPTURE), model)
    window.open(path)
    assert "nothing comes after it" in text_of(window, "#decay p")
    broken = {name: np.full_like(getattr(trace, name), np.nan) for name in ("delta", "x")}
    with np.errstate(all="ignore"):
        report.save_report(path, replace(trace, **broken))
    window.open(path)
    window.click("#t3")
    assert chosen(window) == 3
    assert window.problems() == []


def test_the_frame_of_a_notebook_works(window, tmp_path, trace):
    path = tmp_path / "notebook.html"
    frame = trace._repr_html_()
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}", "utf-8")
    (tmp_path / "blank.html").write_text("<!doctype html>", "utf-8")
    window.open(tmp_path / "blank.html")
    blank = window.send("Page.captureScreenshot")["data"]
    window.open(path)
    assert window.run("frames.length") == 1
    # What is in it cannot be seen from outside, but a picture can: it has to change.
    drawn = changed(window, blank)
    for kind in ("mousePressed", "mouseReleased"):
        window.send("Input.dispatchMouseEvent", type=kind, x=60, y=174, button="left", clickCount=1)
    assert window.run("document.activeElement.tagName") == "IFRAME"
    clicked = changed(window, drawn)
    window.press("ArrowRight")
    changed(window, clicked)
    assert window.problems() == []


def changed(window, before):
    """Return the picture of the page as soon as it differs."""
    end = time.monotonic() + 30
    while (now := window.send("Page.captureScreenshot")["data"]) == before:
        assert time.monotonic() < end, "nothing has changed in the picture"
        time.sleep(0.1)
    return now
