"""The repository's own gates: rules that ruff, pyright and import-linter cannot express.

Run by ``make lint`` and by tests/test_tools.py, which also shows that each gate can fail. A gate
takes the root of the repository and returns one line for each problem. To allow an exception,
add it to the table above its gate, with the reason: the table is what a reviewer reads.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = "mamba_np"
Gate = Callable[[Path], list[str]]


# --- what the gates look at ----------------------------------------------------------------------


def files(root: Path, *patterns: str) -> list[Path]:
    """Return the files that belong to the repository: tracked, or new and not ignored."""
    if (root / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
        found = [root / name for name in listed.stdout.split("\0") if name]
    else:
        own = (path for path in root.rglob("*") if ".venv" not in str(path.relative_to(root)))
        found = [path for path in own if path.is_file()]
    wanted = [p for p in found if any(p.relative_to(root).match(one) for one in patterns)]
    return sorted(path for path in wanted if path.is_file())


def modules(root: Path, *folders: str) -> Iterator[tuple[str, ast.Module, str]]:
    """Yield (path, syntax tree, text) of each Python file below the folders."""
    for path in files(root, "*.py"):
        name = path.relative_to(root).as_posix()
        if name.startswith(tuple(f"{folder}/" for folder in folders)):
            text = path.read_text("utf-8")
            yield name, ast.parse(text, name), text


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --- one formula, once ---------------------------------------------------------------------------

FORMULA_FREE = (
    *("kernels/", "cuda/", "reference.py", "backward.py", "gradients.py", "model.py", "ops.py"),
)
HARDWARE = "cuda/formulas.py"  # what a GPU has of its own for the equations' elementary functions
ELEMENTARY = {"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "erf"} | {
    *("sqrt", "rsqrt", "cbrt", "pow", "power", "sin", "cos", "tanh", "sinh", "cosh")
}
EQUATIONS = ("eq", "equations", "d")  # the names under which equations.py is imported


def formulas(root: Path) -> list[str]:
    """Engines own loops and memory; exp, log, sqrt and powers stand in equations.py alone."""
    problems = []
    places = tuple(f"{PACKAGE}/{name}" for name in FORMULA_FREE)
    for name, tree, _ in modules(root, PACKAGE):
        if not name.startswith(places) or name == f"{PACKAGE}/{HARDWARE}":
            continue
        own = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("equations")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.expr) and (found := _formula(node, own)):
                problems.append(f"{name}:{node.lineno}: {found}: belongs in equations.py")
    return problems


def _formula(node: ast.expr, own: set[str]) -> str | None:
    if isinstance(node, ast.Attribute) and node.attr in ELEMENTARY:
        base = node.value.id if isinstance(node.value, ast.Name) else "..."
        return None if base in EQUATIONS else f"{base}.{node.attr}"
    if isinstance(node, ast.Name) and node.id in ELEMENTARY - own:
        return node.id if isinstance(node.ctx, ast.Load) else None
    constant = isinstance(node, ast.BinOp) and all(
        isinstance(side, ast.Constant) for side in (node.left, node.right)
    )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not constant:
        return "**"
    return None


# --- sizes ---------------------------------------------------------------------------------------

FILE_LINES, BODY_LINES, PARAMETERS = 350, 60, 9

MORE_PARAMETERS = {
    # transformers' own signatures: code written for it must run after changing one import.
    "MambaForCausalLM.__call__",
    "generate",
    "_task",  # generate's own arguments, checked
    "SFTTrainer.__init__",  # TRL's, in its present and its old spelling
    # the peers' own signatures, so that their test grids can be pointed at ours.
    "selective_scan",
    "selective_scan_backward",
    "selective_state_update",
    # a GPU's kernels: each array and each size is a parameter of its own.
    "kernel",
}


def sizes(root: Path) -> list[str]:
    """Files, function bodies (without the docstring) and parameter lists stay readable."""
    problems = []
    for name, tree, text in modules(root, PACKAGE, "tools"):
        lines = text.count("\n")
        if lines > FILE_LINES:
            problems.append(f"{name}: {lines} lines, at most {FILE_LINES}")
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        owner = {id(f): f"{c.name}." for c in classes for f in c.body}
        for f in functions(tree):
            label = f"{owner.get(id(f), '')}{f.name}"
            where = f"{name}:{f.lineno}: {label}"
            if body_lines(f) > BODY_LINES:
                problems.append(f"{where}: body of {body_lines(f)} lines, at most {BODY_LINES}")
            count = parameters(f, method=id(f) in owner)
            if count > PARAMETERS and not {label, f.name} & MORE_PARAMETERS:
                problems.append(f"{where}: {count} parameters, at most {PARAMETERS}")
    return problems


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function's body after its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> int:
    """Count the parameters that a caller passes: not ``self`` or ``cls``, not ``**options``."""
    spec = function.args
    count = len(spec.posonlyargs) + len(spec.args) + len(spec.kwonlyargs)
    static = any(
        isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list
    )
    return count - (method and not static)


# --- tests ---------------------------------------------------------------------------------------

TESTED_ELSEWHERE = {
    "__main__": "tests/test_cli_processes.py",
    "auto": "tests/test_package.py",
    "blas": "tests/test_threads.py",
    "bundled": "tests/test_package.py",
    "code_folder": "tests/test_warmup.py",
    "decoding": "tests/test_generation.py",
    "errors": "tests/test_package.py",
    "generation_config": "tests/test_generation.py",
    "operands": "tests/test_ops.py",
    "pretrained": "tests/test_model.py",
}
"""Modules without a test file of their own: what tests them instead."""


def tests_exist(root: Path) -> list[str]:
    """Each module has tests/test_<module>.py; a package's modules may share test_<package>.py.

    Or the package has a folder of tests with its name, where each module has a test or is tested
    by those of the modules that are made of it.
    """
    problems = []
    for name, _, _ in modules(root, PACKAGE):
        inner = name.removeprefix(f"{PACKAGE}/").removesuffix(".py")
        parts = [part.strip("_") for part in inner.split("/") if part != "__init__"]
        if not parts:
            continue
        names = {"_".join(parts), parts[0]}
        expected = [f"tests/test_{one}.py" for one in sorted(names)]
        if inner in TESTED_ELSEWHERE:
            expected = [TESTED_ELSEWHERE[inner]]
        shared = next((root / "tests" / parts[0]).glob("test_*.py"), None)
        if not shared and not any((root / one).is_file() for one in expected):
            problems.append(f"{name}: expected tests in {' or '.join(expected)}, found none")
    return problems


def independent_oracle(root: Path) -> list[str]:
    """tests/naive.py judges the package, so it must import nothing of it."""
    return [
        f"{name}:{node.lineno}: the oracle imports {PACKAGE}"
        for name, tree, _ in modules(root, "tests")
        if name == "tests/naive.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and PACKAGE in ast.unparse(node)
    ]


# --- text ----------------------------------------------------------------------------------------

TEXT = ("*.py", "*.md", "*.toml", "*.json", "*.yml", "*.yaml", "*.sh", "*.txt", "Makefile", "run")
MACHINE_PATH = re.compile(r"(?<![\w.\-/])/(?:home|Users|root|work|farm|opt|mnt|srv)/[\w.\-]+")


def machine_paths(root: Path) -> list[str]:
    """No file names a folder of somebody's machine."""
    return [
        f"{path.relative_to(root)}:{number}: path of one machine: {match.group()}"
        for path in files(root, *TEXT)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for match in MACHINE_PATH.finditer(line)
    ]


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED_PATH = re.compile(r"`((?:mamba_np|tests|docs|tools)/[\w./\-]*\w)(?:::(\w+))?`")


MADE = ("docs/api", "docs/auto_gallery", "docs/project", "docs/tutorials")
"""What `make docs` makes, which looks after links to it itself."""


def links(root: Path) -> list[str]:
    """Links, quoted paths and quoted tests in the documentation lead somewhere."""
    problems = []
    for page in files(root, "*.md"):
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            problems += [
                f"{page.relative_to(root)}:{number}: {problem}"
                for problem in _broken(root, page, line)
            ]
    return problems


def _broken(root: Path, page: Path, line: str) -> Iterator[str]:
    for target in LINK.findall(line):
        path = target.partition("#")[0]
        elsewhere = "://" in target or target.startswith("mailto:")
        place = (page.parent / path).resolve()
        made = str(place).startswith(tuple(str(root.resolve() / folder) for folder in MADE))
        if path and not elsewhere and not made and not place.exists():
            yield f"link to a missing file: {target}"
    for path, test in QUOTED_PATH.findall(line):
        if not (root / path).exists():
            yield f"names a missing file: {path}"
        elif test and f"def {test}(" not in (root / path).read_text("utf-8"):
            yield f"names a missing test: {path}::{test}"


def changelog(root: Path) -> list[str]:
    """The version in pyproject.toml has its heading in CHANGELOG.md."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    heading = f"## {project['version']}"
    lines = (root / "CHANGELOG.md").read_text("utf-8").splitlines()
    if any(line.startswith(heading) for line in lines):
        return []
    return [f"CHANGELOG.md: expected a heading {heading!r}, found none"]


GATES: tuple[Gate, ...] = (
    formulas,
    sizes,
    tests_exist,
    independent_oracle,
    machine_paths,
    links,
    changelog,
)


def main(root: Path) -> int:
    problems = [f"{problem} [{gate.__name__}]" for gate in GATES for problem in gate(root)]
    print("\n".join(problems) or f"{len(GATES)} gates passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))
