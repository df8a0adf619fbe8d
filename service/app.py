"""The composition root: builds the service's parts, hands each what it needs, and closes them
again.
"""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service import __version__
from service.api import table
from service.api.access import load_keys
from service.api.app_state import AppState
from service.api.application import Application
from service.api.info import openapi, page
from service.api.info import routes as info
from service.api.native import endpoints as native
from service.api.native import score, urls
from service.api.oip import endpoints as oip
from service.api.openai import endpoints as openai
from service.domain.accounts import Capacity, InFlightRequests, Rates
from service.domain.errors import StartupError
from service.domain.model import Model
from service.environment import available_cpus, metrics_file
from service.images.pool import CodecPool
from service.models.instances import SharedModel, open_instances
from service.models.loaded import LoadedModel
from service.models.on_demand import Memory, OnDemandRepository
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import Repository, describe_failure, repository_options
from service.observability.metrics import Metrics
from service.observability.shared import SharedFiles, SharedTexts
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import cuda_is_built_in
from service.scheduling.lane import Clock
from service.scheduling.scheduler import Scheduler
from service.settings import Settings, trace_exporters

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

_LOG = logging.getLogger(__name__)
ENDPOINTS = (
    *native.ENDPOINTS,
    *score.ENDPOINTS,
    *urls.ENDPOINTS,
    *info.ENDPOINTS,
    *oip.ENDPOINTS,
    *openai.ENDPOINTS,
)
"""Those of every service; beside them are the page and the documents."""

OnLoaded = Callable[[StartupError | None], None]
"""Called once, when every model serves, or with the reason why one does not load: the app then
answers 503.
"""
Callback = Callable[[], None]


def build_services(
    settings: Settings,
    *,
    on_device_lost: Callback = lambda: None,
    shared: SharedTexts | None = None,
    only: str | None = None,
    clock: Clock = time.monotonic,
) -> AppState:
    """The parts of the service without HTTP; `load_models` makes them serve. Call it on the event
    loop that uses them.

    ``on_device_lost`` is called on that event loop when a model has no device left. Only a new
    process can use the devices again. ``shared`` is where the metrics of this service and those of
    others are; by default in the folder of `metrics_file`, if there is one. ``only`` is the one
    model to load, as of `Repository`; ``clock`` is `AppState.clock`. Threads of this process get
    the interpreter lock sooner from now on.
    """
    # After so long, a thread gives the interpreter lock to one that waits, such as a lane whose
    # model has returned. With Python's 5 ms, one process serves a tenth less.
    sys.setswitchinterval(0.0002)
    file = metrics_file()
    metrics = Metrics(shared or (SharedFiles(file) if file else None))
    tracing = _start_tracing()
    metrics.queue_limit.set(settings.queue_rows)
    in_flight = InFlightRequests(
        Capacity.of(settings.max_inflight_requests),
        # A body arrives in pieces, and the last one must find as much room as all before it have
        # taken.
        Capacity.of(
            max(settings.max_inflight_bytes, settings.max_body_bytes), 2 * settings.max_body_bytes
        ),
    )
    open_all = partial(open_instances, OnnxModel, alone=only is not None)
    options = repository_options(settings) | {
        "open_models": partial(open_all, settings),
        "only": only,
    }
    if settings.device == "auto":
        options["open_on_cpu"] = partial(open_all, settings.model_copy(update={"device": "cpu"}))
    if settings.model_memory_mib:
        memory = Memory(
            settings.model_memory_mib,
            on_change=metrics.open_models,
            on_opened=metrics.opened_models.inc,
        )
        repository: Repository = OnDemandRepository(
            memory=memory, max_batch_rows=settings.max_batch_rows, **options
        )
    else:
        repository = Repository(**options)
    registry = ModelRegistry(
        repository,
        serve=partial(_serve, settings, metrics, tracing, on_device_lost, clock),
        on_activated=_on_activated,
        wait_for_requests=in_flight.wait_for_current,
    )
    return AppState(
        settings=settings,
        registry=registry,
        codec=CodecPool(
            min(available_cpus(), 8),
            lambda part, seconds: metrics.codec(part).observe((seconds,)),
        ),
        metrics=metrics,
        in_flight=in_flight,
        # all processes count in one new folder
        rates=Rates(file.with_name("quotas") if file and settings.workers > 1 else None),
        tracing=tracing,
        clock=clock,
    )


def _start_tracing() -> "Tracing | None":
    """Start the traces that the variables `OTEL_…` ask for, if OpenTelemetry, which is optional, is
    installed.
    """
    exporters = trace_exporters()
    if not exporters:
        return None
    try:
        from service.observability.tracing import start_tracing
    except ImportError:  # something else in this environment may have set the variables
        _LOG.warning(
            "no traces, although OTEL_… variables ask for them: the extra `otel` is not installed"
        )
        return None
    return start_tracing(exporters)


async def load_models(services: AppState) -> None:
    """Load, verify and activate every model of the directory; raises StartupError if one does not
    load.
    """
    try:
        await services.registry.open()
    except Exception as exc:
        services.phase = "failed"
        text = describe_failure("the models", exc)
        if isinstance(exc, OSError):
            text = f"the models cannot be read: {exc}"
        raise StartupError(text) from exc
    services.phase = "serving"
    services.metrics.ready.set(1)


async def _close(services: AppState, seconds: float = 5.0) -> None:
    await services.registry.close(seconds)
    services.codec.close()
    if services.tracing is not None:
        await asyncio.to_thread(services.tracing.close)


@asynccontextmanager
async def running_services(settings: Settings, only: str | None = None) -> AsyncIterator[AppState]:
    """The services with their models loaded, for programs without HTTP; raises StartupError if one
    does not load.

    ``only``: as of `build_services`. At the end it waits for the steps that run: a thread in native
    code would abort the process as it exits.
    """
    services = build_services(settings, only=only)
    try:
        await load_models(services)
        yield services
    finally:
        await _close(services, 86_400.0)  # a day: no server limits it


def _log_error(error: StartupError | None) -> None:
    if error is not None:
        _LOG.error("%s", error.detail)


def create_app(services: AppState, *, on_loaded: OnLoaded = _log_error) -> Application:
    """The service as an ASGI application. Its lifespan loads the models, and answers 503 until
    then; it closes them.

    Raises StartupError if the API keys file is unusable, or the folder of the site.
    """
    settings = services.settings
    keys = () if settings.api_keys_file is None else load_keys(settings.api_keys_file)
    services.metrics.add_callers([key.name for key in keys])
    endpoints = [*ENDPOINTS, openapi.endpoint(ENDPOINTS, settings), *page.endpoints(settings.site)]
    app = FastAPI(
        title="ign-service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # The service has its own metrics; FastAPI's would look for a telemetry provider at every
        # request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lambda _: _lifespan(services, on_loaded),
    )
    table.install(app, endpoints)
    return Application(
        services,
        app,
        table.RouteTable(endpoints),
        keys={key.sha256: key for key in keys},
    )


@asynccontextmanager
async def _lifespan(services: AppState, on_loaded: OnLoaded) -> AsyncIterator[None]:
    loading = asyncio.create_task(_load(services, on_loaded))
    publishing = asyncio.create_task(_publish_gauges(services))
    try:
        yield
    finally:
        loading.cancel()
        publishing.cancel()
        await asyncio.gather(loading, publishing, return_exceptions=True)
        await asyncio.to_thread(services.metrics.publish)  # what it has counted since
        await _close(services)


async def _publish_gauges(services: AppState) -> None:
    """Leave this process's metrics every second for those who answer scrapes too, if there are
    others.
    """
    while services.metrics.shared is not None:
        services.update_gauges()
        await asyncio.to_thread(services.metrics.publish)
        await asyncio.sleep(1.0)


async def _load(services: AppState, on_loaded: OnLoaded) -> None:
    try:
        await load_models(services)
    except StartupError as exc:
        on_loaded(exc)
    else:
        on_loaded(None)


def _on_activated(loaded: LoadedModel) -> None:
    # A build without CUDA on a CPU is no fault; `/readyz` gives this reason too.
    reason = f" ({loaded.fallback_reason})" if loaded.fallback_reason and cuda_is_built_in() else ""
    instances = f" in {len(loaded.instances)} instances" if len(loaded.instances) > 1 else ""
    _LOG.info("serving %s on %s%s%s", loaded.card.ref, loaded.device, instances, reason)


def _serve(
    settings: Settings,
    metrics: Metrics,
    tracing: "Tracing | None",
    on_device_lost: Callback,
    clock: Clock,
    loaded: LoadedModel,
) -> ServedModel:
    card = loaded.card
    statistics = ModelStatistics(metrics, card.ref)
    instances: Sequence[Model] = loaded.instances
    if card.tiles:
        instances = [SharedModel(each) for each in loaded.instances]

    def make_scheduler() -> Scheduler:
        return Scheduler(
            *instances,
            max_batch_rows=card.batch_rows(settings.max_batch_rows),
            queue_rows=settings.queue_rows,
            max_rows=settings.max_images,
            clock=clock,
            observe=statistics.take,
            on_batch=None if tracing is None else partial(tracing.batch_ran, card.ref),
            on_all_devices_lost=on_device_lost,
            memory=loaded.memory,
            exact=card.exact,
            overlaps=available_cpus() >= 2 * settings.workers,
            # In the thread that a fast model leaves. Not of tiles, which run one at a time, nor
            # within a limit of memory.
            has_second=loaded.device == "cpu"
            and loaded.instances[0].threads < (settings.threads or available_cpus())
            and not card.tiles
            and loaded.memory is None,
        )

    return ServedModel(loaded, make_scheduler, statistics)
