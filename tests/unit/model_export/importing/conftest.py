from argparse import Namespace
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from model_export.importing import command


def in_this_process(options: Namespace, version: str) -> Iterator[str | Mapping[str, bytes]]:
    """The messages of the child process, without the second that it takes to start."""
    messages: list[Any] = []
    connection: Any = SimpleNamespace(send=messages.append)
    command._work(options, version, connection)
    for message in messages:
        if isinstance(message, BaseException):
            raise message
        yield message


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_in_child", in_this_process)
        yield
