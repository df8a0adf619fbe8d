"""An opened model, and one that is verified."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from service.artifact.card import Card
from service.artifact.golden import GoldenReport
from service.domain.model import ModelMemory

if TYPE_CHECKING:
    from service.runtime.onnx_model import OnnxModel  # imports onnxruntime

Files = tuple[tuple[int, int, int, int], ...]
"""Device, inode, size in bytes and modification time in ns of the files of a version; they differ
after a change.
"""


ModelFactory = Callable[[bytes], Sequence["OnnxModel"]]
"""Opens the bytes of a model file as one or more instances.

Raises StartupError if they hold no valid model.
"""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A verified model."""

    card: Card
    digest: str  # SHA-256 of the file that runs, in hexadecimal
    instances: "tuple[OnnxModel, ...]"
    golden: GoldenReport
    device: Literal["cpu", "cuda"]
    provider: str
    fallback_reason: str | None = None  # why `auto` did not select CUDA
    files: Files = ()  # that it was loaded from
    memory: ModelMemory | None = None  # of instances that open on demand

    def close(self) -> None:
        """Release every instance; none may run afterwards."""
        if self.memory is None:
            close_all(self.instances)
        else:
            self.memory.close()


def close_all(models: "Iterable[LoadedModel | OnnxModel]") -> None:
    """Release the sessions of models; none may run afterwards."""
    for model in models:
        model.close()
