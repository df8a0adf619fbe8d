"""Markdown tables of benchmark results.

    python -m benchmarks.harness.tables benchmarks/results/service.json

A result's `targets` become "target, measured, met or missed"; every other list of flat records is a table of its own.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.common import Json
from benchmarks.harness.processes import ROOT

RESULTS: Final = ROOT / "benchmarks" / "results"
HIDDEN: Final = {("soak", "answers")}  # counts by endpoint and status are only in the JSON
COLUMNS: Final[Mapping[tuple[str, str], Mapping[str, str]]] = {
    ("runtime", "sizes"): {
        "rows": "rows",
        "onnxruntime.rows_per_s": "onnxruntime rows/s",
        "onnxruntime.ms_per_call": "ms per call",
        "onnxruntime.cpu_ms_per_row": "core-ms per row",
        "service.runtime.rows_per_s": "service.runtime rows/s",
        "ratio": "ratio",
    }
}
"""The columns of a table and their headings; by default all. A dotted name is a path into nested records."""


def main() -> int:
    options = parser().parse_args()
    try:
        files = [Path(name) for name in options.files] or sorted(RESULTS.glob("*.json"))
        for file in files:
            print(render(read(file)))
    except (OSError, ValueError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def read(file: Path) -> Json:
    """A result.

    Raises:
        ValueError: the file holds none.
    """
    result = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(result, dict):
        raise ValueError(f"{file.name}: not a result of a benchmark")
    return result


def render(result: Json) -> str:
    """A result's machine, targets and tables."""
    parts = [about(result)] if "machine" in result else []
    name = str(result.get("benchmark", ""))
    if result.get("targets"):
        parts.append(table([verdict(line) for line in result["targets"]]))
    for key, value in result.items():
        if key != "targets" and (name, key) not in HIDDEN and is_table(value):
            parts.append(f"**{words(key)}**")
            parts.append(table([chosen(line, COLUMNS.get((name, key))) for line in value]))
    return "\n\n".join(parts) + "\n\n"


def about(result: Json) -> str:
    """The machine of a result in one line."""
    machine = result["machine"]
    runtime = next((f"{name} {machine[name]}" for name in ("onnxruntime", "onnxruntime-gpu") if name in machine), "")
    line = f"{machine['processor']}, {machine['cpus_granted']} cores, Python {machine['python']}, {runtime}"
    if isinstance(card := result.get("device"), dict) and card:
        line = f"{card['name']}, {card['memory.total']}, driver {card['driver_version']}; {line}"
    if "load_1m" in machine:
        line += f"; load average {shown(machine['load_1m'])}"
    quick = result.get("options", {}).get("quick")
    return line + (". **A quick run: it only shows that the benchmark works.**" if quick else ".")


def verdict(line: Json) -> Json:
    """One target as a row of its table."""
    unit = f" {line['unit']}" if line["unit"] else ""
    measured = "nothing" if line["measured"] is None else f"{shown(line['measured'])}{unit}"
    return {
        "target": line["what"],
        "bound": f"{line['sign']} {shown(line['bound'])}{unit}",
        "measured": measured,
        "": "met" if line["met"] else "**missed**",
    }


def is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(line, dict) for line in value)


def chosen(line: Json, columns: Mapping[str, str] | None) -> Json:
    """The shown columns of a record, by heading."""
    flat = dict(flattened(line))
    if columns is None:
        return {words(name): value for name, value in flat.items()}
    return {heading: flat.get(name) for name, heading in columns.items()}


def flattened(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{before}{name}.")
        else:
            yield before + name, value


def table(lines: Sequence[Json]) -> str:
    """Records as a Markdown table, numeric columns right-aligned. A record may lack columns."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    numeric = {name for name in names if all(isinstance(line.get(name, 0), int | float) for line in lines)}
    rows = [names, ["---:" if name in numeric else "---" for name in names]]
    rows += [[shown(line.get(name)) for name in names] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def shown(value: object) -> str:
    """A value as a cell: four significant digits, no exponent."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def words(name: str) -> str:
    return name.replace("_", " ")


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(description="Print Markdown tables of benchmark results.")
    cli.add_argument("files", nargs="*", help="results; by default all in benchmarks/results")
    return cli


if __name__ == "__main__":
    sys.exit(main())
