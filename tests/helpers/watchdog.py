"""Event loops of a service under test that report each callback which takes too much CPU time."""

import asyncio
import gc
import inspect
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests.helpers.timed_loop import TimedLoop

# Of CPU time, where `slowness` is 1. On a busy machine any callback may once take 15 ms;
# `test_event_loop`, which repeats its requests, allows less.
LIMIT_S = 0.05

slow: list[str] = []  # what was reported
# CPU seconds of garbage collection by thread: it may hit any callback
_collecting_s = defaultdict[int, float](float)


def _on_collection(phase: str, _: dict[str, int]) -> None:
    _collecting_s[threading.get_ident()] += time.thread_time() * (1 if phase == "stop" else -1)


gc.callbacks.append(_on_collection)


def _cpu_s() -> float:
    return time.thread_time() - _collecting_s[threading.get_ident()]


def slowness() -> float:
    """CPU time of a fixed loop here and now over its time on a core of 3 GHz without coverage; at
    least 1.

    It runs several times, and the slowest counts: on a busy machine, the time varies with what
    shares the core.
    """
    times = []
    for _ in range(10):
        began = time.thread_time()
        sum(map(hash, map(str, range(10_000))))
        times.append(time.thread_time() - began)
    return max(1.0, max(times) / 0.001) * (3 if sys.gettrace() else 1)  # coverage counts lines


def _run(callback: Callable[..., Any], *args: Any) -> Any:
    path = _path(callback)
    began = _cpu_s()
    modules = len(sys.modules)
    try:
        return callback(*args)
    finally:
        seconds = _cpu_s() - began
        if seconds > LIMIT_S and len(sys.modules) == modules and seconds > LIMIT_S * slowness():
            slow.append(f"{seconds * 1e3:.1f} ms: {callback} {path}")


def _path(callback: Callable[..., Any]) -> str:
    """The path of the request whose task goes on; empty for other callbacks."""
    task = getattr(callback, "__self__", None)
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    cycle = (
        inspect.getcoroutinelocals(coroutine).get("self")
        if inspect.iscoroutine(coroutine)
        else None
    )
    return str(cycle.scope["path"]) if isinstance(cycle, RequestResponseCycle) else ""


def watched(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """The loop, which times its callbacks and those of the connections that it accepts."""
    create_server = loop.create_server

    def schedule(place: int, schedule: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if args[place] is not _run:  # else one of these methods calls another
            args = (*args[:place], _run, *args[place:])
        return schedule(*args, **options)

    def create_watched_server(make: Callable[[], Any], **options: Any) -> Any:
        def make_watched() -> Any:
            protocol = make()
            for name in ("connection_made", "data_received", "eof_received", "connection_lost"):
                setattr(protocol, name, partial(_run, getattr(protocol, name)))
            return protocol

        return create_server(make_watched, **options)

    # of the callback
    places = {"call_soon": 0, "call_soon_threadsafe": 0, "call_later": 1, "call_at": 1}
    watching = {
        name: partial(schedule, place, getattr(loop, name)) for name, place in places.items()
    }
    for name, method in {**watching, "create_server": create_watched_server}.items():
        setattr(loop, name, method)
    return loop


def auto_loop() -> asyncio.AbstractEventLoop:
    """What uvicorn calls auto."""
    return watched(uvloop.new_event_loop())


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """What uvicorn calls asyncio."""
    return watched(TimedLoop())
