"""The app as a Ray Serve deployment: `serve run service.cluster:app`, or `deploy/kuberay` on Kubernetes.

Ray Serve starts and stops replicas, and its proxies distribute the requests. A replica is the whole service without its
own HTTP server. All replicas have the settings of the process that deploys.
"""

import asyncio
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.app_state import AppState
from service.api.problems import send_problem
from service.domain.errors import NotReady, StartupError
from service.environment import prepare_process
from service.settings import Settings, from_environment, log_name_warnings

_REQUEST_ID: Final = b"x-request-id"
_HEALTH_CHECK_S: Final = 5.0  # Ray replaces a replica after three failed checks


class DeploymentOptions(BaseModel):
    """Options of `serve run service.cluster:app`, as `name=value`, or under `args` in a configuration file.

    Args:
        min_replicas: lower limit of the autoscaling.
        max_replicas: upper limit of the autoscaling.
        target_ongoing_requests: mean number of requests in flight per replica that the autoscaling aims at.
        max_ongoing_requests: requests in flight per replica; beyond it, requests wait in the proxies.
        gpus: GPUs of each replica. With any, a replica uses CUDA on all of them, or does not start.
        cpus: CPUs of each replica. Without a GPU, a model has as many threads.
        upscale_delay_s: seconds that the load must be high before a replica is added.
        downscale_delay_s: seconds that the load must be low before a replica is removed.
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
    """Build the application that Ray Serve deploys.

    Raises:
        StartupError: a setting is unusable, or contradicts the options.
    """
    from ray import serve

    settings = replica_settings(options)
    deployment = serve.deployment(
        name="ign",
        max_ongoing_requests=options.max_ongoing_requests,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": max(options.max_replicas, options.min_replicas),
            "target_ongoing_requests": options.target_ongoing_requests,
            "upscale_delay_s": options.upscale_delay_s,
            "downscale_delay_s": options.downscale_delay_s,
        },
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment(serve.ingress()(Replica)).bind(settings)


def replica_settings(options: DeploymentOptions) -> Settings:
    """The settings of each replica: those of this process, with the devices of the options.

    Raises:
        StartupError: a setting is unusable, or contradicts the options.
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
    return settings.replace(device="cpu", workers=1, threads=settings.threads or max(1, int(options.cpus)))


class Replica:
    """One service in a process of Ray.

    Args:
        settings: from `replica_settings`.

    Raises:
        StartupError: no onnxruntime is installed, or two are.
    """

    def __init__(self, settings: Settings) -> None:
        prepare_process()
        self._settings = settings
        self._loaded = asyncio.Event()  # also set when loading has failed
        self._startup_error: StartupError | None = None
        self._services: AppState | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the app; Ray calls this, and runs the app's lifespan."""
        from service.app import build_services, create_app  # here: it imports onnxruntime

        self._services = build_services(self._settings)
        return create_app(self._services, on_startup_error=self._fail, on_ready=self._loaded.set)

    async def check_health(self) -> None:
        """Pass if the replica can serve. Ray calls this before it sends requests, and every few seconds after that.

        Raises:
            StartupError: a model does not load.
            NotReady: a worker is being replaced, or the device is lost.
        """
        await self._loaded.wait()
        if self._startup_error is not None:
            raise self._startup_error
        if self._services is not None:
            self._services.require_ready()

    def _fail(self, exc: StartupError) -> None:
        self._startup_error = exc
        self._loaded.set()


def proxy() -> list[Middleware]:
    """The middleware of Ray's proxies.

    Set `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.cluster.proxy` on every node.
    """
    return [Middleware(RayProxyMiddleware)]


class RayProxyMiddleware:
    """Corrects two responses of Ray's proxies.

    - When a replica dies during a request, Ray answers 500, which clients do not repeat. This answers 503.
    - Ray adds `X-Request-ID` to a response that already has it.

    Args:
        app: Ray's proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_corrected(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": drop_duplicate_request_id(message.get("headers", ()))}
            await send(message)

        await self._app(scope, receive, send_corrected)
        if not started:
            ids = [value for name, value in scope["headers"] if name == _REQUEST_ID]
            scope.setdefault("state", {})["request_id"] = ids[-1].decode("latin-1") if ids else ""
            problem = NotReady("the replica that had this request is gone; send it again")
            await send_problem(scope, send_corrected, problem)


def drop_duplicate_request_id(headers: Any) -> list[tuple[bytes, bytes]]:
    """The headers (name, value) with the first `X-Request-ID` only."""
    pairs = [(bytes(name), bytes(value)) for name, value in headers]
    first = next((pair for pair in pairs if pair[0].lower() == _REQUEST_ID), None)
    return [pair for pair in pairs if pair[0].lower() != _REQUEST_ID or pair is first]
