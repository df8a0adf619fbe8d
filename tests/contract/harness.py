"""The whole service on a real port, with tiny real models, and what its tests ask of it."""

import asyncio
import hashlib
import json
import logging
import math
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import httpx
import pytest
import uvicorn
import uvicorn.server
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from service.api.app_state import AppState
from service.api.native.answers import ProblemDocument
from service.app import build_services, create_app
from service.domain.latents import FloatRows
from service.observability.logs import JsonFormatter
from service.runtime.onnx_model import OnnxModel
from service.server.open_connections import OpenConnections
from service.server.uvicorn_server import config
from service.settings import Settings
from tests.contract.data import COLOUR, GREY, array
from tests.helpers import watchdog
from tests.helpers.connection import Connection
from tests.helpers.onnx_models import write_model
from tests.helpers.timed_loop import TimedLoop

Model = TypeVar("Model", bound=BaseModel)

PATIENCE_S = 300.0  # nothing here takes a hundredth of it, unless the machine is busy
LIMIT_S = 60.0  # of a request, body, head or stream that a test lets time out, by `SKIP_S`
SKIP_S = 70.0
STEP_S = 0.5  # shorter than what the service takes for a pause of its process


async def _nap(seconds: float) -> None:
    """In place of the sleeps of uvicorn, of which each service would end with two."""
    await asyncio.sleep(seconds / 10)


vars(uvicorn.server)["asyncio"] = SimpleNamespace(**vars(asyncio) | {"sleep": _nap})


class Gate:
    """Stands in front of every pass of every model of one service."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Event()  # a pass is in, or was
        self.sizes: list[int] = []  # rows of every pass that went through
        self.rows: list[weakref.ref[FloatRows]] = []  # of every pass
        self.pass_s = 0.0  # how long the device takes at least
        self.fails = False

    def close(self) -> None:
        self.opened.clear()
        self.entered.clear()
        self.sizes.clear()

    def __enter__(self) -> "Gate":
        self.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.set()

    def model(self, *arguments: Any, **options: Any) -> OnnxModel:
        """Stands in for `OnnxModel`."""
        gate = self

        class Gated(OnnxModel):
            def run(self, rows: FloatRows) -> FloatRows:
                gate.rows.append(weakref.ref(rows))
                gate.entered.set()
                if gate.fails:
                    raise RuntimeError("secret")
                if not gate.opened.wait(PATIENCE_S):
                    raise RuntimeError("nobody opened the gate")
                if gate.pass_s:
                    threading.Event().wait(gate.pass_s)
                gate.sizes.append(len(rows))
                return super().run(rows)

        return Gated(*arguments, **options)


class Clock:
    """Monotonic time in which a test can skip seconds."""

    def __init__(self) -> None:
        self._now: Callable[[], float] = time.monotonic

    def __call__(self) -> float:
        return self._now()

    async def skip(self, seconds: float) -> None:
        """Go on in steps, in each of which the timers of the loop fire; between them, time stands
        still.
        """
        now = self()
        for step in range(math.ceil(seconds / STEP_S)):
            self._now = partial(float, now + (step + 1) * STEP_S)
            for _ in range(2):
                await asyncio.sleep(0)
        skipped = self() - time.monotonic()
        self._now = lambda: time.monotonic() + skipped


@dataclass
class Service:
    """A running service."""

    url: str
    client: httpx.Client
    services: AppState
    loop: Callable[[], asyncio.AbstractEventLoop]
    clock: Clock
    errors: list[logging.LogRecord] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(
        self, path: str, json: Any = None, *, accept: str | None = None, **options: Any
    ) -> httpx.Response:
        headers = httpx.Headers(options.pop("headers", {}))
        if accept is not None:
            headers["Accept"] = accept
        if json is not None:
            options["json"] = json
        return self.client.post(path, headers=headers, **options)

    def images(self, path: str, body: Any) -> Any:
        """The images of an answer in JSON."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()["images"]

    def rows(self, path: str, **options: Any) -> FloatRows:
        """The rows of an answer as an array."""
        response = self.post(path, options, accept="application/x-npy")
        assert response.status_code == 200, response.text
        return array(response.content)

    @contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
        """A stream of `/generate` whose first line has come, and its other lines."""
        headers = {"Accept": "text/event-stream"}
        with self.client.stream("POST", "/generate", json=body, headers=headers) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: step"
            yield response, lines

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; now, as `/metrics` may be a second
        old.
        """
        self.get("/healthz")  # the event loop has counted the requests before this one
        self.services.update_gauges()
        families = text_string_to_metric_families(self.services.metrics.render()[0].decode())
        samples = [
            sample for family in families for sample in family.samples if sample.name == name
        ]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what only the service can bring about; every look is a request to it."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it never came"

    def until_metric(self, name: str, value: float, **labels: str) -> None:
        self.until(lambda: self.metric(name, **labels) == value)

    def until_queued(self, rows: int) -> None:
        self.until_metric("ign_queue_rows", float(rows))

    def until_in_flight(self, count: int) -> None:
        self.until(
            lambda: self.get("/healthz").is_success and self.services.in_flight.count == count
        )

    def until_idle(self) -> None:
        """Wait until no request is in flight, without a request."""
        asyncio.run_coroutine_threadsafe(self.services.in_flight.idle(), self.loop()).result(
            PATIENCE_S
        )

    def until_bytes(self, condition: Callable[[int], bool]) -> None:
        """Wait for a number of bytes in flight."""
        self.until(
            lambda: (
                self.get("/healthz").is_success and condition(self.services.in_flight.bytes.total)
            )
        )

    def skip(self, seconds: float = SKIP_S) -> None:
        """Let time pass at once: what is due meanwhile happens before this returns. Needs the loop
        `asyncio`.
        """
        assert isinstance(self.loop(), TimedLoop)
        asyncio.run_coroutine_threadsafe(self.clock.skip(seconds), self.loop()).result(PATIENCE_S)

    def overdue(
        self, send: Callable[[], httpx.Response], begun: Callable[[], object]
    ) -> httpx.Response:
        """The response to a request after which, when ``begun`` returns, `SKIP_S` pass."""
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(send)
            begun()
            self.skip()
            return response.result()

    def until_readable(self, connection: Connection) -> None:
        """Wait for bytes, or the end, on a connection; time is skipped as long as there is
        nothing.
        """
        while not connection.is_readable():
            self.skip(10.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The event loop stands still meanwhile, and then finds at once all that was sent."""
        held = threading.Event()
        go = threading.Event()

        def hold() -> None:
            held.set()
            go.wait(PATIENCE_S)

        self.loop().call_soon_threadsafe(hold)
        assert held.wait(PATIENCE_S)
        try:
            yield
        finally:
            go.set()

    @contextmanager
    def access_log(self) -> Iterator[list[dict[str, Any]]]:
        """The lines of the access log that this service writes meanwhile, as JSON."""
        lines: list[dict[str, Any]] = []
        write = JsonFormatter().format
        handler = _Heard(self.url, logging.INFO, lambda it: lines.append(json.loads(write(it))))
        logger = logging.getLogger("service.access")
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            yield lines
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class _Heard(logging.Handler):
    """Gives to ``take`` what one service logs, among several in this process."""

    def __init__(self, url: str, level: int, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(level)
        self._thread = f"loop of {url}"
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName == self._thread:
            self._take(record)


@contextmanager
def serving(
    settings: Settings,
    *,
    ready: bool = True,
    loop: Literal["auto", "asyncio"] = "auto",
) -> Iterator[Service]:
    """Run the service in a thread of its own; nothing may be logged as an error that the test did
    not expect.
    """
    clock = Clock()
    services = build_services(settings, clock=clock)
    app = create_app(services)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    how = config(app, OpenConnections(services))
    how.loop, how.timeout_graceful_shutdown = f"tests.helpers.watchdog:{loop}_loop", int(PATIENCE_S)
    server = _Server(how)
    server.clock = clock
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name=f"loop of {url}"
    )
    errors: list[logging.LogRecord] = []
    heard = _Heard(url, logging.ERROR, errors.append)
    for name in ("asyncio", "uvicorn.error", "service"):
        logging.getLogger(name).addHandler(heard)
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            service = Service(url, client, services, lambda: server.loop, clock, errors)
            if ready:
                service.until(lambda: service.get("/readyz").status_code == 200)
                watchdog.slow.clear()  # of the start
            yield service
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        for name in ("asyncio", "uvicorn.error", "service"):
            logging.getLogger(name).removeHandler(heard)
    assert not thread.is_alive()
    assert [logging.Formatter().format(record) for record in errors] == []


class _Server(uvicorn.Server):
    loop: asyncio.AbstractEventLoop
    clock: Clock

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        if isinstance(self.loop, TimedLoop):
            self.loop.clock = self.clock
        await super().serve(sockets)


@contextmanager
def gated(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    *,
    ready: bool = True,
    loop: Literal["auto", "asyncio"] = "auto",
) -> Iterator[tuple[Service, Gate]]:
    """The same, with a gate in front of every pass."""
    gate = Gate()
    monkeypatch.setattr("service.app.OnnxModel", gate.model)
    if not ready:
        gate.close()
    try:
        with serving(settings, ready=ready, loop=loop) as service:
            yield service, gate
    finally:
        gate.opened.set()


def later(
    service: Service, pool: ThreadPoolExecutor, body: dict[str, Any]
) -> Callable[[], httpx.Response]:
    """A `/generate` request on a connection of its own; call the result for its response."""
    return pool.submit(service.post, "/generate", body).result


@contextmanager
def held(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    body: dict[str, Any] | None = None,
    loop: Literal["auto", "asyncio"] = "auto",
) -> Iterator[tuple[Service, Gate]]:
    """A service with one request in the model, until the test opens the gate or ends; the request
    then succeeds.
    """
    with gated(monkeypatch, settings, loop=loop) as (service, gate), ThreadPoolExecutor(1) as pool:
        with gate:
            running = later(service, pool, body or {"steps": 1})
            assert gate.entered.wait(PATIENCE_S)
            yield service, gate
        assert running().status_code == 200


@contextmanager
def busy_codec(service: Service) -> Iterator[None]:
    """Every thread of the codec pool is busy."""
    codec = service.services.codec
    held = threading.Barrier(codec.threads + 2)
    free = threading.Event()

    def hold() -> None:
        held.wait(PATIENCE_S)
        free.wait(PATIENCE_S)

    async def hold_all() -> None:
        await asyncio.gather(
            *(codec.run("hold", hold, f"caller {i}") for i in range(codec.threads + 1))
        )

    holder = threading.Thread(target=lambda: asyncio.run(hold_all()))
    holder.start()
    held.wait(PATIENCE_S)
    try:
        yield
    finally:
        free.set()
        holder.join(PATIENCE_S)


def write_models(directory: Path) -> Path:
    """Grey in two versions, of which 10 is the higher, and colour."""
    write_model(directory, "grey", "2", GREY, scale=1.5)
    write_model(directory, "grey", "10", GREY)
    write_model(directory, "colour", "1", COLOUR, polarity="none", background=(-1.0, 0.0, 1.0))
    return directory


def settings(models: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "model_dir": models,
        "default_model": "grey",
        "device": "cpu",
        "threads": 1,
    }
    patience = {f"{what}_timeout_s": 2 * PATIENCE_S for what in ("request", "receive")}
    return Settings(**(values | patience | changes))


def write_keys(folder: Path, scopes: dict[str, str], **quotas: str) -> Path:
    """A file of API keys; the key of NAME is `NAME-key`."""
    keys = [
        {
            "name": name,
            "sha256": hashlib.sha256(f"{name}-key".encode()).hexdigest(),
            "scopes": scope.split(),
        }
        | ({"quota": quotas[name]} if name in quotas else {})
        for name, scope in scopes.items()
    ]
    file = folder / "keys.json"
    file.write_text(json.dumps(keys))
    return file


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key"}


def send(
    service: Service, path: str, content: bytes, kind: str = "application/json", **options: Any
) -> httpx.Response:
    headers = {"Content-Type": kind} | options.pop("headers", {})
    return service.post(path, content=content, headers=headers, **options)


def checked(response: httpx.Response, schema: type[Model]) -> Model:
    """The answer as its schema says, nothing missing, nothing more."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    answer = schema.model_validate_json(response.content, strict=True)
    assert answer.model_dump(mode="json", exclude_unset=True) == response.json()
    return answer


def problem(
    response: httpx.Response, status: int, code: str, field: str | None = None
) -> ProblemDocument:
    """A failure as the contract says; ``field`` is one of those it names."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    found = ProblemDocument.model_validate_json(response.content, strict=True)
    assert found.model_dump(mode="json", exclude_unset=True) == response.json()
    assert (found.status, found.code) == (status, code), found
    assert found.detail
    assert found.error == found.detail
    assert found.request_id == response.headers["X-Request-ID"]
    assert str(Path(__file__).parents[2]) not in response.text
    assert "Traceback" not in response.text
    if status == 422:
        assert (field is None) == (found.errors is None), found
    if field is not None:
        assert field in found.detail
        if found.errors is not None:
            assert field in [error.field for error in found.errors], found.errors
    return found
