"""How a run is computed, as distinct from what it computes: ranks, compilation, memory format, micro-batches."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model_export.errors import UserError
from model_export.training.distributed import Ranks
from model_export.training.presets import Preset

_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Choices that change speed, memory and files, but results by rounding only: a run may go on with others.

    Args:
        ranks: processes that share every batch.
        accumulate: micro-batches, one after the other, whose gradients are summed before a step.
        compile: run f and the teacher through `torch.compile`.
        channels_last: keep weights and activations in NHWC order.
        keep: checkpoints kept; above 1, the last ones stand beside `checkpoint.pt` as `checkpoint-STEP.pt`.
        tensorboard: write the log for TensorBoard as well.
    """

    ranks: Ranks = field(default_factory=Ranks)
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = False
    keep: int = 1
    tensorboard: bool = False

    def check(self, preset: Preset, pictures: int) -> None:
        """Refuse what this run can't be computed with.

        Raises:
            UserError: a number below 1, a batch that does not split evenly, or batch norm over parts of a batch.
        """
        if self.accumulate < 1 or self.keep < 1:
            raise UserError("--accumulate and --keep must be at least 1")
        parts, batch = self.ranks.size * self.accumulate, min(preset.batch, pictures)
        if batch % parts:
            raise UserError(
                f"{batch} pictures a step do not split evenly over {self.ranks.size} ranks × "
                f"{self.accumulate} micro-batches; choose another --batch"
            )
        if parts > 1 and preset.network.norm == "batch":
            raise UserError("batch norm needs the whole batch in one pass: one rank, --accumulate 1")

    def parallel(self, module: nn.Module) -> nn.Module:
        """The network as it is called in training, gradients averaged over the ranks."""
        if self.ranks.size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def compiled(self, network: nn.Module) -> nn.Module:
        """The network, compiled if that is wanted."""
        if not self.compile:
            return network
        return cast("nn.Module", torch.compile(network))

    def placed(self, network: _Network, device: torch.device) -> _Network:
        """The network on its device, in the memory format wanted."""
        network = network.to(device)
        if self.channels_last:
            for parameter in network.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network

    def to_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint's provenance."""
        return {**asdict(self), "ranks": self.ranks.size}


def held_back(f: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients stay on their rank until the ``last`` micro-batch of a step."""
    if last or not isinstance(f, DistributedDataParallel):
        return nullcontext()
    held: AbstractContextManager[None] = f.no_sync()
    return held
