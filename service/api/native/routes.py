"""The native endpoints as FastAPI documents them. `service.api.pipeline` answers them, so the functions are empty."""

from typing import Final

from fastapi import APIRouter
from starlette.convertors import StringConvertor, register_url_convertor

from service.api.native import openapi, urls
from service.api.native.endpoints import FORMATS, PATH_FORMATS, ROW_FORMATS, SCORE_FORMATS
from service.api.native.schemas import (
    ArithmeticAnswer,
    ArithmeticRequest,
    GenerateAnswer,
    GenerateRequest,
    InterpolateAnswer,
    InterpolateRequest,
    ProjectAnswer,
    ProjectRequest,
    ScoreAnswer,
    ScoreRequest,
)
from service.domain.latents import MAX_SEED_TEXT

router = APIRouter(tags=["Images"])


class _TextConvertor(StringConvertor):
    regex = r"[\s\S]+"  # also a slash and a line break


register_url_convertor("text", _TextConvertor())
_SEED: Final = {"description": "A number, or a text that stands for one; random if absent.", "maxLength": MAX_SEED_TEXT}
_SEEDS: Final = {"description": "2 to 16 seeds, joined by commas.", "pattern": "^[^,]{1,200}(,[^,]{1,200}){1,15}$"}


@router.post("/generate", **openapi.operation(GenerateAnswer, ROW_FORMATS))
@router.api_route("/generate", methods=["GET", "HEAD", "POST"], include_in_schema=False)  # first, for `Allow`
def generate(body: GenerateRequest) -> None:
    """Generate images from noise.

    f^k(z): apply f `steps` times to latents `offset` … `offset + n − 1` of a seed. Image i of a seed depends on
    nothing else. `record` returns steps on the way, `tolerance` stops a row that no longer changes, `noise_scale` takes
    more or less noise.

    Several images in one file are a contact sheet, with `columns` and a `gap`. `scale` enlarges images in every
    format.
    """


@router.get("/generate", **openapi.url_operation(GenerateRequest, {"seed": _SEED}, urls.IMAGES))
@router.get("/generate/{seed:text}.png", include_in_schema=False)
@router.get("/generate/{seed:text}.webp", include_in_schema=False)
@router.get("/generate/{seed:text}.jpg", include_in_schema=False)
@router.get("/generate/{seed:text}.jpeg", include_in_schema=False)
def generate_url() -> None:
    """Generate images as a URL.

    The options of the POST as the query, `record` excepted. A `seed` may be a text, such as `alice`, which
    `/generate/alice.png`, `.webp` and `.jpg` have in the path; `X-IGN-Seed` has its number. Caches may keep the image:
    for a year if `model` names a version.
    """


@router.post("/project", **openapi.operation(ProjectAnswer, ROW_FORMATS, ProjectRequest))
def project(body: ProjectRequest) -> None:
    """Make images real.

    f^k(x): apply f to images x, which makes drawings, noisy, damaged or half-hidden images look like those that the
    model learned.

    Images are prepared for the model: turned by their EXIF orientation, resized (`resize`), light and dark exchanged
    if needed (`invert`). A `mask` limits the change to its white part; `strength` below 1 blends with the input.

    The body is a form, JSON or one image; the options in the query belong to the latter.
    """


@router.post("/latent-interpolate", **openapi.operation(InterpolateAnswer, PATH_FORMATS))
@router.api_route("/latent-interpolate", methods=["GET", "HEAD", "POST"], include_in_schema=False)
def latent_interpolate(body: InterpolateRequest) -> None:
    """Walk between images.

    f^k along a path through 2 to 16 points, or over a grid between four. A point is a seed, an image or a latent. A
    path as GIF, APNG or WebP is an animation, as PNG or JPEG a strip.
    """


@router.get("/latent-interpolate", **openapi.url_operation(InterpolateRequest, {"seeds": _SEEDS}, urls.ANIMATIONS))
def latent_interpolate_url() -> None:
    """Walk between images as a URL.

    An animation of the path through `seeds`, with the options of the POST as the query. Caches may keep it, as those of
    `GET /generate`.
    """


@router.post("/latent-arithmetic", **openapi.operation(ArithmeticAnswer, FORMATS))
def latent_arithmetic(body: ArithmeticRequest) -> None:
    """Add and subtract images.

    f^k of a weighted sum of up to 16 seeds, images or latents: one image.
    """


@router.post("/score", **openapi.operation(ScoreAnswer, SCORE_FORMATS, ScoreRequest))
def score(body: ScoreRequest) -> None:
    """Measure how real images look to the model.

    How far f moves each image (`distance`), and how that compares with held-out real images (`percentile`,
    `in_distribution`). A large distance marks outliers, changed data or a wrong polarity. No image is returned.
    """
