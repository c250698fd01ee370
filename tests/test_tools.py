"""The gates of tools/check.py hold and can fail; tools/accuracy.py prints what the docs say."""

import importlib.util
import io
from pathlib import Path

import pytest

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path, score_text
from mamba_np.errors import NonFiniteError

ROOT = Path(__file__).resolve().parent.parent


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load_tool("check")


@pytest.fixture
def repository(tmp_path):
    """Write files into an empty repository and return its root."""

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / name.replace("__", "/").replace("_py", ".py").replace("_md", ".md")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("gate", check.GATES, ids=lambda gate: gate.__name__)
def test_gate_holds_here(gate):
    assert gate(ROOT) == []


# --- formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("y = np.exp(x)", "np.exp"),
        ("y = math.sqrt(x)", "math.sqrt"),
        ("y = jit(np.log1p)(x)", "np.log1p"),
        ("y = x.tanh()", "x.tanh"),
        ("from math import exp\ny = exp(x)", "exp"),
        ("y = x ** 2", "**"),
    ],
)
def test_formulas_are_found_in_kernels(repository, line, found):
    root = repository(mamba_np__kernels__cpu_py=line)
    (problem,) = check.formulas(root)
    assert problem.startswith("mamba_np/kernels/cpu.py:")
    assert f": {found}: " in problem


@pytest.mark.parametrize(
    "line",
    [
        "y = eq.exp(x)",
        "from ..equations import exp\ny = exp(x)",
        "LIMIT = 2**20",
        "y = x * x",
        "y = x.export()",
    ],
)
def test_formulas_allows_what_comes_from_equations(repository, line):
    assert check.formulas(repository(mamba_np__kernels__cpu_py=line)) == []


def test_formulas_looks_only_where_engines_are(repository):
    root = repository(mamba_np__sampling_py="y = np.exp(x)", mamba_np__reference_py="y = np.exp(x)")
    assert [p.partition(":")[0] for p in check.formulas(root)] == ["mamba_np/reference.py"]


# --- sizes -----------------------------------------------------------------------------------


def test_sizes_of_files(repository):
    root = repository(mamba_np__a_py="x = 1\n" * 350, mamba_np__b_py="x = 1\n" * 351)
    assert check.sizes(root) == ["mamba_np/b.py: 351 lines, at most 350"]


def test_sizes_of_bodies_without_their_docstrings(repository):
    docstring = '    """Return.\n' + "\n" * 50 + '    """\n'
    fits = "def fits():\n" + docstring + "    x = 1\n" * 60
    long = "def long():\n" + docstring + "    x = 1\n" * 61
    root = repository(mamba_np__a_py=fits, mamba_np__b_py=long)
    assert check.sizes(root) == ["mamba_np/b.py:1: long: body of 61 lines, at most 60"]


def test_sizes_of_parameter_lists(repository):
    nine, ten = (", ".join("abcdefghij"[:n]) for n in (9, 10))
    text = (
        f"def fits({nine}): pass\n"
        f"def many({ten}): pass\n"
        f"def split(a, b, *, {', '.join('cdefghij')}): pass\n"
        f"def generate({ten}): pass\n"
        f"class C:\n    def fits(self, {nine}): pass\n    def many(self, {ten}): pass\n"
    )
    found = [problem.split(": ")[1] for problem in check.sizes(repository(mamba_np__a_py=text))]
    assert found == ["many", "split", "C.many"]


# --- tests -----------------------------------------------------------------------------------


def test_missing_tests_are_found(repository):
    root = repository(
        mamba_np__a_py="",
        mamba_np__b_py="",
        mamba_np__pack__c_py="",
        mamba_np__pack__d_py="",
        mamba_np__kit__e_py="",
        tests__test_a_py="",
        tests__test_pack_c_py="",
        tests__test_kit_py="",
    )
    assert [problem.partition(":")[0] for problem in check.tests_exist(root)] == [
        "mamba_np/b.py",
        "mamba_np/pack/d.py",
    ]


@pytest.mark.parametrize("line", ["import mamba_np", "from mamba_np.equations import silu"])
def test_oracle_that_imports_the_package_is_found(repository, line):
    assert len(check.independent_oracle(repository(tests__naive_py=f"import math\n{line}"))) == 1
    assert check.independent_oracle(repository(tests__naive_py="import math\n")) == []


# --- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["home", "Users", "root", "opt"])
def test_machine_paths_are_found(repository, folder):
    root = repository(README_md=f"first\nsee /{folder}/somebody/model for more", a_py="x = '/h/y'")
    (problem,) = check.machine_paths(root)
    assert problem.startswith("README.md:2:")


def test_machine_paths_allows_addresses(repository):
    root = repository(README_md="https://example.org/home/somebody and docs/root/x and a/opt/b")
    assert check.machine_paths(root) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](missing.md)", "missing file: missing.md"),
        ("[a](missing.md#part)", "missing file: missing.md#part"),
        ("`mamba_np/missing.py`", "missing file: mamba_np/missing.py"),
        ("`tests/test_a.py::test_gone`", "missing test: tests/test_a.py::test_gone"),
        ("[a](a.md) [b](a.md#x) [c](https://x.org/y) `tests/test_a.py::test_here`", None),
    ],
)
def test_dead_links_are_found(repository, text, problem):
    root = repository(docs__a_md=text, tests__test_a_py="def test_here():\n    pass\n")
    found = check.links(root)
    assert len(found) == (problem is not None)
    assert problem is None or found[0].endswith(problem)


def test_version_without_a_changelog_entry_is_found(repository, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    assert len(check.changelog(repository(CHANGELOG_md="# Changes\n\n## 1.2.2\n"))) == 1
    assert check.changelog(repository(CHANGELOG_md="# Changes\n\n## 1.2.3\n")) == []


def test_main_reports_and_fails(repository, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    root = repository(CHANGELOG_md="## 1.2.3\n", README_md="fine\n")
    assert check.main(root) == 0
    repository(README_md="[x](gone.md)\n")
    assert check.main(root) == 1
    assert "README.md:1: link to a missing file: gone.md [links]" in capsys.readouterr().out


# --- accuracy --------------------------------------------------------------------------------


def published_tables():
    """Return {model: {row: cells}} of docs/accuracy.md."""
    tables, rows = {}, {}
    for line in (ROOT / "docs" / "accuracy.md").read_text("utf-8").splitlines():
        name, *row = (cell.strip() for cell in line.strip("|").split("|"))
        if row[:2] == ["float64", "float32"]:
            rows = tables.setdefault(name.strip("`"), {})
        elif not line.startswith("|"):
            rows = {}
        elif set(name) != {"-"}:
            rows[name] = row
    return tables


@pytest.fixture(scope="module")
def measured_tables():
    """Return {model: {row: cells}} as they are now, with the models of the page alone."""
    accuracy = load_tool("accuracy")
    return {name: accuracy.cells(name) for name in accuracy.test_fixtures.MODELS}


def test_accuracy_page_has_the_rows_that_the_tool_prints(measured_tables):
    rows = {name: list(table) for name, table in published_tables().items()}
    assert rows == {name: list(table) for name, table in measured_tables.items()}
    assert sum(map(len, rows.values())) == 19


def test_accuracy_page_is_not_stale(measured_tables):
    """Up to a factor of 3 above one rounding: another BLAS sums in another order."""
    roundings = (2.2e-16, 1.2e-7)
    for name, table in published_tables().items():
        for group, (*ours, theirs) in table.items():
            *now, recorded = measured_tables[name][group]
            assert theirs == recorded, (name, group)
            for shown, found, rounding in zip(ours, now, roundings, strict=True):
                a, b = (max(float(error), rounding) for error in (shown, found))
                assert max(a, b) <= 3 * min(a, b), f"{name}, {group}: {shown}, now {found}"


def test_accuracy_page_promises_roundings():
    for table in published_tables().values():
        for float64, float32, _ in table.values():
            assert float(float64) <= 1e-14
            assert float(float32) <= 1e-6


# --- the table of discretisations -----------------------------------------------------------------


def test_another_rule_predicts_otherwise_or_not_at_all(monkeypatch):
    discretisation = load_tool("discretisation")
    text = b"Once upon a time there was a king who had three daughters, and the youngest was " * 2
    found = [
        discretisation.bits_per_byte(bundled_model_path(), rule, text) for rule in ("mamba", "zoh")
    ]
    model = MambaForCausalLM.from_pretrained(bundled_model_path())
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    assert found[0] == score_text(model, tokenizer, io.BytesIO(text)).bits_per_byte
    assert 0 < abs(found[1] - found[0]) < 0.1

    def infinite(*_):
        raise NonFiniteError("logits: expected finite numbers, found nan")

    monkeypatch.setattr(discretisation, "score_text", infinite)
    assert discretisation.bits_per_byte(bundled_model_path(), "euler", text) is None
