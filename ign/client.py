"""The client's commands, against a running service, or with `--local` against one in this process."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import click

from ign.parsers import ParserCommand, subparsers
from ign_client import _cli as client
from ign_client._batches import Terminal

_PROGRAM: Final = "ign"


def client_command(name: str) -> click.Command:
    """One of the client's commands, such as `generate`."""
    return ParserCommand(name, subparsers(_parser())[name], lambda arguments: _run([name, *arguments]))


def _parser() -> argparse.ArgumentParser:
    parser = client.parser(_PROGRAM)
    for command in subparsers(parser).values():
        command.add_argument(
            "--local",
            action="store_true",
            help="start a service in this process for this command, on the IGN_… variables of `ign serve`",
        )
    return parser


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = client.parse(parser, arguments)
    if options.local:
        if options.base_url:
            parser.error("--local starts a service of its own; leave --base-url out")
        return _run_local(options)
    hint = "`ign serve` starts a service; with --local, this command needs none"
    return client.run(options, Terminal(sys.stdout, sys.stderr), hint)


def _run_local(options: argparse.Namespace) -> int:
    from service.domain.errors import StartupError
    from service.environment import prepare_process

    try:
        prepare_process()
        from ign.local import local_service  # imports onnxruntime, which may not be installed

        with local_service() as options.base_url:
            return client.run(options, Terminal(sys.stdout, sys.stderr))
    except StartupError as exc:
        click.echo(f"ign: the service does not start: {exc.detail}", err=True)
        return client.USAGE
