"""The page of a trace: what is in it, decoded again, and that it is one file, safe to open."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_laws import configs, make_model, seeds
from tolerances import assert_close_to_scale, tolerance

import mamba_np
from mamba_np import MambaConfig, analysis, report
from mamba_np.errors import FileMissingError, InputError
from mamba_np.report import contents, packing, page
from mamba_np.trace import QUANTITIES

SMALL = MambaConfig(
    vocab_size=17, hidden_size=10, intermediate_size=18, state_size=3, num_hidden_layers=3,
    time_step_max=0.7,
)  # fmt: skip
IDS = np.random.default_rng(5).integers(17, size=13)
TEXT = "Once upon a time there was a king, and he said:\n\n“who are you?” 한국어 "
EVIL = (
    "</script>", "<script>alert(1)</script>", "<b>", "<!--", "-->", "]]>", "{{data}}", "{{script}}",
    '" onclick="x', "'", "&lt;", "\u2028", "\\", "</span>", "·<i>", "↵", "", "\ud800",
)  # fmt: skip
SHARE, LOG = 1 / 508, 0.019  # half a step of each, as packing.py says


@pytest.fixture(scope="module")
def small():
    return make_model(SMALL)


@pytest.fixture(scope="module")
def trace(small):
    return small.trace(IDS, capture=tuple(QUANTITIES))


@pytest.fixture(scope="module")
def told(model):
    """A page of the bundled model, and its trace."""
    trace = model.trace(TEXT, capture=report.CAPTURE)
    return report.html_of(trace, model), trace


def unpacked(packed):
    """The arrays once more, from what packing.py promises."""
    raw, kind = base64.b64decode(packed["data"], validate=True), packed["kind"]
    if kind in ("float32", "uint16", "uint32"):
        values = np.frombuffer(raw, {"float32": "<f4", "uint16": "<u2", "uint32": "<u4"}[kind])
    elif kind == "share":
        values = np.array([math.nan if level == 255 else level / 254 for level in raw])
    else:
        assert kind == "log"
        high = packed["high"]
        values = [0.0 if v == 0 else high * 1e4 ** ((v - 1) / 254 - 1) for v in raw]
        values = np.array(values)
    return values.reshape(packed["shape"])


class Parsed(HTMLParser):
    """What a browser would see: elements with their attributes, tokens, scripts."""

    VOID = ("meta", "br", "link", "img", "input", "hr", "base")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.tokens, self.declarations = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_decl(self, decl):
        self.declarations.append(decl)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), "an attribute twice"
        self.elements.append((tag, attributes))
        if tag == "span" and attributes.get("class") == "token":
            self.tokens.append("")
        if tag not in self.VOID:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data):
        if any(a.get("class") == "token" for _, a in self.open):
            self.tokens[-1] += data
        if self.open:
            tag, attributes = self.open[-1]
            key = attributes.get("id") or attributes.get("class") or tag
            self.texts[key] = self.texts.get(key, "") + data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self):
        return json.loads(self.texts["data"])


def alone(text):
    """A page that asks nothing of anybody, and runs nothing but its own script."""
    parsed = Parsed(text)
    assert parsed.declarations == ["doctype html"]
    for tag, attributes in parsed.elements:
        names = {"src", "href", "srcset", "action", "data", "srcdoc", "poster", "background"}
        assert not names & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
    style, script = parsed.texts["style"], parsed.texts["script"]
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    assert not re.search(r"fetch|XMLHttp|import|WebSocket|localStorage|cookie", script)
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name
    assert [a.get("type") for a in parsed.of("script")] == ["application/json", None]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a in parsed.of("meta") if "http-equiv" in a]
    assert policy.split("; ")[:3] == [
        "default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'",
    ]  # fmt: skip
    return parsed


# --- packing --------------------------------------------------------------------------------------

finite = st.floats(0, 2.0**100, width=32)
shapes = st.tuples(st.integers(0, 4), st.integers(1, 5))


@given(arrays(np.float32, shapes, elements=st.floats(width=32)))
def test_numbers_come_back_to_the_bit(array):
    np.testing.assert_array_equal(unpacked(packing.numbers(array)), array)


def test_numbers_too_large_are_infinite_and_float64_is_rounded():
    wide = np.array([1e300, -1e300, 1 / 3, np.nan])
    expected = np.array([np.inf, -np.inf, np.float32(1 / 3), np.nan])
    np.testing.assert_array_equal(unpacked(packing.numbers(wide)), expected)


@pytest.mark.parametrize(
    ("most", "dtype"), [(0, "uint16"), (65535, "uint16"), (65536, "uint32"), (2**32 - 1, "uint32")]
)
def test_places_come_back_in_as_few_bytes_as_will_do(most, dtype):
    array = np.array([[0, most // 3, most]])
    packed = packing.places(array)
    assert packed["kind"] == dtype
    np.testing.assert_array_equal(unpacked(packed), array)


@given(arrays(np.float64, shapes, elements=st.floats(0, 1) | st.just(math.nan)))
def test_shares_come_back_to_half_a_level(array):
    found = unpacked(packing.shares(array))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(array))
    assert np.nanmax(np.abs(found - array), initial=0) <= SHARE * (1 + 1e-12)
    np.testing.assert_array_equal(found[(array == 0) | (array == 1)], array[(array % 1) == 0])


@given(arrays(np.float32, shapes, elements=finite | st.just(math.nan)))
def test_logs_come_back_to_two_percent(array):
    packed = packing.logs(array)
    found, values = unpacked(packed), np.nan_to_num(array.astype(np.float64))
    high = values.max(initial=0)
    assert packed["high"] == high
    seen = values > high / 1e4 * (1 + 1e-9)
    assert (np.abs(found[seen] - values[seen]) <= LOG * values[seen]).all()
    assert (found[values < high / 1e4 * (1 - 1e-9)] == 0).all()
    assert (found[values == high] == high).all() or high == 0
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(found.ravel()[order]) >= 0).all()


def test_logs_begin_at_a_ten_thousandth_of_the_largest():
    found = unpacked(packing.logs(np.array([3.0, 3.1e-4, 2.9e-4])))
    np.testing.assert_allclose(found, [3, 3.1e-4, 0], rtol=LOG)


def test_what_is_infinite_has_no_scale():
    for array in ([np.inf, 1.0], [np.nan, np.nan], [0.0, 0.0]):
        packed = packing.logs(np.array(array))
        assert packed["high"] == 0
        assert unpacked(packed).tolist() == [0, 0]


# --- contents -------------------------------------------------------------------------------------


def test_what_is_shown_is_what_the_analysis_says(small, trace):
    found = contents.contents(trace, small)
    assert (found["labels"], found["layers"]) == ([str(i) for i in IDS], [0, 1, 2])
    assert (found["left_out"], found["before"]) == ({}, 0)
    rtol = tolerance("law", "float32")  # of which the numbers are

    def close(name, expected):
        assert_close_to_scale(unpacked(found[name]).astype(np.float64), expected, rtol, name)

    close("colour", trace.delta_geometric_mean)
    each = [analysis.strengths(trace, layer) for layer in range(3)]
    close("write", [s.write for s in each])
    close("keep", [s.keep for s in each])
    close("read", [s.read for s in each])
    for layer, packed in enumerate(found["attention"]):
        alpha, triangle = analysis.mean_hidden_attention(trace, layer), unpacked(packed)
        rows = [triangle[t * (t + 1) // 2 :][: t + 1] for t in range(13)]
        for t, row in enumerate(rows):
            expected = np.where(alpha[t, : t + 1] < alpha.max() / 1e4, 0, alpha[t, : t + 1])
            assert (np.abs(row - expected) <= LOG * expected).all()
    lens = analysis.logit_lens(small, trace, 5)
    close("probabilities", lens.probabilities)
    names = np.array(found["names"], int)
    np.testing.assert_array_equal(names[unpacked(found["predicted"])], lens.ids)
    goes_on = [int(names[place - 1]) if place else None for place in unpacked(found["next"])]
    predicted = set(lens.ids.ravel().tolist())
    assert goes_on == [*(i if i in predicted else None for i in IDS[1:].tolist()), None]
    assert sum(i is not None for i in goes_on) > 3


@pytest.mark.parametrize("block", [1, 100, contents.BLOCK])
def test_the_share_that_is_left_by_loops(trace, block, monkeypatch):
    monkeypatch.setattr(contents, "BLOCK", block)
    lags = contents._lags(13)
    assert lags == [0, 1, 2, 4, 8]
    found = contents.share_left(trace, 1, lags)
    delta, A = trace.delta[1].tolist(), trace.A[1].tolist()
    for s in range(13):
        for k, lag in enumerate(lags):
            if s + lag > 12:
                assert math.isnan(found[s, k])
                continue
            time = [math.fsum(delta[i][e] for i in range(s + 1, s + lag + 1)) for e in range(18)]
            of_channels = [
                math.fsum(math.exp(a * time[e]) for a in A[e]) / len(A[e]) for e in range(18)
            ]
            expected = float(np.median(of_channels))
            assert found[s, k] == pytest.approx(expected, rel=tolerance("law", "float64"))
    assert (found[:, 0] == 1).all()
    decay = unpacked(contents.contents(trace)["decay"])
    assert decay.shape == (3, 13, 5)
    np.testing.assert_allclose(decay[1], found, rtol=0, atol=SHARE * 1.001)


def test_lags_end_with_the_text():
    for length in range(1, 70):
        lags = contents._lags(length)
        assert lags == [0, *(lag for lag in (1, 2, 4, 8, 16, 32, 64) if lag < length)]


def test_some_layers_and_channels(small):
    trace = small.trace(IDS, [2, 0], [5, 1, 7], report.CAPTURE)
    found = contents.contents(trace, small)
    assert found["layers"] == [2, 0]
    whole = contents.contents(small.trace(IDS, capture=report.CAPTURE), small)
    np.testing.assert_array_equal(
        unpacked(found["probabilities"]), unpacked(whole["probabilities"])[[2, 0]]
    )
    alpha = analysis.mean_hidden_attention(trace, 0)
    assert found["attention"][1]["high"] == alpha.max()
    parsed = alone(report.html_of(trace, small))
    assert parsed.of("option") == [{"value": "-1"}, {"value": "0"}, {"value": "1"}]
    assert parsed.texts["option"] == "all layerslayer 2layer 0"


PANELS = {
    "write": {"delta", "B", "x", "y"},
    "decay": {"delta"},
    "attention": {"delta", "B", "C"},
    "predicted": {"residual"},
}


@given(st.sets(st.sampled_from(sorted(QUANTITIES)), min_size=1))
def test_panels_are_there_if_their_quantities_are(captured):
    model = make_model(SMALL)
    trace = model.trace(IDS[:5], capture=captured)
    found = contents.contents(trace, model)
    for name, needed in PANELS.items():
        assert (name in found) == (needed <= captured), name
    coloured = bool(captured & {"delta", "delta_mean", "delta_geometric_mean"})
    assert ("colour" in found) == coloured
    for panel, why in found["left_out"].items():
        for name in needed_by(panel) - captured:
            assert repr(name) in why
    text = report.html_of(trace, model)
    parsed = alone(text)
    assert parsed.texts.get("left-out", "").count("trace with capture") == len(found["left_out"])
    assert len([a for a in parsed.of("section") if a.get("class") == "panel"]) == sum(
        name in found for name in PANELS
    )
    assert parsed.tokens == list(trace.labels)


def needed_by(panel):
    names = {"strengths": "write", "predictions": "predicted"}
    return {"delta"} if panel == "colour" else PANELS[names.get(panel, panel)]


def test_the_text_is_coloured_by_the_best_there_is(small, trace):
    for captured, name in {
        ("delta", "delta_mean"): "geometric mean of delta",
        ("delta_mean",): "mean of delta",
        ("delta_mean", "delta_geometric_mean"): "geometric mean of delta",
    }.items():
        some = small.trace(IDS, capture=captured)
        assert contents.contents(some)["colour_name"] == name
        values = trace.delta_mean if name == "mean of delta" else trace.delta_geometric_mean
        np.testing.assert_allclose(contents.step_sizes(some)[1], values, rtol=1e-12)
        levels, low, high = contents.scale(some)
        over = np.exp(np.log(values).mean(axis=0))
        assert (low, high) == (pytest.approx(over.min()), pytest.approx(over.max()))
        np.testing.assert_allclose(levels, np.log(over / low) / np.log(high / low), atol=1e-12)


def test_without_the_model_nothing_is_predicted_and_another_one_is_refused(small, trace):
    found = contents.contents(trace)
    assert "needs the model" in found["left_out"]["predictions"]
    assert "predicted" not in found
    with pytest.raises(InputError, match=r"model: expected the one that was traced, .*, found "):
        report.html_of(trace, make_model(SMALL, seed=9))
    with pytest.raises(InputError, match="trace: expected some tokens, found none"):
        report.html_of(page.beginning(trace, 0))


@pytest.mark.parametrize("rule", ["euler", "bilinear"])
def test_other_rules_have_no_decay(rule):
    model = make_model(MambaConfig(**SMALL.to_dict() | {"discretisation": rule}))
    found = contents.contents(model.trace(IDS, capture=report.CAPTURE), model)
    assert list(found["left_out"]) == ["decay"]
    assert repr(rule) in found["left_out"]["decay"]
    assert "decay" not in found
    assert "attention" in found


def test_attention_that_takes_long_is_left_out_where_nobody_asked(trace):
    products = 3 * 13 * 18 * 3 * 13  # layers, tokens, channels, states, tokens
    assert contents.contents(trace, work=products)["left_out"].keys() == {"predictions"}
    found = contents.contents(trace, work=products - 1)
    assert found["left_out"].keys() == {"predictions", "attention"}
    assert "attention" not in found


# --- the page -------------------------------------------------------------------------------------


def test_a_page_of_the_bundled_model(told):
    text, trace = told
    parsed = alone(text)
    assert parsed.tokens == list(trace.labels)
    assert parsed.data["labels"] == list(trace.labels)
    assert text.count("<br>") == sum("↵" in label for label in trace.labels) > 0
    assert {a["name"]: a["content"] for a in parsed.of("meta") if "name" in a} == {
        "viewport": "width=device-width, initial-scale=1", "color-scheme": "light dark",
    }  # fmt: skip
    assert parsed.of("html") == [{"lang": "en"}]
    assert "left-out" not in {a.get("class") for a in parsed.of("section")}
    assert {"strengths", "decay", "attention", "predictions"} <= {
        a.get("id") for a in parsed.of("div")
    }
    assert trace.model in text
    assert mamba_np.__version__ in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    names = parsed.data["names"]
    assert all(re.fullmatch(r"\S{1,12}", name) for name in names)
    assert any(name.startswith("·") for name in names)


def test_colours_are_in_the_page_without_its_script(told):
    text, trace = told
    styles = [a["style"] for a in Parsed(text).of("span") if a.get("class") == "token"]
    levels = [float(style.removeprefix("--v:")) for style in styles]
    assert (min(levels), max(levels)) == (0, 1)
    over = np.log(trace.delta.astype(np.float64)).mean(axis=(0, 2))
    expected = (over - over.min()) / (over.max() - over.min())
    np.testing.assert_allclose(levels, expected, atol=6e-4)
    low, high = (Parsed(text).texts[end] for end in ("low", "high"))
    assert (low, high) == (f"{np.exp(over.min()):.3g}", f"{np.exp(over.max()):.3g}")


def test_a_page_of_256_tokens_is_small(model, tokenizer):
    ids = tokenizer(TEXT * 20)["input_ids"][:256]
    text = report.html_of(model.trace(ids, capture=report.CAPTURE), model)
    assert len(Parsed(text).tokens) == 256
    assert len(text.encode()) < 10**6


def test_values_cannot_break_out(small):
    trace = small.trace(np.arange(len(EVIL)) % 17, capture=report.CAPTURE)
    trace = replace(trace, labels=EVIL, tokens=EVIL, model="</footer><script>x</script>")
    text = report.html_of(trace)
    parsed = alone(text)
    assert parsed.tokens == list(EVIL)
    assert parsed.data["labels"] == list(EVIL)
    assert "<script>x" not in text
    assert len(parsed.of("script")) == 2
    data = parsed.texts["data"]
    assert not set(data) & set("<>&\u2028")
    assert "<script>x</script>" in "".join(parsed.texts.values())


def test_names_of_predicted_tokens_cannot_break_out(small):
    class Tokenizer:
        def convert_ids_to_tokens(self, ids):
            return [None if i == 3 else f"</script>{i}" for i in ids]

        def stream_decoder(self):
            return None

    assert contents.names_of([3, 4], Tokenizer()) == ["3", "</script>4"]
    trace = small.trace(IDS, capture=report.CAPTURE)
    parsed = alone(report.html_of(trace, small, Tokenizer()))
    assert set(parsed.data["names"]) <= {"3", *(f"</script>{i}" for i in range(17))}


def test_a_page_is_written_whole_or_not_at_all(tmp_path, small, trace):
    path = tmp_path / "r.html"
    report.save_report(path, trace, small)
    assert path.read_text("utf-8") == report.html_of(trace, small)
    with pytest.raises(InputError):
        report.save_report(path, trace, make_model(SMALL, seed=9))
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(FileMissingError, match="expected a file to write"):
        report.save_report(tmp_path, trace, small)
    broken = replace(trace, labels=("\ud800", *trace.labels[1:]))
    report.save_report(path, broken)  # half a character has no bytes
    assert Parsed(path.read_text("utf-8")).tokens[0] == "?"


@given(
    config=configs,
    seed=seeds,
    length=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_any_model_and_text_has_a_page(config, seed, length, dtype):
    model = make_model(config, seed, dtype)
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=length)
    trace = model.trace(ids, capture=report.CAPTURE)
    parsed = alone(report.html_of(trace, model))
    assert parsed.data["left_out"] == {}
    assert len(parsed.tokens) == length


def test_numbers_that_are_none_do_not_stop_it(small, trace):
    delta = trace.delta.copy()
    delta[:, 3] = np.nan
    delta[:, 4] = np.inf
    delta[:, 5] = 0
    with np.errstate(all="ignore"):
        text = report.html_of(replace(trace, delta=delta, delta_geometric_mean=None), small)
    parsed = alone(text)
    assert not re.search(r"nan|inf\b", " ".join(a.get("style", "") for a in parsed.of("span")))
    assert "nan" not in parsed.texts["low"] + parsed.texts["high"]


def test_what_was_read_before_is_said(small):
    tracer = small.tracer(capture=report.CAPTURE)
    out = tracer(IDS[None, :4], use_cache=True)
    tracer(IDS[None, 4:], cache_params=out.cache_params, use_cache=True)
    assert "9 tokens, 3 layers, after 4 tokens read before." in report.html_of(tracer.last, small)
    assert "after" not in re.search("<header>.*</header>", report.html_of(tracer.trace), re.S)[0]
    one = small.trace(IDS[:1], 0, capture=report.CAPTURE)
    assert "1 token, 1 layer." in report.html_of(one)


# --- notebooks ------------------------------------------------------------------------------------


def test_a_notebook_shows_the_page_in_a_frame(trace):
    frame = Parsed(trace._repr_html_())
    ((tag, attributes),) = frame.elements
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"
    parsed = alone(attributes["srcdoc"])
    assert parsed.tokens == list(trace.labels)
    assert attributes["title"] == "Trace of 13 tokens"
    assert attributes["srcdoc"] == report.html_of(page.beginning(trace, 13))
    assert "needs the model" in parsed.texts["left-out"]


def test_a_notebook_shows_the_beginning_of_a_long_trace(small, trace, monkeypatch):
    monkeypatch.setattr(page, "FRAME_TOKENS", 6)
    parsed = alone(Parsed(report.frame_of(trace)).elements[0][1]["srcdoc"])
    assert parsed.tokens == list(trace.labels[:6])
    assert "The first 6 of 13 tokens. 6 tokens, 3 layers." in parsed.texts["p"]
    short = small.trace(IDS[:6], capture=tuple(QUANTITIES))
    cut = page.beginning(trace, 6)
    assert cut.h is None
    for name, array in cut.arrays().items():
        expected = short.arrays()[name]
        assert_close_to_scale(array, expected, tolerance("law", "float64"), name)
    monkeypatch.setattr(page, "FRAME_WORK", 0)
    parsed = alone(Parsed(report.frame_of(trace)).elements[0][1]["srcdoc"])
    assert "takes long" in parsed.texts["left-out"]


def test_the_report_is_loaded_only_when_it_is_asked_for():
    program = "import sys, mamba_np.trace; print('mamba_np.report' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# --- the page's own arithmetic --------------------------------------------------------------------

NODE = shutil.which("node")
SCRIPTS = Path(page.TEMPLATES)


def node(expression, **values):
    """Return what an expression of numbers.js gives, by way of JSON; NaN is null."""
    given = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    program = f"{(SCRIPTS / 'numbers.js').read_text('utf-8')}\n{given}\nconst plain = (_, v) =>"
    program += "ArrayBuffer.isView(v) ? Array.from(v) : v;"
    program += f"console.log(JSON.stringify({expression}, plain))"
    command = [NODE, "-e", program]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(NODE is None, reason="needs node, which runs the page's script")


@needs_node
@pytest.mark.parametrize("name", ["numbers.js", "view.js"])
def test_scripts_are_javascript(name):
    subprocess.run([NODE, "--check", str(SCRIPTS / name)], check=True, capture_output=True)


@needs_node
def test_the_page_unpacks_what_was_packed(rng):
    wide = rng.standard_normal((2, 3)).astype(np.float32)
    share, many = rng.random((2, 4)), rng.integers(2**20, size=(2, 2))
    logs = np.exp(-9 * rng.random(50))
    packed = [packing.numbers(wide), packing.places(many), packing.places(many % 99),
              packing.shares(np.where(share < 0.2, np.nan, share)), packing.logs(logs)]  # fmt: skip
    for one, found in zip(packed, node("packed.map(unpack)", packed=packed), strict=True):
        expected = unpacked(one)
        assert found["shape"] == one["shape"]
        values = np.array([math.nan if v is None else v for v in found["values"]])
        np.testing.assert_allclose(values, expected.ravel(), rtol=1e-6)  # a float32 in between


@needs_node
def test_the_page_finds_who_reads_whom(rng):
    alpha = np.tril(rng.random((6, 6)))
    other = np.tril(rng.random((6, 6)))
    low = np.tril_indices(6)
    values = {"a": alpha[low].tolist(), "b": other[low].tolist()}
    found = node(
        "{readers: readersOf(a, 6, 2), reads: readBy(a, 3), mean: meanOf([a, b]),"
        "top: largest(readBy(a, 4), 2), none: largest([[1, 0]], 3)}",
        **values,
    )
    assert found["readers"] == [[t, alpha[t, 2]] for t in (3, 4, 5)]
    assert found["reads"] == [[s, alpha[3, s]] for s in range(4)]
    np.testing.assert_allclose(found["mean"], (alpha + other)[low] / 2)
    best = np.argsort(-alpha[4])[:2]
    assert found["top"] == [[s, alpha[4, s]] for s in best.tolist()]
    assert found["none"] == []


@needs_node
def test_the_page_scales_as_the_text_is_coloured(trace):
    colour = packing.numbers(trace.delta_geometric_mean)
    found = node("scaleOf(geometricMean(unpack(colour)))", colour=colour)
    levels, low, high = contents.scale(trace)
    np.testing.assert_allclose(found["levels"], levels, atol=1e-5)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    one = node("[scaleOf([2, 2]), scaleOf([0, NaN]), scaleOf([0, 1, 4])]")
    assert one[0] == {"levels": [0, 0], "low": 2, "high": 2}
    assert one[1] == {"levels": [0, 0], "low": 0, "high": 0}
    assert one[2] == {"levels": [0, 0, 1], "low": 1, "high": 4}


@needs_node
def test_the_page_says_how_long_it_lasts():
    found = node(
        "[lifeOf([1, 0.8, 0.4, 0.1], [0, 1, 2, 4]), lifeOf([1, 0.3, NaN], [0, 1, 2]),"
        "lifeOf([1, 0.8, NaN], [0, 1, 2]), lifeOf([1, NaN], [0, 1]), percent(0.0994), percent(NaN),"
        "short(0.012345), short(1e-9), short(0), short(NaN), short(123456), short(12.3456),"
        "meanCurve([[1, 0.5], [1, 0.25]]),"
        "curveOf({shape: [2, 2, 2], values: [1,2,3,4,5,6,7,8]}, 1, 0),"
        "rowOf({shape: [2, 3], values: [1,2,3,4,5,6]}, 1)]"
    )
    assert found == [
        "40 % is left after 2 tokens, and 10 % after 4.",
        "30 % is left after 1 token.",
        "After 1 token, 80 % is still there.",
        "It is the last token: nothing comes after it.",
        *("9.9 %", "–", "0.0123", "1.00e-9", "0", "–", "1.23e+5", "12.3"),
        *([1, 0.375], [5, 6], [4, 5, 6]),
    ]
