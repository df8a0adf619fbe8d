"""`--local`: what the client's commands ask of a service, in this process, without HTTP and without
its limits.

`generate`, `project` and `score` are the pipeline of `ign bulk`. The other commands call the app,
without a network.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ign_client import AsyncClient, InputError
from ign_client._inputs import Pictures, pictures
from ign_client._picture import Picture
from ign_client._results import MEASURES, Score
from service.api.app_state import AppState
from service.app import create_app, running_services
from service.bulk.pipeline import Item, Pipeline, parse_options
from service.domain.errors import RequestError
from service.settings import local_settings


@contextmanager
def local_client(model: str | None) -> Iterator["LocalClient"]:
    """A client of this process with one model, None for the default; raises StartupError if it does
    not load.

    An event loop runs in a thread until the block ends, which waits for the images that run.
    """
    running = running_services(local_settings(), model or "")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running) as services,
    ):
        yield LocalClient(services, portal)


class LocalClient:
    """Has the methods of `Client` that the commands call, with their results; threads may share
    it.
    """

    def __init__(self, services: AppState, portal: BlockingPortal) -> None:
        self._services = services
        self._portal = portal
        self._pipeline: Pipeline | None = None

    def generate(self, **options: Any) -> Sequence[Picture]:
        """As `Client.generate`."""
        first = options["offset"]
        return self._pictures("generate", range(first, first + options["n"]), options)

    def project(self, images: Pictures, **options: Any) -> Sequence[Picture]:
        """As `Client.project`."""
        return self._pictures("project", pictures(images), options)

    def score(self, images: Pictures, **options: Any) -> Sequence[Score]:
        """As `Client.score`."""
        return [
            Score(index=0, **{name: item.measures[name] for name in MEASURES})
            for item in self._portal.call(self._run, "score", pictures(images), options)
        ]

    def _pictures(
        self, task: str, sources: Iterable[bytes | int], options: dict[str, Any]
    ) -> Sequence[Picture]:
        return [
            Picture(bytes=item.content, format=options["format"])
            for item in self._portal.call(self._run, task, sources, options)
        ]

    async def _run(
        self, task: str, sources: Iterable[bytes | int], options: dict[str, Any]
    ) -> Sequence[Item]:
        if self._pipeline is None:  # all calls of a command have the same options
            self._pipeline = Pipeline(
                parse_options(task, options), self._services, options.get("mask")
            )
        try:
            items = [item for source in sources for item in await self._pipeline.pages(source)]
        except RequestError as exc:
            raise InputError(exc.detail) from None
        await self._pipeline.run(items)
        for item in items:
            if item.error is not None:
                raise InputError(item.error.detail)
        return items

    def __getattr__(self, name: str) -> Any:
        app = httpx.ASGITransport(create_app(self._services))
        method = getattr(AsyncClient("http://local", timeout=None, transport=app), name)
        return lambda *arguments, **options: self._portal.call(
            partial(method, *arguments, **options)
        )
