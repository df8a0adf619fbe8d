"""The same app on a Ray cluster: `serve run service.cluster:app`, or `deploy/kuberay` on Kubernetes.

Ray Serve says how many replicas there are and where, and its proxies spread the requests; a replica is the whole
service, without its own server. The settings are those of the process that deploys, so that all replicas have the same.
"""

import asyncio
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.app_state import AppState
from service.api.http.problems import send_problem
from service.domain.errors import NotReady, StartupError
from service.environment import prepare_process
from service.settings import Settings, from_environment, log_name_warnings

_REQUEST_ID: Final = b"x-request-id"
_HEALTH_S: Final = 5.0  # between two looks at a replica; it is replaced after three bad ones


class Options(BaseModel):
    """What may follow `serve run service.cluster:app`, as `name=value`, or stand under `args` in a configuration.

    Args:
        min_replicas, max_replicas: bounds of the autoscaling.
        target_ongoing_requests: requests in flight at a replica, on average, that are worth another one.
        max_ongoing_requests: requests in flight at a replica beyond which the proxies wait.
        gpus: of each replica; with any, a replica runs on CUDA, on all of them, or does not start.
        cpus: of each replica; without a GPU, its threads.
        upscale_delay_s, downscale_delay_s: how long a change must last before it is followed.
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


def app(options: Options) -> Any:
    """The application that Ray Serve deploys.

    Raises:
        StartupError: a setting is unusable, or the options contradict it.
    """
    from ray import serve

    settings = _settings(options)
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
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment(serve.ingress()(Replica)).bind(settings)


def _settings(options: Options) -> Settings:
    settings = from_environment()
    log_name_warnings()
    if options.gpus and settings.device == "cpu":
        raise StartupError(f"gpus={options.gpus:g} contradicts IGN_DEVICE=cpu")
    if options.gpus:
        return settings.replace(device="cuda", workers=1, gpu_count=max(1, int(options.gpus)))
    if settings.device == "cuda":
        raise StartupError("IGN_DEVICE=cuda needs gpus=1: Ray shows a replica no other GPUs than its own")
    # Replicas share a node: each takes the threads that it was given the CPUs for.
    return settings.replace(device="cpu", workers=1, threads=settings.threads or max(1, int(options.cpus)))


class Replica:
    """One whole service, in a process of Ray's.

    Args:
        settings: of all replicas.

    Raises:
        StartupError: no onnxruntime is installed, or two.
    """

    def __init__(self, settings: Settings) -> None:
        prepare_process()
        self._settings = settings
        self._loaded = asyncio.Event()
        self._refusal: StartupError | None = None
        self._services: AppState | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app, whose lifespan Ray then runs."""
        from service.app import build_services, create_app

        self._services = build_services(self._settings)
        return create_app(self._services, on_startup_error=self._refuse, on_ready=self._loaded.set)

    async def check_health(self) -> None:
        """What Ray asks before it sends requests here, and every few seconds from then on.

        Raises:
            StartupError: a model cannot be loaded.
            NotReady: a worker is being replaced, or the device is lost.
        """
        await self._loaded.wait()
        if self._refusal is not None:
            raise self._refusal
        if self._services is not None:
            self._services.require_ready()

    def _refuse(self, exc: StartupError) -> None:
        self._refusal = exc
        self._loaded.set()


def proxy() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.cluster.proxy`, in the environment of every node."""
    return [Middleware(Front)]


class Front:
    """Stands in Ray's proxies, in front of everything.

    Where a replica dies with a request in hand, Ray answers 500, as if the request were at fault. Here that is a 503,
    which clients repeat. And Ray puts the request's id into an answer that has it already.

    Args:
        app: Ray's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def back(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": once(message.get("headers", ()))}
            await send(message)

        await self._app(scope, receive, back)
        if not started:
            ids = [value for name, value in scope["headers"] if name == _REQUEST_ID]
            scope.setdefault("state", {})["request_id"] = ids[-1].decode("latin-1") if ids else ""
            await send_problem(scope, back, NotReady("the replica that had this request is gone; send it again"))


def once(headers: Any) -> list[tuple[bytes, bytes]]:
    """Headers (name, value), the request's id but once."""
    found = [(bytes(name), bytes(value)) for name, value in headers]
    first = next((header for header in found if header[0].lower() == _REQUEST_ID), None)
    return [header for header in found if header[0].lower() != _REQUEST_ID or header is first]
