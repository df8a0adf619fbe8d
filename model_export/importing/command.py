"""`import`: its options, and the child process that opens the network.

A foreign file may let onnxruntime run for ever, or crash. So only a child process opens it, and
ends with it.
"""

import argparse
import multiprocessing
import os
import re
import resource
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from model_export.errors import UserError, card_error, check_name

_END_S: Final = 10.0
_MOST_PIXELS: Final = 2048
# What onnxruntime puts before its message: its error number, and file, line and signature of its
# function.
_ONNXRUNTIME: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(?:cc|h):\d+ .*\) ")


def add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `model_export.cli`."""
    command = commands.add_parser(
        "import",
        help="import a network of another program: ONNX, or a checkpoint of torch",
        allow_abbrev=False,
    )
    command.set_defaults(run=run_import)
    # else argparse takes `-1,1` for an option
    command._negative_number_matcher = re.compile(r"^-[\d.]")
    add = command.add_argument
    add(
        "file",
        metavar="FILE",
        type=Path,
        help="an .onnx file; with --module, a checkpoint of torch",
    )
    add("--name", required=True, help="of the model")
    add("--models", default="models", help="model directory (default models)")
    add("--version", type=int, help="number of the version (default: the next free one)")
    add(
        "--module",
        metavar="FILE.py:NAME",
        help="class or function of the torch network; its code is run",
    )
    add(
        "--shape",
        type=_sizes,
        metavar="C,H,W",
        help="channels, height and width, where the file leaves them open",
    )
    add(
        "--tile",
        type=_side,
        metavar="PIXELS",
        help="side of the tiles that images of any size are cut into",
    )
    add(
        "--overlap",
        type=_overlap,
        metavar="PIXELS",
        help="of tiles (default: how far the network looks)",
    )
    add(
        "--range",
        type=_pair,
        metavar="LOW,HIGH",
        help="values of black and white (default: what the graph tells)",
    )
    add(
        "--mean",
        type=_numbers,
        help="what is subtracted from the input, for each channel, in units of --range",
    )
    add("--std", type=_numbers, help="what the input is divided by, likewise")
    add(
        "--layout",
        choices=("nchw", "nhwc"),
        help="order of the dimensions (default: what the graph tells)",
    )
    add("--bgr", action="store_true", help="its channels are blue, green, red")
    add("--residual", action="store_true", help="it gives what has to be subtracted from its input")
    add(
        "--color",
        choices=("luma",),
        help="a grey network gets the luma of colour images, which keep their colours",
    )
    add("--noise", choices=("gaussian",), help="it makes images of noise as well, as an IGN does")
    add("--data", help="folder or .zip of images, to measure distance and drift")
    add("--licence", default="not stated", help="of the weights")
    add("--title", default="", help="short name for people")
    add(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="longest time of a step (default 120)",
    )
    add("--dry-run", action="store_true", help="say what would be imported, and end")


def run_import(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    """Import a network into a model directory; yields lines for people."""
    from model_export.export.artifact import publish, version_folder

    check_name(options.name)
    folder = version_folder(Path(options.models, options.name), options.version)
    if folder.exists():
        raise UserError(f"{folder} exists; choose another --version")
    # the child would say it in a less helpful way
    if (options.module or options.data) and not find_spec("torch"):
        raise ModuleNotFoundError("no module named torch", name="torch")
    for message in _in_child(options, folder.name):
        if isinstance(message, str):
            yield message
        elif not options.dry_run:
            publish(folder, message)
            yield f"imported {folder}; next: ign serve --models {options.models}"


def _in_child(options: argparse.Namespace, version: str) -> Iterator[str | Mapping[str, bytes]]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_child, args=(options, version, sender), daemon=True)
    child.start()
    sender.close()
    try:
        while receiver.poll(options.timeout):
            if isinstance(message := receiver.recv(), BaseException):
                # else the process that tracks resources warns of what a killed one held
                child.join(_END_S)
                raise message
            yield message
        limit = f"a step takes more than {options.timeout:g} s"
        raise UserError(
            f"{options.file}: {limit}; does it end? See --timeout, or choose a smaller --tile"
        )
    except EOFError as exc:
        child.join()
        if child.exitcode:
            raise UserError(
                f"{options.file}: the process that ran it crashed, or needed too much memory"
            ) from exc
    finally:
        child.kill()
        child.join()


def _run_child(*arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the child
    limit_memory()
    warnings.simplefilter("ignore")
    _work(*arguments)


def limit_memory() -> None:
    """Let this process have half of the memory of the machine; a network that needs more fails
    alone.
    """
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = min([half, *(each for each in (soft, hard) if each != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))


def _work(options: argparse.Namespace, version: str, sender: "Connection[Any, Any]") -> None:
    try:
        from model_export.importing.network import import_network

        for message in import_network(options, version):
            sender.send(message)
    except OSError as exc:
        sender.send(exc)
    except UserError as exc:  # about an option, or the file
        about = "" if str(exc).startswith("--") else f"{options.file}: "
        sender.send(UserError(f"{about}{exc}"))
    except ValidationError as exc:  # of the card
        sender.send(card_error(exc))
    except (
        Exception
    ) as exc:  # onnx, onnxruntime, protobuf, torch and foreign code raise errors of a dozen types
        text = _ONNXRUNTIME.sub("", " ".join(str(exc).split()))
        sender.send(UserError(f"{options.file}: {type(exc).__name__}: {text[:300]}"))


def _numbers(
    text: str, *, counts: Sequence[int] = (1, 3), kind: type[float] = float
) -> tuple[float, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not {' or '.join(map(str, counts))} numbers with commas between"
        )
    return values


def _pixels(text: str, *, least: int) -> int:
    if not (text.isdecimal() and least <= int(text) <= _MOST_PIXELS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of pixels from {least} to {_MOST_PIXELS}"
        )
    return int(text)


_side = partial(_pixels, least=16)
_overlap = partial(_pixels, least=0)
_pair = partial(_numbers, counts=(2,))
_sizes = partial(_numbers, counts=(3,), kind=int)
