"""Markdown tables of benchmark results.

    python -m benchmarks.harness.tables benchmarks/results/service.json

A result's `targets` become "target, measured, met or missed"; every other list of flat records, or
records by name, is a table of its own.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.common import Json, flattened

HIDDEN: Final = ("answers",)  # counts by kind and status are only in the JSON


def main() -> None:
    for file in sys.argv[1:]:
        print(render(json.loads(Path(file).read_text(encoding="utf-8"))))


def render(result: Json) -> str:
    """A result's machine, targets and tables."""
    parts = [about(result)] if "machine" in result else []
    if result.get("targets"):
        parts.append(table([verdict(line) for line in result["targets"]]))
    for key, value in result.items():
        if key not in ("targets", *HIDDEN) and (records := records_of(value)):
            lines = [{words(name): each for name, each in flattened(line)} for line in records]
            parts += [f"**{words(key)}**", table(lines)]
    return "\n\n".join(parts) + "\n\n"


def about(result: Json) -> str:
    """The machine of a result in one line."""
    machine = result["machine"]
    line = f"{machine['processor']}, {machine['cpus_granted']} cores, Python {machine['python']}"
    if card := result.get("device"):
        line = f"{card['name']}, {card['memory.total']}, driver {card['driver_version']}; {line}"
    return f"{line}; load average {shown(machine['load_1m'])}."


def verdict(line: Json) -> Json:
    """One target as a row of its table."""
    unit = f" {line['unit']}" if line["unit"] else ""
    measured = "nothing" if line["measured"] is None else f"{shown(line['measured'])}{unit}"
    bound = f"{line['sign']} {shown(line['bound'])}{unit}"
    return {
        "target": line["what"],
        "bound": bound,
        "measured": measured,
        "": "met" if line["met"] else "**missed**",
    }


def records_of(value: Any) -> list[Json]:
    """A list of records, or records by name; else none."""
    if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
        return [{"": name} | each for name, each in value.items()]
    is_list = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    return value if is_list else []


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """Records as a Markdown table, numeric columns right-aligned. A record may lack columns."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    numeric = {
        name for name in names if all(isinstance(line.get(name, 0), int | float) for line in lines)
    }
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


if __name__ == "__main__":
    main()
