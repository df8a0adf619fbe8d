"""How a run is computed: memory format, checkpoints to keep, stop signals."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from model_export.errors import UserError
from model_export.training.restorer import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Options of speed, memory and files. They change results by rounding only, so a run can continue with others."""

    channels_last: bool = False  # keep weights and activations in NHWC order
    # Number of checkpoints to keep; above 1, the last ones stay beside `checkpoint.pt` as `checkpoint-STEP.pt`.
    keep: int = 1

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError("--keep must be at least 1")

    def to_device(self, network: Network, device: torch.device) -> Network:
        """Move the network to the device, in the memory format of the options."""
        network = network.to(device)
        # torch converts parameters of four dimensions only.
        return network.to(memory_format=torch.channels_last) if self.channels_last else network


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
