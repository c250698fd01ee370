"""What needs a fresh process each time: starting, loading, the peak of memory."""

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from .blocks import Absent
from .timing import Job
from .worker import environment

LOAD = """
import time; begin = time.perf_counter()
import json, sys, numpy, mamba_np
setup = json.loads(sys.argv[1])
model = mamba_np.MambaForCausalLM.from_pretrained(**setup)
loaded = time.perf_counter()
model(numpy.zeros((1, 8), numpy.int64), logits_to_keep=1)
first = time.perf_counter()
print(json.dumps({"value": loaded - begin, "also": {"first": first - begin}}))
"""

LOAD_TRANSFORMERS = """
import time; begin = time.perf_counter()
import json, sys, torch
from transformers import MambaForCausalLM
path = json.loads(sys.argv[1])["name_or_path"]
with torch.inference_mode():
    model = MambaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    loaded = time.perf_counter()
    model(torch.zeros((1, 8), dtype=torch.int64), logits_to_keep=1)
first = time.perf_counter()
print(json.dumps({"value": loaded - begin, "also": {"first": first - begin}}))
"""

PREFILL = """
import json, statistics, sys, time, numpy, mamba_np
from mamba_np.bench.timing import peak_megabytes
setup, length, threads, seconds = json.loads(sys.argv[1]), *map(int, sys.argv[2:])
mamba_np.set_num_threads(threads)
model = mamba_np.MambaForCausalLM.from_pretrained(**setup)
ids = numpy.random.default_rng(0).integers(0, model.config.vocab_size, (1, length))
model(ids[:, :1024], logits_to_keep=1)
times = []
while not times or sum(times) < seconds:
    begin = time.perf_counter()
    model(ids, logits_to_keep=1)
    times.append(time.perf_counter() - begin)
also = {"peak": peak_megabytes()}
print(json.dumps({"value": statistics.median(times) / length * 1e6, "also": also}))
"""


class Fresh:
    """Python code that is run in a fresh process for each block and prints its answer as JSON."""

    def __init__(self, code: str, setup: dict[str, Any]):
        self.code, self.setup = code, setup

    def prepare(self) -> None:
        """Do nothing: loading is part of what is measured."""

    def ask(self, job: Job) -> dict[str, Any]:
        """Run the code with the setup and the job's ``arguments``, which are integers."""
        numbers = [str(number) for number in job.get("arguments", ())]
        return json.loads(output_of(["-c", self.code, json.dumps(self.setup), *numbers]))

    def processes(self) -> list[int]:
        """Return nothing: each process has ended."""
        return []

    def close(self) -> None:
        """Do nothing: nothing is left running."""


class Start:
    """The command ``mamba-np generate``, timed from outside until it has ended.

    A cold start is the first one ever: the kernels are compiled. A warm one finds them compiled.
    """

    def __init__(self, backend: str, tokens: int, cold: bool):
        self.backend, self.tokens, self.cold = backend, tokens, cold
        self._kernels: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self) -> None:
        """Compile the kernels, for warm starts."""
        if not self.cold and self._kernels is None:
            self._kernels = tempfile.TemporaryDirectory()
            self._seconds(self._kernels.name)

    def ask(self, job: Job) -> dict[str, Any]:
        """Return the seconds of one start."""
        if self._kernels is not None:
            return {"value": self._seconds(self._kernels.name)}
        with tempfile.TemporaryDirectory() as folder:
            return {"value": self._seconds(folder)}

    def _seconds(self, kernels: str) -> float:
        options = ["--greedy", "--backend", self.backend, "-n", str(self.tokens)]
        start = time.perf_counter()
        output_of(["-m", "mamba_np", "generate", "Once upon a time", *options], kernels)
        return time.perf_counter() - start

    def processes(self) -> list[int]:
        """Return nothing: each process has ended."""
        return []

    def close(self) -> None:
        """Remove the kernels."""
        if self._kernels is not None:
            self._kernels.cleanup()
            self._kernels = None


def output_of(arguments: list[str], kernels: str | None = None) -> str:
    """Return what Python prints; compiled kernels are in the folder ``kernels`` if it is given.

    Raises Absent with the last line of what went wrong.
    """
    variables = environment(**({} if kernels is None else {"NUMBA_CACHE_DIR": kernels}))
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["failed"]
        raise Absent(f"failed: {lines[-1][:300]}")
    return done.stdout
