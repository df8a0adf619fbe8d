"""Both clients behind one interface, and services made of canned responses."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx

from ign_client import AsyncClient, Client

Answer = httpx.Response | BaseException
Piece = bytes | Exception | Callable[[], None]
NOW = 1_000_000.0


class Canned(httpx.MockTransport):
    """Returns its responses in turn, and keeps the requests; for either client."""

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[httpx.Request] = []
        self._answers = list(answers)
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        # the same one may be sent again, to either client
        return httpx.Response(answer.status_code, headers=answer.headers, stream=answer.stream)


class Ask:
    """Calls a method of a client made for it; ``waits`` are the seconds that the client would have
    slept.
    """

    def __init__(self, kind: type[Client] | type[AsyncClient]) -> None:
        self.kind = kind
        self.waits: list[float] = []
        self.settings: dict[str, Any] = {
            "clock": lambda: NOW,
            "jitter": lambda: 0.0,
            "max_retries": 2,
        }

    def client(self, to: str | httpx.MockTransport) -> Any:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        is_async = self.kind is AsyncClient
        own: dict[str, Any] = {"sleep": sleep if is_async else self.waits.append, **self.settings}
        if not isinstance(to, str):
            return self.kind(transport=to, **own)
        over_network: Any = httpx.AsyncHTTPTransport if is_async else httpx.HTTPTransport
        # without certificates, because reading them takes longer than most calls
        return self.kind(to, transport=over_network(verify=False), **own)

    def __call__(
        self, to: str | httpx.MockTransport, method: str, /, *arguments: Any, **options: Any
    ) -> Any:
        """The result of the method; of a stream all events."""
        is_stream = method.startswith("stream_")

        async def answer() -> Any:
            async with self.client(to) as client:
                called = getattr(client, method)(*arguments, **options)
                return [event async for event in called] if is_stream else await called

        if self.kind is AsyncClient:
            return asyncio.run(answer())
        with self.client(to) as client:
            called = getattr(client, method)(*arguments, **options)
            return list(called) if is_stream else called


def problem(
    status: int, code: str = "some_code", errors: object = None, **headers: str
) -> httpx.Response:
    document = {"detail": "a reason", "code": code, "request_id": "abc", "errors": errors}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=document, headers=named)


def ready() -> httpx.Response:
    return httpx.Response(200, json={"status": "ready", "models": {}})


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces, which may break or call a function; `closed` says whether the client closed
    it.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.closed = False
        self._pieces = list(pieces)

    def __iter__(self) -> Any:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                yield piece
            else:
                piece()

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def streamed(*pieces: Piece) -> tuple[httpx.Response, Body]:
    body = Body(pieces)
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Request-ID": "abc"}
    return httpx.Response(200, headers=headers, stream=body), body


def event(name: str, **members: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(members)}\n\n".encode()


MODEL = {"name": "toy", "version": "1", "digest": "sha256:" + "0" * 64}
CARD = MODEL | {"shape": [1, 8, 8], "range": [-1.0, 1.0], "device": "cpu", "provider": "x"}
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
    "inverted": False,
}
STEP = {"index": 0, "step": 1, "data": "aGVsbG8=", "format": "png", "change": 0.5}
SCORE = {"index": 0, "distance": 0.5, "drift": 0.25, "percentile": None, "in_distribution": None}


def generated(**changes: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "request_id": "abc",
        "seed": 1,
        "images": [IMAGE],
        "timing": TIMING,
        **changes,
    }


def answer(count: int = 1, start: int = 0, **changes: Any) -> httpx.Response:
    images = [IMAGE | {"index": start + i} for i in range(count)]
    return httpx.Response(200, json=generated(**{"images": images, **changes}))


def limited(models: Sequence[Any] = (), **limits: int) -> httpx.Response:
    """`/models` of a service with these limits."""
    every = {"n": 64, "images": 64, "steps": 1, "frames": 2, "body_bytes": 1 << 24, "pixels": 1}
    document = {"models": models, "default": "toy/1", "limits": every | limits}
    return httpx.Response(200, json=document)
