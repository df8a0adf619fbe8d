"""Pydantic models of the native requests; they validate bodies and appear in
`/openapi.json`.

The docstrings and descriptions here are part of the OpenAPI document, which has in `parts.json`
what fields exclude others.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from service.domain.latents import (
    MAX_SEED,
    MAX_SEED_TEXT,
    seed_of,
)
from service.images.encode import Resample

Format = Literal["png", "jpeg", "webp", "npy"]
MAX_SCALE: Final = 32
MAX_FRAMES: Final = 256
MAX_PICTURES: Final = 1024  # in one response, including recorded steps


_Uint32 = Annotated[int, Field(ge=0, le=MAX_SEED)]
_SeedText = Annotated[str, Field(min_length=1, max_length=MAX_SEED_TEXT)]
Seed = Annotated[_Uint32, BeforeValidator(seed_of, json_schema_input_type=_Uint32 | _SeedText)]
Record = Annotated[
    list[NonNegativeInt], Field(max_length=64, json_schema_extra={"uniqueItems": True})
]


def _base64(content: str, description: str) -> Any:
    return Field(
        min_length=1, description=description, json_schema_extra={"format": f"base64-{content}"}
    )


Base64 = Annotated[
    str, _base64("picture", "Base64, with or without a `data:image/…;base64,` prefix.")
]
Base64Npy = Annotated[str, _base64("npy", "Base64 of a float32 .npy file, C×H×W.")]


# Of an image that `/generate` makes, in pixels.
Side = Annotated[int, Field(ge=1, le=16_384)]
# Limits that the operator sets. `service.api.info.openapi` puts the value of the setting into the
# document.
Steps = Annotated[int, Field(ge=1, json_schema_extra={"maximum": "max_steps"})]
Pictures = Annotated[
    list[Base64], Field(min_length=1, json_schema_extra={"maxItems": "max_images"})
]


class Described(BaseModel):
    """A schema whose fields are described by the strings that follow them."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ImageOptions(Described):
    """How the images of a response look."""

    format: Format = "png"
    """Format of the base64 images in a JSON response."""
    scale: Annotated[int, Field(ge=1, le=MAX_SCALE)] = 1
    """Factor that enlarges every image."""
    resample: Resample = "nearest"
    """`nearest` repeats the pixels of enlarged images; `smooth` interpolates them."""
    columns: Annotated[int | None, Field(ge=1, le=65_535)] = None
    """Columns of a sheet; default: a near-square sheet, or the strip of a path."""
    gap: Annotated[int, Field(ge=0, le=64)] = 0
    """Pixels between the images of a sheet, in the background colour."""


class StrictModel(Described):
    """A part of a request: a string is not accepted as a number, and an unknown field is an
    error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _ModelChoice(StrictModel):
    model: str | None = None
    """`name` or `name/version`; default: the configured model."""


class _Request(ImageOptions, _ModelChoice):
    """Base of the requests whose response holds images."""

    steps: Steps | None = None
    """Number of applications of f; default: the recommendation of the card."""


class StepOptions(_Request):
    """Options of the endpoints that return each row separately."""

    tolerance: PositiveFloat | None = None
    """Stop a row when mean |f(y) − y| of its last step is below this value."""
    record: Record | None = None
    """Ascending step numbers whose images are returned as `trajectory`; step 0 is the input."""
    score: bool = False
    """Also measure `drift`, which costs one more step."""


class GenerateRequest(StepOptions):
    """f^k(z) of the latents with index offset … offset + n − 1 of a seed."""

    n: Annotated[int, Field(ge=1, json_schema_extra={"maximum": "max_images"})] = 1
    """Number of images."""
    seed: Seed | None = None
    """Number or text; random if absent. The response has it."""
    offset: _Uint32 = 0
    """Index of the first image of the seed."""
    noise_scale: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Factor of the noise."""
    width: Side | None = None
    """Pixels, of a model that takes any size; default: a tile."""
    height: Side | None = None
    """Pixels, likewise."""

    @field_validator("offset")
    @classmethod
    def _check_offset(cls, offset: int, info: ValidationInfo) -> int:
        if offset + info.data.get("n", 1) > MAX_SEED + 1:
            raise ValueError("offset + n must be at most 2^32")
        return offset


def _bool_or_auto(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Replace pydantic's errors of a union, which name its members instead of the field."""
    try:
        return handler(value)
    except ValidationError as exc:
        raise ValueError("must be true, false or auto") from exc


class UploadOptions(_ModelChoice):
    """Options of every upload, for all three kinds of body: how images become rows."""

    resize: Literal["fit", "crop", "stretch"] = "fit"
    """Of another size: `fit` adds a letterbox, `crop` cuts the centre, `stretch` distorts."""
    invert: Annotated[
        bool | Literal["auto"],
        WrapValidator(_bool_or_auto),
        Field(
            description="Exchange light and dark; `auto` does so if the model is light on dark "
            "and the border is light."
        ),
    ] = "auto"


class ProjectOptions(UploadOptions, StepOptions):
    """Options of `/project`, for all three kinds of body."""

    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    """s of (1−s)·x + s·f^k(x); 0: the prepared input."""


class ProjectRequest(ProjectOptions):
    """The JSON body of `/project`."""

    images: Pictures
    """The images: PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF."""
    mask: Base64 | None = None
    """For all images: white = regenerate, black = keep."""
    masks: Pictures | None = None
    """One mask for each image."""

    @field_validator("masks")
    @classmethod
    def _check_masks(cls, masks: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if masks is not None:
            if info.data.get("mask") is not None:
                raise ValueError("give mask or masks, not both")
            if len(masks) != len(info.data.get("images", masks)):
                raise ValueError("must be as many as images")
        return masks


class PointRequest(StrictModel):
    """A latent: a seed with an optional index, an image, or a `.npy` array; exactly one of the
    three.
    """

    seed: Seed | None = None
    index: _Uint32 | None = None
    image: Base64 | None = None
    latent: Base64Npy | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if sum(value is not None for value in (self.seed, self.image, self.latent)) != 1:
            raise ValueError("needs exactly one of seed, image, latent")
        if self.index is not None and self.seed is None:
            raise ValueError("index goes with seed")
        return self


class TermRequest(PointRequest):
    """A latent and its weight."""

    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Factor of the latent."""


class ArithmeticRequest(_Request):
    """f^k of a weighted sum of latents."""

    terms: Annotated[list[TermRequest], Field(min_length=1, max_length=16)]
    """The latents to add."""
    normalize: bool = True
    """Rescale the sum to the mean norm of the model's noise."""


# A grid has as many frames as a path, at most, which `latent_path` checks.
_Line = Annotated[int, Field(ge=2, json_schema_extra={"maximum": MAX_FRAMES // 2})]


class GridRequest(StrictModel):
    """A grid between four corners: top left, top right, bottom left, bottom right."""

    rows: _Line
    cols: _Line


class InterpolateRequest(_Request):
    """f^k along a path of latents, or over a grid between four of them."""

    points: Annotated[list[PointRequest], Field(min_length=2, max_length=16)]
    """The latents on the way."""
    frames: Annotated[int | None, Field(ge=2, le=MAX_FRAMES)] = None
    """Number of frames of the whole path, including both ends; default 9."""
    method: Literal["slerp", "lerp"] = "slerp"
    """Along the arc, or straight."""
    loop: bool = False
    """Return to the first point."""
    grid: GridRequest | None = None
    """Instead of a path; needs four points."""
    fps: Annotated[int, Field(ge=1, le=50)] = 12
    """Frames per second of an animation."""

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: GridRequest | None, info: ValidationInfo) -> GridRequest | None:
        if grid is not None:
            if any(info.data.get(name) for name in ("frames", "loop", "columns")):
                raise ValueError("goes with none of frames, loop and columns")
            if len(info.data.get("points", range(4))) != 4:
                raise ValueError("needs exactly four points")
        return grid
