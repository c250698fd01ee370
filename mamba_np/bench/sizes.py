"""How much room an installation takes: a distribution and all that it needs, without extras."""

import re
from importlib import metadata
from pathlib import Path

OWN = "mamba-np"


def megabytes(names: tuple[str, ...]) -> float:
    """Return the MB of the distributions and of what they need, compiled Python files left out.

    Raises PackageNotFoundError if one of ``names`` is not installed.
    """
    total = sum(_bytes_of(one) for one in with_dependencies(names))
    return total / 1e6


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """Return distributions and all that they need, of which absent ones are left out."""
    found: set[str] = set()
    waiting = [_normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            if name in map(_normal, names):
                raise
            continue
        found.add(name)
        waiting += [_normal(_name_in(need)) for need in needs if "extra ==" not in need]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_in(requirement: str) -> str:
    """Return the name in a requirement such as "numpy>=2; python_version < '4'"."""
    return re.split(r"[\s<>=!~;\[(]", requirement.strip())[0]


def _bytes_of(name: str) -> int:
    if name == OWN:  # installed files may be links to this folder
        files = list(Path(__file__).resolve().parents[1].rglob("*"))
    else:
        files = [Path(str(file.locate())) for file in metadata.files(name) or []]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file())
