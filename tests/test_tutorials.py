"""Tutorials: scripts run, exercises judge, notebooks are those of their scripts.

With --notebooks each is also executed as Jupyter does, within its limit (`make tutorials`).
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason='needs pip install -e ".[test]"')
pytest.importorskip("nbclient", reason='needs pip install -e ".[test]"')

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "tutorials"
sys.path[:0] = [str(ROOT / "tools"), str(TUTORIALS)]
try:
    from lesson import checking

    tutorials = importlib.import_module("tutorials")
finally:
    del sys.path[:2]

LESSONS = tutorials.lessons()
NAMES = [lesson.script.stem for lesson in LESSONS]
CODE_LINES = 200
BUSY = 5  # a machine that does other things too is given this many times the limit

RUN = """
import json, runpy, sys, warnings
import matplotlib.pyplot as plt
sys.path.insert(0, sys.argv[1])
warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
runpy.run_path(sys.argv[2], run_name="__main__")
from lesson import checking
result = [checking.verdicts, sorted(checking.exercises), len(plt.get_fignums())]
with open(sys.argv[3], "w") as file:
    json.dump(result, file)
"""


def each(function):
    return pytest.mark.parametrize("lesson", LESSONS, ids=NAMES)(function)


def code(lesson):
    return [cell for cell in lesson.notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_stand_in_order():
    assert [lesson.number for lesson in LESSONS] == [f"{i:02d}" for i in range(1, 14)]


@each
def test_a_script_runs_and_its_exercises_judge(lesson, tmp_path):
    """Stubs are told 'not yet', solutions are right, and no exercise is left out."""
    result = tmp_path / "result.json"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(TUTORIALS), str(lesson.script), str(result)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
        timeout=lesson.seconds * BUSY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    verdicts, exercises, figures = json.loads(result.read_text())
    assert figures > 0
    own = [name for name in exercises if name.startswith(lesson.number)]
    assert own, "expected an exercise"
    for name in own:
        answers = [right for checked, right in verdicts if checked == name]
        assert answers[:1] == [False], f"{name}: expected the stub to be judged 'not yet'"
        assert answers[-1:] == [True], f"{name}: expected the solution to be right"
        assert len(answers) >= 2


@each
def test_a_lesson_is_made_as_the_others(lesson):
    """One question, a figure at the heart, asserts, hidden solutions, and what to read next."""
    tags = [tag for cell in lesson.notebook.cells for tag in cell.metadata.get("tags", ())]
    assert tags.count("heart") == 1
    assert set(tags) <= {"heart", "solution", "hide-input"}
    source = "\n".join(cell.source for cell in code(lesson))
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    assert len(asserts) >= 3
    solutions = [c for c in code(lesson) if "solution" in c.metadata.get("tags", ())]
    assert solutions
    shown = "\n".join(cell.source for cell in code(lesson) if cell not in solutions)
    assert sum(bool(line.strip()) for line in shown.splitlines()) <= CODE_LINES
    for cell in solutions:
        assert "hide-input" in cell.metadata["tags"]
        assert cell.metadata["jupyter"] == {"source_hidden": True}
    last = lesson.notebook.cells[-1]
    assert last.cell_type == "markdown"
    assert last.source.startswith("## Read next")
    assert lesson.question.endswith("?")


@each
def test_a_notebook_is_that_of_its_script(lesson):
    """`python tools/tutorials.py write` makes it; nobody edits it by hand."""
    pair = json.loads(lesson.pair.read_text("utf-8"))
    written = [(c["cell_type"], "".join(c["source"])) for c in pair["cells"]]
    assert written == [(c.cell_type, c.source) for c in lesson.notebook.cells]
    counts = [c["execution_count"] for c in pair["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "expected cells run once, from top to bottom"
    outputs = [one for c in pair["cells"] for one in c.get("outputs", [])]
    assert not [one for one in outputs if one["output_type"] == "error"]
    assert lesson.thumbnail.is_file()
    text = lesson.pair.read_text("utf-8")
    assert not re.search(r"/(home|Users|root|tmp|work)/", text), "a path of one machine"
    assert len(text) < 1_500_000


def test_the_table_of_contents_is_up_to_date():
    assert (TUTORIALS / "README.md").read_text("utf-8") == tutorials.table(LESSONS)


@each
def test_links_lead_somewhere(lesson):
    for cell in lesson.notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                path = target.partition("#")[0]
                assert "://" in target or (TUTORIALS / path).exists(), target


@pytest.mark.notebooks
@pytest.mark.timeout(600)
@each
def test_a_notebook_runs_as_in_jupyter(lesson):
    """From top to bottom in a kernel, without a warning, each cell within the lesson's limit."""
    notebook, seconds = tutorials.execute(lesson)
    assert tutorials.warnings_of(notebook) == []
    assert tutorials.heart(notebook)
    print(f"{lesson.script.name}: {seconds:.1f} s of {lesson.seconds}")


# --- plausible wrong answers get a hint ----------------------------------------------------------

WRONG = {}
for path in sorted((Path(__file__).parent / "tutorials").glob("wrong_*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    WRONG.update(module.WRONG)
CASES = [(name, i) for name, cases in WRONG.items() for i in range(len(cases))]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_wrong_answer_gets_a_hint(name, case):
    answer, words = WRONG[name][case]
    hint = checking.problem(name, answer)
    assert hint is not None
    assert words in hint


@each
def test_each_exercise_has_a_wrong_answer(lesson):
    importlib.import_module(f"lesson.exercises.e{lesson.number}")
    own = {name for name in checking.exercises if name.startswith(lesson.number)}
    assert own <= set(WRONG)


# --- checking itself -----------------------------------------------------------------------------


@pytest.fixture
def judge(monkeypatch):
    """Register an exercise for a test, and forget it afterwards."""
    monkeypatch.setattr(checking, "exercises", dict(checking.exercises))
    monkeypatch.setattr(checking, "verdicts", [])
    return checking.exercise("99a")(lambda answer: checking.near(answer(2.0), 4.0, "answer(2)"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x * x, "99a: right!"),
        (lambda x: x + 3, "99a: not yet. answer(2) should be 4, and is 5."),
        (lambda x: None, "nothing yet"),
        (lambda x: ..., "nothing yet"),
        (lambda x: [x], "should have the shape (), and has (1,)"),
        (lambda x: "four", "should be numbers, and is 'four'"),
        (lambda x: float("nan"), "and is nan"),
        (lambda x: 1 / 0, "stopped with ZeroDivisionError"),
        (..., "There is no answer yet"),
        (None, "There is no answer yet"),
    ],
)
def test_check_answers_in_a_sentence(judge, capsys, answer, words):
    assert checking.check("99a", answer) is None
    assert words in capsys.readouterr().out
    assert checking.verdicts == [("99a", "right" in words)]


def test_check_names_the_place_of_a_wrong_element():
    with pytest.raises(checking.NotYet, match=re.escape("y[1, 0] should be 3, and is 9.")):
        checking.near([[1, 2], [9, 4]], [[1, 2], [3, 4]], "y")


def test_show_prints_the_source(capsys):
    from lesson import show

    show(checking.expect)
    assert capsys.readouterr().out.startswith("def expect(")
