"""A Hugging Face cache on disk, so that hub names resolve without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def publish(cache: Path, repository: str, folder: Path) -> None:
    """Put a folder's files into ``cache`` as huggingface_hub keeps a downloaded repository."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    blobs, refs = home / "blobs", home / "refs"
    blobs.mkdir()
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = shutil.copyfile(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))


def run_offline(source: str, cache: Path, folder: Path) -> str:
    """Run a program in a process of its own that sees only this cache; return what it prints.

    torch, transformers and everything that opens a connection are made to fail there.
    """
    program = folder / "program.py"
    program.write_text(_NO_FRAMEWORK + _NO_NETWORK + source, "utf-8")
    environment = os.environ | {
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_NO_FRAMEWORK = "import sys\nsys.modules.update(torch=None, transformers=None)\n"
_NO_NETWORK = """
import socket
def refuse(*arguments, **options): raise AssertionError("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
