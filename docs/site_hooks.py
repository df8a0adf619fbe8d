"""Hooks of the documentation site."""

import re
from typing import Any

from mkdocs.structure.files import File
from site_reference import pages

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!models/|images/)([^)#\s]+)[^)]*\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from the program."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files of the repository that the site does not hold, instead of linking to them."""
    depth = page.file.src_uri.count("/")

    def replace(match: re.Match[str]) -> str:
        ups = match.group(0).count("../")
        return f"{match.group(1)} (`{match.group(2)}`)" if ups > depth else match.group(0)

    return _OUTSIDE.sub(replace, markdown)
