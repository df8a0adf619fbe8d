"""`--local`: what the client's commands ask of a service, in this process, without HTTP and without its limits.

`generate`, `project` and `score` are the pipeline of `ign bulk`. The other commands call the app, without a network.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from ign_client import Client, InputError
from ign_client._inputs import Pictures, pictures
from ign_client._picture import Picture
from ign_client._results import MEASURES, Score
from service.api.app_state import AppState
from service.app import create_app, running_services
from service.bulk.pipeline import Item, Pipeline, parse_options
from service.domain.errors import RequestError
from service.settings import local_settings

T = TypeVar("T")
Wait = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine on the event loop of the model; any thread may call it."""


@contextmanager
def local_client(model: str | None) -> Iterator["LocalClient"]:
    """A client of this process with one model, None for the default; raises StartupError if it does not load.

    An event loop runs in a thread until the block ends, which waits for the images that run.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="ign-local")
    thread.start()

    def wait(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    running = running_services(local_settings(), model or "")
    try:
        services = wait(running.__aenter__())
        try:
            yield LocalClient(services, wait)
        finally:
            wait(running.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class LocalClient:
    """Has the methods of `Client` that the commands call, with their results; threads may share it."""

    def __init__(self, services: AppState, wait: Wait) -> None:
        self._services, self._wait, self._lock = services, wait, threading.Lock()
        self._pipeline: Pipeline | None = None

    def generate(self, **options: Any) -> Sequence[Picture]:
        """As `Client.generate`."""
        pipeline, first = self._pipeline_for("generate", options), options["offset"]
        items = [Item(number) for number in range(first, first + options["n"])]
        return [Picture(bytes=item.content, format=options["format"]) for item in self._run(pipeline, items)]

    def project(self, images: Pictures, **options: Any) -> Sequence[Picture]:
        """As `Client.project`."""
        items = self._uploaded("project", images, options)
        return [Picture(bytes=item.content, format=options["format"]) for item in items]

    def score(self, images: Pictures, **options: Any) -> Sequence[Score]:
        """As `Client.score`."""
        items = self._uploaded("score", images, options)
        return [Score(index=0, **{name: item.measures[name] for name in MEASURES[1:]}) for item in items]

    def _uploaded(self, task: str, images: Pictures, options: dict[str, Any]) -> Sequence[Item]:
        pipeline, items = self._pipeline_for(task, options), list[Item]()
        for content in pictures(images):
            try:
                items += self._wait(pipeline.pages(content))
            except RequestError as exc:
                raise InputError(exc.detail) from None
        return self._run(pipeline, items)

    def _pipeline_for(self, task: str, options: dict[str, Any]) -> Pipeline:
        with self._lock:  # all calls of a command have the same options
            if self._pipeline is None:
                self._pipeline = Pipeline(parse_options(task, options), self._services, options.get("mask"))
            return self._pipeline

    def _run(self, pipeline: Pipeline, items: Sequence[Item]) -> Sequence[Item]:
        self._wait(pipeline.run(items))
        for item in items:
            if item.error is not None:
                raise InputError(item.error.detail)
        return items

    def __getattr__(self, name: str) -> Any:
        transport = httpx.ASGITransport(create_app(self._services))

        async def answer(request: httpx.Request) -> httpx.Response:
            response = await transport.handle_async_request(request)
            return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

        app = httpx.MockTransport(lambda request: self._wait(answer(request)))
        return getattr(Client("http://local", timeout=None, transport=app), name)
