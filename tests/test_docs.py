"""The pages of docs/: their code runs, they can be found, and every public name has an example."""

import importlib
import inspect
import json
import math
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

import mamba_np
from mamba_np import (
    MambaForCausalLM,
    bundled_model_path,
    get_num_threads,
    score_text,
    set_num_threads,
)

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "_ext"))
import check_site  # noqa: E402
import usage  # noqa: E402

# --- the code of pages ---------------------------------------------------------------------------

BLOCK = re.compile(
    r"^(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
REASONS = ("needs a GPU", "needs transformers and PyTorch", "downloads 0.5 GB")
MADE = ("api/", "auto_gallery/", "project/", "tutorials/")  # what a build writes into docs/


def pages():
    """Return the pages that people write, by their paths in docs/."""
    found = (path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md")))
    return [name for name in found if not name.startswith(MADE)]


def blocks(name):
    """Return (reason not to run it or "", line, code) of each block of Python of a page."""
    text = (DOCS / name).read_text("utf-8")
    return [(m[1] or "", text.count("\n", 0, m.start(2)), m[2]) for m in BLOCK.finditer(text)]


WITH_CODE = [name for name in pages() if any(not reason for reason, *_ in blocks(name))]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, without a network, and settings put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = get_num_threads()
    yield tmp_path
    set_num_threads(threads)
    pyplot.close("all")


def run(name):
    """Run all blocks of a page that run at all, in one namespace; return that."""
    namespace = {"__name__": "page"}
    for reason, line, code in blocks(name):
        if not reason:  # padded, so that a traceback names the page's own line
            exec(compile("\n" * line + code, str(DOCS / name), "exec"), namespace)
    return namespace


def test_pages_with_code_are_found():
    assert {"how-to/from-transformers.md", "how-to/score-a-corpus.md", "engines.md"} < set(
        WITH_CODE
    )


@pytest.mark.parametrize("name", [n for n in WITH_CODE if n != "how-to/score-a-corpus.md"])
def test_the_code_of_a_page_runs(name, elsewhere):
    run(name)


@pytest.mark.parametrize("name", pages())
def test_code_that_does_not_run_says_why(name):
    text = (DOCS / name).read_text("utf-8")
    assert text.count("```python") == len(blocks(name)), "a block inside of something else"
    for reason, *_ in blocks(name):
        assert not reason or reason in REASONS


def test_a_block_that_does_not_run_is_told_from_one_that_does():
    text = "<!-- not run: needs a GPU -->\n```python\na\n```\n\n```python\nb\n```\n"
    assert [m.groups() for m in BLOCK.finditer(text)] == [("needs a GPU", "a\n"), (None, "b\n")]


# --- a corpus on two workers ---------------------------------------------------------------------


@pytest.fixture
def cluster(elsewhere):
    """The page about Dask, run up to and without its last block, which stops the workers."""
    pytest.importorskip("dask.distributed", reason="dask is not installed")
    *first, (_, _, last) = blocks("how-to/score-a-corpus.md")
    page = {"__name__": "page"}
    try:
        with warnings.catch_warnings():
            # Workers are started in new processes; what Dask warns of while it does that (ports in
            # use, no dashboard) is not the package's.
            warnings.filterwarnings("ignore", module=r"distributed\b")
            for _, line, code in first:
                exec(compile("\n" * line + code, "score-a-corpus.md", "exec"), page)
        yield page
    finally:
        exec(last, page)


def test_a_corpus_scored_by_two_workers_is_one_scored_by_one_process(cluster, model, tokenizer):
    documents, scores = cluster["documents"], cluster["scores"]
    assert len(cluster["client"].scheduler_info()["workers"]) == 2
    assert len(scores) == len(documents) == 4
    set_num_threads(1)  # as the workers have it
    alone = [
        score_text(model, tokenizer, cluster["io"].BytesIO(one), errors="replace")
        for one in documents
    ]
    assert scores == alone  # to the bit
    total = cluster["total"]
    assert total.log_likelihood == sum(one.log_likelihood for one in alone)
    assert total.tokens == sum(one.tokens for one in alone)
    assert total.bytes == sum(len(one) for one in documents)

    rows = [json.loads(line) for line in Path("results.jsonl").read_text("utf-8").splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == [f"{i}.txt" for i in range(4)]
    assert math.fsum(row["nats"] for row in rows) == pytest.approx(total.log_likelihood, rel=1e-12)

    def seen(document, model):
        return os.getpid(), id(model)

    client, futures = cluster["client"], cluster["model"]
    where = client.gather(client.map(seen, range(40), model=futures, pure=False))
    assert len({process for process, _ in where}) == 2  # both take part
    assert len(set(where)) == 2  # each with one model, loaded once


def test_a_model_travels_as_the_name_of_its_files():
    import pickle

    loaded = MambaForCausalLM.from_pretrained(bundled_model_path())
    assert len(pickle.dumps(loaded)) < 5000 < loaded.num_parameters()


# --- finding pages -------------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^)\s#]+)")
FOR_THE_SITE = {"index.md", "reference.md", "how-to/index.md", "explanation/index.md"}


def linked_from(path):
    """Return the files that a Markdown page links to, folders as their README.md."""
    found = set()
    for target in LINK.findall(path.read_text("utf-8")):
        if "://" not in target:
            goal = (path.parent / target).resolve()
            found.add(goal / "README.md" if goal.is_dir() else goal)
    return found


def test_every_page_can_be_found_from_the_index():
    seen, waiting = set(), [DOCS / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        waiting += linked_from(page)
    missing = {name for name in pages() if (DOCS / name).resolve() not in seen}
    results = {name for name in missing if name.startswith("benchmarks/2")}  # a folder lists them
    assert missing - results <= FOR_THE_SITE


# --- examples ------------------------------------------------------------------------------------

WITHOUT = {
    "__version__": "a number",
    "backend": "chosen by an argument: engines.md",
    "backward": "the way back of training",
    "bundled": "bundled_model_path has",
    "derivatives": "the way back of training",
    "errors": "MambaError has",
    "analysis.identities": "a module of its own, checked below",
    "interventions.InterveneMixin": "gives models the method intervene",
    "interventions.Intervention": "what runs inside of intervene",
    "plot.MissingPackageError": "raised where matplotlib is missing",
}
"""Public names that need no example, with the reason."""

MODULES = ("analysis", "plot", "interventions", "ops", "equations", "lti", "scans")


def public_names():
    """Return the dotted names, below mamba_np, that users are meant to use."""
    names = list(mamba_np.__all__)
    for name in MODULES:
        module = importlib.import_module(f"mamba_np.{name}")
        own = getattr(module, "__all__", None) or [
            key
            for key, value in vars(module).items()
            if not key.startswith("_")
            and inspect.isfunction(value)
            and value.__module__ == module.__name__
        ]
        names += [f"{name}.{one}" for one in own]
    return sorted(set(names) - set(WITHOUT))


def test_every_public_name_has_an_example():
    missing = [name for name in public_names() if not usage.users_of(f"mamba_np.{name}")]
    assert not missing, f"in no script, notebook or page: {', '.join(missing)}"


def test_names_without_an_example_exist_and_have_none():
    for name in WITHOUT:
        assert usage.thing(f"mamba_np.{name}") is not None


def test_names_are_found_under_whatever_name_they_were_imported():
    code = "from mamba_np import plot as p, equations\nimport mamba_np.ops\nimport mamba_np as m\n"
    code += "p.delta(t); equations.silu; mamba_np.ops.causal_conv1d; m.score; q.silu; f().x\n"
    found = usage.names_in(code)
    expected = {"plot.delta", "equations.silu", "ops.causal_conv1d", "score"}
    assert {f"mamba_np.{name}" for name in expected} <= found
    assert not {name for name in found if "q." in name or name.endswith(".x")}
    assert usage.thing("mamba_np.plot.delta") is mamba_np.plot.delta
    assert usage.thing("mamba_np.plot.nothing") is None


# --- the pages that were made --------------------------------------------------------------------


def site(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_html", ".html").replace("_css", ".css")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return check_site.problems(folder.resolve())


def test_a_site_of_its_own_has_no_problems(tmp_path):
    index = '<link rel="stylesheet" href="a.css?v=1"><a href="sub/b.html#there">b</a>'
    index += (
        '<a href="https://arxiv.org">elsewhere is fine to go to</a><a href="#top" id="top">x</a>'
    )
    other = '<p id="there"><img src="data:image/png;base64,xx"><a href="../index.html">back</a>'
    assert site(tmp_path, index_html=index, sub__b_html=other, a_css="p {color: red}") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css"),
        (
            '<link rel="preload" as="font" href="http://e.org/f.woff2">',
            "loads http://e.org/f.woff2",
        ),
        ('<img srcset="https://e.org/a.png 2x">', "loads https://e.org/a.png"),
        ("<style>@import 'https://e.org/a.css';</style>", "loads https://e.org/a.css"),
        ('<p style="background: url(https://e.org/a.png)">', "loads https://e.org/a.png"),
        ('<a href="nowhere.html">x</a>', "leads to a missing file: nowhere.html"),
        ('<img src="nowhere.png">', "leads to a missing file: nowhere.png"),
        ('<a href="#nowhere">x</a>', "leads to a missing place: #nowhere"),
        ('<a href="index.html#nowhere">x</a>', "leads to a missing place: index.html#nowhere"),
    ],
)
def test_what_is_wrong_with_a_page_is_named(tmp_path, text, expected):
    assert site(tmp_path, index_html=text) == [f"index.html: {expected}"]


def test_style_sheets_are_looked_at(tmp_path):
    css = "@font-face {src: url('https://e.org/f.woff2')} p {background: url(gone.png)}"
    found = site(tmp_path, index_html="<p>", a_css=css)
    assert found == ["a.css: loads a missing file: gone.png", "a.css: loads https://e.org/f.woff2"]
    assert site(tmp_path / "none") != []


def test_formulas_are_set_with_what_is_here():
    folder = DOCS / "_static" / "katex"
    fonts = check_site.style_urls((folder / "katex.min.css").read_text("utf-8"))
    assert len(fonts) > 10
    assert all((folder / url).is_file() for url in fonts)
    assert {path.name for path in (folder / "fonts").iterdir()} == {Path(url).name for url in fonts}
    assert "MIT" in (folder / "LICENSE").read_text("utf-8")
