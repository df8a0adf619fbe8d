"""What a server process and its supervisor say to each other, on the side of the process."""

import asyncio
import itertools
import logging
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from service.domain.errors import IgnError, RequestError
from service.models.registry import ModelChange, ModelRegistry

_LOG = logging.getLogger("service")
# characters of an error at most: a connection takes so many whole, or not at all
MESSAGE: Final = 2000


def report(messages: Connection, content: object) -> bool:
    """Send a message to the parent; whether it was sent, as there may be no room for it while the
    parent is stopped.
    """
    try:
        messages.send(content)
    except BlockingIOError:
        return False
    except OSError:  # it is gone
        os.kill(os.getpid(), signal.SIGTERM)
    return True


class Parent:
    """The connection of a server process to its supervisor, by which all processes change their
    models together.

    Belongs to the event loop of the process. The process sends a request as `(number, change)`. The
    supervisor sends it to every process, with a number of its own. Each makes the change, and
    answers with `(number, error or None)`. Then the supervisor answers the request likewise.
    """

    def __init__(self, messages: Connection, registry: ModelRegistry) -> None:
        self._messages = messages
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, asyncio.Future[IgnError | None]] = {}
        self._numbers = itertools.count()
        self._tasks = set[asyncio.Task[None]]()

    async def begin(self) -> None:
        """Unload the models that the first message names: they were unloaded before this process
        started.

        From then on the process makes the changes that the supervisor sends.
        """
        with suppress(EOFError, OSError):  # as in `_receive`
            for name in self._messages.recv():
                with suppress(RequestError):  # its files are gone, too
                    await self._registry.unload(name)
        self._loop.add_reader(self._messages.fileno(), self._receive)

    async def change(self, change: ModelChange) -> None:
        """As `ModelRegistry.change`, in every process; raises the first error of one, when all have
        tried.
        """
        number = next(self._numbers)
        answer = self._answers[number] = self._loop.create_future()
        # Valid names are shorter, and an error says no more of others.
        await self._send(number, change._replace(name=change.name[:80]))
        if error := await answer:
            raise error

    def _receive(self) -> None:
        try:
            while self._messages.poll():
                number, content = self._messages.recv()
                if isinstance(content, ModelChange):
                    task = self._loop.create_task(self._change(number, content))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif not (answer := self._answers.pop(number)).done():  # else nobody waits any more
                    answer.set_result(content)
        except (EOFError, OSError):  # the supervisor is gone, which the next beat notices
            self._loop.remove_reader(self._messages.fileno())

    async def _change(self, number: int, change: ModelChange) -> None:
        error: IgnError | None = None
        try:
            await self._registry.change(change)
        except IgnError as exc:
            error = type(exc)(exc.detail[:MESSAGE])
        except Exception:
            _LOG.exception("changing a model failed")
            error = IgnError("changing a model failed in a way nobody foresaw; the log says how")
        await self._send(number, error)

    async def _send(self, number: int, content: ModelChange | IgnError | None) -> None:
        while not report(self._messages, (number, content)):  # noqa: ASYNC110 - no event says when there is room
            await asyncio.sleep(1.0)
