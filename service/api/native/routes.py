"""The native endpoints as FastAPI documents them. `service.api.pipeline` answers them, so the functions are empty."""

from fastapi import APIRouter

from service.api.native import openapi
from service.api.native.endpoints import FORMATS, PATH_FORMATS, ROW_FORMATS
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
from service.api.negotiation import Media

router = APIRouter(tags=["Pictures"])


@router.post("/generate", **openapi.operation(GenerateRequest, GenerateAnswer, openapi.GENERATE, ROW_FORMATS))
def generate() -> None:
    """Generate pictures: f^k(z) of seeded latents z."""


@router.post("/project", **openapi.operation(ProjectRequest, ProjectAnswer, openapi.PROJECT, ROW_FORMATS))
def project() -> None:
    """Project pictures: f^k(x) of uploads x, as multipart, JSON or a raw body."""


@router.post(
    "/latent-interpolate",
    **openapi.operation(InterpolateRequest, InterpolateAnswer, openapi.INTERPOLATE, PATH_FORMATS),
)
def latent_interpolate() -> None:
    """Interpolate between latents: f^k along a path, which can be an animation, or over a grid."""


@router.post(
    "/latent-arithmetic", **openapi.operation(ArithmeticRequest, ArithmeticAnswer, openapi.ARITHMETIC, FORMATS)
)
def latent_arithmetic() -> None:
    """Combine latents: f^k of a weighted sum."""


@router.post("/score", **openapi.operation(ScoreRequest, ScoreAnswer, openapi.SCORE, (Media.JSON,)))
def score() -> None:
    """Score pictures: how far f moves them, compared with held-out real pictures."""
