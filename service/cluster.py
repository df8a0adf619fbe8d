"""The app as a Ray Serve deployment: `serve run service.cluster:app`, or on Kubernetes the chart in
`deploy`.

A replica is the whole service without its HTTP server; Ray's proxies distribute the requests. See
docs/ray.md.
"""

import asyncio
import time
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.app_state import AppState
from service.api.problems import describe, problem_response
from service.domain.errors import NotReady, StartupError
from service.environment import prepare_process
from service.observability.shared import FRESH_S, Texts, add_up
from service.settings import Settings, from_environment, log_name_warnings

_REQUEST_ID: Final = "x-request-id"
_METRICS: Final = "ign-metrics"  # the actor that holds them


class DeploymentOptions(BaseModel):
    """Options of `serve run service.cluster:app`, or `args` in a configuration file; docs/ray.md
    describes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=8, ge=1)
    target_ongoing_requests: float = Field(default=32, gt=0)
    max_ongoing_requests: int = Field(default=256, ge=1)
    gpus: float = Field(default=0, ge=0)
    cpus: float = Field(default=1, gt=0)
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)


def app(options: DeploymentOptions) -> Any:
    """Build the application that Ray Serve deploys; raises as `replica_settings`."""
    from ray import serve

    settings = replica_settings(options)
    scaling = options.model_dump(exclude={"max_ongoing_requests", "gpus", "cpus"})
    deployment = serve.deployment(
        name="ign",
        max_ongoing_requests=options.max_ongoing_requests,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config=scaling
        | {"max_replicas": max(options.max_replicas, options.min_replicas)},
        health_check_period_s=5.0,  # Ray replaces a replica after three failed checks
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment(serve.ingress()(Replica)).bind(settings)


def replica_settings(options: DeploymentOptions) -> Settings:
    """The settings of each replica: those of this process, with the devices of the options.

    Raises StartupError if a setting is unusable, or contradicts the options.
    """
    settings = from_environment()
    log_name_warnings()
    if options.gpus and settings.device == "cpu":
        raise StartupError(f"gpus={options.gpus:g} contradicts IGN_DEVICE=cpu")
    if options.gpus:
        return settings.replace(device="cuda", workers=1, gpu_count=max(1, int(options.gpus)))
    if settings.device == "cuda":
        raise StartupError("IGN_DEVICE=cuda needs gpus=1: Ray hides all other GPUs from a replica")
    # Replicas share a node, so each may use only the CPUs that Ray reserves for it.
    return settings.replace(
        device="cpu", workers=1, threads=settings.threads or max(1, int(options.cpus))
    )


class ReplicaMetrics:
    """The metrics of all replicas, those that have ended included: Ray runs one in a process of its
    own.
    """

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, str]] = {}
        self._ended = ""

    def put(self, replica: str, text: str) -> None:
        """Keep the metrics of a replica."""
        self._texts[replica] = time.monotonic(), text
        old = time.monotonic() - 6 * FRESH_S
        for gone in [each for each, (at, _) in self._texts.items() if at < old]:
            self._ended = add_up([(self._ended, False), (self._texts.pop(gone)[1], False)]).decode()

    def texts(self) -> list[tuple[str, bool]]:
        """As `SharedTexts.read`."""
        fresh = time.monotonic() - FRESH_S
        return [(self._ended, False), *((text, at >= fresh) for at, text in self._texts.values())]


class RaySharedTexts:
    """`SharedTexts` in an actor that outlives the replicas, so that no counter of a scrape
    decreases.
    """

    def __init__(self) -> None:
        from ray import serve

        self._replica = serve.get_replica_context().replica_id.unique_id

    def earlier(self) -> str:
        """As `SharedTexts`."""
        return ""  # a replica that takes the place of another has another id

    def write(self, text: bytes) -> None:
        """As `SharedTexts`."""
        self._call("put", self._replica, text.decode())

    def read(self) -> Texts:
        """As `SharedTexts`; raises `NotReady` if the actor does not answer."""
        try:
            texts: Texts = self._call("texts")
        except OSError as exc:
            raise NotReady("the metrics of the replicas are out of reach") from exc
        return texts

    @staticmethod
    def _call(method: str, *values: str) -> Any:
        import ray

        make = ray.remote(ReplicaMetrics).options(
            name=_METRICS,
            namespace="serve",
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
        )
        try:
            return ray.get(getattr(make.remote(), method).remote(*values), timeout=5.0)
        except ray.exceptions.RayError as exc:
            raise OSError(f"{type(exc).__name__} of the actor {_METRICS}") from exc


class Replica:
    """One service in a process of Ray, made on the event loop that serves."""

    def __init__(self, settings: Settings) -> None:
        prepare_process()
        self._settings = settings
        self._loading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.services: AppState | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the app; Ray calls this, and runs the app's lifespan."""
        from service.app import build_services, create_app  # here: it imports onnxruntime

        loading = self._loading
        self.services = build_services(self._settings, shared=RaySharedTexts())
        return create_app(
            self.services,
            on_loaded=lambda error: (
                loading.set_result(None) if error is None else loading.set_exception(error)
            ),
        )

    async def check_health(self) -> None:
        """Raise unless the replica can serve. Ray calls this before it sends requests, and every
        few seconds then.
        """
        await asyncio.shield(self._loading)
        if self.services is not None:
            self.services.require_ready()


def proxy() -> list[Middleware]:
    """The middleware of the proxies:
    `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.cluster.proxy`, on each node.

    When a replica dies during a request, Ray answers 500, which clients do not repeat; this answers
    503, and ends event streams that have begun with the event `error`. Ray also adds `X-Request-ID`
    to a response that already has it.
    """
    return [Middleware(_corrected)]


def _corrected(proxied: ASGIApp) -> ASGIApp:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        last: Message = {}
        is_stream = False

        async def send_corrected(message: Message) -> None:
            nonlocal last, is_stream
            last = message
            if message["type"] == "http.response.start":
                headers = MutableHeaders(
                    raw=[(name.lower(), value) for name, value in message.get("headers", ())]
                )
                is_stream = headers.get("content-type", "").startswith("text/event-stream")
                for request_id in headers.getlist(_REQUEST_ID)[:1]:
                    headers[_REQUEST_ID] = request_id  # in place of all
                message = {**message, "headers": headers.raw}
            await send(message)

        await proxied(scope, receive, send_corrected)
        is_complete = last.get("type") == "http.response.body" and not last.get("more_body", False)
        if scope["type"] == "http" and (not last or (is_stream and not is_complete)):
            ids = Headers(scope=scope).getlist(_REQUEST_ID)
            response = problem_response(
                describe(NotReady("the replica that had this request is gone; send it again")),
                ids[-1] if ids else "",
                scope.get("path", ""),
            )
            if not last:
                await response(scope, receive, send)
            else:
                await send(
                    {
                        "type": "http.response.body",
                        "body": b"\n\nevent: error\ndata: %s\n\n" % bytes(response.body),
                    }
                )

    return handle
