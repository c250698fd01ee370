"""Files of the repository as pages of the site, and links between files as links between pages.

Pages are written for a code host: their links are paths of files. What lies outside of docs/ is
copied to where BROUGHT says, into folders that git ignores. When a page is read, links to files
that have a page here become links to it; those to other files become plain text.
"""

import json
import os
import posixpath
import re
import shutil
from pathlib import Path

from api_pages import page_of_file

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent

BROUGHT = {
    "README.md": "project/overview.md",
    "README.ko.md": "project/overview.ko.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "mamba_np/models/stories/README.md": "project/stories.md",
    "mamba_np/models/induction_heads/README.md": "project/induction_heads.md",
    "tutorials/README.md": "tutorials/index.md",
    "tutorials/*.ipynb": "tutorials/",
    "tutorials/pictures/*.png": "tutorials/pictures/",
}
"""Path in the repository, and in docs/. Paths that end with / keep the file's name."""

PLACES = {
    "docs": "index.md",
    "docs/README.md": "index.md",
    "docs/gallery": "auto_gallery/index.rst",
    "docs/gallery/README.rst": "auto_gallery/index.rst",
    "tutorials": "tutorials/index.md",
}
"""Other paths in the repository that have a page."""

CHILDREN = {
    "decisions/README": ["/decisions/0*"],
    "benchmarks/README": ["/benchmarks/2*"],
    "tutorials/index": ["/tutorials/[0-9]*"],
    "how-to/index": [
        *("from-transformers", "from-mamba-ssm", "offline", "/gpu", "fine-tune", "large-files"),
        *("score-a-corpus", "look-inside", "plot-recipes", "formulas"),
    ],
    "explanation/index": [
        *("/notation", "/glossary", "/engines", "/code-map", "numerics", "/accuracy"),
        *("/differences", "/selection", "/generated-code", "/gpu-kernels", "/decisions/README"),
    ],
    "reference": [
        *("api/index", "cli", "benchmarks/README", "project/stories", "project/induction_heads"),
        *("project/changelog", "project/contributing"),
    ],
    "project/overview": ["한국어 <overview.ko>"],
}
"""Pages of which others are parts, and those. A code host would show the directive as text."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")


def brought() -> dict[str, str]:
    """Return {path in the repository: path in docs/} of every file that is brought in."""
    found = {}
    for pattern, place in BROUGHT.items():
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            found[name] = f"{place}{path.name}" if place.endswith("/") else place
    return found


def bring(files: dict[str, str], root: Path = ROOT, docs: Path = DOCS) -> None:
    """Copy what has changed, and remove what is no longer there."""
    folders = {docs / posixpath.dirname(place) for place in files.values()}
    for old in [path for folder in folders for path in folder.glob("*") if path.is_file()]:
        if old.relative_to(docs).as_posix() not in files.values():
            old.unlink()
    for name, place in files.items():
        source, target = root / name, docs / place
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def place_of(path: str, files: dict[str, str]) -> str | None:
    """Return the path in docs/ of what stands at a path of the repository; None if nowhere."""
    if path in PLACES or path in files:
        return PLACES.get(path) or files[path]
    if path.startswith("docs/gallery/"):
        return f"auto_gallery/{Path(path).stem}.rst"
    if path.startswith("docs/"):
        inner = path.removeprefix("docs/")
        if not (DOCS / inner).is_dir():
            return inner if (DOCS / inner).exists() else None
        pages = [f"{inner}/{name}.md" for name in ("README", "index")]
        return next((page for page in pages if (DOCS / page).exists()), None)
    return page_of_file(path)


def rewritten(text: str, docname: str, files: dict[str, str]) -> str:
    """Return a page's text with its links leading to pages of the site."""
    origins = {posixpath.splitext(place)[0]: name for name, place in files.items()}
    origin = posixpath.dirname(origins.get(docname, f"docs/{docname}"))
    here = posixpath.dirname(docname) or "."

    def replace(match: re.Match) -> str:
        mark, label, target = match.groups()
        label = LINK.sub(replace, label)
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return f"{mark}[{label}]({target})"
        path = posixpath.normpath(posixpath.join(origin, path))
        place = place_of(path, files)
        if place is None:
            return match[0] if mark or not (ROOT / path).exists() else label
        return f"{mark}[{label}]({posixpath.relpath(place, here)}{hash_}{anchor})"

    return LINK.sub(replace, text)


def read_page(app, docname: str, source: list[str]) -> None:
    """Sphinx has read a page's file."""
    kind = os.path.splitext(app.env.doc2path(docname))[1]
    if kind in (".md", ".ipynb"):
        source[0] = rewritten(source[0], docname, app.brought)
    if kind == ".ipynb":  # what colours its code: a notebook in git leaves the kernel's version out
        notebook = json.loads(source[0])
        language = {"name": "python", "pygments_lexer": "ipython3"}
        notebook["metadata"].setdefault("language_info", language)
        source[0] = json.dumps(notebook)
    if docname in CHILDREN:
        pages = "\n".join(CHILDREN[docname])
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{pages}\n```\n"


def prepare(app) -> None:
    """Copy the files before Sphinx looks for pages."""
    app.brought = brought()
    bring(app.brought)


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("builder-inited", prepare, priority=100)
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True}
