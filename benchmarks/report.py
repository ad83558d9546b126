"""Writes results.json and RESULTS.md. A run replaces the lines of its own benchmarks and keeps the others."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.pairs import Measured, Row

_HERE = Path(__file__).parent
_COLUMNS = "| benchmark | ratio A/B | spread | goal | met | measured | day |\n|---|---|---|---|---|---|---|"


def line(measured: Measured) -> str:
    """Returns a result as a line for the terminal."""
    spread = f"{min(measured.ratios):.2f}..{max(measured.ratios):.2f}"
    return f"{measured.name}: {measured.ratio:.3f} ({spread}), {_goal(measured)}; {measured.absolute}"


def write(results: Sequence[Measured], rows: Sequence[Row], folder: Path = _HERE) -> None:
    """Writes both files. `rows` are the rows of all benchmarks in the order of the report, which describes each."""
    order = {name: number for number, name in enumerate(name for row in rows for name in _names(row))}
    entries = _stored(folder / "results.json") | {measured.name: _entry(measured) for measured in results}
    lines = _stored_lines(folder / "RESULTS.md") | {measured.name: _table_line(measured) for measured in results}
    known = sorted((name for name in entries if name in order), key=order.__getitem__)
    text = json.dumps([entries[name] for name in known], indent=1)
    (folder / "results.json").write_text(text + "\n")
    table = "\n".join([_COLUMNS, *(lines[name] for name in known if name in lines)])
    meanings = "\n".join(f"- **{row.name}** ({row.unit}; {_aim(row)}): {row.sides}" for row in rows)
    (folder / "RESULTS.md").write_text(
        f"# Results\n\nThe last run of each benchmark by `make bench`. [README.md](README.md) explains the columns.\n\n"
        f"Machine of the last run: {machine()}. Brokers, sides and load generators share these cores.\n\n"
        f"{table}\n\n## What A and B are\n\n{meanings}\n"
    )


def _names(row: Row) -> tuple[str, ...]:
    return row.on("embedded"), row.on("kafka")


def _entry(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured.name,
        "ratio": round(measured.ratio, 4),
        "goal": measured.row.goal,
        "met": measured.met,
        "unit": measured.row.unit,
        "runs": [round(ratio, 4) for ratio in measured.ratios],
    }


def _table_line(measured: Measured) -> str:
    spread = f"{min(measured.ratios):.3f} to {max(measured.ratios):.3f}"
    met = {True: "yes", False: "**no**", None: "-"}[measured.met]
    cells = (measured.name, f"{measured.ratio:.3f}", spread, _limit(measured.row), met, measured.absolute)
    return f"| {' | '.join(cells)} | {date.today().isoformat()} |"  # noqa: DTZ011 -- local date of the run


def _goal(measured: Measured) -> str:
    if measured.met is None:
        return "no goal"
    return f"goal {_limit(measured.row)}: {'met' if measured.met else 'MISSED'}"


def _limit(row: Row) -> str:
    if row.goal is None:
        return "-"
    return f"{'>=' if row.better == 'more' else '<='} {row.goal:g}"


def _aim(row: Row) -> str:
    return "more is better" if row.better == "more" else "less is better"


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}


def _stored_lines(path: Path) -> dict[str, str]:
    text = path.read_text() if path.exists() else ""
    return {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
