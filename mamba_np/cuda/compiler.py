"""From a Kernel to PTX, the virtual machine code, and from PTX to the code of one architecture.

Neither step needs a GPU or its driver. PTX is what the tests execute; the run time links the same
text. Architectures are numbers as in sm_90: 90.
"""

import re
import threading
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..code_folder import PACKAGE, name_of, usable_folder
from ..errors import FileMissingError
from ..files import replacing
from .dialect import cuda, dispatcher, types
from .registry import Kernel

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Turing to Blackwell: those that the present compilers know, one of each generation."""

_lock = threading.RLock()


class Code(NamedTuple):
    """A linked kernel, and what the linker says of it."""

    binary: bytes
    symbol: str
    registers: int
    shared: int  # bytes a block
    stack: int  # bytes a thread: local memory, slow
    spilled: int  # bytes stored and loaded because registers ran out


@cache
def ptx(kernel: Kernel, architecture: int) -> str:
    """Compile to PTX for an architecture."""
    options: dict[str, Any] = {"fastmath": True}
    if kernel.least_blocks:
        options["launch_bounds"] = (kernel.threads, kernel.least_blocks)
    capability = divmod(architecture, 10)
    with _lock, _pretending(capability):
        signature = types.void(*kernel.arguments)
        text, _ = cuda.compile_ptx(kernel.function, signature, cc=capability, **options)
    return text


@contextmanager
def _pretending(capability: tuple[int, int]):
    """Let device functions compile where no device is: they ask for the current one's."""
    real = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = real


def link(text: str, architecture: int) -> Code:
    """Link PTX to machine code by nvJitLink."""
    core = import_module("cuda.core")
    options = core.LinkerOptions(arch=f"sm_{architecture}", ptxas_options="-v", verbose=True)
    linker = core.Linker(core.ObjectCode.from_ptx(text.encode()), options=options)
    binary, words = bytes(linker.link("cubin").code), linker.get_info_log()

    def said(pattern: str) -> int:
        found = re.search(pattern, words)
        return int(found[1]) if found else 0

    return Code(
        binary=binary,
        symbol=symbol_of(text),
        registers=said(r"Used (\d+) registers"),
        shared=said(r"(\d+) bytes smem"),
        stack=said(r"(\d+) bytes stack frame"),
        spilled=said(r"(\d+) bytes spill stores") + said(r"(\d+) bytes spill loads"),
    )


def symbol_of(text: str) -> str:
    """Return the name under which PTX has its kernel."""
    found = re.search(r"\.visible \.entry ([\w$]+)\(", text)
    if found is None:
        raise ValueError("expected PTX with one kernel, found none")
    return found[1]


# --- kept on disk ---------------------------------------------------------------------------------


def code_for(kernel: Kernel, architecture: int) -> Code:
    """Return a kernel's machine code: from the folder where it is kept, or compiled and kept."""
    folder = _folder()
    if folder is None:
        return link(ptx(kernel, architecture), architecture)
    path = folder / f"{re.sub(r'[^0-9A-Za-z_]+', '-', kernel.name)}-sm_{architecture}.ptx"
    try:
        text = path.read_text()
    except OSError:
        text = ptx(kernel, architecture)
        with suppress(FileMissingError), replacing(path) as temporary:  # a full disk: not kept
            temporary.write_text(text)
    return link(text, architecture)


@cache
def _folder() -> Path | None:
    """Return the folder of these sources and compilers."""
    names = ("equations.py", "polynomials.py")
    sources = [*(PACKAGE / name for name in names), *sorted(PACKAGE.glob("cuda/*.py"))]
    compilers = [f"{name} {version(name)}" for name in ("numba-cuda", "nvidia-nvvm", "numba")]
    return usable_folder(name_of(sources, *compilers))
