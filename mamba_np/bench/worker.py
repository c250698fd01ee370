"""A process that holds one program and measures it, block by block.

``Worker`` is this side of it; the process itself runs this file with the arguments KIND and SETUP,
SETUP being JSON. Each line of its stdin is a job, {"do": what, ...}; the answer is a line of
stdout, {"value": number, ...} or {"absent": why}. Whatever libraries print goes to stderr.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from .blocks import Absent
from .timing import Job

KINDS = {
    "limits": "limits:Limits",
    "ours": "ours:Ours",
    "scan": "ours:Scan",
    "transformers": "peers:Transformers",
    "mambapy": "peers:Mambapy",
    "torch-scan": "peers:TorchScan",
    "training ours": "training:Ours",
    "training transformers": "training:Transformers",
    "training mambapy": "training:Mambapy",
    "ggml-scan": "ggml:GgmlScan",
}
"""Programs by name, as module:class of this package. A method of the class does each job."""


def environment(**more: str) -> Mapping[str, str]:
    """Return the variables of a Python process that imports the same copy of this package."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


# --- this side -----------------------------------------------------------------------------------


class Worker:
    """The process of one program. ``setup`` is what the program's class is called with."""

    def __init__(self, kind: str, setup: dict[str, Any]):
        self.kind, self.setup = kind, setup
        self._process: subprocess.Popen[str] | None = None
        self._absent: str | None = None

    def prepare(self) -> None:
        """Start the process and wait until the program is loaded. Raises Absent."""
        if self._absent is not None:
            raise Absent(self._absent)
        if self._process is not None:
            return
        command = [sys.executable, "-m", __name__, self.kind, json.dumps(self.setup)]
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def ask(self, job: Job) -> dict[str, Any]:
        """Do a job in the process. Raises Absent."""
        self.prepare()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def processes(self) -> list[int]:
        """Return the process' id, if it lives."""
        return [] if self._process is None else [self._process.pid]

    def close(self) -> None:
        """End the process: it stops when its input does."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"absent": "its process ended", "final": True}
        if "absent" not in answer:
            return answer
        if answer.get("final"):
            self._absent = answer["absent"]
            self.close()
        raise Absent(answer["absent"])


class Afresh(Worker):
    """A program that has a new process for each job, which ends with it."""

    def prepare(self) -> None:
        """Do nothing: what a process needs before its job is part of what is measured."""

    def ask(self, job: Job) -> dict[str, Any]:
        """Do a job in a new process. Raises Absent."""
        try:
            super().prepare()
            return super().ask(job)
        finally:
            self.close()


# --- that side -----------------------------------------------------------------------------------


def load(kind: str, setup: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a program and the first answer: {}, or why the program is absent."""
    module, _, name = KINDS[kind].partition(":")
    try:
        return getattr(import_module(f".{module}", __package__), name)(**setup), {}
    except ImportError as error:
        return None, {"absent": f"not installed: {error.name or error}", "final": True}
    except Exception as error:
        return None, {"absent": f"cannot load: {_short(error)}", "final": True}


def answer_to(program: Any, job: Job) -> dict[str, Any]:
    """Return a program's answer to one job."""
    work = getattr(program, job["do"], None)
    if work is None:
        return {"absent": f"does not do {job['do']}"}
    try:
        result = work(job)
    except NotImplementedError as error:
        return {"absent": str(error)}
    except Exception as error:
        return {"absent": f"failed: {_short(error)}"}
    return result if isinstance(result, dict) else {"value": result}


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def serve(kind: str, setup: str, jobs: TextIO, answers: TextIO) -> None:
    """Load a program, then answer one job after another until there are no more."""
    program, hello = load(kind, json.loads(setup))
    print(json.dumps(hello), file=answers, flush=True)
    if program is None:
        return
    for line in jobs:
        print(json.dumps(answer_to(program, json.loads(line))), file=answers, flush=True)


def main() -> None:
    """Run the process; its arguments are KIND and SETUP."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.argv[1], sys.argv[2], sys.stdin, answers)


if __name__ == "__main__":
    main()
