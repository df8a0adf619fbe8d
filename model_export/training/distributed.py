"""Several processes that train as one: which rows are whose, and what the ranks tell each other.

Every rank draws the randomness of the whole batch and keeps its own rows, so that a run computes the same, up to
rounding, on any number of ranks, and may go on with another number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model_export.errors import UserError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers; the methods are collective, and do nothing where there is only one.

    Args:
        rank: 0 … size − 1; rank 0 is the one that writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def own(self, rows: Tensor) -> Tensor:
        """This rank's consecutive share of rows; the last rank's may be shorter."""
        share = self._share(len(rows))
        return rows[self.rank * share : (self.rank + 1) * share]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """All ``total`` rows again from every rank's :meth:`own`."""
        if self.size == 1:
            return own
        padded = own.new_zeros((self._share(total), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:total]

    def any(self, flags: Tensor) -> Tensor:
        """Whether any rank says so, element by element; bool, of any shape."""
        if self.size == 1:
            return flags
        said = flags.to(torch.int32)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return said > 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks, element by element."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def from_main(self, values: Tensor) -> Tensor:
        """Rank 0's values, on every rank; ``values`` gives shape and type, and is overwritten elsewhere."""
        if self.size > 1:
            dist.broadcast(values, 0)
        return values

    def _share(self, total: int) -> int:
        return -(-total // self.size)


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Under `torchrun`, this process among the others, and the device that is its own; alone otherwise.

    Raises:
        UserError: more processes on this machine than it has CUDA devices.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Ranks(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
