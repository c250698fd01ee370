"""``mamba-np trace`` and ``explain``: what they print, write and refuse."""

import io
import math
import re

import numpy as np
import pytest
from cli_runner import PROMPT, error_of, json_of, output_of, run
from test_report import alone, unpacked
from tolerances import assert_close_to_scale, tolerance

from mamba_np import Trace, analysis, bundled_model_path
from mamba_np import equations as eq
from mamba_np.cli import explain, tables
from mamba_np.cli.trace import table_of
from mamba_np.errors import InputError
from mamba_np.report import CAPTURE

RTOL = tolerance("law", "float32")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def traced(model):
    return model.trace(PROMPT, capture=(*CAPTURE, "logits", "delta_geometric_mean"))


# --- trace ----------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_token(traced):
    lines = output_of("trace", PROMPT).splitlines()
    assert lines[0].split() == ["#", "token", "delta", "likeliest", "next"]
    delta = np.exp(np.log(traced.delta.astype(np.float64)).mean(axis=(0, 2)))
    best = traced.logits.argmax(axis=-1)
    p = np.exp(traced.logits - np.logaddexp.reduce(traced.logits, axis=-1)[:, None])
    names = dict(zip(traced.ids.tolist(), traced.labels, strict=True))
    for t, line in enumerate(lines[1 : len(traced) + 1]):
        found = re.fullmatch(r" *(\d+)  (\S+) +(\S+)  ([█▏▎▍▌▋▊▉ ]{16})  +(\S+)%  (\S+)", line)
        assert (int(found[1]), found[2]) == (t, traced.labels[t])
        assert found[3] == f"{delta[t]:.3g}"
        full, rest = found[4].count("█"), found[4].strip().lstrip("█")
        eighths = full * 8 + (" ▏▎▍▌▋▊▉".index(rest) if rest else 0)
        share = (delta[t] - delta.min()) / (delta.max() - delta.min())
        assert abs(eighths / 128 - share) <= 0.5 / 128 + 1e-4
        assert float(found[5]) == pytest.approx(100 * p[t, best[t]], abs=0.051)
        assert found[6] == names.get(best[t], found[6])
    assert lines[-1] == (
        f"Bars go from the smallest delta, {delta.min():.3g}, to the largest, {delta.max():.3g}."
    )
    assert len(lines) == len(traced) + 3


def test_json_has_the_numbers_of_the_table(traced, model, tokenizer):
    found = json_of("trace", PROMPT, "--layers", "2,0-1")
    assert found["model"] == str(bundled_model_path())
    assert [token["id"] for token in found["tokens"]] == traced.ids.tolist()
    assert [token["token"] for token in found["tokens"]] == list(traced.labels)
    delta = eq.geometric_mean(traced.delta[[2, 0, 1]].astype(np.float64))  # (3 L)
    for t, token in enumerate(found["tokens"]):
        assert list(token["delta_by_layer"]) == ["2", "0", "1"]
        assert_close_to_scale(np.array([*token["delta_by_layer"].values()]), delta[:, t], RTOL)
        assert token["delta"] == pytest.approx(math.exp(np.log(delta[:, t]).mean()), rel=RTOL)
        best = np.argsort(-traced.logits[t], kind="stable")[:3]
        assert [guess["id"] for guess in token["next"]] == best.tolist()
        p = eq.softmax(traced.logits[t])[best]
        assert_close_to_scale(np.array([g["probability"] for g in token["next"]]), p, RTOL)
        spelt = tokenizer.convert_ids_to_tokens(best.tolist())
        assert [g["token"] for g in token["next"]] == [s.replace("Ġ", "·") for s in spelt]


@pytest.mark.parametrize("name", ["report.html", "R.HTM"])
def test_a_page_is_written(tmp_path, name, traced):
    path = tmp_path / name
    text = output_of("trace", PROMPT, "--out", path, "--layers", "0,2")
    size = path.stat().st_size
    assert text == f"{path}: {len(traced)} tokens, 2 layers, {size:,} bytes\n"
    parsed = alone(path.read_text("utf-8"))
    assert parsed.tokens == list(traced.labels)
    assert (parsed.data["left_out"], parsed.data["layers"]) == ({}, [0, 2])
    colour = eq.geometric_mean(traced.delta[[0, 2]])
    assert_close_to_scale(unpacked(parsed.data["colour"]), colour, RTOL)


def test_a_trace_is_written(tmp_path, traced):
    path = tmp_path / "t.safetensors"
    assert output_of("trace", PROMPT, "--out", path).endswith(" bytes\n")
    trace = Trace.load(path)
    assert set(trace.captured) == set(CAPTURE)
    for name in CAPTURE:
        np.testing.assert_array_equal(trace.arrays()[name], traced.arrays()[name])
    assert trace.labels == traced.labels


def test_text_comes_from_a_file_or_stdin_as_well(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(PROMPT + "\n", "utf-8")
    for command in ("trace", "explain"):
        expected = output_of(command, PROMPT)
        assert output_of(command, "-f", path) == expected
        assert output_of(command, "-f", "-", stdin=PROMPT) == expected
        assert output_of(command, "-p", PROMPT) == expected
        assert output_of(command, stdin=PROMPT) == expected


def test_a_long_text_is_cut_and_it_is_said(traced):
    result = run("trace", PROMPT * 3, "--max-tokens", 4)
    assert result.exit_code == 0
    count = len(re.findall(r"^ +\d+  ", result.stdout, re.M))
    assert count == 4
    assert re.fullmatch(
        r"warning: the first 4 of \d+ tokens are read; --max-tokens reads more\n", result.stderr
    )
    whole = run("trace", PROMPT, "--max-tokens", len(traced))
    assert whole.stderr == ""


@pytest.mark.parametrize("command", ["trace", "explain"])
def test_wrong_texts_are_refused(command, tmp_path):
    assert error_of(command, "") == "text: expected at least one token, found an empty text"
    assert error_of(command, stdin="") == "text: expected at least one token, found an empty text"
    path = tmp_path / "t.txt"
    path.write_bytes(b"ab\xff")
    assert error_of(command, "-f", path).startswith(
        f"{path}: expected text in UTF-8, found byte 0xff"
    )
    assert "cannot be opened" in error_of(command, "-f", tmp_path / "none.txt")
    assert "Expected one prompt" in error_of(command, "a", "-f", path, code=2)
    assert "Expected one prompt" in error_of(command, "a", "-p", "b", code=2)


@pytest.mark.parametrize("layers", ["", "a", "1,", "-1", "1-", "1--2", "1.5", "²", "1,999999"])
def test_layers_that_are_none_are_wrong_usage(layers):
    message = error_of("trace", "a", f"--layers={layers}", code=2)
    assert "expected numbers and ranges such as 0,3,5-7" in message


def test_wrong_usage_of_trace(tmp_path, model_path, model):
    assert error_of("trace", "a", "--layers", model.config.num_hidden_layers).startswith("layers: ")
    assert "each once" in error_of("trace", "a", "--layers", "2,0-3")
    assert "expected some indices" in error_of("trace", "a", "--layers", "3-2")
    message = error_of("trace", "a", "--out", tmp_path / "t.png", code=2)
    assert message.startswith("--out: expected a name that ends with .html, .htm, .safetensors, ")
    assert "--out and --json" in error_of("trace", "a", "--out", "t.html", "--json", code=2)
    message = error_of("trace", "a", "--out", tmp_path / "no" / "t.html")
    assert message.startswith("--out: ")
    (tmp_path / "d.html").mkdir()
    assert "found a folder" in error_of("trace", "a", "--out", tmp_path / "d.html")
    assert error_of("trace", "a", "--max-tokens", 0, code=2)
    assert "--tokenizer" in error_of("trace", "a", "-m", model_path("sharded_bf16"))
    assert [p.name for p in tmp_path.iterdir()] == ["d.html"]


def test_a_trace_too_large_is_refused_before_it_is_made(tmp_path, monkeypatch, model, traced):
    size = Trace.estimate(model, len(traced), capture=CAPTURE)
    path = tmp_path / "t.html"
    monkeypatch.setattr("mamba_np.trace.LIMIT", size)
    assert output_of("trace", PROMPT, "--out", path)
    path.unlink()
    monkeypatch.setattr("mamba_np.trace.LIMIT", size - 1)
    message = error_of("trace", PROMPT, "--out", path)
    expected = f"--max-tokens: expected a trace of at most {size - 1:,} bytes, found {size:,} for "
    assert message.startswith(expected)
    assert message.endswith("; choose fewer, or some layers with --layers")
    assert not path.exists()


def test_a_model_that_makes_no_numbers_still_has_a_table(model, tokenizer):
    class Broken:
        def trace(self, *args, **options):
            from dataclasses import replace

            found = model.trace(*args, **options)
            bad = {n: np.full_like(getattr(found, n), np.nan) for n in options["capture"]}
            return replace(found, **bad)

    with np.errstate(invalid="ignore"):
        rows = table_of(Broken(), tokenizer, tokenizer(PROMPT)["input_ids"], None)
    assert rows[0]["delta"] is None
    assert rows[0]["next"][0]["probability"] is None
    from mamba_np.cli.trace import _print_table

    _print_table(rows)  # prints what it can


# --- explain --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained():
    return json_of("explain", PROMPT)


def test_shares_are_those_of_the_analysis(explained, model, tokenizer, traced):
    ids = traced.ids
    expected = analysis.relevance(model, ids)
    found = explained["explained"]
    assert found["id"] == expected.token == int(traced.logits[-1].argmax())
    assert found["logit"] == pytest.approx(float(traced.logits[-1].max()), rel=RTOL)
    assert found["probability"] == pytest.approx(
        float(eq.softmax(traced.logits[-1]).max()), rel=RTOL
    )
    shares = np.array([entry["share"] for entry in explained["shares"]])
    assert_close_to_scale(shares, expected.tokens, RTOL)
    assert explained["bias"] == pytest.approx(expected.bias, rel=RTOL)
    assert explained["total"] == pytest.approx(shares.sum() + explained["bias"], rel=RTOL)
    assert explained["total"] == pytest.approx(found["logit"], rel=RTOL * 10)
    assert [entry["token"] for entry in explained["shares"]] == list(traced.labels)
    assert (explained["text"], explained["model"]) == (PROMPT, str(bundled_model_path()))
    assert [entry["id"] for entry in explained["shares"]] == ids.tolist()


def test_layers_and_likeliest_tokens_are_those_of_the_trace(explained, model, traced):
    lens = analysis.logit_lens(model, traced, 5)
    assert list(explained["layers"]) == [
        str(layer) for layer in range(model.config.num_hidden_layers)
    ]
    for layer, guesses in enumerate(explained["layers"].values()):
        assert [guess["id"] for guess in guesses] == lens.ids[layer, -1].tolist()
        found = np.array([guess["probability"] for guess in guesses])
        assert_close_to_scale(found, lens.probabilities[layer, -1], RTOL)
    best = np.argsort(-traced.logits[-1], kind="stable")[:5]
    assert [entry["id"] for entry in explained["next"]] == best.tolist()
    logits = np.array([entry["logit"] for entry in explained["next"]])
    assert_close_to_scale(logits, traced.logits[-1][best], RTOL)
    p = np.array([entry["probability"] for entry in explained["next"]])
    assert_close_to_scale(p, eq.softmax(traced.logits[-1])[best], RTOL)
    assert explained["next"][0]["token"] == explained["explained"]["token"]


def test_one_token_is_explained_as_well():
    found = json_of("explain", "a")
    assert len(found["shares"]) == 1
    total = sum(entry["share"] for entry in found["shares"]) + found["bias"]
    assert total == pytest.approx(found["explained"]["logit"], rel=RTOL * 10)


@pytest.mark.parametrize("form", [" {word}", "·{word}", "#{number}"])
def test_another_token_is_explained(form, tokenizer, model, traced):
    guesses = np.argsort(-traced.logits[-1], kind="stable")[1:9].tolist()
    spelt = dict(zip(guesses, tokenizer.convert_ids_to_tokens(guesses), strict=True))
    number = next(i for i, token in spelt.items() if token.startswith("Ġ") and len(token) > 2)
    wanted = form.format(word=spelt[number][1:], number=number)
    found = json_of("explain", PROMPT, "--next", wanted)
    expected = analysis.relevance(model, traced.ids, number)
    label = f"·{spelt[number][1:]}"
    assert (found["explained"]["id"], found["explained"]["token"]) == (number, label)
    shares = np.array([entry["share"] for entry in found["shares"]])
    assert_close_to_scale(shares, expected.tokens, RTOL)
    p = float(eq.softmax(traced.logits[-1])[number])
    assert found["explained"]["probability"] == pytest.approx(p, rel=RTOL)
    text = output_of("explain", PROMPT, "--next", wanted)
    assert f" of {label} comes from (probability {p:.1%})" in text


def test_wrong_tokens_are_refused(model):
    message = error_of("explain", "a", "--next", "the king of")
    assert message.startswith("--next: expected a text of one token, or #ID, found 'the king of': ")
    assert error_of("explain", "a", "--next", "").endswith("found '': none")
    assert error_of("explain", "a", "--next", "#99999") == (
        f"--next: expected an integer from 0 to {model.config.vocab_size - 1}, found 99999"
    )
    assert error_of("explain", "a", "--top", 0, code=2)


def test_what_is_printed(explained):
    text = output_of("explain", PROMPT)
    likeliest, shares, layers = text.split("\n\n")
    lines = likeliest.splitlines()
    assert lines[0] == "Likeliest next tokens"
    for line, entry in zip(lines[1:], explained["next"], strict=True):
        name, share, word, logit = line.split()
        assert (name, share) == (entry["token"], f"{entry['probability']:.1%}")
        assert (word, logit) == ("logit", f"{entry['logit']:.3f}")
    title, *rows = shares.splitlines()
    found = explained["explained"]
    assert title == (
        f"Where the logit {found['logit']:.3f} of {found['token']} comes from (probability "
        f"{found['probability']:.1%})"
    )
    values = [entry["share"] for entry in explained["shares"]]
    most = max(map(abs, [*values, explained["bias"]]))
    for t, (row, value) in enumerate(zip(rows, [*values, explained["bias"]], strict=False)):
        before, _, bar = row.partition("│")
        head = before.rstrip("█ ").split()
        name = [str(t), explained["shares"][t]["token"]] if t < len(values) else ["biases"]
        assert head == [*name, f"{value:+.3f}"]
        assert max(bar.count("█"), before.count("█")) == round(abs(value) / most * 20)
        assert ("█" in before) <= (value < 0)
    assert rows[-1].split() == ["total", f"{explained['total']:+.3f}"]
    assert len(rows) == len(values) + 2
    said = layers.splitlines()
    assert said[0] == "What each layer would say, were it the last"
    for line, (layer, guesses) in zip(said[1:], explained["layers"].items(), strict=True):
        parts = [part for g in guesses for part in (g["token"], f"{g['probability']:.1%}")]
        assert line.split() == [layer, *parts]


def test_small_shares_are_printed_as_one_sum(explained):
    shares = [entry["share"] for entry in explained["shares"]]
    lines = explain.share_lines(explained, 2)
    kept = sorted(sorted(range(len(shares)), key=lambda t: -abs(shares[t]))[:2])
    assert [int(line.split()[0]) for line in lines[:2]] == kept
    rest = sum(shares) - sum(shares[t] for t in kept)
    assert lines[2].split()[:3] == [str(len(shares) - 2), "others", f"{rest:+.3f}"]
    assert lines[3].split()[0] == "biases"
    assert len(lines) == 5
    one = explain.share_lines(explained, len(shares) - 1)
    assert "1 other " in one[-3]
    assert output_of("explain", PROMPT, "--top", 2).count("others") == 1


def test_negative_shares_go_to_the_left():
    found = {
        "shares": [{"token": "a", "share": -1.0}, {"token": "b", "share": 0.5}],
        **{"bias": 0.0, "total": -0.5},
    }
    first, second, *_ = explain.share_lines(found, 9)
    assert first.endswith("-1.000  " + "█" * 20 + "│")
    assert second.endswith("+0.500  " + " " * 20 + "│" + "█" * 10)
    assert explain.share_lines(found, 1)[0].split()[:2] == ["0", "a"]  # the largest either way
    nothing = {"shares": [{"token": "a", "share": None}], "bias": None, "total": None}
    assert "nan" in explain.share_lines(nothing, 9)[0]


# --- tables ---------------------------------------------------------------------------------------


def test_labels_are_padded_by_their_width_on_a_terminal():
    assert tables.padded("ab", 4) == "ab  "
    assert tables.padded("한국", 6) == "한국  "
    assert tables.padded("한국어", 4) == "한국어"
    assert tables.columns("e\u0301") == 1
    assert tables.columns("·‥") == 2


def test_bars(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert [tables.bar(share, 4) for share in (-1, 0, 1 / 32, 0.5, 1, 2, math.nan)] == [
        "", "", "▏", "██", "████", "████", "",
    ]  # fmt: skip
    assert tables.signed_bar(math.nan, 4) == "    │"
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert (tables.bar(0.5, 4), tables.bar(0.1, 4)) == ("##", "")
    assert tables.signed_bar(-0.5, 4) == "  ##|"
    assert tables.signed_bar(0.5, 4) == "    |##"


def test_layers_are_read():
    read = tables.Layers().convert
    assert read("0, 3,5-7", None, None) == [0, 3, 5, 6, 7]
    assert read("2", None, None) == [2]
    assert read([1], None, None) == [1]


def test_a_label_is_a_token_before_it_is_a_space():
    known = {"·x": [7], " x": [8], " y": [9]}

    class Tokenizer:
        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": known.get(text, [0, 1])}

        def convert_ids_to_tokens(self, ids):
            return [str(i) for i in ids]

    assert explain.token_of("·x", Tokenizer()) == 7
    assert explain.token_of("·y", Tokenizer()) == 9
    assert explain.token_of("#12", Tokenizer()) == 12
    for text in ("#", "#x", "#²", "z"):
        with pytest.raises(InputError, match="--next: expected a text of one token"):
            explain.token_of(text, Tokenizer())
