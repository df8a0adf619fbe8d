"""Pages of the site about all settings, commands and metrics, made from the program itself."""

from collections.abc import Iterator
from typing import Final

import click
from click.testing import CliRunner

from ign.__main__ import main
from service.cli import default_of
from service.observability.metrics import Metrics
from service.settings import Settings, meaning_of, variable_of

_WIDTH: Final = 110


def settings_page() -> str:
    """A table of all settings: variable, default, meaning."""
    lines = [
        "# Settings",
        "",
        "[Configuration](../configuration.md) explains instances, processes and keys. Each "
        "setting is also an option",
        "of `ign serve`: `--port` for `IGN_PORT`.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for field in Settings.model_fields:
        meaning = meaning_of(field).replace("|", "\\|")
        lines.append(f"| `{variable_of(field)}` | {default_of(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The help of `ign` and of each of its commands."""
    lines = ["# Commands", ""]
    for words, text in _helps():
        lines += [f"## {' '.join(words)}", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def metrics_page() -> str:
    """A table of all metrics: name, type, labels, meaning."""
    registry = Metrics().registry
    lines = [
        "# Metrics",
        "",
        "[Operations](../operations.md#metrics) says what to do about them.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = getattr(registry._names_to_collectors.get(family.name), "_labelnames", ())
        named = ", ".join(f"`{label}`" for label in labels) or "–"
        meaning = family.documentation.replace("|", "\\|")
        lines.append(f"| `{name}` | {family.type} | {named} | {meaning} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Path of a page in the documentation → its text."""
    return {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/metrics.md": metrics_page(),
    }


def _helps() -> Iterator[tuple[list[str], str]]:
    runner = CliRunner()
    context = click.Context(main, info_name="ign")
    for path in [[], *([name] for name in main.list_commands(context))]:
        result = runner.invoke(
            main,
            [*path, "--help"],
            prog_name="ign",
            terminal_width=_WIDTH,
        )
        if result.exit_code:
            raise RuntimeError(f"ign {' '.join(path)} --help: {result.output}")
        yield ["ign", *path], result.output
