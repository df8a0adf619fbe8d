"""A finished run as the network it made: the averaged weights of its checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from model_export.data.noise import NoiseSampler
from model_export.errors import UserError
from model_export.training import checkpoint as checkpoints
from model_export.training.checkpoint import Checkpoint
from model_export.training.network import Autoencoder, averaged
from model_export.training.presets import Preset


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """What a run has learned.

    Args:
        checkpoint: all that the run recorded.
        preset: what was trained.
        network: f with the averaged weights, on the CPU, in evaluation mode.
        noise: its latents.
    """

    checkpoint: Checkpoint
    preset: Preset
    network: nn.Module
    noise: NoiseSampler

    @property
    def finished(self) -> bool:
        """Whether every step of the preset was done."""
        return self.checkpoint.step >= self.preset.steps


def load_run(folder: Path) -> TrainedModel:
    """Read the checkpoint of a run.

    Raises:
        UserError: there is none, it is damaged, or other code wrote it.
    """
    checkpoint = checkpoints.load(folder / checkpoints.FILE)
    try:
        preset = Preset.from_dict(checkpoint.preset)
        average = averaged(Autoencoder(preset.network), preset.ema)
        average.load_state_dict(checkpoint.average)
    # Missing and unknown fields, values out of range, weights of other names or shapes.
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise UserError(f"{folder / checkpoints.FILE}: its network is none that this program knows") from exc
    return TrainedModel(
        checkpoint=checkpoint,
        preset=preset,
        network=average.module.eval(),
        noise=NoiseSampler(preset.shape, checkpoint.statistics),
    )
