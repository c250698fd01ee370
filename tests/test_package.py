"""What people get: a quick import, typed, complete in a wheel, and a README that is true."""

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import fake_hub
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import FIXTURES
from test_tools import load_tool

import mamba_np
from mamba_np import MambaForCausalLM, bundled_model_path
from mamba_np.errors import InputError
from mamba_np.training.tasks import accuracy, induction_heads

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
HEAVY = ("numba", "matplotlib", "huggingface_hub", "tokenizers", "torch", "transformers", "click")
HEAVY += ("tqdm", "ml_dtypes", "safetensors")


def run_python(*arguments, **environment):
    """Run Python in a process of its own and return the finished process."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=True,
    )


# --- import ----------------------------------------------------------------------------------


def imported_by(statement):
    """Return which of the heavy packages a statement imports."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    modules = run_python("-c", program).stdout.split()
    return {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_import_loads_nothing_heavy():
    assert imported_by("import mamba_np") == set()


def test_use_without_the_hub_or_text_loads_what_it_needs_alone():
    statement = (
        "from mamba_np import MambaConfig, MambaForCausalLM\n"
        "config = MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1)\n"
        "MambaForCausalLM(config, backend={}).generate([[1, 2]], max_new_tokens=2)"
    )
    assert imported_by(statement.format("'numpy'")) <= {"ml_dtypes", "safetensors"}
    assert imported_by(statement.format("'cpu'")) <= {"ml_dtypes", "safetensors", "numba"}


def seconds_to_import(statement):
    """Return how long a statement's imports take, the best of several processes."""
    times = []
    for _ in range(5):
        log = run_python("-X", "importtime", "-c", statement).stderr
        rows = re.findall(r"import time:\s+\d+ \|\s+(\d+) \| (\S+)", log)
        times += [int(microseconds) / 1e6 for microseconds, name in rows if name == "mamba_np"]
    return min(times)


def test_import_is_quick():
    assert seconds_to_import("import mamba_np") < 0.3


# --- names -----------------------------------------------------------------------------------


def test_version_is_that_of_the_metadata():
    assert mamba_np.__version__ == importlib.metadata.version("mamba-np")


@pytest.mark.parametrize("name", [n for n in mamba_np.__all__ if n != "__version__"])
def test_public_names_exist_and_are_documented(name):
    value = getattr(mamba_np, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        assert value.__module__.startswith("mamba_np.")
        undocumented = [
            member
            for member, attribute in vars(value).items()
            if callable(attribute) and not member.startswith("_") and not inspect.getdoc(attribute)
        ]
        assert undocumented == []


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mamba_np.no_such_name


def test_dir_lists_the_public_names():
    assert set(mamba_np.__all__) <= set(dir(mamba_np))


def test_auto_classes_are_doors_to_the_models():
    folder = FIXTURES / "models" / "base_silu"
    config = mamba_np.AutoConfig.from_pretrained(folder)
    assert config == mamba_np.MambaConfig.from_pretrained(folder)
    for auto, model_class in (
        (mamba_np.AutoModel, mamba_np.MambaModel),
        (mamba_np.AutoModelForCausalLM, mamba_np.MambaForCausalLM),
    ):
        loaded = auto.from_pretrained(folder, dtype="float64")
        assert type(loaded) is model_class
        assert loaded.dtype == "float64"
        made, same = (make(config, rng=1) for make in (auto.from_config, model_class))
        assert type(made) is model_class
        assert np.array_equal(made.params.embeddings, same.params.embeddings)


def test_errors_are_one_family_and_what_people_catch():
    family = [e for e in vars(mamba_np.errors).values() if inspect.isclass(e)]
    assert all(issubclass(error, mamba_np.MambaError) for error in family)
    builtin = (ValueError, OSError, ArithmeticError, RuntimeError)
    others = [e for e in family if e is not mamba_np.MambaError]
    assert len(others) >= 9
    assert [e.__name__ for e in others if not issubclass(e, builtin)] == []


# --- what is shipped -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The built (sdist, wheel)."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    package = ROOT / "mamba_np"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert {"mamba_np/py.typed", "mamba_np/models/stories/model.safetensors"} <= names
    assert len(licences) == 1


@pytest.mark.slow
def test_wheel_works_without_the_repository(archives, tmp_path):
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(tmp_path)
    program = (
        "import runpy, mamba_np; print(mamba_np.__file__, flush=True);"
        "runpy.run_module('mamba_np', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "generate", "Once upon a time", "--max-new-tokens", "5"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert "Once upon a time" in done.stdout


@pytest.mark.slow
def test_sdist_holds_what_the_tests_need(archives):
    with tarfile.open(archives[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "tools/check.py"} <= held
    own = {path.relative_to(ROOT).as_posix() for path in load_tool("check").files(ROOT, "*")}
    needed = {
        name for name in own if name.startswith(("mamba_np/", "tests/", "docs/", "tutorials/"))
    }
    assert "tutorials/lesson/checking.py" in needed
    assert {name for name in needed - held if "__pycache__" not in name} == set()


def test_bundled_models_have_their_files_and_their_cards():
    names = {path.name for path in bundled_model_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert bundled_model_path() == bundled_model_path("stories")
    names = {path.name for path in bundled_model_path("induction_heads").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    with pytest.raises(InputError, match=r"^name: expected one of stories, induction_heads, found"):
        bundled_model_path("starter")


def test_the_bundled_models_are_small():
    sizes = [path.stat().st_size for path in (ROOT / "mamba_np" / "models").rglob("*.*")]
    assert sum(sizes) < 12e6


@pytest.mark.parametrize("length", [64, 256, 4096])
def test_the_induction_heads_model_answers_at_any_length(length):
    model = MambaForCausalLM.from_pretrained(bundled_model_path("induction_heads"))
    ids, labels = induction_heads(np.random.default_rng(length), 32, length)
    assert accuracy(model(ids).logits, labels) == 1
    assert model.num_parameters() == 66_496


# --- README ----------------------------------------------------------------------------------


def blocks(language):
    """Return the code blocks of the README in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_readme_python_runs_in_order(tmp_path):
    """The blocks run as one program; the published name leads to a reference checkpoint."""
    cache = tmp_path / "hub"
    fake_hub.publish(cache, "state-spaces/mamba-130m-hf", FIXTURES / "models" / "base_silu")
    printed = fake_hub.run_offline("\n".join(blocks("python")), cache, tmp_path)
    assert printed.startswith("Once upon a time")
    written, state, streamed = printed.partition("\nTrue MambaCache(")
    assert state, printed
    assert "\n['Hey how are you doing?" in written
    assert len(streamed.splitlines()) >= 3, "expected the cache's line and a streamed text"
    assert re.fullmatch(r"-?[\d.]+ becomes -?[\d.]+", printed.splitlines()[-1])


def shell_commands():
    lines = "".join(blocks("sh")).splitlines()
    return [command for line in lines for command in line.split(" && ")]


def test_readme_shell_commands_are_of_known_kinds():
    """Each is run, here or in the tests around; a new kind needs a test of its own."""
    known = ("git clone <this repository> ", "cd ", "make ", "pip install .", "mamba-np ")
    assert [c for c in shell_commands() if not c.startswith(known)] == []
    assert len(shell_commands()) >= 4


def without_comments(text):
    return re.sub(r" *#.*", "", text)


def test_the_korean_readme_is_the_same_document():
    """Code, commands, links and tables are those of the English one, word for word."""
    korean = (ROOT / "README.ko.md").read_text("utf-8")
    for language in ("python", "sh", "text"):
        theirs = re.findall(rf"```{language}\n(.*?)```", korean, flags=re.DOTALL)
        assert [*map(without_comments, theirs)] == [*map(without_comments, blocks(language))]
    for pattern in (r"^#+ ", r"`mamba-np \w+", r"^\|(?:[^|]*\|){6}$"):
        assert len(re.findall(pattern, korean, re.M)) == len(re.findall(pattern, README, re.M))
    assert re.findall(r"\d+ \| \d+", korean) == re.findall(r"\d+ \| \d+", README)
    links = [set(re.findall(r"\]\(([^)]+)\)", text)) for text in (README, korean)]
    own = {"README.md", "README.ko.md", "docs/glossary.md", "docs/code-map.md"}
    assert links[0] ^ links[1] == own


@pytest.mark.parametrize("target", sorted({*re.findall(r"(?:^|`)make (\w+)", README, re.M)}))
def test_readme_make_targets_exist(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_demo_is_the_command_that_the_readme_shows():
    (shown,) = (command for command in shell_commands() if command.startswith("mamba-np "))
    assert f"/bin/{shown}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_demo_writes_what_the_readme_shows():
    from mamba_np.cli import cli

    (shown,) = blocks("text")
    done = CliRunner().invoke(cli, ["generate", "Once upon a time"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(shown.rstrip("\n"))


def test_readme_subcommands_exist():
    from mamba_np.cli import cli

    for name in set(re.findall(r"mamba-np (\w+)", README)):
        done = CliRunner().invoke(cli, [name, "--help"])
        assert done.exit_code == 0, done.output


def test_console_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"] == {"mamba-np": "mamba_np.cli:main"}
    assert project["requires-python"] == ">=3.11"
