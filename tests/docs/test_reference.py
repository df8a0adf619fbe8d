"""The page of commands that the site makes from the program names every command."""

import re

import click

from docs.site_reference import commands_page
from ign.__main__ import main


def test_commands_have_a_section_with_their_options() -> None:
    page = commands_page()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings[0] == "ign"
    assert headings[1:] == [f"ign {name}" for name in main.list_commands(click.Context(main))]
    sections = dict(zip(headings, re.split(r"^## .+$", page, flags=re.MULTILINE)[1:], strict=True))
    for heading, option in [
        ("ign serve", "--port"),
        ("ign train", "--corruptions"),
        ("ign generate", "--seed"),
    ]:
        assert re.search(rf"(?<![\w-]){option}\b", sections[heading])
