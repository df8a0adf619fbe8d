"""A critic that compares samples with pictures in features of the network's own, frozen earlier stage.

It looks at pictures through the encoder that an earlier stage has trained, which is what makes an adversary stable and
quick with few steps (Sauer et al., 2021, Projected GANs, arXiv 2111.01007; theirs are features of ImageNet). A head for
every scale, spectrally normalised (Miyato et al., 2018, arXiv 1802.05957), learns by the hinge loss.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from model_export.training.distributed import Ranks
from model_export.training.losses import hinge

Codes = Callable[[Tensor], list[Tensor]]

SCALED_BY: Final = 2048  # pictures whose features give every channel's mean and deviation
_BETAS: Final = (0.0, 0.99)
_LEAST: Final = 1e-3  # of a deviation
_SLOPE: Final = 0.2


class Critic(nn.Module):
    """Scores of pictures at several scales, high for real ones.

    Args:
        codes: the frozen features: (B, C, H, W) → one (B, c, h, w) for every scale.
        pictures: (N, C, H, W) in [−1, 1], by which features are scaled to mean 0 and deviation 1 by channel.
    """

    def __init__(self, codes: Codes, pictures: Tensor) -> None:
        super().__init__()
        self._codes = codes
        with torch.no_grad():
            examples = [code.float() for code in codes(pictures)]
        self.heads = nn.ModuleList(_head(code.shape[1], min(3, *code.shape[2:])) for code in examples)
        for i, code in enumerate(examples):
            self.register_buffer(f"mean_{i}", code.mean((0, 2, 3), keepdim=True))
            self.register_buffer(f"deviation_{i}", code.std((0, 2, 3), keepdim=True).clamp_min(_LEAST))
        self.to(pictures.device)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One score for every scale: (B,) float32 each, the mean over places."""
        scores = []
        for i, (head, code) in enumerate(zip(self.heads, self._codes(images), strict=True)):
            scaled = (code.float() - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"deviation_{i}")
            scores.append(head(scaled).float().mean((1, 2, 3)))
        return scores


class Opponent:
    """The critic as it is trained, one step of its own before every step of f.

    Args:
        critic: whose heads learn.
        lr: learning rate of its Adam.
        ranks: whose gradients are averaged.
    """

    def __init__(self, critic: Critic, lr: float, ranks: Ranks) -> None:
        self._critic, self._ranks = critic, ranks
        self._optimiser = torch.optim.Adam(critic.heads.parameters(), lr=lr, betas=_BETAS)
        self._rest()

    def scores(self, y: Tensor) -> list[Tensor]:
        """Of samples; gradients flow into y, and into nothing else."""
        scores: list[Tensor] = self._critic(y)
        return scores

    def learn(self, x: Tensor, y: Tensor, lr: float, autocast: torch.autocast) -> None:
        """One step on pictures x against samples y, (B, C, H, W) each."""
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._critic.train().requires_grad_(True)
        self._optimiser.zero_grad(set_to_none=True)
        with autocast:
            loss = hinge(self._critic(x), self._critic(y.detach()))
        torch.autograd.backward(loss)
        for parameter in self._critic.parameters():
            if parameter.grad is not None:
                parameter.grad = self._ranks.mean(parameter.grad)
        self._optimiser.step()
        self._rest()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"critic": self._critic.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._critic.load_state_dict(state["critic"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _rest(self) -> None:
        # In evaluation mode the spectral norms stay as they are.
        self._critic.eval().requires_grad_(False)


def _head(channels: int, kernel: int) -> nn.Module:
    width = channels + channels // 2
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, width, kernel)),
        nn.LeakyReLU(_SLOPE),
        spectral_norm(nn.Conv2d(width, width, 1)),
        nn.LeakyReLU(_SLOPE),
        spectral_norm(nn.Conv2d(width, 1, 1)),
    )
