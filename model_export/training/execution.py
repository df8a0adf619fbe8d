"""How a run is computed: processes, compilation, memory format, stop signals."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model_export.errors import UserError
from model_export.training.presets import Preset
from model_export.training.restorer import Network


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
        length = -(-len(rows) // self.size)
        return rows[self.rank * length : (self.rank + 1) * length]

    def all_gather(self, shard: Tensor, total: int) -> Tensor:
        """Join the shards of all ranks: the inverse of :meth:`shard` for ``total`` rows."""
        if self.size == 1:
            return shard
        # The collective needs equal shapes, so the last shard is padded and the padding is cut off afterwards.
        padded = shard.new_zeros((-(-total // self.size), *shard.shape[1:]))
        padded[: len(shard)] = shard
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:total]

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


@contextmanager
def join_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the process group if `torchrun` started this process. Yields the world and the device of this process."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Options of speed, memory and files. They change results by rounding only, so a run can continue with others."""

    world: World = field(default_factory=World)  # the processes that share every batch
    compile: bool = False  # run f and the teacher through `torch.compile`
    channels_last: bool = False  # keep weights and activations in NHWC order
    # Number of checkpoints to keep; above 1, the last ones stay beside `checkpoint.pt` as `checkpoint-STEP.pt`.
    keep: int = 1
    tensorboard: bool = False  # write the log for TensorBoard as well

    def check(self, preset: Preset, pictures: int) -> None:
        """Reject options that do not fit the run."""
        ranks, batch = self.world.size, min(preset.batch, pictures)
        if self.keep < 1:
            raise UserError("--keep must be at least 1")
        if batch % ranks:
            raise UserError(f"{batch} pictures a step do not split evenly over {ranks} ranks; choose another --batch")
        if ranks > 1 and any(stage.weights.whole_batch for stage in preset.stages):
            raise UserError("drifting and gate need the whole batch in one pass: one rank")

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Wrap the network so that the backward pass averages the gradients over the ranks."""
        return module if self.world.size == 1 else DistributedDataParallel(module, gradient_as_bucket_view=True)

    def compiled(self, network: nn.Module) -> nn.Module:
        """The network, compiled if the option is set."""
        return cast("nn.Module", torch.compile(network)) if self.compile else network

    def to_device(self, network: Network, device: torch.device) -> Network:
        """Move the network to the device, in the memory format of the options."""
        network = network.to(device)
        # torch converts parameters of four dimensions only.
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def to_dict(self) -> dict[str, Any]:
        """The options as the checkpoint's provenance stores them."""
        options = asdict(self)
        del options["world"]
        return {"ranks": self.world.size, **options}


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT and SIGTERM inside the block. Yields whether one has arrived; a second one ends the process."""
    received = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
