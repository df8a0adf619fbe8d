"""A discriminator on features of the frozen network of an earlier stage.

It sees pictures through the encoder that an earlier stage has trained. Discriminators on frozen features are stable and
learn in few steps (Projected GANs: Sauer et al., 2021, arXiv 2111.01007; their features come from ImageNet). One head
for every scale, spectrally normalised (Miyato et al., 2018, arXiv 1802.05957), learns with the hinge loss.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from model_export.training.distributed import World
from model_export.training.losses import hinge_loss

Features = Callable[[Tensor], list[Tensor]]

SCALING_PICTURES: Final = 2048  # pictures that give mean and deviation of every feature channel
_BETAS: Final = (0.0, 0.99)
_MIN_DEVIATION: Final = 1e-3
_SLOPE: Final = 0.2


class Discriminator(nn.Module):
    """Scores pictures at several scales; real pictures score high.

    Args:
        features: the frozen encoder: (B, C, H, W) → (B, c, h, w) for every scale.
        pictures: (N, C, H, W) in [−1, 1]; each feature channel is scaled to mean 0 and deviation 1 on them.
    """

    def __init__(self, features: Features, pictures: Tensor) -> None:
        super().__init__()
        self._features = features
        with torch.no_grad():
            examples = [feature.float() for feature in features(pictures)]
        self.heads = nn.ModuleList(_head(feature.shape[1], min(3, *feature.shape[2:])) for feature in examples)
        for i, feature in enumerate(examples):
            self.register_buffer(f"mean_{i}", feature.mean((0, 2, 3), keepdim=True))
            self.register_buffer(f"deviation_{i}", feature.std((0, 2, 3), keepdim=True).clamp_min(_MIN_DEVIATION))
        self.to(pictures.device)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One score (B,) float32 for every scale: the mean over positions."""
        scores = []
        for i, (head, feature) in enumerate(zip(self.heads, self._features(images), strict=True)):
            scaled = (feature.float() - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"deviation_{i}")
            scores.append(head(scaled).float().mean((1, 2, 3)))
        return scores


class DiscriminatorTrainer:
    """The discriminator with its optimiser. It takes one step before every step of f."""

    def __init__(self, discriminator: Discriminator, lr: float, world: World) -> None:
        self._discriminator, self._world = discriminator, world
        self._optimiser = torch.optim.Adam(discriminator.heads.parameters(), lr=lr, betas=_BETAS)
        self._freeze()

    def scores(self, y: Tensor) -> list[Tensor]:
        """Scores of samples (B, C, H, W), (B,) for every scale. Gradients flow into y only."""
        scores: list[Tensor] = self._discriminator(y)
        return scores

    def step(self, x: Tensor, y: Tensor, lr: float, autocast: torch.autocast) -> None:
        """Train one step on pictures x against samples y, (B, C, H, W) each, with this learning rate."""
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._discriminator.train().requires_grad_(True)
        self._optimiser.zero_grad(set_to_none=True)
        with autocast:
            loss = hinge_loss(self._discriminator(x), self._discriminator(y.detach()))
        torch.autograd.backward(loss)
        for parameter in self._discriminator.parameters():
            if parameter.grad is not None:
                parameter.grad = self._world.mean(parameter.grad)
        self._optimiser.step()
        self._freeze()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint. The keys are part of the checkpoint format."""
        return {"critic": self._discriminator.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""
        self._discriminator.load_state_dict(state["critic"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _freeze(self) -> None:
        # In evaluation mode a forward pass does not update the estimates of the spectral norms.
        self._discriminator.eval().requires_grad_(False)


def _head(channels: int, kernel: int) -> nn.Module:
    width = channels + channels // 2
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, width, kernel)),
        nn.LeakyReLU(_SLOPE),
        spectral_norm(nn.Conv2d(width, width, 1)),
        nn.LeakyReLU(_SLOPE),
        spectral_norm(nn.Conv2d(width, 1, 1)),
    )
