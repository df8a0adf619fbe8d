"""What the service says of itself: its models and its limits."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.artifact.card import ModelCard


class Reproducible(BaseModel):
    """Whether a row's bytes depend on its batch: `exact`, or `close` with the largest difference seen."""

    kind: Literal["exact", "close"]
    difference: float


class ServedCard(ModelCard):
    """A model card, and how the model runs here."""

    digest: str
    device: str
    provider: str
    fallback_reason: str | None = None
    reproducible: Reproducible


class Limits(BaseModel):
    """What one request may ask for."""

    n: int
    images: int
    steps: int
    frames: int
    body_bytes: int
    pixels: int


class LoadFailure(BaseModel):
    """A version whose files do not serve; where the same version serves, it does so from earlier files."""

    name: str
    version: str
    reason: str


class ModelList(BaseModel):
    """Every model in service."""

    models: Annotated[list[dict[str, Any]], Field(description="Cards without their arrays.")]
    failures: Annotated[
        list[LoadFailure], Field(description="Versions that lie in the directory and do not serve, since the start.")
    ]
    default: str
    limits: Limits
