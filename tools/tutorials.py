"""The notebooks of tutorials/: run them, write them with their outputs, list them.

    python tools/tutorials.py write [01 05 ...]   execute, and write .ipynb, pictures and README.md
    python tools/tutorials.py table               README.md alone

A notebook is a script, ``tutorials/NN_title.py`` in jupytext's percent format; the ``.ipynb``
beside it is made here, and is never edited. The script's header says under ``lesson`` how many
minutes reading takes, which notebooks it builds on, and how many seconds its cells may take.
"""

import base64
import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "tutorials"
THUMBNAIL = 360  # pixels wide

INTRODUCTION = """\
# Tutorials

Mamba from one number that is remembered to a model that writes, in thirteen notebooks. Each asks
one question, answers it with a picture, and has exercises that tell you whether you are right.
Nothing is downloaded, and no notebook needs a GPU.

```sh
pip install -e ".[tutorials]"
jupyter lab tutorials
```

`make lab` does the same in an environment of its own. To read on without running anything, open
the notebooks here: they hold their outputs. Start with 01; for a first look at a real model, 05
and then 08.
"""

HEADING = "| | question | minutes to read | after |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Lesson:
    """One notebook, as its script describes it."""

    script: Path
    notebook: Any
    title: str
    question: str
    minutes: int
    seconds: int
    after: tuple[str, ...]

    @property
    def number(self) -> str:
        """Its place in the order, such as "01"."""
        return self.script.stem[:2]

    @property
    def pair(self) -> Path:
        """The notebook that is made of the script."""
        return self.script.with_suffix(".ipynb")

    @property
    def thumbnail(self) -> Path:
        """The small picture in the table of contents."""
        return self.script.parent / "pictures" / f"{self.number}.png"


def lessons(folder: Path = FOLDER) -> list[Lesson]:
    """Return the lessons of a folder in their order."""
    return [read(script) for script in sorted(folder.glob("[0-9][0-9]_*.py"))]


def read(script: Path) -> Lesson:
    """Read a script; raises ValueError where its first cell or its header lacks something."""
    notebook = jupytext.read(script)
    first = notebook.cells[0].source
    match = re.match(r"# (\d\d) (.+)\n+\*\*(.+?)\*\*", first, re.DOTALL)
    if match is None:
        raise ValueError(f"{script.name}: expected '# NN Title', then a question in bold first")
    about = notebook.metadata["lesson"]
    question = " ".join(match[3].split())
    after = tuple(f"{number:02d}" for number in about["after"])
    return Lesson(
        script, notebook, match[2].strip(), question, about["minutes"], about["seconds"], after
    )


def execute(lesson: Lesson) -> tuple[Any, float]:
    """Run a lesson in a kernel of its own; return the notebook with outputs, and the seconds."""
    notebook: Any = nbformat.from_dict(lesson.notebook)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    client = NotebookClient(
        notebook,
        timeout=lesson.seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(lesson.script.parent)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
    )
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"{lesson.number}-{i}"  # the same at each run
    for key in ("jupytext", "language_info"):
        notebook.metadata.pop(key, None)
    return notebook, seconds


def warnings_of(notebook: Any) -> list[str]:
    """Return what the cells wrote to the standard error stream."""
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    return [one.text for one in outputs if one.get("name") == "stderr"]


def heart(notebook: Any) -> bytes:
    """Return the picture of the cell tagged ``heart``, as PNG; raises ValueError without one."""
    for cell in notebook.cells:
        if "heart" in cell.metadata.get("tags", ()):
            pictures = [
                o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})
            ]
            if pictures:
                return base64.b64decode(pictures[0])
    raise ValueError("expected a cell tagged 'heart' that shows a figure, found none")


def write(lesson: Lesson) -> float:
    """Execute a lesson and write its notebook and its thumbnail; return the seconds it took."""
    from PIL import Image

    notebook, seconds = execute(lesson)
    if noise := warnings_of(notebook):
        raise ValueError(f"{lesson.script.name}: warnings: {noise}")
    nbformat.write(notebook, lesson.pair)
    picture = Image.open(io.BytesIO(heart(notebook))).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    lesson.thumbnail.parent.mkdir(exist_ok=True)
    picture.quantize(64).save(lesson.thumbnail, optimize=True)
    return seconds


def table(known: list[Lesson]) -> str:
    """Return the text of tutorials/README.md."""
    rows = [
        f"| [![{one.title}](pictures/{one.number}.png)]({one.pair.name}) "
        f"| **[{one.number} {one.title}]({one.pair.name})**<br>{one.question} "
        f"| {one.minutes} | {', '.join(one.after) or 'nothing'} |\n"
        for one in known
    ]
    return f"{INTRODUCTION}\n{HEADING}{''.join(rows)}"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in ("write", "table"):
        print(__doc__)
        return 2
    known = lessons()
    if arguments[0] == "write":
        for lesson in known:
            if not arguments[1:] or lesson.number in arguments[1:]:
                print(
                    f"{lesson.script.name}: {write(lesson):.1f} s of {lesson.seconds}", flush=True
                )
    (FOLDER / "README.md").write_text(table(known), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
