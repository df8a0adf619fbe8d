"""Exponential moving average of the weights; what is sampled, taught from and exported."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy of ``network``; call ``update_parameters(network)`` after every step.

    The decay warms up as min(decay, (1 + n)/(10 + n)), so that the first averages are not mostly the start. Buffers
    (batch norm's statistics) are copied, not averaged.
    """

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return average.lerp(current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=update)
