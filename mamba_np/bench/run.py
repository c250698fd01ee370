"""One run from options to a report."""

from collections.abc import Callable
from datetime import UTC, datetime

from . import goals, machine
from .blocks import FOREIGN_LIMIT, Entry
from .options import Options
from .plan import Plan
from .report import Report, without_paths


def run(options: Options, command: str, say: Callable[[str], None]) -> Report:
    """Measure what the options ask for and return the report.

    ``command`` is what the report says that it was made by; ``say`` is told each block's result.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    where = machine.machine()  # before our own load
    plan = Plan(options)
    entries = plan.measure(say)
    results = [entry.result() for entry in entries]
    known = {result["key"]: result for result in results}
    names = ("blocks", "seconds", "threads", "backend")
    report = {
        "date": date,
        "command": command,
        "machine": where,
        "versions": machine.versions() | llama_version(entries),
        "settings": {**{n: getattr(options, n) for n in names}, "foreign_limit": FOREIGN_LIMIT},
        "goals": goals.judge(known, max(options.threads), plan.step_gigabytes),
        "results": results,
    }
    return without_paths(report)


def llama_version(entries: list[Entry]) -> dict[str, str]:
    """Return the version that llama-bench says it has."""
    found = [e.details["version"] for e in entries if "version" in e.details]
    return {"llama.cpp": found[0] if found else "not measured"}
