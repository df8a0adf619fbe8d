"""Data-parallel training in several processes.

Every process draws the random numbers of the whole batch and keeps its own rows. So a run computes the same result, up
to rounding, with any number of processes, and can continue with another number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model_export.errors import UserError


@dataclass(frozen=True, slots=True)
class World:
    """This process in its group. The methods are collective operations; with one process they do nothing."""

    rank: int = 0  # 0 … size − 1; rank 0 writes the files
    size: int = 1  # number of processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """The consecutive rows of this rank; the last rank may have fewer."""
        length = self._shard_length(len(rows))
        return rows[self.rank * length : (self.rank + 1) * length]

    def all_gather(self, shard: Tensor, total: int) -> Tensor:
        """Join the shards of all ranks: the inverse of :meth:`shard` for ``total`` rows."""
        if self.size == 1:
            return shard
        # The collective needs equal shapes, so the last shard is padded and the padding is cut off afterwards.
        padded = shard.new_zeros((self._shard_length(total), *shard.shape[1:]))
        padded[: len(shard)] = shard
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:total]

    def any(self, flags: Tensor) -> Tensor:
        """Elementwise logical or over the ranks; bool of any shape."""
        if self.size == 1:
            return flags
        votes = flags.to(torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return votes > 0

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over the ranks."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def broadcast(self, values: Tensor) -> Tensor:
        """Return rank 0's values on every rank. Other ranks pass a tensor of the same shape, which is overwritten."""
        if self.size > 1:
            dist.broadcast(values, 0)
        return values

    def _shard_length(self, total: int) -> int:
        return -(-total // self.size)


@contextmanager
def join_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the process group if `torchrun` started this process."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield World(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
