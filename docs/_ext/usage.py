"""Who shows how to use what: the names of mamba_np in every script, notebook and page of examples.

The code is parsed, not searched: ``plot.delta`` counts as ``mamba_np.plot.delta`` after
``from mamba_np import plot``, and under whatever other name it was imported.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCES = (
    ("docs/gallery/plot_*.py", "gallery"),
    ("tutorials/[0-9]*.py", "tutorials"),
    ("docs/how-to/*.md", "how-to"),
    ("docs/how-to/*.py", "how-to"),
    ("README.md", "project"),
    ("docs/*.md", "docs"),
)
"""Where examples stand."""


def examples() -> Iterator[tuple[Path, str]]:
    """Yield (path, code) of everything that shows how to use the package."""
    for pattern, _ in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text("utf-8")
            yield path, "\n".join(PYTHON.findall(text)) if path.suffix == ".md" else text


def names_in(code: str) -> set[str]:
    """Return the dotted names of mamba_np that some code uses, imports included."""
    tree, known, found = ast.parse(code), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name.partition(".")[0] == "mamba_np":
                    known[one.asname or "mamba_np"] = one.name if one.asname else "mamba_np"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mamba_np"):
            found.add(node.module)
            for one in node.names:
                known[one.asname or one.name] = f"{node.module}.{one.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in known and re.fullmatch(r"[\w.]*", rest):
                found.add(known[first] + dot + rest)
    return found


def thing(name: str):
    """Return the object with a dotted name; None where there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part, None)
        return value
    return None


@cache
def users() -> dict[int, list[Path]]:
    """Return {id of an object: the examples that use it}."""
    found: dict[int, list[Path]] = {}
    for path, code in examples():
        used = {id(value) for name in names_in(code) if (value := thing(name)) is not None}
        for one in used:
            found.setdefault(one, []).append(path)
    return found


def users_of(name: str) -> list[Path]:
    """Return the examples that use what has a dotted name."""
    return users().get(id(thing(name)), [])


def links(name: str) -> list[str]:
    """Return links, in reStructuredText, to the notebooks and how-to pages that use a name."""
    found = []
    for path in users_of(name):
        inner = path.relative_to(ROOT).with_suffix("").as_posix()
        if inner.startswith("tutorials/") and path.with_suffix(".ipynb").exists():
            found.append(f":doc:`/{inner}`")
        elif inner.startswith("docs/how-to/") and path.suffix == ".md":
            found.append(f":doc:`/{inner.removeprefix('docs/')}`")
    return found
