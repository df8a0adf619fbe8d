"""The methods of both clients: each function turns its arguments into a `Call`, or into several for
many images.

The only I/O here is reading image files. Every method raises

- `InputError`: an argument cannot be sent;
- `TransportError`: there was no response;
- `StatusError`: the service answered with an error; there is one class for each status;
- `UnexpectedAnswer`: the response does not come from ign-service.
"""

# so that signatures show the names of types, not what they stand for
from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar, Unpack
from urllib.parse import quote

from ign_client import _answers, _inputs
from ign_client import _options as lists
from ign_client import _results as results
from ign_client._answers import Expected
from ign_client._errors import InputError, StatusError
from ign_client._inputs import Pictures, PointLike, Term
from ign_client._options import Connection, Format, PathForm, checked, described
from ign_client._picture import MEDIA
from ign_client._stream import Events, events_of
from ign_client._wire import EVENTS, Body, Call, Response

T = TypeVar("T")
ResultT = TypeVar(
    "ResultT", results.Images[results.Image], results.Images[results.ProjectedImage], results.Scores
)
Options = Mapping[str, Any]

CONCURRENT: Final = 4
"""Requests of one call that run at a time."""
MOST_IMAGES: Final = 1_000_000
"""Images that one call of `generate` makes: they stay in memory together."""
# What a service takes in a request unless it is configured otherwise: 64 images and 16 MiB, of
# which base64 takes a quarter.
_MOST: Final = 64
_ROOM: Final = 8 << 20
_ALONE: Final = 1 << 62  # more than a request may have: a file that may have pages has its own
# images of one request × scale²; with 64×64 pixels a quarter of what a service allows
_ENLARGED: Final = 1024
_CONNECTION: Final = Connection.__annotations__
_FILE: Final = "application/octet-stream"  # the service looks at the content

Calls = Call[T] | list[Call[T]]


@described
def generate(**options: Unpack[lists.GenerateOptions]) -> Calls[results.Images[results.Image]]:
    """Generate images: f^k(z) of seeded noise z."""
    n = options.get("n", 1)
    size = images_of_request(options.get("scale", 1))
    if n <= size:
        return _generate(options)
    if n > MOST_IMAGES:
        raise InputError(f"n: {n} images, a call makes at most {MOST_IMAGES}; offset goes on")
    # All parts need the same seed, so the client chooses it.
    whole: dict[str, Any] = {"seed": secrets.randbits(32), **options}
    first = options.get("offset", 0)
    return [
        _generate({**whole, "n": min(size, n - start), "offset": first + start})
        for start in range(0, n, size)
    ]


@described
def generate_as(form: Format, **options: Unpack[lists.GenerateFileOptions]) -> Call[results.Raw]:
    """Like `generate`, but as one file: an image, a near-square contact sheet, or ``npy`` float32
    (N, C, H, W).
    """
    return replace(_file("/generate", form, options, _json(options)), placed=_several)


@described
def stream_generate(**options: Unpack[lists.GenerateOptions]) -> Call[Events[results.Image]]:
    """Like `generate`, but as a stream of events: `Step` for each recorded and each last step,
    `Progress`, and `Done`.

    ``timeout`` limits the wait for the first event. The client retries only before the first event.
    Closing the stream cancels the computation.
    """
    parse = partial(events_of, results.Image, _noise(options), options.get("record") or ())
    return _call("/generate", parse, options, _json(options), accept=EVENTS)


@described
def project(
    images: Pictures, **options: Unpack[lists.ProjectOptions]
) -> Calls[results.Images[results.ProjectedImage]]:
    """Project images onto the model's distribution: f^k(x)."""
    return _uploads("/project", partial(_answers.images, results.ProjectedImage), images, options)


@described
def project_as(
    form: Format, images: Pictures, **options: Unpack[lists.ProjectFileOptions]
) -> Call[results.Raw]:
    """Like `project`, but as one file: an image, a near-square contact sheet, or ``npy`` float32
    (N, C, H, W).
    """
    return _file("/project", form, options, _upload(_inputs.pictures(images), _encoded(options)))


@described
def stream_project(
    images: Pictures, **options: Unpack[lists.ProjectOptions]
) -> Call[Events[results.ProjectedImage]]:
    """Like `project`, but as a stream of events; see `stream_generate`."""
    contents = _inputs.pictures(images)
    parse = partial(
        events_of,
        results.ProjectedImage,
        _expected(options, _count(contents)),
        options.get("record") or (),
    )
    return _call("/project", parse, options, _upload(contents, _encoded(options)), accept=EVENTS)


@described
def score(images: Pictures, **options: Unpack[lists.ScoreOptions]) -> Calls[results.Scores]:
    """Score images: the distance that f moves them, compared with held-out real images."""
    return _uploads("/score", _answers.scores, images, options)


@described
def latent_interpolate(
    points: Sequence[PointLike], **options: Unpack[lists.PathOptions]
) -> Call[results.Images[results.Frame]]:
    """Apply f^k along a path of latents, or over a grid between four latents."""
    parse = partial(_answers.images, results.Frame, _expected(options))
    return _call("/latent-interpolate", parse, options, _path(points, options))


@described
def latent_interpolate_as(
    form: PathForm, points: Sequence[PointLike], **options: Unpack[lists.PathFileOptions]
) -> Call[results.Raw]:
    """Like `latent_interpolate`, but as one file.

    ``gif``, ``apng`` and ``webp`` are an animation, ``png`` and ``jpeg`` a strip, and ``npy`` is
    float32 (N, C, H, W). A grid is a sheet; it has no ``gif`` and no ``apng``.
    """
    return _file("/latent-interpolate", form, options, _path(points, options))


@described
def latent_arithmetic(
    terms: Sequence[Term | PointLike], **options: Unpack[lists.SumOptions]
) -> Call[results.Images[results.Image]]:
    """Apply f^k to a weighted sum of latents; the result is one image."""
    parse = partial(_answers.images, results.Image, _expected(options, 1))
    return _call("/latent-arithmetic", parse, options, _sum(terms, options))


@described
def latent_arithmetic_as(
    form: Format, terms: Sequence[Term | PointLike], **options: Unpack[lists.SumFileOptions]
) -> Call[results.Raw]:
    """Like `latent_arithmetic`, but as one file."""
    return _file("/latent-arithmetic", form, options, _sum(terms, options))


@described
def models(**options: Unpack[Connection]) -> Call[results.Models]:
    """The models in service, the default model, and the limits of a request."""
    return _call("/models", _answers.models, options)


@described
def model(name: str, **options: Unpack[Connection]) -> Call[results.Card]:
    """The complete card of one model."""
    path = f"/models/{quote(checked('name', name, str))}"
    return _call(path, _answers.card, options)


@described
def ready(**options: Unpack[Connection]) -> Call[results.Readiness]:
    """Whether the service accepts requests. Status 503 is a result here: it is neither raised nor
    retried.
    """
    return _call("/readyz", _answers.readiness, options, statuses=frozenset({200, 503}))


# Calls and bodies


def _call(
    path: str,
    parse: Callable[[Response], T],
    options: Options,
    body: Body = MappingProxyType({}),
    **others: Any,
) -> Call[T]:
    connection = {name: options[name] for name in _CONNECTION if name in options}
    return Call(path=path, parse=parse, body=body, connection=connection, **others)


def _file(path: str, form: str, options: Options, body: Body) -> Call[results.Raw]:
    if form not in list(MEDIA):  # of a caller without type checks, it may be unhashable
        raise InputError(f"form: expected one of {', '.join(MEDIA)}, not {form!r}")
    return _call(path, partial(_answers.raw, form), options, body, accept=MEDIA[form])


def _several(error: StatusError) -> StatusError:
    """The error of a file of more images than the service allows, with what has more."""
    if error.detail.startswith("n: at most"):
        error.detail += "; generate(), or a folder, takes more, and `ign generate --local` any"
    return error


def _generate(options: Options) -> Call[results.Images[results.Image]]:
    return _call(
        "/generate",
        partial(_answers.images, results.Image, _noise(options)),
        options,
        _json(options),
    )


def _noise(options: Options) -> Expected:
    return _expected(options, options.get("n", 1), options.get("offset", 0))


def _expected(
    options: Options, total: int | None = None, first: int = 0, moved: int = 0
) -> Expected:
    return Expected(options.get("format", "png"), total, first, moved)


def _count(contents: Sequence[bytes]) -> int | None:
    """The number of images, None if the service counts the pages of a TIFF."""
    return None if any(map(_inputs.may_have_pages, contents)) else len(contents)


def _sent(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _CONNECTION}


def _json(options: Options, **members: Any) -> Body:
    sent = {**_sent(options), **members}
    return {"content": json.dumps(sent, separators=(",", ":"), allow_nan=False).encode("ascii")}


def _encoded(options: Options) -> dict[str, Any]:
    """The options with masks as the content of files."""
    encoded = dict(options)
    if "mask" in options:
        encoded["mask"] = _inputs.mask(options["mask"], "mask")
    if "masks" in options:
        if "mask" in options:
            raise InputError("masks: give mask or masks, not both")
        encoded["masks"] = [
            _inputs.mask(item, f"masks.{i}") for i, item in enumerate(options["masks"])
        ]
    return encoded


def _upload(contents: Sequence[bytes], options: Options) -> Body:
    """A multipart form, which needs no base64; or JSON if each image has its own mask."""
    sent = _sent(options)
    if "masks" in sent:
        return _json(
            sent,
            images=list(map(_inputs.base64_text, contents)),
            masks=list(map(_inputs.base64_text, sent["masks"])),
        )
    files = [("image", ("image", data, _FILE)) for data in contents]
    if "mask" in sent:
        files.append(("mask", ("mask", sent.pop("mask"), _FILE)))
    return {"data": {name: _text(value) for name, value in sent.items()}, "files": files}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _path(points: Sequence[PointLike], options: Options) -> Body:
    members = [_inputs.point(value, f"points.{i}") for i, value in enumerate(points)]
    grid = options.get("grid")
    shape = {} if grid is None else {"grid": {"rows": grid[0], "cols": grid[1]}}
    return _json(options, points=members, **shape)


def _sum(terms: Sequence[Term | PointLike], options: Options) -> Body:
    members = []
    for i, value in enumerate(terms):
        term = value if isinstance(value, Term) else Term(value)
        weight = checked(f"terms.{i}.weight", term.weight, float)
        members.append({**_inputs.point(term.point, f"terms.{i}"), "weight": weight})
    return _json(options, terms=members)


# Calls with many images, which become several requests


def images_of_request(scale: int, most: int = _MOST) -> int:
    """How many images one request may have: enlarged ones are fewer, so that they keep below the
    limit of pixels.
    """
    return max(1, min(most, _ENLARGED // scale**2 if scale > 0 else most))


def _uploads(
    path: str, parse: Callable[[Expected, Response], ResultT], images: Pictures, options: Options
) -> Calls[ResultT]:
    contents = _inputs.pictures(images)
    sent = _encoded(options)
    masks = sent.get("masks")
    sizes = [_ALONE if _inputs.may_have_pages(data) else len(data) for data in contents]
    if masks is not None:
        if len(masks) != len(contents):
            raise InputError(f"masks: {len(masks)} for {len(contents)} images")
        sizes = [size + len(mask) for size, mask in zip(sizes, masks, strict=True)]

    def call(chosen: slice) -> Call[ResultT]:
        own = sent if masks is None else {**sent, "masks": masks[chosen]}
        some = contents[chosen]
        read = partial(parse, _expected(own, _count(some), moved=chosen.start))
        others = {} if len(contents) == 1 else {"placed": partial(_placed_error, chosen.start)}
        return _call(path, read, own, _upload(some, own), **others)

    most = images_of_request(options.get("scale", 1))
    calls = [call(chosen) for chosen in _groups(sizes, most, _ROOM - len(sent.get("mask", b"")))]
    return calls if len(calls) > 1 else calls[0]


def _groups(sizes: Sequence[int], most: int, room: int) -> Iterator[slice]:
    """Neighbours that fit in one request; what is too large alone has a request of its own."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start >= most or total + size > room):
            yield slice(start, i)
            start = i
            total = 0
        total += size
    yield slice(start, len(sizes))


def join(parts: Sequence[Any]) -> Any:
    """One result of all parts: model and request id of the first, times added."""
    members = [member for result in parts for member in result.images]
    members = [
        replace(member, index=index) for index, member in enumerate(members, members[0].index)
    ]
    times = {
        item.name: sum(getattr(result.timing, item.name) for result in parts)
        for item in fields(results.Timing)
    }
    return replace(parts[0], images=tuple(members), timing=results.Timing(**times))


def _placed_error(start: int, error: StatusError) -> StatusError:
    """The error with the indices of the whole call."""
    error.detail = _placed(error.detail, start)
    error.errors = tuple(replace(item, field=_placed(item.field, start)) for item in error.errors)
    return error


def _placed(text: str, start: int) -> str:
    """``image``, ``image.2`` and ``masks.2`` at the start of a text with the index in the whole
    call; ``mask`` is that of all images.
    """
    match = re.match(r"(image|mask(?=s))s?(?:\.([0-9]{1,9}))?(?=:|$)", text)
    if match is None:
        return text
    return f"{match[1]}s.{int(match[2] or 0) + start}{text[match.end() :]}"
