"""The command line: `ign-client generate|project|interpolate|score|models`."""

import argparse
import glob
import json
import math
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal, TypeVar, get_args, get_origin
from urllib.parse import quote

from ign_client import _errors as errors
from ign_client import _options as lists
from ign_client._batches import (
    PAGED,
    Prompt,
    Terminal,
    by_source,
    check_free,
    for_each_item,
    form_of,
    list_images,
    pages,
    require_file,
    save,
)
from ign_client._calls import images_of_request
from ign_client._client import Client
from ign_client._inputs import PointLike, Seed
from ign_client._picture import Picture
from ign_client._results import MEASURES, Score
from ign_client._settings import DEFAULT_TIMEOUT_S
from ign_client._version import __version__

K = TypeVar("K")

# REFUSED: some images, the others are done. USAGE: nothing was sent. UNREACHABLE: or the service
# had no time.
DONE = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130
_GROUP: Final = 16  # images of one request, so that several requests run at a time
_KEPT: Final = "--skip-existing leaves them, --force overwrites"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default with the arguments of the process; returns the exit status."""
    return run(parser().parse_args(arguments))


def run(
    options: argparse.Namespace, hint: str = "", connect: Callable[[], Any] | None = None
) -> int:
    """Run the command of parsed arguments; returns the exit status.

    ``hint``: what helps if no service is reached. ``connect`` makes another client, a context
    manager.
    """
    terminal = Terminal()
    is_patient = connect or options.retries is not None or options.deadline is not None
    try:
        with (
            connect()
            if connect
            else Client(
                options.base_url,
                timeout=options.timeout,
                deadline=options.deadline,
                max_retries=options.retries,
                sleep=terminal.sleep,
            )
        ) as client:
            sender = client if is_patient else Prompt(client)
            done: bool = options.run(sender, options, terminal)
    except KeyboardInterrupt:
        terminal.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # of stdout, as after `| head -1`
        # Python flushes it again at the end; without a device to write to, it would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (errors.IgnError, OSError) as exc:
        terminal.error(f"{options.command.prog}: {exc}")
        if hint and isinstance(exc, errors.ConnectionFailed):
            terminal.error(hint)
        if isinstance(
            exc,
            (
                errors.TransportError,
                errors.UnexpectedAnswer,
                errors.TooManyRequests,
                errors.Unavailable,
                errors.DeadlineExceeded,
            ),
        ):
            return UNREACHABLE
        return USAGE if isinstance(exc, errors.InputError) else REFUSED
    terminal.end()
    return DONE if done else REFUSED


def _given(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The options of a method that the command has, too."""
    given = {
        name: getattr(options, name) for name in lists.options_of(kind) if hasattr(options, name)
    }
    if "invert" in given:
        given["invert"] = {"true": True, "false": False}.get(given["invert"], "auto")
    return given


# The commands. Each returns whether everything was done


def generate(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    if form := _file_format(options):
        check_free([options.out], options.force)
        sheet = client.generate_as(form, **_given(options, lists.GenerateFileOptions))
        save(sheet, options.out)
        terminal.result(f"{options.out}: seed {sheet.seed}")
        return True
    if options.n < 1:
        raise errors.InputError(f"-n: expected 1 or more, not {options.n}")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    name = quote(str(seed), safe=" ")  # a text may have a slash
    indices = range(options.offset, options.offset + options.n)
    digits = len(str(indices[-1]))  # so that the names sort as the indices do
    suffix = _suffix(options)
    given = _given(options, lists.GenerateOptions)

    def target(index: int) -> Path:
        return Path(options.out, f"{name}-{index:0{digits}}{suffix}")

    def generate_some(wanted: Sequence[int]) -> Iterator[tuple[Path, Picture]]:
        # Neighbours go into one request; between them some files may exist.
        for _, pairs in groupby(enumerate(wanted), key=lambda pair: pair[1] - pair[0]):
            run = [index for _, index in pairs]
            yield from zip(
                map(target, run),
                client.generate(**{**given, "n": len(run), "seed": seed, "offset": run[0]}),
                strict=True,
            )

    # Only what exists is listed: there may be a thousand million indices.
    existing = {
        index
        for file in options.out.glob(f"{glob.escape(name)}-{'[0-9]' * digits}{suffix}")
        if (index := int(file.stem.rpartition("-")[2])) in indices
    }
    if not options.skip_existing:
        check_free(map(target, sorted(existing)), options.force, _KEPT)
        existing = set()
    wanted = (index for index in indices if index not in existing)
    _, failed = _save_all(
        wanted,
        options.n - len(existing),
        generate_some,
        options,
        terminal,
        images_of_request(options.scale, _GROUP),
        f"--seed {shlex.quote(str(seed))} --skip-existing",
    )
    terminal.result(f"{options.out}: seed {seed}")
    return not failed


def project(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    out: Path = options.out
    is_file = _file_format(options)
    sources = list_images(options.inputs)
    given = _given(options, lists.ProjectOptions)
    targets = {
        source: out if is_file else (out / name).with_suffix(_suffix(options))
        for source, name in sources.items()
    }
    sources_of = {target: source for source, target in targets.items()}
    for source, target in targets.items():
        if (other := sources_of[target]) != source:
            raise errors.InputError(
                f"{source} and {other} would both become {target}; name a folder"
            )
    if options.mask is not None:
        given["mask"] = require_file(options.mask).read_bytes()
    if options.skip_existing:
        targets = {source: target for source, target in targets.items() if not target.exists()}
    check_free(targets.values(), options.force, _KEPT)

    def project_some(some: Sequence[Path]) -> Iterator[tuple[Path, Picture]]:
        for source, images in by_source(partial(client.project, **given), some):
            names = pages(targets[source], len(images))
            check_free(names[1:], options.force, _KEPT)
            yield from zip(names, images, strict=True)

    size = images_of_request(options.scale, _images_of_request(client, options, targets))
    saved, failed = _save_all(
        targets, len(targets), project_some, options, terminal, size, "--skip-existing"
    )
    terminal.result(f"{out}: {_count(saved)}" + (f", {failed} failed" if failed else ""))
    return not failed


def interpolate(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    points = [_point(text) for text in options.points]
    target: Path = options.out
    if form := _file_format(options):
        check_free([target], options.force)
        save(
            client.latent_interpolate_as(form, points, **_given(options, lists.PathFileOptions)),
            target,
        )
        terminal.result(str(target))
        return True
    if target.is_dir() and any(target.iterdir()) and not options.force:
        raise errors.InputError(f"{target} is not empty; --force overwrites")
    frames = client.latent_interpolate(points, **_given(options, lists.PathOptions))
    digits = max(3, len(str(len(frames) - 1)))
    for frame in frames:
        save(frame, target / f"{frame.index:0{digits}}{_suffix(options)}")
    terminal.result(f"{target}: {len(frames)} frames")
    return True


def score(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Write a line with the scores of each image, in the order of the inputs."""
    sources = list(list_images(options.inputs))
    given = _given(options, lists.ScoreOptions)
    scores: dict[Path, Sequence[Score]] = {}

    def score_some(some: Sequence[Path]) -> None:
        scores.update(by_source(partial(client.score, **given), some))

    try:
        size = _images_of_request(client, options, sources)
        return not for_each_item(
            sources, len(sources), score_some, options.jobs, terminal, group=size
        )
    finally:  # also after an error, so that no score is lost
        if not options.json:
            terminal.result("file", *MEASURES)
        for source in sources:
            found = scores.get(source, ())
            for file, measured in zip(pages(source, len(found)), found, strict=False):
                values = {name: getattr(measured, name) for name in MEASURES}
                if options.json:
                    terminal.result(json.dumps({"file": str(file), **values}))
                    continue
                cells = ("-" if value is None else json.dumps(value) for value in values.values())
                terminal.result(str(file), *cells)


def models(client: Client, _options: argparse.Namespace, terminal: Terminal) -> bool:
    """Write a line for each model: name/version, shape, device, and whether it is the default."""
    found = client.models()
    terminal.result("model", "shape", "device", "default")
    for card in found:
        terminal.result(
            card.ref,
            "×".join(map(str, card.shape)),
            card.device,
            "yes" if found.default in (card.ref, card.name) else "-",
        )
    return True


def _file_format(options: argparse.Namespace) -> Any:
    """The format of the one file that `--out` names, or None for a folder; sets
    `options.format`.
    """
    is_path = options.run is interpolate
    form = form_of(options.out, get_args(lists.PathForm if is_path else lists.Format))
    if form is None:
        for name in ("columns", "gap"):
            if getattr(options, name, None):
                raise errors.InputError(
                    f"--{name}: only a sheet has {name}; --out names a folder for one file each"
                )
    elif options.format not in (None, form):
        raise errors.InputError(
            f"--format {options.format}: --out {options.out} is {form}; leave one of them out"
        )
    options.format = form or options.format or "png"
    return form


def _suffix(options: argparse.Namespace) -> str:
    return ".jpg" if options.format == "jpeg" else f".{options.format}"


def _save_all(
    items: Iterable[K],
    total: int,
    make: Callable[[Sequence[K]], Iterable[tuple[Path, Picture]]],
    options: argparse.Namespace,
    terminal: Terminal,
    group: int,
    again: str,
) -> tuple[int, int]:
    """Save the images that ``make`` yields for groups of items; returns how many were saved and how
    many rejected.

    ``make`` is called from several threads. With the options ``again`` the command goes on after an
    error.
    """
    saved = 0
    lock = Lock()

    def save_some(some: Sequence[K]) -> None:
        nonlocal saved
        for target, image in make(some):
            save(image, target)
            with lock:
                saved += 1

    try:
        failed = for_each_item(items, total, save_some, options.jobs, terminal, group=group)
    except BaseException:
        if saved:
            terminal.result(f"{options.out}: {saved} of {_count(total)}; {again} goes on")
        raise
    return saved, failed


def _images_of_request(
    client: Client, options: argparse.Namespace, sources: Collection[Path]
) -> int:
    """Most images of one request: 16, so that several requests run at a time, or fewer if the
    service takes fewer.

    A file that may have pages is alone, and an image of any size, which may be large.
    """
    if len(sources) < 2 or any(source.suffix.lower() in PAGED for source in sources):
        return 1
    models = client.models()
    chosen = options.model or models.default
    if any(card.document.get("tiles") for card in models if chosen in (card.ref, card.name)):
        return 1
    return max(1, min(_GROUP, models.limits.images))


def _point(text: str) -> PointLike:
    # what has a suffix or a folder is a file
    match = re.fullmatch(r"([^./:]+)(?::([0-9]{1,10}))?", text)
    if match and (match[1].isdecimal() or not Path(text).exists()):
        return Seed(match[1], int(match[2] or 0))
    return require_file(Path(text))


def _count(pictures: int) -> str:
    return f"{pictures} image{'' if pictures == 1 else 's'}"


# The parser. Options that a method has, too, come from `_options`


def parser(prog: str = "ign-client", local: str = "") -> argparse.ArgumentParser:
    """The parser of the command line; ``local``: what an option `--local` of all commands does."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Send requests to a running ign-service. IGN_BASE_URL holds its URL, "
        "IGN_API_KEY the API key.",
        epilog="exit status: 0 done, 1 refused or partly done, 2 usage, 3 service out of reach, "
        "130 interrupted",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"ign-client {__version__}")
    top.set_defaults(base_url=None, timeout=DEFAULT_TIMEOUT_S, deadline=None, retries=None)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for run, (summary, names) in _COMMANDS.items():
        command = commands.add_parser(run.__name__, help=summary, allow_abbrev=False)
        command.set_defaults(run=run, command=command)
        for name in names.split():
            _add(command, name)
        if local:
            command.add_argument("--local", action="store_true", help=local)
    for each in (top, *commands.choices.values()):
        # They stand before or after the name of the command; a missing one leaves what stands
        # before.
        connection = each.add_argument_group("connection", argument_default=argparse.SUPPRESS)
        for name in ("base_url", "timeout", "deadline", "retries"):
            _add(connection, name)
    return top


def _add(parser: argparse._ActionsContainer, name: str) -> None:
    """Add an option of the commands, or one of a method, with the same name, default and
    meaning.
    """
    if (own := _OWN.get(name)) is None:
        hint, default, text = _OF_METHODS[name]
        text = text.replace("``", "") + (
            "" if default is None or default is False else f" ({default})"
        )
        own = {"default": default, "help": text, **_argument(hint)}
    flags = {"inputs": ["inputs"], "points": ["points"], "n": ["-n"], "out": ["-o", "--out"]}
    parser.add_argument(*flags.get(name, [f"--{name.replace('_', '-')}"]), **own)


def _argument(hint: Any) -> dict[str, Any]:
    """What argparse needs to know of an option of this type."""
    if hint is bool:
        return {"action": "store_true"}
    if hint == lists.Invert:
        return {"choices": ("auto", "true", "false")}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    types: dict[Any, Callable[[str], object]] = {int: int, float: number, str: str}
    return {"type": next(types[member] for member in (hint, *get_args(hint)) if member in types)}


def number(text: str) -> float:
    """A finite number; argparse names this function in its errors."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _jobs(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError("expected 1 to 64")
    return int(text)


def _grid(text: str) -> tuple[int, int]:
    if (match := re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)) is None:
        raise argparse.ArgumentTypeError("expected ROWSxCOLS, such as 5x5")
    return int(match[1]), int(match[2])


def _output_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a folder or a file")
    return Path(text)


_OWN: Final[Mapping[str, dict[str, Any]]] = {
    "inputs": {"nargs": "+", "metavar": "INPUT", "help": "images, or folders of images"},
    "points": {
        "nargs": "+",
        "metavar": "POINT",
        "help": "SEED or SEED:INDEX (number or text), image or .npy file",
    },
    "mask": {"type": Path, "help": "image: white = regenerate, black = keep"},
    "grid": {
        "type": _grid,
        "metavar": "ROWSxCOLS",
        "help": "grid between four points, instead of a path",
    },
    "format": {"choices": get_args(lists.Format), "help": "format of the files in a folder (png)"},
    "out": {
        "type": _output_path,
        "required": True,
        "help": "folder for one file each, or a file: .png .jpg .webp .npy, of a path also .gif "
        ".apng, of PDF files .pdf",
    },
    "force": {"action": "store_true", "help": "overwrite existing outputs"},
    "skip_existing": {"action": "store_true", "help": "skip images whose output exists"},
    "jobs": {"type": _jobs, "default": 4, "help": "requests at a time (4)"},
    "json": {"action": "store_true", "help": "write a line of JSON for each image instead"},
    "base_url": {"help": "URL of the service (default: IGN_BASE_URL, else http://127.0.0.1:8000)"},
    "timeout": {"type": float, "help": "seconds for one attempt (30)"},
    "deadline": {"type": float, "help": "seconds for a request with its retries (no limit)"},
    "retries": {
        "type": int,
        "help": "attempts after the first (within the timeout; none if nothing listens at first)",
    },
}
"""What argparse needs to know of options that no method has in this form."""
_OF_METHODS: Final = {
    **lists.options_of(lists.GenerateFileOptions),
    **lists.options_of(lists.ProjectOptions),
    **lists.options_of(lists.PathFileOptions),
}
_WALK: Final = "points frames method loop grid fps"
_COMMON: Final = "model steps scale resample format out force"
_COMMANDS: Final = {
    generate: (
        "generate images from noise",
        f"n seed offset noise_scale width height columns gap {_COMMON} jobs skip_existing",
    ),
    project: (
        "project images, in `ign` also PDF files",
        f"inputs strength resize invert mask {_COMMON} jobs skip_existing",
    ),
    interpolate: ("walk between seeds, images or .npy latents", f"{_WALK} columns gap {_COMMON}"),
    score: ("score images, as tab-separated values", "inputs json jobs model resize invert"),
    models: ("list the models, their shapes and devices", ""),
}
"""Function → summary and options of a command."""
