"""Both clients behind one face, and a service made of canned answers."""

import asyncio
import json
import ssl
from collections.abc import Iterable
from typing import Any

import httpx

from ign_client import AsyncClient, Client

Answer = httpx.Response | BaseException
NOW = 1_000_000.0
TLS = ssl.create_default_context()  # made once: reading the certificates takes longer than most calls
TOLD: dict[str, Any] = {"clock": lambda: NOW, "jitter": lambda: 0.0}


class Canned(httpx.MockTransport):
    """Answers in turn, and remembers what it was asked; for either client."""

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[httpx.Request] = []
        self._answers = list(answers)
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Ask:
    """Calls a method of a client made for it.

    Args:
        waits: how long the client would have slept.
    """

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    def stream(self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any) -> list[Any]:
        raise NotImplementedError


class Blocking(Ask):
    def client(self, to: str | httpx.MockTransport) -> Client:
        transport = httpx.HTTPTransport(verify=TLS) if isinstance(to, str) else to
        return Client(to if isinstance(to, str) else None, transport=transport, sleep=self.waits.append, **TOLD)

    def __call__(self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any) -> Any:
        with self.client(to) as client:
            return getattr(client, method)(*arguments, **options)

    def stream(self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any) -> list[Any]:
        with self.client(to) as client:
            return list(getattr(client, method)(*arguments, **options))


class Awaiting(Ask):
    def client(self, to: str | httpx.MockTransport) -> AsyncClient:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        transport = httpx.AsyncHTTPTransport(verify=TLS) if isinstance(to, str) else to
        return AsyncClient(to if isinstance(to, str) else None, transport=transport, sleep=sleep, **TOLD)

    def __call__(self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any) -> Any:
        async def answer() -> Any:
            async with self.client(to) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(answer())

    def stream(self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any) -> list[Any]:
        async def answer() -> list[Any]:
            async with self.client(to) as client:
                return [event async for event in getattr(client, method)(*arguments, **options)]

        return asyncio.run(answer())


def refusal(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    document = {"type": "about:blank", "status": status, "detail": "a reason", "code": code, "request_id": "abc"}
    kind = {"Content-Type": "application/problem+json", "X-Request-ID": "abc"}
    return httpx.Response(
        status, json=document, headers={**kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
    )


def ready() -> httpx.Response:
    return httpx.Response(200, json={"status": "ready", "models": {}})


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces, which may break, and knows whether it was closed."""

    def __init__(self, pieces: Iterable[bytes | Exception]) -> None:
        self.closed = False
        self._pieces = list(pieces)

    def _next(self) -> bytes | None:
        piece = self._pieces.pop(0) if self._pieces else None
        if isinstance(piece, Exception):
            raise piece
        return piece

    def __iter__(self) -> Any:
        while (piece := self._next()) is not None:
            yield piece

    async def __aiter__(self) -> Any:
        while (piece := self._next()) is not None:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def streamed(*pieces: bytes | Exception, kind: str = "text/event-stream; charset=utf-8") -> tuple[httpx.Response, Body]:
    body = Body(pieces)
    return httpx.Response(200, headers={"Content-Type": kind, "X-Request-ID": "abc"}, stream=body), body


def event(name: str, **members: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(members)}\n\n".encode()


MODEL = {"name": "toy", "version": "1", "digest": "sha256:" + "0" * 64}
TIMING = {"decode_ms": 0.0, "queue_ms": 0.0, "compute_ms": 0.0, "encode_ms": 0.0}
IMAGE = {
    "index": 0,
    "data": "aGVsbG8=",
    "format": "png",
    "width": 1,
    "height": 1,
    "steps": 1,
    "converged": False,
    "distance": 0.5,
    "drift": None,
    "trajectory": None,
}


def generated(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "request_id": "abc", "seed": 1, "images": [IMAGE], "timing": TIMING, **changes}
