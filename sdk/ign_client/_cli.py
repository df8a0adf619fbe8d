"""The command line: `ign-client generate|project|interpolate|score|models`."""

import argparse
import json
import math
import re
import secrets
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin

from ign_client import _errors as errors
from ign_client import _options as lists
from ign_client._batches import ResultsClosed, Terminal, check_free, for_each_item, list_images, require_file
from ign_client._calls import FEW, images_of_request
from ign_client._client import Client
from ign_client._inputs import PointLike, Seed
from ign_client._picture import SUFFIXES, Picture
from ign_client._results import MEASURES, MODEL_COLUMNS, Score, model_rows
from ign_client._settings import DEFAULT_TIMEOUT_S
from ign_client._version import __version__

K = TypeVar("K")

# REFUSED: some images, the others are done. USAGE: nothing was sent. UNREACHABLE: or the service had no time.
DONE, REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
_UNREACHABLE_ERRORS: Final = (
    errors.TransportError,
    errors.UnexpectedAnswer,
    errors.TooManyRequests,
    errors.Unavailable,
    errors.DeadlineExceeded,
)
_SHOWN_MEASURES: Final = MEASURES[1:]  # the file stands for the index


def main(arguments: Sequence[str] | None = None, terminal: Terminal | None = None) -> int:
    """Run one command, by default with the arguments of the process; returns the exit status."""
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
    except (errors.IgnError, OSError) as exc:
        terminal.error(f"{options.command.prog.split()[0]}: {exc}")
        if hint and isinstance(exc, errors.ConnectionFailed):
            terminal.error(hint)
        if isinstance(exc, errors.InputError):
            return USAGE
        return UNREACHABLE if isinstance(exc, _UNREACHABLE_ERRORS) else REFUSED
    terminal.end()
    return DONE if done else REFUSED


# The parser. Options that a method has, too, come from `_options`


def parser(prog: str = "ign-client") -> argparse.ArgumentParser:
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
    command = commands.add_parser("generate", help="generate images from noise")
    command.set_defaults(run=generate)
    _add(command, lists.GenerateOptions, "n", "seed", "offset", "noise_scale")
    _common(command)
    _add(command, lists.GenerateFileOptions, "columns", "gap")
    _output(command, "folder for one file each, or a file (.png .jpg .webp .npy) for a sheet of all")
    _add_jobs(command)
    command.add_argument("--skip-existing", action="store_true", help="skip images whose file exists")


def _project(commands: Commands) -> None:
    command = commands.add_parser("project", help="project images")
    command.set_defaults(run=project)
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="images, or folders of images")
    _add(command, lists.ProjectOptions, "strength", "resize", "invert")
    command.add_argument("--mask", type=Path, help="image: white = regenerate, black = keep")
    _common(command)
    _output(command, "folder, in which files keep their names; or for one image a file (.png .jpg .webp .npy)")
    _add_jobs(command)
    command.add_argument("--skip-existing", action="store_true", help="skip inputs whose output exists")


def _interpolate(commands: Commands) -> None:
    command = commands.add_parser("interpolate", help="interpolate between seeds, images or .npy latents")
    command.set_defaults(run=interpolate)
    command.add_argument("points", nargs="+", metavar="POINT", help="SEED, SEED:INDEX, or an image or .npy file")
    _add(command, lists.PathFileOptions, "frames", "method", "loop")
    command.add_argument("--grid", metavar="ROWSxCOLS", help="grid between four points, instead of a path")
    _add(command, lists.PathFileOptions, "fps")
    _common(command)
    _add(command, lists.PathFileOptions, "columns", "gap")
    _output(command, "file: .gif .apng .webp animate, .png .jpg are a strip, .npy an array; or a folder for the frames")


def _score(commands: Commands) -> None:
    command = commands.add_parser("score", help="score images, as tab-separated values")
    command.set_defaults(run=score)
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="images, or folders of images")
    command.add_argument("--json", action="store_true", help="write a line of JSON for each image instead")
    _add_jobs(command)
    _add(command, lists.ScoreOptions, "model", "resize", "invert")


def _common(command: argparse.ArgumentParser) -> None:
    _add(command, lists.GenerateOptions, "model", "steps", "scale", "resample")
    command.add_argument("--format", choices=get_args(lists.Format), help="format of the files in a folder (png)")


def _add_jobs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--jobs", type=_jobs, default=4, help="requests at a time (4)")


def _output(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-o", "--out", type=_output_path, required=True, help=what)
    command.add_argument("--force", action="store_true", help="overwrite existing outputs")


def _add(command: argparse.ArgumentParser, kind: Any, *names: str) -> None:
    """Add options of a method under their names, with the same default and meaning."""
    options = lists.options_of(kind)
    for name in names:
        hint, default, text = options[name]
        text = text.replace("``", "") + ("" if default is None or default is False else f" ({default})")
        flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        command.add_argument(flag, default=default, help=text, **_argument(hint))


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


def _output_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected the path of a file or folder")
    return Path(text)


def _given(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The options of a method that the command has, too."""
    given = {name: getattr(options, name) for name in lists.options_of(kind) if hasattr(options, name)}
    if "invert" in given:
        given["invert"] = {"true": True, "false": False}.get(given["invert"], "auto")
    return given


# The commands. Each returns whether everything was done


def generate(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    if form := _file_format(options):
        check_free([options.out], options.force)
        sheet = client.generate_as(form, **_given(options, lists.GenerateFileOptions))
        _save(sheet, options.out)
        terminal.result(f"{options.out}: seed {sheet.seed}")
        return True
    if options.n < 1:
        raise errors.InputError(f"-n: expected 1 or more, not {options.n}")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    indices = range(options.offset, options.offset + options.n)
    digits = len(str(indices[-1]))  # so that the names sort as the indices do
    targets = {i: options.out / f"{seed}-{i:0{digits}}{_suffix(options)}" for i in indices}
    targets, given = _wanted(targets, options), _given(options, lists.GenerateOptions)

    def generate_some(wanted: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        for run in _runs(wanted):
            for image in client.generate(**{**given, "n": len(run), "seed": seed, "offset": run[0]}):
                yield image.index, image

    again = f"--seed {seed} --skip-existing"
    _, failed = _save_all(targets, generate_some, options, terminal, images_of_request(options.scale), again)
    terminal.result(f"{options.out}: seed {seed}")
    return not failed


def _runs(indices: Sequence[int]) -> Iterator[list[int]]:
    """Split ascending indices where some are missing in between."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        yield [index for _, index in run]


def project(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    out: Path = options.out
    is_file = _file_format(options)
    sources = list_images(options.inputs)
    if is_file and len(sources) > 1:
        raise errors.InputError(f"--out: {out} is one file, but there are {len(sources)} images; name a folder")
    targets = {
        source: out if is_file else (out / name).with_suffix(_suffix(options)) for source, name in sources.items()
    }
    _check_distinct(targets)
    if options.mask is not None:
        options.mask = require_file(options.mask).read_bytes()
    targets, given = _wanted(targets, options), _given(options, lists.ProjectOptions)

    def project_some(some: Sequence[Path]) -> Iterable[tuple[Path, Picture]]:
        return zip(some, client.project(_one_or_more(some), **given), strict=True)

    size = images_of_request(options.scale, _images_of_request(client, targets))
    saved, failed = _save_all(targets, project_some, options, terminal, size, "--skip-existing")
    terminal.result(f"{out}: {_count(saved)}" + (f", {failed} failed" if failed else ""))
    return not failed


def interpolate(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    points = [_point(text) for text in options.points]
    options.grid = _grid(options.grid)
    target: Path = options.out
    if form := _file_format(options):
        check_free([target], options.force)
        _save(client.latent_interpolate_as(form, points, **_given(options, lists.PathFileOptions)), target)
        terminal.result(str(target))
        return True
    if target.is_dir() and any(target.iterdir()) and not options.force:
        raise errors.InputError(f"{target} is not empty; --force overwrites")
    frames = client.latent_interpolate(points, **_given(options, lists.PathOptions))
    digits = max(3, len(str(len(frames) - 1)))
    for frame in frames:
        _save(frame, target / f"{frame.index:0{digits}}{_suffix(options)}")
    terminal.result(f"{target}: {len(frames)} frames")
    return True


def score(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Write a line with the scores of each image, in the order of the inputs."""
    sources = list(list_images(options.inputs))
    given = _given(options, lists.ScoreOptions)
    scores: dict[Path, Score] = {}

    def score_some(some: Sequence[Path]) -> None:
        scores.update(zip(some, client.score(_one_or_more(some), **given), strict=True))

    try:
        size = _images_of_request(client, sources)
        return not for_each_item(sources, score_some, options.jobs, terminal, group=size)
    finally:  # also after an error, so that no score is lost
        if not options.json:
            terminal.result("\t".join(("file", *_SHOWN_MEASURES)))
        for source in sources:
            if source in scores:
                terminal.result(_line(source, scores[source], options.json))


def models(client: Client, _options: argparse.Namespace, terminal: Terminal) -> bool:
    """Write a line for each model: name/version, shape, device, and whether it is the default."""
    rows = model_rows(client.models())
    terminal.result("\t".join(MODEL_COLUMNS))
    for *cells, is_default in rows:
        terminal.result("\t".join((*cells, "yes" if is_default else "-")))
    return True


def _file_format(options: argparse.Namespace) -> Any:
    """The format of the one file that `--out` names, or None for a folder; sets `options.format`."""
    form = SUFFIXES.get(options.out.suffix.lower())
    if form is None:
        for name in ("columns", "gap"):
            if getattr(options, name, None):
                raise errors.InputError(f"--{name}: only a sheet has {name}; --out names a folder for one file each")
    elif options.format not in (None, form):
        raise errors.InputError(f"--format {options.format}: --out {options.out} is {form}; leave one of them out")
    options.format = form or options.format or "png"
    return form


def _suffix(options: argparse.Namespace) -> str:
    return ".jpg" if options.format == "jpeg" else f".{options.format}"


def _wanted(targets: dict[K, Path], options: argparse.Namespace) -> dict[K, Path]:
    """The files to write: all, or with `--skip-existing` those that do not exist."""
    if options.skip_existing:
        targets = {key: target for key, target in targets.items() if not target.exists()}
    check_free(targets.values(), options.force, "--skip-existing leaves them, --force overwrites")
    return targets


def _save_all(
    targets: Mapping[K, Path],
    make: Callable[[Sequence[K]], Iterable[tuple[K, Picture]]],
    options: argparse.Namespace,
    terminal: Terminal,
    group: int,
    again: str,
) -> tuple[int, int]:
    """Save the images that ``make`` yields for groups of keys; returns how many were saved and how many rejected.

    ``make`` is called from several threads. With the options ``again`` the command goes on after an error.
    """
    saved: list[K] = []

    def save_some(keys: Sequence[K]) -> None:
        for key, image in make(keys):
            _save(image, targets[key])
            saved.append(key)

    try:
        failed = for_each_item(list(targets), save_some, options.jobs, terminal, group=group)
    except BaseException:
        if saved:
            terminal.result(f"{options.out}: {len(saved)} of {_count(len(targets))}; {again} goes on")
        raise
    return len(saved), failed


def _save(picture: Picture, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)


def _images_of_request(client: Client, sources: Collection[Path]) -> int:
    """Most images of one request: 16, so that several requests run at a time, or fewer if the service takes fewer."""
    return min(FEW, client.models().limits.images) if len(sources) > 1 else 1


def _one_or_more(sources: Sequence[Path]) -> Path | Sequence[Path]:
    """A single image without a list around it, so that errors do not number it."""
    return sources[0] if len(sources) == 1 else sources


def _check_distinct(targets: Mapping[Path, Path]) -> None:
    sources: dict[Path, Path] = {}
    for source, target in targets.items():
        if target in sources:
            raise errors.InputError(f"{sources[target]} and {source} would both become {target}")
        sources[target] = source


def _line(source: Path, score: Score, as_json: bool) -> str:
    values = {name: getattr(score, name) for name in _SHOWN_MEASURES}
    if as_json:
        return json.dumps({"file": str(source), **values})
    return "\t".join((str(source), *map(_cell, values.values())))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _point(text: str) -> PointLike:
    if match := re.fullmatch(r"([0-9]+)(?::([0-9]+))?", text):
        return Seed(int(match[1]), int(match[2] or 0))
    return require_file(Path(text))


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
    if match is None:
        raise errors.InputError(f"--grid: expected ROWSxCOLS, such as 5x5, not {text!r}")
    return int(match[1]), int(match[2])


def _count(pictures: int) -> str:
    return f"{pictures} image{'' if pictures == 1 else 's'}"
