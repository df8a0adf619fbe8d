"""docs/reference holds all settings, metrics and commands, as `make reference` writes them."""

import re

from tests.helpers import reference


def options(text: str) -> set[str]:
    """The headings and the options of a page. The layout of help texts differs between versions of Python and click."""
    return set(re.findall(r"^## .*|(?<![\w-])--[a-z][a-z0-9-]+", text, flags=re.MULTILINE))


def test_the_settings_page_is_current() -> None:
    assert (reference.FOLDER / "settings.md").read_text(encoding="utf-8") == reference.settings_page()


def test_the_metrics_page_is_current() -> None:
    assert (reference.FOLDER / "metrics.md").read_text(encoding="utf-8") == reference.metrics_page()


def test_the_commands_page_is_current() -> None:
    written = (reference.FOLDER / "commands.md").read_text(encoding="utf-8")
    assert options(written) == options(reference.commands_page())
    assert {"--port", "--seed", "## ign train"} <= options(written)
