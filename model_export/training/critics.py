"""Critics of pictures and of codes, and the Fréchet distance as a loss: what makes the pictures of
f look real.

Critics on frozen features are stable and learn in few steps (Projected GANs: Sauer et al., 2021,
arXiv 2111.01007).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from model_export.training import losses

LR: Final = 4e-4  # peak learning rate of critics, with the schedule of f
_SLOPE: Final = 0.2
_PLACES: Final = 16  # the largest side of a map whose places are scored
_WIDTHS: Final = (32, 64)  # at least, at most, of a head for places
_HIDDEN: Final = 256  # of a head for vectors
_ROWS: Final = 4  # whose deviation such a head sees
_KEPT: Final = 0.98  # of the moments of samples after a step: those of the last 50 steps count
_FRESH: Final = 10  # steps after which the gradient of a distance is computed anew
_RIDGE: Final = 1e-3  # added to every covariance, in units of the deviation of pictures
# of the median deviation: a unit that is nearly dead must not outweigh all others
_LEAST: Final = 0.2


class Critics(nn.Module):
    """A head for each view, spectrally normalised (Miyato et al., 2018, arXiv 1802.05957); pictures
    score high.

    Views are maps (B, c, h, w) or vectors (B, n). Each channel is scaled to mean 0 and deviation 1
    on the examples.
    """

    def __init__(self, heads: Iterable[nn.Module], examples: Sequence[Tensor]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        for i, example in enumerate(map(Tensor.float, examples)):
            axes = (0, *range(2, example.dim()))
            self.register_buffer(f"mean_{i}", example.mean(axes, keepdim=True))
            self.register_buffer(f"deviation_{i}", example.std(axes, keepdim=True).clamp_min(1e-3))
        self.to(examples[0].device)

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """One score (B,) float32 for every view: the mean over its places."""
        scores = []
        for i, (head, view) in enumerate(zip(self.heads, views, strict=True)):
            scaled = (view.float() - self.get_buffer(f"mean_{i}")) / self.get_buffer(
                f"deviation_{i}"
            )
            scores.append(head(scaled).float().flatten(1).mean(1))
        return scores


Trained = TypeVar("Trained", bound=Critics)


class CriticTrainer(Generic[Trained]):
    """Critics with their optimiser. They take one step before every step of f, in which they are
    frozen.
    """

    def __init__(self, critics: Trained, *, peak: float = LR) -> None:
        self.critics = critics
        self.peak = peak
        self.lr = peak
        self._optimiser = torch.optim.Adam(critics.heads.parameters(), betas=(0.0, 0.99))
        self._freeze()

    def step(self, real: Any, fake: Any) -> None:
        """Train one step on what the critics take, of pictures and of samples without gradient."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.lr
        self.critics.train().requires_grad_(True)
        self._optimiser.zero_grad(set_to_none=True)
        loss = losses.hinge_loss(self.critics(real), self.critics(fake))
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss)
        self._optimiser.step()
        self._freeze()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint. The keys are part of the checkpoint format."""
        return {"critic": self.critics.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""
        self.critics.load_state_dict(state["critic"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _freeze(self) -> None:
        # In evaluation mode a forward pass does not update the estimates of the spectral norms.
        self.critics.eval().requires_grad_(False)


def discriminator(examples: Sequence[Tensor]) -> Critics:
    """Critics of maps (N, c, h, w) that score every place alike."""

    def head(channels: int, *sides: int) -> nn.Module:
        width = channels + channels // 2
        first = nn.Conv2d(channels, width, min(3, *sides))
        return _layers(first, nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1))

    return Critics([head(*example.shape[1:]) for example in examples], examples)


def _layers(*layers: nn.Module) -> nn.Sequential:
    """The layers, spectrally normalised, with an activation between each two."""
    parts = [part for layer in layers for part in (spectral_norm(layer), nn.LeakyReLU(_SLOPE))]
    return nn.Sequential(*parts[:-1])


class _Places(nn.Module):
    """A head that knows which place of a map (B, channels, side, side) it scores: the pictures are
    aligned.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        width = max(_WIDTHS[0], min(_WIDTHS[1], channels))
        layers = []
        while side > _PLACES:
            layers.append(nn.Conv2d(channels, width, 4, 2, 1))
            channels = width
            side = side // 2
        self.first = _layers(*layers, nn.Conv2d(channels, width, 3, 1, 1))
        self.place = nn.Parameter(0.1 * torch.randn(1, width, side, side))
        self.last = nn.Sequential(
            nn.LeakyReLU(_SLOPE), _layers(nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.place)


class _Vector(nn.Module):
    """A head for vectors (B, n), B ≥ 4. It also sees how far four rows are apart, as samples could
    be all alike.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            _layers(nn.Linear(size, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)), nn.LeakyReLU(_SLOPE)
        )
        self.last = spectral_norm(nn.Linear(_HIDDEN + 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        groups = h[: len(h) // _ROWS * _ROWS].view(_ROWS, -1, h.shape[1])
        apart = groups.std(0).mean(1).repeat(2 * _ROWS)[: len(h), None]
        return self.last(torch.cat([h, apart], 1))


class FrechetLoss(nn.Module):
    """Fréchet distance of features (B, n) to those of pictures (N, n) as a loss (arXiv 2604.28190).

    The moments of samples are averaged over thousands, the gradient is that of the batch, in closed
    form. Begins with the moments of ``samples`` (M, n).
    """

    mean: Tensor
    unit: Tensor
    root: Tensor  # of the covariance of pictures
    slope: Tensor  # of the distance by the covariance of samples
    value: Tensor  # the distance, as often as the slope is renewed
    moments: Tensor  # of samples: (n + 1, n), the mean and the mean square
    step: Tensor

    def __init__(self, pictures: Tensor, samples: Tensor) -> None:
        super().__init__()
        deviation = pictures.std(0)
        self.register_buffer("mean", pictures.mean(0))
        self.register_buffer("unit", deviation.clamp_min(_LEAST * float(deviation.median())))
        values, vectors = torch.linalg.eigh(self._covariance(self._moments(pictures)))
        self.register_buffer("root", (vectors * values.sqrt()) @ vectors.T)
        self.register_buffer("moments", self._moments(samples))
        self.register_buffer("slope", torch.zeros_like(self.mean).expand(len(values), -1).clone())
        self.register_buffer("value", torch.zeros_like(self.mean[0]))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """The distance, with the gradient of the batch."""
        moments = torch.lerp(self.moments, self._moments(features.float()), 1 - _KEPT)
        if self.step % _FRESH == 0:
            self._renew(moments.detach())
        self.moments.copy_(moments.detach())
        self.step += 1
        distance = (
            moments[0].square().sum()
            + (self.slope * (moments[1:] - torch.outer(moments[0], moments[0]))).sum()
        )
        pull = distance / (1 - _KEPT)
        return self.value + pull - pull.detach()

    def _renew(self, moments: Tensor) -> None:
        """D Fréchet / d covariance = I − R (R Σ R)^−½ R, with R the root of the pictures'
        covariance.
        """
        covariance = self._covariance(moments)
        values, vectors = torch.linalg.eigh(self.root @ covariance @ self.root)
        roots = values.clamp_min(_RIDGE**2).sqrt()
        traces = covariance.trace() + self.root.square().sum()
        self.value.copy_(moments[0].square().sum() + traces - 2 * roots.sum())
        inverse = (vectors / roots) @ vectors.T
        self.slope.copy_(
            torch.eye(len(inverse), device=inverse.device) - self.root @ inverse @ self.root
        )

    def _moments(self, features: Tensor) -> Tensor:
        scaled = (features - self.mean) / self.unit
        return torch.cat([scaled.mean(0, keepdim=True), scaled.T @ scaled / len(scaled)])

    @staticmethod
    def _covariance(moments: Tensor) -> Tensor:
        wide = moments.double()
        return (
            wide[1:]
            - torch.outer(wide[0], wide[0])
            + _RIDGE * torch.eye(wide.shape[1], device=wide.device)
        )


class Adversary(Critics):
    """The critics of a `Crisp`, its Fréchet losses, and how strongly they pull. The last view is
    the code.
    """

    ratio: Tensor

    def __init__(self, examples: Sequence[Tensor], frechet: Sequence[FrechetLoss]) -> None:
        shapes = [example.shape[1:] for example in examples]
        super().__init__(
            (_Places(*shape[:2]) if len(shape) > 1 else _Vector(*shape) for shape in shapes),
            examples,
        )
        self.frechet = nn.ModuleList(frechet)
        self.register_buffer("ratio", torch.zeros((), device=examples[0].device))

    def distance(self, features: Sequence[Tensor]) -> Tensor:
        """The sum of the Fréchet losses, of features (B, n) each."""
        distances: list[Tensor] = [
            loss(each) for loss, each in zip(self.frechet, features, strict=True)
        ]
        return torch.stack(distances).sum()

    def balance(self, reconstruction: Tensor, pull: Tensor) -> Tensor:
        """The factor that makes a gradient as large as that of reconstruction, per row, averaged
        over steps.
        """
        ratio = size(reconstruction) / size(pull)
        averaged: Tensor = torch.where(
            self.ratio > 0, torch.lerp(self.ratio, ratio, 1 - _KEPT), ratio
        )
        self.ratio.copy_(averaged)
        return averaged


def size(gradient: Tensor) -> Tensor:
    """Root mean square over rows of their norm."""
    norm: Tensor = gradient.float().norm()
    return norm.clamp_min(1e-12) / math.sqrt(len(gradient))
