"""`ign models`: list the models of a directory from their cards."""

import json
from contextlib import suppress
from typing import Any

import click

from ign.parsers import SETTINGS
from service.artifact.files import MODEL_FILES
from service.domain.errors import StartupError, printable
from service.models.repository import Repository, repository_options
from service.settings import from_environment

Row = dict[str, Any]


@click.command(context_settings=SETTINGS)
@click.option(
    "--models",
    "folder",
    type=click.Path(),
    help="directory or URL of models  [IGN_MODEL_DIR; shipped]",
)
@click.option("--json", "as_json", is_flag=True, help="write a line of JSON for each model instead")
def models(*, folder: str | None, as_json: bool) -> None:
    """List the models of a directory: name/version, images, precisions and what they draw. * is the
    default.
    """
    settings = from_environment({} if folder is None else {"IGN_MODEL_DIR": folder})
    repository = Repository(open_models=lambda _: [], **repository_options(settings))
    repository.refresh(may_fail=True)
    refs = repository.find_all()
    default = ""
    with suppress(StartupError):  # it is not there
        default = repository.defaults(refs)[-1]
    width = max(map(len, refs))
    for ref in refs:
        row = _describe(repository, ref) | {"default": ref == default}
        click.echo(json.dumps(row) if as_json else _line(row, width))


def _describe(repository: Repository, ref: str) -> Row:
    card = repository.card(ref)
    return {
        "model": ref,
        "name": card.name,
        **dict(zip(("channels", "height", "width"), card.shape, strict=True)),
        "precisions": [
            name for name, file in MODEL_FILES.items() if repository.path(ref, file).is_file()
        ],
        "parameters": card.training and card.training.parameters,
        "licence": card.licence,
        "description": card.description,
    }


def _line(row: Row, width: int) -> str:
    mark = "*" if row["default"] else " "
    size = f"{row['height']}×{row['width']} {'grey' if row['channels'] == 1 else 'colour'}"
    return printable(
        f"{mark} {row['model']:<{width}}  {size}  {'+'.join(row['precisions'])}  "
        f"{row['description']}"
    )
