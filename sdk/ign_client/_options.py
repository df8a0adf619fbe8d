"""The options of all methods: each stands here once, with its type, the default of the service, and
its meaning.

A method takes `**options: Unpack[…Options]`, so a type checker knows its keywords. `described`
makes from these lists the signature and the docstring that `help()` shows, and `_cli` makes the
options of the commands.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from functools import wraps
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from ign_client._errors import InputError
from ign_client._inputs import PictureLike

P = ParamSpec("P")
T = TypeVar("T")

Format = Literal["png", "jpeg", "webp", "npy"]
PathForm = Literal["png", "jpeg", "webp", "npy", "gif", "apng"]
Resample = Literal["nearest", "smooth"]
Resize = Literal["fit", "crop", "stretch"]
Invert = bool | Literal["auto"]


# The positional arguments of the methods

ARGUMENTS: Final = {
    "form": "format of the file",
    "images": "one image or several: paths, bytes, open files, PIL images, uint8 arrays, or "
    "earlier results",
    "points": "2…16 latents: numbers, `Seed`, images, or float32 (C, H, W) arrays; a grid needs "
    "four, row by row",
    "terms": "1…16 terms, each a `Term`, or a latent as for `latent_interpolate` with weight 1",
    "name": "``name`` for the highest version, or ``name/version``",
}


# Each option: its type, the default of the service (`...`: that of the client), its meaning. The
# client does not send defaults.


class Connection(TypedDict, total=False):
    """Options of every method; they are not part of the body."""

    timeout: Annotated[
        float | None,
        ...,
        "seconds for one attempt or the first event, not for the call; None: the service's limit",
    ]
    deadline: Annotated[
        float | None, ..., "seconds for the whole call, a stream to its end; None: no limit"
    ]
    request_id: Annotated[
        str | None, None, "1 to 128 of A-Z a-z 0-9 . _ -, repeated in the response"
    ]


class _Model(TypedDict, total=False):
    model: Annotated[str | None, None, "``name`` or ``name/version``"]


class _Run(_Model, total=False):
    steps: Annotated[
        int | None, None, "k, the number of applications of f; the model recommends a default"
    ]
    scale: Annotated[int, 1, "factor that enlarges the images, 1…32"]
    resample: Annotated[
        Resample, "nearest", "``nearest`` repeats pixels, ``smooth`` interpolates them"
    ]


class _Rows(_Run, total=False):
    tolerance: Annotated[
        float | None, None, "stop a row when mean |f(y) − y| of its last step is below this value"
    ]
    score: Annotated[bool, False, "also measure ``drift``, which costs one more step"]


class _Encoding(TypedDict, total=False):
    format: Annotated[Format, "png", "format of the images"]


class _Recording(_Encoding, total=False):
    record: Annotated[
        Sequence[int] | None, None, "ascending steps for ``trajectory``; 0: the input of f"
    ]


class _Sheet(TypedDict, total=False):
    columns: Annotated[int | None, None, "columns of a sheet; by default about as many as rows"]
    gap: Annotated[int, 0, "pixels between the images of a sheet, 0…64"]


class _Noise(TypedDict, total=False):
    n: Annotated[
        int,
        1,
        "number of images; `generate` sends more than the service's limit as several requests",
    ]
    seed: Annotated[
        str | int | None,
        None,
        "0…2³² − 1, or a text; the same seed gives the same images; default random",
    ]
    offset: Annotated[int, 0, "index of the first image of the seed"]
    noise_scale: Annotated[float, 1.0, "factor of the noise, 0…2"]
    width: Annotated[
        int | None, None, "pixels, of a model that takes any size; ``height`` likewise"
    ]
    height: Annotated[int | None, None, "pixels"]


class _Preparation(TypedDict, total=False):
    resize: Annotated[
        Resize,
        "fit",
        "``fit`` adds borders, ``crop`` cuts the centre, ``stretch`` changes the shape",
    ]
    invert: Annotated[
        Invert,
        "auto",
        "exchange light and dark; ``auto``: if the border is light and the model's dark",
    ]


class _Upload(_Preparation, total=False):
    strength: Annotated[float, 1.0, "s of (1 − s)·x + s·f^k(x), 0…1"]
    mask: Annotated[
        "PictureLike | None",
        None,
        "for all images: white or True = regenerate, black or False = keep",
    ]
    masks: Annotated[
        "Sequence[PictureLike] | None", None, "one mask for each image, instead of ``mask``"
    ]


class _Path(TypedDict, total=False):
    frames: Annotated[
        int | None, None, "frames of the whole path, with both ends, 2…256; 9 by default"
    ]
    method: Annotated[Literal["slerp", "lerp"], "slerp", "spherical or linear interpolation"]
    loop: Annotated[bool, False, "return to the first point"]
    grid: Annotated[
        tuple[int, int] | None, None, "(rows, columns), instead of ``frames`` and ``loop``"
    ]


class GenerateOptions(_Rows, _Noise, _Recording, Connection, total=False):
    """Of `generate` and `stream_generate`."""


class GenerateFileOptions(_Rows, _Noise, _Sheet, Connection, total=False):
    """Of `generate_as`."""


class ProjectOptions(_Rows, _Upload, _Recording, Connection, total=False):
    """Of `project` and `stream_project`."""


class ProjectFileOptions(_Rows, _Upload, _Sheet, Connection, total=False):
    """Of `project_as`."""


class PathOptions(_Run, _Path, _Encoding, Connection, total=False):
    """Of `latent_interpolate`."""


class PathFileOptions(_Run, _Path, _Sheet, Connection, total=False):
    """Of `latent_interpolate_as`."""

    fps: Annotated[int, 12, "frames per second of an animation, 1…50"]


class SumFileOptions(_Run, Connection, total=False):
    """Of `latent_arithmetic_as`."""

    normalize: Annotated[bool, True, "rescale the sum to the length of the model's noise"]


class SumOptions(SumFileOptions, _Encoding, total=False):
    """Of `latent_arithmetic`."""


class ScoreOptions(_Model, _Preparation, Connection, total=False):
    """Of `score`."""


def options_of(kind: Any) -> dict[str, tuple[Any, Any, str]]:
    """Type, default and meaning of each option in a list."""
    return {name: get_args(hint) for name, hint in kind.__annotations__.items()}


def described(build: Callable[P, T]) -> Callable[P, T]:
    """Let a function that builds a call check its options, and show them in its signature and
    docstring.

    The function receives the options that are not None, as JSON holds them. The signature is that
    of a method: it begins with `self`.
    """
    hints = typing.get_type_hints(build)
    (kind,) = get_args(hints["options"])
    options = options_of(kind)
    *positional, _ = inspect.signature(build).parameters.values()
    parameters = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *positional,
        *(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_shown(hint)
            )
            for name, (hint, default, _) in options.items()
        ),
    ]
    signature = inspect.Signature(parameters)

    @wraps(build)
    def checking(*args: P.args, **kwargs: P.kwargs) -> T:
        arguments = signature.bind(None, *args, **kwargs).arguments
        del arguments["self"]
        for name, (hint, default, _) in options.items():
            if arguments.get(name) is not None:
                arguments[name] = checked(name, arguments[name], hint)
            elif default is not ...:  # of which None is another value
                arguments.pop(name, None)
        call: Callable[..., T] = build
        return call(**arguments)

    vars(checking)["__signature__"] = signature
    texts = {argument.name: ARGUMENTS[argument.name] for argument in positional}
    texts |= {name: text for name, (_, _, text) in options.items()}
    lines = [f"    {name}: {text}." for name, text in texts.items()]
    checking.__doc__ = "\n".join([inspect.getdoc(build) or "", "", "Args:", *lines])
    return checking


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as JSON holds it: numpy scalars and arrays become numbers and lists; the service
    judges the value.
    """
    if isinstance(_shown(hint), str):  # images, which `_inputs` checks when it reads them
        return value
    to_list = getattr(value, "tolist", None)
    plain = list(value) if isinstance(value, range) else to_list() if callable(to_list) else value
    if not fits(plain, hint):
        expected = inspect.formatannotation(hint).replace("collections.abc.", "")
        raise InputError(f"{name}: expected {expected}, not {value!r:.80}")
    return plain


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON can hold is of a type."""
    kind = get_origin(hint) or hint
    members = get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, member) for member in members)
    if kind in (Sequence, tuple):
        if not isinstance(value, list | tuple):
            return False
        kinds = members if kind is tuple else members * len(value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, str if kind is Literal else kind)


def _shown(hint: Any) -> Any:
    """The type as a signature shows it; that of images by its name, because it is long."""
    return getattr(hint, "__forward_arg__", hint)
