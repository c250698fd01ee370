"""A process that measures one program, block by block: started by ``bench_blocks.Worker``.

    python bench_worker.py KIND SETUP

SETUP is JSON. Each line of stdin is a job, {"do": what, ...}; its answer is a line of stdout,
{"value": number, ...} or {"absent": why}. Whatever libraries print goes to stderr.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the package beside this folder

KINDS = {
    "limits": "bench_ours:Limits",
    "ours": "bench_ours:Ours",
    "scan": "bench_ours:Scan",
    "transformers": "bench_peers:Transformers",
    "mambapy": "bench_peers:Mambapy",
    "torch-scan": "bench_peers:TorchScan",
    "ggml-scan": "bench_ggml:GgmlScan",
}


def seconds_of(call: Callable[[], Any], least: float, repeats: int = 3) -> list[float]:
    """Call once to warm up, then at least ``repeats`` times and ``least`` seconds; return each."""
    call()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def median_of(call: Callable[[], Any], job: dict[str, Any]) -> float:
    """Return the median seconds of a call; the job has ``seconds`` and maybe ``repeats``."""
    return statistics.median(seconds_of(call, job["seconds"], job.get("repeats", 3)))


def answer_to(program: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return a program's answer to one job."""
    if job["do"] == "nothing":
        return {"value": 0.0}
    work = getattr(program, job["do"], None)
    if work is None:
        return {"absent": f"does not do {job['do']}"}
    try:
        result = work(job)
    except NotImplementedError as error:
        return {"absent": str(error)}
    except Exception as error:
        return {"absent": f"failed: {type(error).__name__}: {error}"[:300]}
    return result if isinstance(result, dict) else {"value": result}


def start(kind: str, setup: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the program and what to say of it: how long it took to load, its versions."""
    module, _, name = KINDS[kind].partition(":")
    begin = time.perf_counter()
    try:
        program = getattr(import_module(module), name)(**setup)
    except ImportError as error:
        return None, {"absent": f"not installed: {error.name or error}", "final": True}
    except Exception as error:
        reason = f"cannot load: {type(error).__name__}: {error}"[:300]
        return None, {"absent": reason, "final": True}
    return program, {"load_seconds": time.perf_counter() - begin}


def main(kind: str, setup: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    program, hello = start(kind, json.loads(setup))
    print(json.dumps(hello), file=answers, flush=True)
    if program is None:
        return
    for line in sys.stdin:
        print(json.dumps(answer_to(program, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
