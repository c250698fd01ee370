"""Results as files: JSON with everything, Markdown to read, a plot."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from .machine import slug

Report = dict[str, Any]
"""date, command, machine, versions, settings, goals (a list), results (a list)"""

OURS = "ours float32"
"""The program that others are compared with; of the scan, it is "ours" alone."""

_NAME = r"""[^\s/\\'":,;]+"""
ABSOLUTE = re.compile(rf"(?<![\w./:\\-])(?:[A-Za-z]:)?[/\\](?:{_NAME}[/\\])*({_NAME})")
"""An absolute path, of which the last part is a group; no part of an address or of "GB/s"."""


def without_paths(value: Any) -> Any:
    """Return a report, or a part of one, in which absolute paths are their last part alone."""
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    return ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def file_name(report: Report) -> str:
    """Return the name, without its end, of a report's files: the date and the machine's kind."""
    machine = report["machine"]
    return f"{report['date'][:10]}-cpu-{slug(machine['processor'], machine['cores'])}"


def write(report: Report, folder: Path) -> list[Path]:
    """Write the report's files into a folder, made if need be; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name, written = file_name(report), []
    picture = folder / f"{name}.png"
    text = markdown(report)
    if plot(report, picture):
        text += f"\n![Tokens a second]({picture.name})\n"
        written.append(picture)
    for end, content in ((".json", json.dumps(report, indent=1) + "\n"), (".md", text)):
        path = folder / f"{name}{end}"
        path.write_text(content, "utf-8")
        written.append(path)
    return written


# --- Markdown ------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Return the report as a page."""
    m, limit = report["machine"], report["settings"]["foreign_limit"]
    extensions = ", ".join(m["extensions"]) or "no vector extensions known"
    lines = [
        f"# Benchmark, {report['date'][:10]}",
        "",
        f"{m['processor']} ({m['architecture']}: {extensions}), {m['cores']} cores, "
        f"{m['memory_gb']} GB, {m['system']}.",
        "",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
        "",
        f"Command: `{report['command']}`",
        "",
        "Medians of blocks that took turns. A block during which other processes used more than "
        f"{limit:.0%} of the machine was dropped and repeated; "
        '"disturbed" marks lines of which no block was undisturbed.',
        "",
        "## Goals",
        "",
        *_goals(report["goals"]),
    ]
    for title, results in panels(report["results"]).items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_results(results)]
    return "\n".join(lines) + "\n"


def panels(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results by what was done, each with the ``name`` of who did it.

    What is done with two numbers of threads is two panels, "decode 1, 2 threads" being one.
    """
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        parts = result["key"].split(" | ")
        together = len(parts) == 3 and "thread" in parts[1]
        head, tail = (parts[:2], parts[2:]) if together else (parts[:1], parts[1:])
        found[", ".join(head)].append({**result, "name": ", ".join(tail)})
    return dict(found)


def number(value: float | None) -> str:
    """Return a number with three or four digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _goals(goals: list[dict[str, Any]]) -> list[str]:
    lines = ["| goal | bound | measured | |", "|---|---|---|---|"]
    for goal in goals:
        bound = f"{'>=' if goal['at_least'] else '<='} {goal['bound']:g}"
        lines.append(f"| {goal['goal']} | {bound} | {number(goal['ratio'])} | {goal['state']} |")
    return lines


def _results(results: list[dict[str, Any]]) -> list[str]:
    """Return a panel's table; how much faster ours is stands there where ours takes part."""
    ours = next((one for one in results if one["name"] in (OURS, "ours")), None)
    faster = [] if ours is None else [f"{ours['name']} is faster by"]
    titles = ["", "median", "lowest to highest", *faster, "blocks", "dropped", "foreign, at most"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for result in results:
        cells = [result["name"], str(result.get("absent", ""))]
        if result["median"] is not None:
            ratios = [] if ours is None else [ratio(ours, result)]
            cells = [result["name"], *_speed(result), *ratios, *_blocks(result)]
        cells += [""] * (len(titles) - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _speed(result: dict[str, Any]) -> tuple[str, str]:
    used = result["values"] or result["dropped"]
    median = f"{number(result['median'])} {result['unit']}".strip()
    disturbed = " (disturbed)" * result["disturbed"]
    return f"{median}{disturbed}", f"{number(min(used))} to {number(max(used))}"


def _blocks(result: dict[str, Any]) -> tuple[str, str, str]:
    shares = result["foreign"]
    most = f"{max(shares):.0%}" if shares else "not known"
    return str(len(result["values"])), str(len(result["dropped"])), most


def ratio(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """Return how many times faster ours is than another result; "" where that means nothing."""
    same = other["name"] == ours["name"] or other["unit"] != ours["unit"]
    if same or not (ours["median"] and other["median"]):
        return ""
    more_is_faster = ours["unit"] == "tok/s"
    pair = (ours, other) if more_is_faster else (other, ours)
    return f"{number(pair[0]['median'] / pair[1]['median'])} x"


# --- the plot ------------------------------------------------------------------------------------


def plot(report: Report, path: Path) -> bool:
    """Draw the speeds as bars, a panel for each kind of work; False without matplotlib."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    drawn = {
        title: [one for one in results if one["unit"] == "tok/s" and one["median"] is not None]
        for title, results in panels(report["results"]).items()
    }
    drawn = {title: results for title, results in drawn.items() if results}
    if not drawn:
        return False
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, (title, results) in zip(axes.flat, drawn.items(), strict=False):
        _bars(axis, title, results[::-1])
    figure.suptitle(f"{report['machine']['processor']}, {report['date'][:10]}", fontsize=9)
    figure.savefig(path)
    return True


def _bars(axis: Any, title: str, results: list[dict[str, Any]]) -> None:
    names = [one["name"] for one in results]
    colors = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
    bars = axis.barh(names, [one["median"] for one in results], color=colors)
    axis.bar_label(bars, fmt=" %.3g", fontsize=7)
    axis.set_title(f"{title} (tokens a second)", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.margins(x=0.15)
