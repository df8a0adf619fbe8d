"""Links between processes, made by the supervisor: it sends each side a socket and the descriptors of shared memory."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from service.engine.slots import SlotFiles

_LOG = logging.getLogger("service")
_DESCRIPTORS: Final = 1 + len(SlotFiles._fields)

OnLink = Callable[[socket.socket, SlotFiles], Awaitable[None]]


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's and a child's end of a connection that keeps the bounds of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def link(front: socket.socket, engine: socket.socket) -> None:
    """Connect a front end and an engine, given the supervisor's ends of their control sockets.

    One that has ended gets nothing; the other one sees that the link closes.
    """
    files = SlotFiles.create()
    try:
        for control, end in zip((front, engine), socket.socketpair(), strict=True):
            with end, contextlib.suppress(OSError):
                socket.send_fds(control, [b"link"], [end.fileno(), *files])
    finally:
        files.close()


class LinkReceiver:
    """Receives links in a child. Belongs to the running event loop.

    A child that cannot take a link, because it has too many files open, ends, and the supervisor replaces it: nobody
    would make that link again.

    Args:
        control: the child's end.
        on_link: called with every link, whose descriptors are its own.
    """

    def __init__(self, control: socket.socket, on_link: OnLink) -> None:
        self._control, self._on_link = control, on_link
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Future[None]] = set()
        control.setblocking(False)
        self._loop.add_reader(control, self._receive)

    def close(self) -> None:
        """Receive no more links."""
        self._loop.remove_reader(self._control)

    def _receive(self) -> None:
        try:
            data, descriptors, *_ = socket.recv_fds(self._control, 16, _DESCRIPTORS)
        except BlockingIOError:
            return
        if not data:  # the supervisor has ended
            self.close()
            return
        if len(descriptors) < _DESCRIPTORS:
            for descriptor in descriptors:
                os.close(descriptor)
            self._give_up()
            return
        end = socket.socket(fileno=descriptors[0])
        end.setblocking(False)
        task = asyncio.ensure_future(self._on_link(end, SlotFiles(*descriptors[1:])))
        self._tasks.add(task)
        task.add_done_callback(self._on_linked)

    def _on_linked(self, task: "asyncio.Future[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(error)

    @staticmethod
    def _give_up(error: BaseException | None = None) -> None:
        _LOG.error("a link between processes is lost, and this one ends: %s", error or "too many files are open")
        os.kill(os.getpid(), signal.SIGTERM)
