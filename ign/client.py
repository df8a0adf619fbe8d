"""The client's commands, against a running service, or with `--local` in this process."""

import argparse
from collections.abc import Sequence
from functools import partial

import click

from ign.parsers import commands_of
from ign.pdf import project_files
from ign_client import _cli as client
from ign_client._cli import project
from service.domain.errors import StartupError
from service.environment import prepare_process


def client_command(name: str) -> click.Command:
    """One of the client's commands, such as `generate`."""
    return commands_of(_parser(), _run)[name]


def _parser() -> argparse.ArgumentParser:
    return client.parser(
        "ign",
        "run the model in this process, without a service and its limits, on the IGN_… variables "
        "of `ign serve`; IGN_MODEL_DIR names the folder of models",
    )


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.run is project:
        options.run = project_files
    if not options.local:
        return client.run(
            options, "`ign serve` starts a service; with --local, this command needs none"
        )
    if options.base_url:
        raise StartupError("--local needs no service; leave --base-url out")
    prepare_process()  # before the module below, which imports onnxruntime
    from ign.local import local_client

    return client.run(options, connect=partial(local_client, options.model))
