"""Where and with what was measured: the machine, the versions, the settings that change speeds."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = (
    *("mamba-np", "numpy", "numba", "llvmlite", "threadpoolctl"),
    *("torch", "transformers", "mambapy", "gguf"),
)

EXTENSIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512vnni", "avx512bf16", "avx512fp16"),
    *("amx-tile", "amx-int8", "amx-bf16", "neon", "dotprod", "i8mm", "bf16", "fullfp16", "sve"),
)
"""Extensions of processors that matter here, by LLVM's names."""

SETTINGS = ("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "NUMBA_", "VECLIB_")
"""How the names of environment variables begin that change how libraries compute."""


def machine() -> dict[str, Any]:
    """Return what the numbers depend on; nothing of it names the machine or its user."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    name, extensions = target()
    return {
        "processor": processor(),
        "architecture": name,
        "extensions": extensions,
        "cores": os.cpu_count(),
        "memory_gb": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)},
    }


def processor(text: str | None = None) -> str:
    """Return the processor's name; ``text`` is Linux' list of processors."""
    if text is None:
        try:
            text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        except OSError:
            text = ""
    named = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def target() -> tuple[str, list[str]]:
    """Return LLVM's name of the processor's kind, such as znver4, and its vector extensions."""
    import llvmlite.binding as llvm

    features: Any = llvm.get_host_cpu_features()
    return llvm.get_host_cpu_name(), [name for name in EXTENSIONS if features.get(name)]


def versions() -> dict[str, str]:
    """Return the versions of what takes part; "not installed" for what does not."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"BLAS of numpy": blas()}


def blas() -> str:
    """Return the name and version of the library that NumPy multiplies matrices with."""
    import numpy  # noqa: F401 - loads its BLAS
    from threadpoolctl import threadpool_info

    found = [one for one in threadpool_info() if one["user_api"] == "blas"]
    names = (f"{one['internal_api']} {one.get('version') or ''}".strip() for one in found)
    return ", ".join(sorted(set(names))) or "not known"


def slug(processor: str, cores: int | None) -> str:
    """Return a machine's kind as part of a file name: "AMD EPYC 7B13 ...", 2 is epyc-7b13-2."""
    noise = r"\(.*?\)|@.*|\b(?:AMD|Intel|processor|cpu|\d+-core)\b"
    name = re.sub(noise, " ", processor, flags=re.IGNORECASE)
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
    return f"{words}-{cores or 1}"
