"""The command line: `ign-client generate|project|interpolate|score|models`.

Exit status:

0    everything is done
1    the service rejected a request, or some of the pictures; the others are done
2    invalid arguments, missing inputs or existing outputs; nothing was sent
3    the service could not be reached, or had no time
130  interrupted
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

from ign_client._client import Client
from ign_client._commands import generate, interpolate, models, project, score
from ign_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    IgnError,
    InputError,
    TooManyRequests,
    TransportError,
    Unavailable,
    UnexpectedAnswer,
)
from ign_client._settings import DEFAULT_TIMEOUT_S
from ign_client._terminal import ResultsClosed, Terminal
from ign_client._version import __version__

DONE, REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
_UNREACHABLE_ERRORS: Final = (TransportError, UnexpectedAnswer, TooManyRequests, Unavailable, DeadlineExceeded)
_FORMATS: Final = ("png", "jpeg", "webp", "npy")


def main(arguments: Sequence[str] | None = None, terminal: Terminal | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the name of the program; those of the process by default.
        terminal: stdout and stderr by default.

    Returns:
        The exit status.
    """
    return run(parse(parser(), arguments), terminal or Terminal(sys.stdout, sys.stderr))


def parse(top: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; an unknown option ends the program with the usage of its command, not of the program."""
    options, unknown = top.parse_known_args(arguments)
    if unknown:
        options.command.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def run(options: argparse.Namespace, terminal: Terminal, hint: str = "") -> int:
    """Run the command of parsed arguments; returns the exit status. ``hint``: what helps if no service is reached."""
    try:
        with Client(options.base_url, timeout=options.timeout, max_retries=options.retries) as client:
            done: bool = options.run(client, options, terminal)
    except KeyboardInterrupt:
        terminal.error("interrupted")
        return INTERRUPTED
    except ResultsClosed:
        return REFUSED
    except (IgnError, OSError) as exc:
        terminal.error(f"{options.command.prog.split()[0]}: {exc}")
        if hint and isinstance(exc, ConnectionFailed):
            terminal.error(hint)
        return _status(exc)
    terminal.end()
    return DONE if done else REFUSED


def _status(exc: Exception) -> int:
    if isinstance(exc, InputError):
        return USAGE
    return UNREACHABLE if isinstance(exc, _UNREACHABLE_ERRORS) else REFUSED


def parser(prog: str = "ign-client") -> argparse.ArgumentParser:
    """The parser of the command line of a program."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Send requests to a running ign-service. IGN_BASE_URL holds its URL, IGN_API_KEY the API key.",
        epilog="exit status: 0 done, 1 refused or partly done, 2 usage, 3 service out of reach, 130 interrupted",
    )
    top.add_argument("--version", action="version", version=f"ign-client {__version__}")
    top.set_defaults(base_url=None, timeout=DEFAULT_TIMEOUT_S, retries=2)
    _connection(top)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _generate(commands)
    _project(commands)
    _interpolate(commands)
    _score(commands)
    commands.add_parser("models", help="list the models, their shapes and devices").set_defaults(run=models)
    for command in commands.choices.values():
        command.set_defaults(command=command)
        _connection(command)
    return top


def _connection(command: argparse.ArgumentParser) -> None:
    """Options that stand before or after the name of the command; a missing one leaves what stands before."""
    options = command.add_argument_group("connection", argument_default=argparse.SUPPRESS)
    options.add_argument("--base-url", help="URL of the service (default: IGN_BASE_URL, else http://127.0.0.1:8000)")
    options.add_argument("--timeout", type=float, help="seconds for one attempt (30)")
    options.add_argument("--retries", type=int, help="attempts after the first (2)")


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _generate(commands: Commands) -> None:
    command = commands.add_parser("generate", help="generate pictures from noise")
    command.set_defaults(run=generate)
    command.add_argument("-n", type=int, default=1, help="number of pictures (1); without limit for a folder")
    command.add_argument("--seed", type=int, help="the same seed gives the same pictures")
    command.add_argument("--offset", type=int, default=0, help="index of the first picture of the seed (0)")
    command.add_argument("--noise-scale", type=_finite, default=1.0, help="0 to 2 (1)")
    _common(command)
    _sheet(command)
    _output(command, "folder for one file each, or a file (.png .jpg .webp .npy) for a sheet of all")
    command.add_argument("--skip-existing", action="store_true", help="skip pictures whose file exists")


def _project(commands: Commands) -> None:
    command = commands.add_parser("project", help="project pictures")
    command.set_defaults(run=project)
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures, or folders of pictures")
    command.add_argument(
        "--strength", type=_finite, default=1.0, help="0 returns the input, 1 (default) the output of f"
    )
    command.add_argument("--mask", help="picture: white = regenerate, black = keep")
    _preparation(command)
    _common(command)
    _output(command, "folder, in which files keep their names; or for one picture a file (.png .jpg .webp .npy)")
    command.add_argument("--skip-existing", action="store_true", help="skip inputs whose output exists")


def _interpolate(commands: Commands) -> None:
    command = commands.add_parser("interpolate", help="interpolate between seeds, pictures or .npy latents")
    command.set_defaults(run=interpolate)
    command.add_argument("points", nargs="+", metavar="POINT", help="SEED, SEED:INDEX, or a picture or .npy file")
    command.add_argument("--frames", type=int, help="number of frames of the whole path (9)")
    command.add_argument("--method", choices=("slerp", "lerp"), default="slerp")
    command.add_argument("--loop", action="store_true", help="return to the first point")
    command.add_argument("--grid", metavar="ROWSxCOLS", help="grid between four points, instead of a path")
    command.add_argument("--fps", type=int, default=12, help="frames per second of an animation (12)")
    _common(command)
    _sheet(command)
    _output(command, "file: .gif .apng .webp animate, .png .jpg are a strip, .npy an array; or a folder for the frames")


def _score(commands: Commands) -> None:
    command = commands.add_parser("score", help="score pictures, as tab-separated values")
    command.set_defaults(run=score)
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures, or folders of pictures")
    command.add_argument("--json", action="store_true", help="write a line of JSON for each picture instead")
    command.add_argument("--jobs", type=_jobs, default=4, help="requests at a time (4)")
    command.add_argument("--model", help="name, or name/version")
    _preparation(command)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="name, or name/version")
    command.add_argument("--steps", type=int, help="number of applications of f (recommendation of the model)")
    command.add_argument("--format", choices=_FORMATS, default="png", help="format of files in a folder (png)")
    command.add_argument("--scale", type=int, default=1, help="enlarge the pictures, 1 to 32 times (1)")
    command.add_argument(
        "--resample", choices=("nearest", "smooth"), default="nearest", help="repeat or interpolate pixels (nearest)"
    )
    command.add_argument("--jobs", type=_jobs, default=4, help="requests at a time (4)")


def _sheet(command: argparse.ArgumentParser) -> None:
    command.add_argument("--columns", type=int, help="columns of a sheet in one file")
    command.add_argument("--gap", type=int, default=0, help="pixels between the pictures of a sheet (0)")


def _preparation(command: argparse.ArgumentParser) -> None:
    command.add_argument("--resize", choices=("fit", "crop", "stretch"), default="fit")
    command.add_argument("--invert", choices=("auto", "true", "false"), default="auto")


def _output(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-o", "--out", type=_path, required=True, help=what)
    command.add_argument("--force", action="store_true", help="overwrite existing outputs")


def _jobs(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError("expected 1 to 64")
    return int(text)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}")
    return number


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected the path of a file or folder")
    return Path(text)
