"""Kills a training process at random moments, again and again, as a machine may do to a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

# A fork begins at once, where a new interpreter would first import everything. How long to wait is
# measured in steps of this machine, so that kills fall into all that a step and its checkpoint do.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
from {module} import {function} as train

def kill_once(folder, moments):
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        train(folder, lambda step: os.write(say, b"."))
        os._exit(3)  # it came to its end: more steps are needed
    for _ in range(moments.randint(2, 4)):  # checkpoints that are complete
        before = time.monotonic()
        os.read(said, 1)
    time.sleep(moments.uniform(0, 1.5) * (time.monotonic() - before))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(said), os.close(say)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    left = [path.suffix for path in Path(folder).iterdir() if path.name.startswith(".")]
    return "write" if ".part" in left else "remove" if ".old" in left else "step"

moments = random.Random(int(sys.argv[3]))
print(json.dumps([kill_once(sys.argv[1], moments) for _ in range(int(sys.argv[2]))]))
"""


def killed(module: str, function: str, folder: Path, kills: int = 20, seed: int = 0) -> list[str]:
    """Start ``function(folder, said)`` of a test module, kill it, and do so ``kills`` times.

    ``said`` is to be called when a checkpoint is complete. Returns what each kill interrupted:
    "write" or "remove" of a checkpoint, or a "step".
    """
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    program = PROGRAM.format(module=module, function=function)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(kills), str(seed)],
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
