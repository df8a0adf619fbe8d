"""An opened model, and one that is verified."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.artifact.card import Card
from service.artifact.golden import GoldenReport
from service.domain.latents import NoiseSource
from service.domain.model import Model, ModelMemory

Files = tuple[tuple[int, int, int, int], ...]
"""Device, inode, size in bytes and modification time in ns of the files of a version; they differ
after a change.
"""


class InferenceModel(Model, Protocol):
    """An opened model; the implementation is `service.runtime.onnx_model.OnnxModel`."""

    card: Card
    digest: str  # SHA-256 of the file, in hexadecimal
    noise: NoiseSource
    device: Literal["cpu", "cuda"]
    provider: str  # onnxruntime's name of it
    fallback_reason: str | None  # why the device `auto` did not select CUDA

    def warm_up(self) -> None:
        """Run every batch size once."""

    def close(self) -> None:
        """Release the session and its memory."""


ModelFactory = Callable[..., Sequence[InferenceModel]]
"""Opens the bytes of a model file as one or more instances, or as ``count``, if that is passed.

Raises StartupError if they hold no valid model.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A verified model."""

    card: Card
    digest: str  # SHA-256 of the file that runs, in hexadecimal
    instances: tuple[InferenceModel, ...]
    noise: NoiseSource
    golden: GoldenReport
    device: Literal["cpu", "cuda"]
    provider: str
    fallback_reason: str | None = None  # why `auto` did not select CUDA
    files: Files = ()  # that it was loaded from
    memory: ModelMemory | None = None  # of instances that open on demand

    @property
    def ref(self) -> str:
        """`name/version`."""
        return self.card.ref

    def close(self) -> None:
        """Release every instance; none may run afterwards."""
        close_all(self.instances)


def close_all(models: Iterable[LoadedModel | InferenceModel]) -> None:
    """Release the sessions of models; none may run afterwards."""
    for model in models:
        model.close()
