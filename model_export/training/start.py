"""Start a run from the weights of an exported version."""

from dataclasses import dataclass, replace

from torch import Tensor

from model_export.errors import UserError
from model_export.training.network import Autoencoder, NetworkConfig
from model_export.training.presets import Preset


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StartWeights:
    """The weights of an exported version."""

    preset: Preset  # that trained the version
    state: dict[str, Tensor]  # state dict of its network
    digest: str  # SHA-256 of the weights in its `model.onnx`

    def load_into(self, network: Autoencoder, config: NetworkConfig) -> None:
        """Copy the weights into a network of this architecture. A quantiser that the version lacks keeps its own."""
        recorded = self.preset.network
        plain = replace(config, quantizer=recorded.quantizer, quantizer_levels=recorded.quantizer_levels)
        if recorded != plain or (recorded.quantizer and recorded != config):
            raise UserError("--start: the version has another network than the preset; choose another preset or size")
        network.load_state_dict(self.state, strict=False)

    def stages_done(self, preset: Preset) -> int:
        """How many stages of the preset are left out: all that the version has done, if the preset begins with them."""
        done = self.preset.stages
        return len(done) if len(preset.stages) > len(done) and preset.stages[: len(done)] == done else 0
