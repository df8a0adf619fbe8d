"""The process that runs the models if `IGN_ENGINE_PROCESS` is set; front ends use them, see `service.engine`."""

import asyncio
import os
import signal
import socket
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from service.domain.errors import StartupError
from service.engine.engine_host import EngineHost
from service.engine.links import LinkReceiver
from service.observability.logs import count_drops
from service.server import uvicorn_server
from service.server.worker_process import (
    ExitTimer,
    configure_logging,
    leave,
    leave_process_group,
    report,
    stop_with_parent,
    tune_gc,
)
from service.settings import Settings, trace_exporters

_CLOSE_S: Final = 1.0  # to send front ends what waits for them


def check_supported() -> None:
    """Refuse what an engine's process cannot do.

    Raises:
        StartupError: this system has no eventfd, or traces are wanted.
    """
    if not hasattr(os, "eventfd"):
        raise StartupError("IGN_ENGINE_PROCESS=true needs Linux")
    if exporters := trace_exporters():
        raise StartupError(f"IGN_ENGINE_PROCESS=true makes no traces, and OTEL_… asks for {', '.join(exporters)}")


def engine_main(settings: Settings, messages: Connection, control: socket.socket | None) -> None:
    """The main function of the engine's process; see `service.server.supervisor.ChildMain`."""
    assert control is not None  # noqa: S101 - the supervisor of an engine makes one for every child
    leave_process_group()
    threading.Thread(target=stop_with_parent, name="ign-parent", daemon=True).start()
    configure_logging(settings)
    exit_timer = ExitTimer()
    try:
        with asyncio.Runner(loop_factory=uvicorn_server.loop_factory()) as runner:
            status = runner.run(_run(settings, control, exit_timer))
    except StartupError as exc:
        report(messages, exc.detail)
        status = 0
    exit_timer.cancel()
    leave(status)


async def _run(settings: Settings, control: socket.socket, exit_timer: ExitTimer) -> int:
    """Serve front ends until a signal, or until no device is left.

    Returns:
        The exit status: 0, or 1 if no device is left. A new process may have the device again.

    Raises:
        StartupError: a model is unusable.
    """
    from service.app import build_services, close_services, load_models, publish_gauges

    host, stopping, device_lost = EngineHost(), asyncio.Event(), asyncio.Event()
    services = build_services(settings, on_device_lost=device_lost.set, wait_for_requests=host.wait_for_requests)

    def stop() -> None:
        if not stopping.is_set():
            exit_timer.start(settings.drain_s, 0)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    count_drops(services.metrics.dropped_log_lines.inc)
    links = LinkReceiver(control, host.add)
    gauges = loop.create_task(publish_gauges(services))
    loading = loop.create_task(load_models(services))
    ends = [loop.create_task(event.wait()) for event in (stopping, device_lost)]
    try:
        await asyncio.wait([loading, *ends], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await loading
            tune_gc()
            host.open(services.registry)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.drain_s):
                    await host.wait_until_alone()
    finally:
        if device_lost.is_set():  # its driver may block below
            exit_timer.start(_CLOSE_S, 1)
        links.close()
        for task in (gauges, loading, *ends):
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await host.close()
        await close_services(services)
        exit_timer.start(0.0, int(device_lost.is_set()))
    return int(device_lost.is_set())
