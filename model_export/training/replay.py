"""A replay buffer of iterates: f trains on what it gives after many applications, a few applications per step.

Replay buffers are common in reinforcement learning and in energy-based models, where they hold the states of long
Markov chains (Du and Mordatch, 2019, arXiv 1903.08689). Here a state is f applied many times to its anchor, which is a
picture x or a sample f(z). Training on the distance between f(state) and the anchor makes the anchor an attractor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_DECAY: Final = 0.98  # of the running share of states that are kept
# Above the first share the number of applications doubles, below the second it halves.
_GROW: Final = 0.98
_SHRINK: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Sizes and limits of a replay buffer.

    Args:
        size: number of states; one half starts at pictures, the other at samples.
        visits: states per training step, ≤ size.
        max_applications: largest number of applications of f to a visited state. The number starts at 1 and doubles
            while the states stay near their anchors.
        noise: σ of the noise on visited states, in the units of [−1, 1].
        max_distance: mean squared difference from the anchor above which a state is lost and starts again.
        restart_share: share of visited states that start again at random.
    """

    size: int = 2048
    visits: int = 64
    max_applications: int = 16
    noise: float = 0.02
    max_distance: float = 0.04
    restart_share: float = 0.03

    def __post_init__(self) -> None:
        if not 1 <= self.visits <= self.size:
            raise ValueError(f"replay: visits {self.visits} are not between 1 and size {self.size}")


@dataclass(frozen=True, slots=True, eq=False)
class ReplayVisit:
    """The states of one training step.

    Args:
        index: positions in the buffer, (n,).
        states: with noise, (n, C, H, W).
        anchors: (n, C, H, W).
    """

    index: Tensor
    states: Tensor
    anchors: Tensor


class ReplayBuffer:
    """States and their anchors.

    Args:
        config: sizes and limits.
        pictures: (size, C, H, W) in [−1, 1]; the states of the first half start at them.
        samples: f(z), the same shape; the states of the second half start at them.
    """

    def __init__(self, config: ReplayConfig, pictures: Tensor, samples: Tensor) -> None:
        self._config = config
        half = config.size // 2
        self.anchors = torch.cat([pictures[:half], samples[: config.size - half]]).clone()
        self.states = self.anchors.clone()
        self.ages = torch.zeros(config.size, dtype=torch.int64, device=pictures.device)  # applications of f
        self.applications, self._kept_share = 1, 0.0

    def visit(self, generator: torch.Generator) -> ReplayVisit:
        """Choose states at random, without repetition, and add noise."""
        device = self.states.device
        index = torch.randperm(len(self.states), generator=generator, device=device)[: self._config.visits]
        states = self.states[index]
        normal = torch.randn(states.shape, generator=generator, device=device)
        return ReplayVisit(index, states + self._config.noise * normal, self.anchors[index])

    @torch.no_grad()
    def advance(
        self,
        f: Callable[[Tensor], Tensor],
        visit: ReplayVisit,
        pictures: Tensor,
        samples: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Apply f to the visited states. Lost states, and some others at random, start again at a new anchor.

        Without the restart of lost states, f would learn averages: a state far from its anchor lies near pictures
        that other states have as their anchors.

        Args:
            f: the averaged network, which is the one that is exported.
            visit: the visited states.
            pictures: new anchors (n, C, H, W) for states of the first half.
            samples: new anchors, the same shape, for states of the second half.
            generator: chooses the states that start again at random.
        """
        index = visit.index
        states = self.states[index]
        for _ in range(self.applications):
            states = f(states)
        ages = self.ages[index] + self.applications
        lost = (states - visit.anchors).square().mean((1, 2, 3)) > self._config.max_distance
        self._adapt_applications(1.0 - float(lost.float().mean()))
        random = torch.rand(len(index), generator=generator, device=states.device)
        restart = lost | (random < self._config.restart_share)
        new_anchors = torch.where(_per_row(index < len(self.states) // 2), pictures, samples)
        self.states[index] = torch.where(_per_row(restart), new_anchors, states)
        self.anchors[index] = torch.where(_per_row(restart), new_anchors, visit.anchors)
        self.ages[index] = ages.masked_fill(restart, 0)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint. The keys are part of the checkpoint format."""
        return {
            "anchors": self.anchors.clone(),
            "states": self.states.clone(),
            "ages": self.ages.clone(),
            "applications": self.applications,
            "kept_share": self._kept_share,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""
        for name in ("anchors", "states", "ages"):
            getattr(self, name).copy_(state[name])
        self.applications, self._kept_share = state["applications"], state["kept_share"]

    def _adapt_applications(self, kept: float) -> None:
        """Double or halve the number of applications by the running share of visited states that are not lost."""
        share = _DECAY * self._kept_share + (1.0 - _DECAY) * kept
        if share > _GROW and self.applications < self._config.max_applications:
            self.applications, share = self.applications * 2, (_GROW + _SHRINK) / 2
        elif share < _SHRINK and self.applications > 1:
            self.applications, share = self.applications // 2, (_GROW + _SHRINK) / 2
        self._kept_share = share


def _per_row(flags: Tensor) -> Tensor:
    """(n,) → (n, 1, 1, 1)."""
    return flags[:, None, None, None]
