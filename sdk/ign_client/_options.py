"""The options of all methods: each stands here once, with its type, the default of the service, and its meaning.

A method takes `**options: Unpack[…Options]`, so a type checker knows its keywords. `described` makes from these lists
the signature and the docstring that `help()` shows, and `_cli` makes the options of the commands.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ign_client._errors import InputError
from ign_client._inputs import PictureLike

P = ParamSpec("P")
T = TypeVar("T")

Format: TypeAlias = Literal["png", "jpeg", "webp", "npy"]
PathForm: TypeAlias = Literal["png", "jpeg", "webp", "npy", "gif", "apng"]
Resample: TypeAlias = Literal["nearest", "smooth"]
Resize: TypeAlias = Literal["fit", "crop", "stretch"]
Invert: TypeAlias = bool | Literal["auto"]


class Unset(Enum):
    """The type of an option that was not given, for options where None is a value."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True)
class Option:
    """Default and meaning of an option. The client does not send the default: the service has it."""

    default: Any
    text: str


class Connection(TypedDict, total=False):
    """Options of every method; they are not part of the body."""

    timeout: Annotated[
        float | None,
        Option(
            UNSET,
            "seconds for one attempt, or until the first event; None: the limit of the service; by default the client's",
        ),
    ]
    request_id: Annotated[str | None, Option(None, "1 to 128 of A-Z a-z 0-9 . _ -, repeated in the response")]


class Model(TypedDict, total=False):
    """Which model runs."""

    model: Annotated[str | None, Option(None, "``name`` or ``name/version``")]


class Run(Model, total=False):
    """Options of every method that returns images."""

    steps: Annotated[int | None, Option(None, "k, the number of applications of f; the model recommends a default")]
    scale: Annotated[int, Option(1, "factor that enlarges the images, 1…32")]
    resample: Annotated[Resample, Option("nearest", "``nearest`` repeats pixels, ``smooth`` interpolates them")]


class Rows(Run, total=False):
    """Options of methods whose rows may differ in steps."""

    tolerance: Annotated[
        float | None, Option(None, "stop a row when mean |f(y) − y| of its last step is below this value")
    ]
    score: Annotated[bool, Option(False, "also measure ``drift``, which costs one more step")]


class Encoding(TypedDict, total=False):
    """Options of images that are returned one by one."""

    format: Annotated[Format, Option("png", "format of the images")]


class Recording(Encoding, total=False):
    """Options of images with a trajectory."""

    record: Annotated[
        Sequence[int] | None,
        Option(None, "ascending numbers of the steps to return as ``trajectory``; step 0 is the input of f"),
    ]


class Sheet(TypedDict, total=False):
    """Options of several images in one file."""

    columns: Annotated[int | None, Option(None, "columns of a sheet; by default about as many as rows")]
    gap: Annotated[int, Option(0, "pixels between the images of a sheet, 0…64")]


class Noise(TypedDict, total=False):
    """Options of seeded noise."""

    n: Annotated[int, Option(1, "number of images; the client splits what one request cannot hold")]
    seed: Annotated[int | None, Option(None, "0…2³² − 1; the same seed gives the same images; random by default")]
    offset: Annotated[int, Option(0, "index of the first image of the seed")]
    noise_scale: Annotated[float, Option(1.0, "factor of the noise, 0…2")]


class Preparation(TypedDict, total=False):
    """How the service prepares uploaded images."""

    resize: Annotated[
        Resize,
        Option("fit", "``fit`` adds a letterbox, ``crop`` cuts the centre, ``stretch`` changes the aspect ratio"),
    ]
    invert: Annotated[
        Invert,
        Option("auto", "exchange light and dark; ``auto``: if the model is light on dark and the border is light"),
    ]


class Upload(Preparation, total=False):
    """Options of projected images."""

    strength: Annotated[float, Option(1.0, "s of (1 − s)·x + s·f^k(x), 0…1")]
    mask: Annotated[
        "PictureLike | None", Option(None, "for all images: white or True = regenerate, black or False = keep")
    ]
    masks: Annotated["Sequence[PictureLike] | None", Option(None, "one mask for each image, instead of ``mask``")]


class Path(TypedDict, total=False):
    """Options of an interpolation."""

    frames: Annotated[
        int | None, Option(None, "number of frames of the whole path, with both ends, 2…256; 9 by default")
    ]
    method: Annotated[Literal["slerp", "lerp"], Option("slerp", "spherical or linear interpolation")]
    loop: Annotated[bool, Option(False, "return to the first point")]
    grid: Annotated[tuple[int, int] | None, Option(None, "(rows, columns), instead of ``frames`` and ``loop``")]


class Animation(TypedDict, total=False):
    """Options of an animation."""

    fps: Annotated[int, Option(12, "frames per second of an animation, 1…50")]


class Sum(Run, total=False):
    """Options of a weighted sum."""

    normalize: Annotated[bool, Option(True, "rescale the sum to the length of the model's noise")]


class GenerateOptions(Rows, Noise, Recording, Connection, total=False):
    """Of `generate` and `stream_generate`."""


class GenerateFileOptions(Rows, Noise, Sheet, Connection, total=False):
    """Of `generate_as`."""


class ProjectOptions(Rows, Upload, Recording, Connection, total=False):
    """Of `project` and `stream_project`."""


class ProjectFileOptions(Rows, Upload, Sheet, Connection, total=False):
    """Of `project_as`."""


class PathOptions(Run, Path, Encoding, Connection, total=False):
    """Of `latent_interpolate`."""


class PathFileOptions(Run, Path, Animation, Sheet, Connection, total=False):
    """Of `latent_interpolate_as`."""


class SumOptions(Sum, Encoding, Connection, total=False):
    """Of `latent_arithmetic`."""


class SumFileOptions(Sum, Connection, total=False):
    """Of `latent_arithmetic_as`."""


class ScoreOptions(Model, Preparation, Connection, total=False):
    """Of `score`."""


def options_of(kind: Any) -> dict[str, tuple[Any, Option]]:
    """Type and description of each option in a list."""
    return {name: get_args(hint) for name, hint in kind.__annotations__.items()}


def described(build: Callable[P, T]) -> Callable[P, T]:
    """Let a function check its options, and show them in its signature and docstring.

    The function receives the options that are not None, as JSON holds them.
    """
    (kind,) = get_args(get_type_hints(build)["options"])
    options = options_of(kind)
    signature = inspect.signature(build)
    positional = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=_shown(hint))
        for name, (hint, option) in options.items()
    ]
    signature = signature.replace(parameters=[*positional, *keywords])

    @wraps(build)
    def checking(*args: P.args, **kwargs: P.kwargs) -> T:
        arguments = signature.bind(*args, **kwargs).arguments
        for name in arguments.keys() & options.keys():
            hint, option = options[name]
            if arguments[name] is None and option.default is not UNSET:
                del arguments[name]
            else:
                arguments[name] = checked(name, arguments[name], hint)
        call: Any = build
        return call(**arguments)  # type: ignore[no-any-return]

    vars(checking)["__signature__"] = signature
    text = inspect.cleandoc(build.__doc__ or "")
    lines = [f"    {name}: {option.text}." for name, (_, option) in options.items()]
    checking.__doc__ = "\n".join([text, *([] if positional else ["", "Args:"]), *lines])
    return checking


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as JSON holds it: numpy scalars and arrays become numbers and lists.

    Raises:
        InputError: it has another type. The service decides which values of the type it takes.
    """
    to_list = getattr(value, "tolist", None)
    plain = list(value) if isinstance(value, range) else to_list() if callable(to_list) else value
    if isinstance(_shown(hint), str):  # images, which `_inputs` checks when it reads them
        return value
    if not _fits(plain, hint):
        expected = inspect.formatannotation(hint).replace("collections.abc.", "")
        raise InputError(f"{name}: expected {expected}, not {value!r:.80}")
    return plain


def _fits(value: Any, hint: Any) -> bool:
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, member) for member in members)
    if kind is Literal:
        return isinstance(value, str)
    if kind is tuple:
        return isinstance(value, list | tuple) and len(value) == len(members) and all(map(_fits, value, members))
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, members[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return (
        isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if kind is float
        else (isinstance(value, kind))
    )


def _shown(hint: Any) -> Any:
    """The type as a signature shows it; that of images by its name, because it is long."""
    return getattr(hint, "__forward_arg__", hint)


def body_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those of the connection."""
    return {name: value for name, value in options.items() if name not in Connection.__annotations__}


def connection_options(options: Mapping[str, Any]) -> Connection:
    """The options of the connection."""
    both: Any = {name: options[name] for name in Connection.__annotations__ if name in options}
    return both  # type: ignore[no-any-return]
