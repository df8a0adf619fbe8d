"""The command `serve`, of `ign` and of `python -m service`. Its options are the fields of
`Settings`.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click

from service.domain.errors import StartupError
from service.environment import available_cpus, memory_limit, prepare_process
from service.observability.logs import flush_log
from service.server import process, uvicorn_server
from service.server.open_connections import raise_file_limit
from service.server.process import supervise
from service.settings import (
    GONE,
    Settings,
    from_environment,
    log_name_warnings,
    meaning_of,
    variable_of,
)

REFUSED: Final = 2
_METAVARS: Final[Mapping[object, str]] = {int: "NUMBER", float: "SECONDS"}


def serve(options: Mapping[str, str], *, check: bool = False) -> int:
    """Serve until a signal, or only ``check`` the models, the API keys and the names of variables,
    and print a line for each model.

    ``options`` are texts by setting, in place of its variable; an empty text stands for the
    default. Returns the exit status, see the epilog of `command`. The reason of a refusal to start
    is one line on stderr.
    """
    try:
        prepare_process()
        settings = from_environment({variable_of(field): text for field, text in options.items()})
        process.configure_logging(settings)
        log_name_warnings(refuse=check)
        settings = settings.replace(workers=_count_processes(settings))
        return _check(settings) if check else _serve(settings)
    except StartupError as exc:
        flush_log()
        click.echo(f"ign-service does not start: {_with_options(exc.detail, options)}", err=True)
        return REFUSED
    finally:
        flush_log()


def _count_processes(settings: Settings) -> int:
    """How many processes serve; raises StartupError if several are wanted, or a limit of memory,
    and models could run on a GPU.

    As many as pay: HTTP and image coding of one use one core, and a model the other.
    `IGN_MODEL_MEMORY_MIB` is for more models than memory holds, and a process would hold fewer of
    them.
    """
    # With the shipped models one takes up to 370 MiB, and 700 MiB while it cleans a page of A4.
    # `Settings` takes 256.
    pay = min((settings.threads or available_cpus()) // 2, memory_limit() >> 30, 256)
    count = settings.workers or (1 if settings.model_memory_mib else max(1, pay))
    if settings.device == "auto" and (count > 1 or settings.model_memory_mib):
        from service.runtime.session import cuda_is_usable

        if cuda_is_usable():
            settings = settings.replace(device="cuda")  # which refuses both
    return 1 if settings.device == "cuda" else count


def _serve(settings: Settings) -> int:
    raise_file_limit()
    listener = uvicorn_server.bind(settings.host, settings.port)
    with listener, uvicorn_server.listen_alone(listener):
        if settings.workers == 1:
            return process.run_server(settings, listener)
        port = listener.getsockname()[1]
        listener.close()
        # No other program listens on this port. This socket is bound but does not listen: it
        # reserves the port.
        with uvicorn_server.bind(settings.host, port, shared=True) as reserved:
            return supervise(
                settings.replace(port=port),
                process.child_main,
                on_listening=partial(uvicorn_server.write_startup_line, reserved, settings),
            )


def _check(settings: Settings) -> int:
    from service.app import create_app, running_services

    logging.getLogger("service").setLevel(logging.WARNING)

    async def load() -> None:
        async with running_services(settings) as services:
            create_app(services)  # reads the API keys
            for ref, model in services.registry.models.items():
                golden = model.loaded.golden
                click.echo(
                    f"{ref}: verified on {model.loaded.device}; the golden rows differ by "
                    f"{golden.difference:.2g}, allowed are {golden.tolerance:.2g}"
                )
            if reasons := ", ".join(services.registry.failures.values()):
                raise StartupError(reasons)

    asyncio.run(load())
    return 0


def _with_options(detail: str, options: Mapping[str, str]) -> str:
    """Name a setting in an error as its option where it was given as one."""
    for field in options:
        detail = detail.replace(f"{variable_of(field)}=", f"{_option_name(field)}=")
    return detail


def _option_name(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _options() -> Iterator[click.Option]:
    for field, info in Settings.model_fields.items():
        names = [_option_name(field)]
        if field == "model_dir":  # what `ign export`, `import` and `site` call it
            names.append("--models")
        if info.annotation is bool:
            names[0] += f"/--no-{names[0].removeprefix('--')}"
        yield click.Option(
            [*names, field],
            type=_type(info.annotation),
            metavar=_METAVARS.get(info.annotation),
            default=None,
            help=f"{meaning_of(field)}  [{variable_of(field)}; {default_of(field)}]",
        )


class _Command(click.Command):
    """Refuses the options of settings that are gone, with what replaces them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            option = word.partition("=")[0]
            instead = GONE.get(variable_of(option.removeprefix("--").replace("-", "_")))
            if instead and option.startswith("--"):
                ctx.fail(f"{option} is no option any more: {instead}")
        return super().parse_args(ctx, args)


def _type(annotation: Any) -> "click.ParamType[Any]":
    """What the shell completes. `Settings` parses the text, except for one of a few words."""
    if annotation is bool:
        return click.BOOL
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    return click.Path() if Path in (annotation, *get_args(annotation)) else click.STRING


def default_of(field: str) -> str:
    """The default of a setting, as users read it."""
    default = getattr(Settings(), field)
    match default:
        case None | ():
            return "off" if field == "rate_limit" else "none"
        case bool():
            return "on" if default else "off"
        case float():
            return f"{default:g}"
    return "the shipped models" if field == "model_dir" else str(default)


def _run(*, check: bool, **values: Any) -> None:
    options = {
        name: str(int(value)) if isinstance(value, bool) else value
        for name, value in values.items()
        if value is not None
    }
    process.leave(serve(options, check=check))


command: Final = _Command(
    "serve",
    callback=_run,
    help="Serve the models of a directory over HTTP until a signal. Each option takes precedence "
    "over its environment variable, which stands in brackets before the default.",
    epilog="Exit status: 0 after a clean stop, 1 when no device is left, 2 for a refusal to "
    "start, 9 when a server process was killed because it did not stop in time.",
    params=[
        *_options(),
        click.Option(
            ["--check"],
            is_flag=True,
            help="verify the models, the API keys and the names of IGN_ variables, and end",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
