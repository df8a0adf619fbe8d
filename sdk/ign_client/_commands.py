"""The commands. Each returns whether everything was done."""

import argparse
import json
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from ign_client._batches import check_free, for_each_item, list_images, require_file
from ign_client._client import Client
from ign_client._errors import InputError
from ign_client._inputs import PointLike, Seed
from ign_client._picture import SUFFIXES, Picture
from ign_client._results import Score
from ign_client._split import FEW, most_enlarged
from ign_client._terminal import Terminal

_SUFFIX_OF: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy"}
_MEASURES: Final = ("distance", "drift", "percentile", "in_distribution")


def generate(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Generate pictures into a folder, or as one sheet."""
    kwargs = {name: getattr(options, name) for name in ("model", "steps", "noise_scale", "scale", "resample")}
    target: Path = options.out
    if file_format := SUFFIXES.get(target.suffix.lower()):
        check_free([target], options.force)
        sheet = client.generate_as(
            file_format,  # type: ignore[arg-type]
            n=options.n,
            seed=options.seed,
            offset=options.offset,
            columns=options.columns,
            gap=options.gap,
            **kwargs,
        )
        _save(sheet, target)
        terminal.result(f"{target}: seed {sheet.seed}")
        return True
    _check_no_sheet(options)
    return _generate_files(client, options, kwargs, terminal)


def _generate_files(client: Client, options: argparse.Namespace, kwargs: dict[str, Any], terminal: Terminal) -> bool:
    target: Path = options.out
    seed = secrets.randbits(32) if options.seed is None else options.seed
    indices = range(options.offset, options.offset + options.n)
    digits = len(str(max(indices, default=0)))  # so that the names sort as the indices do
    paths = {i: target / f"{seed}-{i:0{digits}}{_SUFFIX_OF[options.format]}" for i in indices}
    if not paths:
        raise InputError(f"-n: expected 1 or more, not {options.n}")
    if options.skip_existing:
        paths = {i: path for i, path in paths.items() if not path.exists()}
    check_free(paths.values(), options.force)
    saved: list[int] = []

    def save_some(wanted: Sequence[int]) -> None:
        for run in _runs(wanted):
            for image in client.generate(n=len(run), seed=seed, offset=run[0], format=options.format, **kwargs):
                _save(image, paths[image.index])
                saved.append(image.index)

    try:
        size = min(FEW, most_enlarged(options.scale))
        failed = for_each_item(list(paths), save_some, options.jobs, terminal, group=size)
    except BaseException:
        if saved:
            done = f"{target}: {len(saved)} of {_count(len(paths))}"
            terminal.result(f"{done}; --seed {seed} --skip-existing goes on")
        raise
    terminal.result(f"{target}: seed {seed}")
    return not failed


def _runs(indices: Sequence[int]) -> Iterator[list[int]]:
    """Split ascending indices where some are missing in between."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        yield [index for _, index in run]


def project(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Project pictures, one output file for each."""
    names = ("model", "steps", "format", "strength", "resize", "scale", "resample")
    kwargs = {name: getattr(options, name) for name in names} | {"invert": _invert(options)}
    out: Path = options.out
    sources = list_images(options.inputs)
    if file_format := SUFFIXES.get(out.suffix.lower()):
        if len(sources) > 1:
            raise InputError(f"--out: {out} is one file, but there are {len(sources)} pictures; name a folder")
        targets, kwargs["format"] = dict.fromkeys(sources, out), file_format
    else:
        targets = {source: (out / name).with_suffix(_SUFFIX_OF[options.format]) for source, name in sources.items()}
    _check_distinct(targets)
    if options.skip_existing:
        targets = {source: target for source, target in targets.items() if not target.exists()}
    check_free(targets.values(), options.force, "--skip-existing leaves them, --force overwrites")
    mask = None if options.mask is None else require_file(Path(options.mask)).read_bytes()

    def project_some(sources: Sequence[Path]) -> None:
        for source, image in zip(sources, client.project(_one_or_more(sources), mask=mask, **kwargs), strict=True):
            _save(image, targets[source])
            saved.append(source)

    saved: list[Path] = []
    try:
        size = min(_images_of_request(client, targets), most_enlarged(options.scale))
        failed = for_each_item(list(targets), project_some, options.jobs, terminal, group=size)
    except BaseException:
        if saved:
            terminal.result(f"{out}: {len(saved)} of {_count(len(targets))}; --skip-existing goes on")
        raise
    terminal.result(f"{out}: {_count(len(saved))}" + (f", {failed} failed" if failed else ""))
    return not failed


def interpolate(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Interpolate along a path or over a grid, into a folder or as one file."""
    points = [_point(text) for text in options.points]
    names = ("model", "steps", "frames", "method", "loop", "scale", "resample")
    kwargs = {name: getattr(options, name) for name in names}
    kwargs["grid"] = _grid(options.grid)
    target: Path = options.out
    if file_format := SUFFIXES.get(target.suffix.lower()):
        check_free([target], options.force)
        picture = client.latent_interpolate_as(
            file_format,  # type: ignore[arg-type]
            points,
            fps=options.fps,
            columns=options.columns,
            gap=options.gap,
            **kwargs,
        )
        _save(picture, target)
        terminal.result(str(target))
        return True
    _check_no_sheet(options)
    if target.is_dir() and any(target.iterdir()) and not options.force:
        raise InputError(f"{target} is not empty; --force overwrites")
    frames = client.latent_interpolate(points, format=options.format, **kwargs)
    digits = max(3, len(str(len(frames) - 1)))
    for frame in frames:
        _save(frame, target / f"{frame.index:0{digits}}{_SUFFIX_OF[options.format]}")
    terminal.result(f"{target}: {len(frames)} frames")
    return True


def score(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Write a line with the scores of each picture, in the order of the inputs."""
    sources = list(list_images(options.inputs))
    kwargs = {"model": options.model, "resize": options.resize, "invert": _invert(options)}
    scores: dict[Path, Score] = {}

    def score_some(some: Sequence[Path]) -> None:
        scores.update(zip(some, client.score(_one_or_more(some), **kwargs), strict=True))

    try:
        size = _images_of_request(client, sources)
        return not for_each_item(sources, score_some, options.jobs, terminal, group=size)
    finally:  # also after an error, so that no score is lost
        if not options.json:
            terminal.result("\t".join(("file", *_MEASURES)))
        for source in sources:
            if source in scores:
                terminal.result(_line(source, scores[source], options.json))


def models(client: Client, _options: argparse.Namespace, terminal: Terminal) -> bool:
    """Write a line for each model: name/version, shape, device, and whether it is the default."""
    served = client.models()
    terminal.result("\t".join(("model", "shape", "device", "default")))
    for card in served:
        shape = "×".join(map(str, card.shape))
        is_default = served.default in (card.ref, card.name)
        terminal.result("\t".join((card.ref, shape, card.device, "yes" if is_default else "-")))
    return True


def _save(picture: Picture, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)


def _images_of_request(client: Client, sources: Collection[Path]) -> int:
    """Most pictures of one request: 16, so that several requests run at a time, or fewer if the service takes fewer."""
    return min(FEW, client.models().limits.images) if len(sources) > 1 else 1


def _one_or_more(sources: Sequence[Path]) -> Path | Sequence[Path]:
    """A single picture without a list around it, so that errors do not number it."""
    return sources[0] if len(sources) == 1 else sources


def _check_no_sheet(options: argparse.Namespace) -> None:
    for name in ("columns", "gap"):
        if getattr(options, name):
            raise InputError(f"--{name}: only a sheet has {name}; --out names a folder for one file each")


def _check_distinct(targets: dict[Path, Path]) -> None:
    sources: dict[Path, Path] = {}
    for source, target in targets.items():
        if target in sources:
            raise InputError(f"{sources[target]} and {source} would both become {target}")
        sources[target] = source


def _line(source: Path, score: Score, as_json: bool) -> str:
    values = {name: asdict(score)[name] for name in _MEASURES}
    if as_json:
        return json.dumps({"file": str(source), **values})
    return "\t".join((str(source), *map(_cell, values.values())))


def _point(text: str) -> PointLike:
    if match := re.fullmatch(r"([0-9]+)(?::([0-9]+))?", text):
        return Seed(int(match[1]), int(match[2] or 0))
    return require_file(Path(text))


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
    if match is None:
        raise InputError(f"--grid: expected ROWSxCOLS, such as 5x5, not {text!r}")
    return int(match[1]), int(match[2])


def _invert(options: argparse.Namespace) -> Any:
    return {"true": True, "false": False}.get(options.invert, "auto")


def _count(pictures: int) -> str:
    return f"{pictures} picture{'' if pictures == 1 else 's'}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
