"""Check the options of a request against the operator's limits and the model's card."""

from functools import lru_cache

from service.api.native.schemas import GenerateRequest, InterpolateRequest, StepOptions
from service.artifact.card import Card
from service.domain.errors import InvalidContent
from service.domain.latents import MAX_MAGNITUDE, FloatRows, Grid, LatentPath, is_bounded
from service.domain.tasks import StepParams
from service.settings import Settings

MAX_FRAMES = 256
MAX_PICTURES = 1024  # in one response, including recorded steps
DEFAULT_FRAMES = 9


def check_count(field: str, count: int, limit: int) -> None:
    """Raise `InvalidContent` for ``field`` if ``count`` is above ``limit``."""
    if count > limit:
        raise InvalidContent.field(field, f"must be at most {limit}")


def no_noise(card: Card) -> InvalidContent:
    """The error for a model that makes nothing of noise."""
    text = f"{card.ref} makes nothing of noise; only /project and /score, and infer of /v2, run it"
    return InvalidContent.field("model", text, code="no_noise")


def image_size(options: GenerateRequest, card: Card, settings: Settings) -> tuple[int, int] | None:
    """(H, W) of the images, if the model makes any size and the caller asks for another than that of a tile."""
    _, height, width = card.shape
    size = options.height or height, options.width or width
    if size == (height, width):
        return None
    if card.tiles is None:
        name = "height" if options.height not in (None, height) else "width"
        raise InvalidContent.field(name, f"{card.ref} makes images of {width}×{height} pixels only")
    limit = settings.for_images(card.tiles).max_pixels
    if options.n * size[0] * size[1] > limit:
        message = f"n × width × height must be at most {limit} (IGN_MAX_PIXELS)"
        raise InvalidContent.field("width", message, code="image_too_large")
    return size


def check_mixture(field: str, rows: FloatRows) -> FloatRows:
    """Return ``rows``, a mixture of the latents in ``field``, unless a value is beyond ±`MAX_MAGNITUDE`.

    Latents within the bound can give a mixture beyond it: by their weights, or on the arc between almost opposite ones.
    """
    if not is_bounded(rows):
        raise InvalidContent.field(field, f"their mixture holds values beyond ±{MAX_MAGNITUDE:.0f}")
    return rows


def step_params(options: StepOptions, *, recommended: int, rows: int, settings: Settings) -> StepParams:
    """Validate the options that say how f is applied, and how many images that gives."""
    steps = check_steps(options.steps, recommended=recommended, settings=settings)
    record = tuple(options.record or ())
    if rows * len(record) > MAX_PICTURES:
        raise InvalidContent.field("record", f"rows × recorded steps must be at most {MAX_PICTURES}")
    try:
        return _params(steps, options.tolerance, record, options.score)
    except ValueError as exc:  # the schema has checked all but the order and the last of the recorded steps
        raise InvalidContent.field("record", f"must be ascending, each step once, in 0…{steps}") from exc


@lru_cache(maxsize=256)  # most requests have the same ones
def _params(steps: int, tolerance: float | None, record: tuple[int, ...], score: bool) -> StepParams:
    return StepParams(steps=steps, tolerance=tolerance, record=record, score=score)


def check_steps(steps: int | None, *, recommended: int, settings: Settings) -> int:
    """The number of steps: the requested one, or else the recommended one, reduced to the operator's limit."""
    if steps is None:
        return min(recommended, settings.max_steps)
    check_count("steps", steps, settings.max_steps)
    return steps


def latent_path(request: InterpolateRequest) -> LatentPath | Grid:
    """The requested path or grid, of at most `MAX_FRAMES` frames."""
    if request.grid is not None:
        check_count("grid", request.grid.rows * request.grid.cols, MAX_FRAMES)
        return Grid(rows=request.grid.rows, cols=request.grid.cols, method=request.method)
    frames = request.frames or DEFAULT_FRAMES
    check_count("frames", frames, MAX_FRAMES)
    return LatentPath(frames=frames, method=request.method, loop=request.loop)
