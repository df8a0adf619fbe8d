"""`ign keys add|list|revoke`: edit the file of API keys. The service reads it when it starts."""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from ign.parsers import SETTINGS
from service.api.access import parse_keys, read_file
from service.domain.errors import wrap_errors
from service.settings import variable_of

Entry = dict[str, Any]


@click.group(context_settings=SETTINGS)
def keys() -> None:
    """Edit the file of API keys. It holds the SHA-256 of each key; the service reads it when it
    starts.
    """


_FILE: Final = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=variable_of("api_keys_file"),
    show_envvar=True,
    required=True,
    help="file of API keys",
)


@keys.command()
@click.argument("name")
@_FILE
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["infer", "admin"]),
    multiple=True,
    default=["infer"],
    help="may be repeated  [infer]",
)
@click.option("--quota", metavar="RATE", help="such as 20/s or 600/m, in place of IGN_RATE_LIMIT")
def add(name: str, file: Path, scopes: Sequence[str], quota: str | None) -> None:
    """Make a key for the caller NAME, print it, and store its hash. A new file is readable for its
    owner only.
    """
    key = secrets.token_urlsafe(32)
    entry: Entry = {
        "name": name,
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "scopes": list(dict.fromkeys(scopes)),
    }
    if quota is not None:
        entry["quota"] = quota
    with _locked(file):
        entries = _read(file) if file.exists() else []
        if any(other["name"] == name for other in entries):
            raise click.ClickException(
                f"{file} holds a key of {name} already; `ign keys revoke {name} --file {file}` "
                f"removes it"
            )
        entries.append(entry)
        with wrap_errors(f"the key of {name}"):
            parse_keys(json.dumps(entries).encode())
        _write(file, entries)
    click.echo(key)
    click.echo(
        f"{name} is in {file}, which does not hold the key: keep it. Restart the service.", err=True
    )


@keys.command("list")
@_FILE
def list_(file: Path) -> None:
    """Print name, scopes and quota of every key, separated by tabs."""
    for entry in _read(file):
        click.echo("\t".join((entry["name"], ",".join(entry["scopes"]), entry.get("quota") or "-")))


@keys.command()
@click.argument("name")
@_FILE
def revoke(name: str, file: Path) -> None:
    """Remove the key of the caller NAME. A service that runs accepts it until it is restarted."""
    with _locked(file):
        entries = _read(file)
        left = [entry for entry in entries if entry["name"] != name]
        if len(left) == len(entries):
            names = ", ".join(entry["name"] for entry in entries) or "nobody"
            raise click.ClickException(f"{file} holds no key of {name}; it holds those of {names}")
        _write(file, left)
    end = (
        "Restart the service."
        if left
        else "The file holds no key: the service does not start with it."
    )
    click.echo(f"{name} is removed from {file}. {end}", err=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock on the folder of the file, so that no other command changes the file between
    reading and writing.
    """
    try:
        folder = os.open(file.resolve().parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as exc:
        raise click.ClickException(f"{file}: {exc.strerror}") from exc


def _read(file: Path) -> list[Entry]:
    with wrap_errors(str(file)):
        data = read_file(file)
        if data.strip() != b"[]":
            parse_keys(data)
    return json.loads(data)


def _write(file: Path, entries: Sequence[Entry]) -> None:
    """Replace the file at once, so that a service that starts meanwhile reads the old one or the
    new one.
    """
    target = file.resolve()  # a link stays a link
    lines = ",\n ".join(json.dumps(entry) for entry in entries)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    # of one command at a time, because the folder is locked
    part = target.with_name(f".{target.name}.part")
    try:
        part.touch(0o600)
        part.write_text(f"[{lines}]\n")
        part.chmod(mode)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
