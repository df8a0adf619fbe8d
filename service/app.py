"""The composition root: everything is made here, handed what it needs, and taken down again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

from service import __version__
from service.api.app_state import AppState
from service.api.http import problems
from service.api.info import openapi_document, page, swagger
from service.api.info import routes as info
from service.api.middleware.access_log import AccessLogMiddleware
from service.api.middleware.auth import AuthMiddleware, load_keys, open_paths
from service.api.middleware.cors import CorsMiddleware
from service.api.middleware.errors import ErrorMiddleware
from service.api.middleware.fast_routes import FastRouter
from service.api.middleware.in_flight import ConcurrencyLimitMiddleware, InFlightRequests
from service.api.middleware.rate_limit import RateLimitMiddleware
from service.api.native import routes as native
from service.api.oip import repository as oip_repository
from service.api.oip import routes as oip
from service.domain.errors import StartupError
from service.environment import cpu_threads
from service.images.pool import CodecPool
from service.models.engine import Engine
from service.models.instances import InstanceFactory, least_rows
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import LoadedModel, Repository
from service.observability.logs import Observe
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.server.early_rejection import EarlyRejection
from service.settings import Settings, metrics_folder

_LOG = logging.getLogger(__name__)
_MAX_CODEC_THREADS = 8

Refuse = Callable[[StartupError], None]
Tell = Callable[[], None]


def create_app(
    settings: Settings, *, refuse: Refuse | None = None, ready: Tell | None = None, lost: Tell | None = None
) -> FastAPI:
    """The service as an ASGI application. Models load once its lifespan begins, while it already answers 503.

    Args:
        settings: what the operator decided.
        refuse: called when a model cannot be loaded; whoever runs the server then ends it.
        ready: called once every model is loaded.
        lost: called when a model has no device left; only another process has them back, so whoever runs the server
            then ends it.

    Raises:
        StartupError: the API keys file is unusable.
    """
    found = _services(settings, lost or _nobody)
    app = FastAPI(
        title="ign-service",
        summary="Idempotent Generative Networks over HTTP: generate, make real, walk between latents.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=openapi_document.operation_id,
        # The service counts for itself; FastAPI's own spans and metrics would look for a provider at every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        middleware=_middleware(settings, found),
        lifespan=lambda _: _lifespan(found, refuse, ready),
    )
    app.state.services = found
    app.include_router(native.router)
    app.include_router(info.router)
    app.include_router(oip.router)
    app.include_router(oip_repository.router)
    openapi_document.install(app, settings)
    swagger.install(app)
    page.install(app)
    problems.install(app)
    return app


def _nobody() -> None:
    """Nobody is to be told."""


def _services(settings: Settings, lost: Tell) -> AppState:
    metrics, traffic, engine = Metrics(metrics_folder()), InFlightRequests(), Engine()
    metrics.queue_limit.set(settings.queue_rows)
    repository = Repository(
        settings.model_dir,
        InstanceFactory(OnnxModel, settings),
        default=settings.default_model,
        precision=settings.precision,
    )
    return AppState(
        settings=settings,
        repository=repository,
        engine=engine,
        codec=CodecPool(min(cpu_threads(0), _MAX_CODEC_THREADS), metrics.codec),
        metrics=metrics,
        traffic=traffic,
        lineup=ModelRegistry(
            repository,
            engine,
            run=partial(_running, settings, metrics, lost),
            began=partial(_began, metrics),
            ended=metrics.unloaded,
            settled=traffic.settled,
        ),
    )


def make_door(found: AppState) -> EarlyRejection:
    """What stands in front of the app where the server has a place for it."""
    return EarlyRejection(traffic=found.traffic, limit=found.settings.max_connections, observe=_observer(found.metrics))


def _observer(metrics: Metrics) -> Observe:
    def observe(route: str, status: int, seconds: float, state: Mapping[str, Any]) -> None:
        metrics.request(route, status, seconds, state.get("model"))
        if "problem" in state:
            metrics.error(state["problem"])

    return observe


def _middleware(settings: Settings, found: AppState) -> list[Middleware]:
    keys = None if settings.api_keys_file is None else load_keys(settings.api_keys_file)
    limited = settings.rate_limit is not None or any(key.quota for key in keys or ())
    proxies = [str(network) for network in settings.trusted_proxies]
    layers = [Middleware(AccessLogMiddleware, trusted_proxies=proxies, observe=_observer(found.metrics))]
    if settings.cors_origins:
        layers.append(Middleware(CorsMiddleware, origins=settings.cors_origins))
    return [
        *layers,
        Middleware(ErrorMiddleware),
        Middleware(ConcurrencyLimitMiddleware, traffic=found.traffic, limit=settings.max_connections),
        Middleware(AuthMiddleware, keys=keys, open_paths=open_paths(settings.closed)),
        *([Middleware(RateLimitMiddleware, rate=settings.rate_limit, parts=settings.workers)] if limited else []),
        Middleware(FastRouter, routes=_busy_routes()),
    ]


def _busy_routes() -> list[APIRoute]:
    routes = [route for route in (*native.router.routes, *oip.router.routes) if isinstance(route, APIRoute)]
    return [route for route in routes if route in native.router.routes or route.endpoint is oip.infer]


@asynccontextmanager
async def _lifespan(found: AppState, refuse: Refuse | None, ready: Tell | None) -> AsyncIterator[None]:
    loading = asyncio.create_task(_load(found, refuse, ready))
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await found.lineup.close()
        found.codec.close()
        found.repository.close()


async def _load(found: AppState, refuse: Refuse | None, ready: Tell | None) -> None:
    try:
        models = await asyncio.to_thread(found.repository.load_all)
        _serve(found, models)
        if ready is not None:
            ready()
    except Exception as exc:
        found.phase = "failed"
        failure = _as_refusal(exc)
        if refuse is None:
            _LOG.error("%s", failure.detail)
        else:
            refuse(failure)


def _as_refusal(exc: Exception) -> StartupError:
    if isinstance(exc, StartupError):
        return exc
    if isinstance(exc, OSError):
        return StartupError(f"the models cannot be read: {exc}")
    _LOG.error("loading the models failed", exc_info=exc)
    return StartupError("loading the models failed in a way nobody foresaw; the log says how")


def _serve(found: AppState, models: Mapping[str, LoadedModel]) -> None:
    for loaded in models.values():
        found.lineup.begin(loaded)
    found.phase = "serving"
    found.metrics.ready.set(1)


def _began(metrics: Metrics, loaded: LoadedModel) -> None:
    metrics.loaded(
        loaded.ref,
        digest=loaded.digest[:12],
        provider=loaded.provider,
        reproducible=loaded.golden.reproducible,
        quantiles=loaded.card.distance_quantiles,
        sessions=len(loaded.models),
    )
    reason = f" ({loaded.fallback_reason})" if loaded.fallback_reason else ""
    side_by_side = f" in {len(loaded.models)} sessions" if loaded.copies else ""
    _LOG.info("serving %s on %s%s%s", loaded.ref, loaded.device, side_by_side, reason)


def _running(settings: Settings, metrics: Metrics, lost: Tell, loaded: LoadedModel) -> ServedModel:
    statistics = ModelStatistics(metrics.scheduler(loaded.ref))
    scheduler = Scheduler(
        *loaded.models,
        max_batch_rows=settings.max_batch_rows,
        queue_rows=settings.queue_rows,
        observer=statistics,
        lost=lost,
        least=least_rows(loaded),
    )
    return ServedModel(scheduler=scheduler, statistics=statistics)
