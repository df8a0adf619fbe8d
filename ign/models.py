"""`ign models`: list the models of a directory from their cards, and move models to and from registries."""

import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from service.artifact.card import CardError, from_metadata
from service.artifact.files import MODEL_FILE, MODEL_FILES
from service.artifact.onnx_file import read_metadata
from service.domain.errors import StartupError
from service.models.repository import Repository, repository_options
from service.models.store import ModelStore
from service.settings import Settings, from_environment

Row = dict[str, Any]

_FOLDER: Final = click.option(
    "--models", "folder", type=click.Path(), help="directory or URL of models  [IGN_MODEL_DIR; shipped]"
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="write a line of JSON for each model instead")
@click.pass_context
def models(ctx: click.Context, *, folder: str | None, as_json: bool) -> None:
    """List the models of a directory: name/version, images, precisions and what they draw. * is the default."""
    if ctx.invoked_subcommand is not None:
        if folder is not None or as_json:
            raise click.UsageError(f"options belong after {ctx.invoked_subcommand}")
        return
    repository = Repository(open_models=lambda _: [], **repository_options(_settings(folder)))
    repository.refresh(may_fail=True)
    rows = [_describe(repository, ref) for ref in repository.find_all()]
    default = repository.default
    found = [row["model"] for row in rows if default in (row["model"], row["name"])]
    found = [ref for ref in found if repository.is_named(ref)] or found
    width = max(len(row["model"]) for row in rows)
    for row in rows:
        row["default"] = row["model"] in found[-1:]
        click.echo(json.dumps(row) if as_json else _line(row, width))


@models.command()
@click.argument("url")
@click.argument("names", nargs=-1)
@_FOLDER
def push(*, url: str, names: Sequence[str], folder: str | None) -> None:
    """Write models to a registry, as the image URL: oci://registry/repository:tag.

    NAMES such as mnist or mnist/6 choose among the models of the directory. Prints the URL with the image's digest.
    """
    from service.models.oci import Image

    repository = Repository(open_models=lambda _: [], **repository_options(_settings(folder)))
    refs = [ref for ref in repository.find_all() if not names or {ref, ref.partition("/")[0]} & {*names}]
    if missing := [name for name in names if not any(name in (ref, ref.partition("/")[0]) for ref in refs)]:
        raise StartupError(f"{missing[0]}: no such model; there is {', '.join(repository.find())}")
    for ref in refs:
        _describe(repository, ref)  # raises if a card is damaged
    top = repository.path(refs[0], MODEL_FILE).parents[2]
    if lost := [ref for ref in refs if not (top / ref / MODEL_FILE).is_file()]:
        raise StartupError(f"{lost[0]}: push needs a directory with {lost[0]}/{MODEL_FILE}")
    image = Image(url)
    click.echo(image.at(image.push(top, refs)))


@models.command()
@click.argument("url")
@click.argument("out", type=click.Path(path_type=Path))
def pull(*, url: str, out: Path) -> None:
    """Copy the models of a URL (oci, s3, gs, az) to the directory OUT; again, only what has changed."""
    if failures := ModelStore(url, out).refresh():
        raise StartupError("; ".join(failures.values()))
    for path in sorted(out.rglob(MODEL_FILE)):
        click.echo(path.parent)


@models.command()
@click.argument("source")
@click.option("--key", help="public key, file or URL, that cosign must find a signature of the image with")
def verify(*, source: str, key: str | None) -> None:
    """Load every model of a directory or URL, and compare its outputs with its golden rows."""
    from service.models.instances import open_instances
    from service.models.oci import Image
    from service.runtime.onnx_model import OnnxModel

    if key is not None:
        image = Image(source)
        source = image.at(image.digest())  # what is checked is what is loaded
        _check_signature(source.removeprefix("oci://"), key)
    settings = _settings(source).replace(device="cpu")
    open_models = partial(open_instances, OnnxModel, settings)
    repository = Repository(open_models=open_models, **repository_options(settings))
    if failures := repository.refresh():
        raise StartupError("; ".join(failures.values()))
    for ref in repository.find_all():
        loaded = repository.load(ref)
        loaded.close()
        click.echo(f"{ref}: ok, sha256 {loaded.digest}")


def _check_signature(image: str, key: str) -> None:
    command = ["cosign", "verify", "--key", key, "--insecure-ignore-tlog", image]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError as exc:
        raise StartupError("--key: cosign is not installed") from exc
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise StartupError(f"--key {key}: {image} has no such signature: {said[-1] if said else 'cosign says nothing'}")
    click.echo(f"{image}: signed")


def _settings(folder: str | None) -> Settings:
    return from_environment({} if folder is None else {"IGN_MODEL_DIR": folder})


def _describe(repository: Repository, ref: str) -> Row:
    try:
        data = repository.path(ref, MODEL_FILE).read_bytes()
        card, _ = from_metadata(read_metadata(data))
    except OSError as exc:
        raise StartupError(f"{ref}/{MODEL_FILE}: {exc.strerror}") from exc
    except (CardError, StartupError) as exc:
        raise StartupError(f"{ref}/{MODEL_FILE}: {exc}") from exc
    return {
        "model": ref,
        "name": card.name,
        **dict(zip(("channels", "height", "width"), card.shape, strict=True)),
        "precisions": [name for name, file in MODEL_FILES.items() if repository.path(ref, file).is_file()],
        "parameters": card.training and card.training.parameters,
        "licence": card.licence,
        "description": card.description,
    }


def _line(row: Row, width: int) -> str:
    mark = "*" if row["default"] else " "
    size = f"{row['height']}×{row['width']} {'grey' if row['channels'] == 1 else 'colour'}"
    return f"{mark} {row['model']:<{width}}  {size}  {'+'.join(row['precisions'])}  {row['description']}"
