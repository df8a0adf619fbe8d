"""Features of Inception v3 for the published Fréchet distance (FID). Nothing is downloaded.

The network is that of torch-fidelity, which reproduces the reference implementation. The user provides the weights.
"""

import hashlib
import pickle
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.errors import UserError
from service.artifact.pixels import Levels

FEATURES: Final = 2048
WEIGHTS: Final = "weights-inception-2015-12-05-6726825d.pth"  # its name in the releases of torch-fidelity
_PACKAGE: Final = "torch-fidelity"


class Inception:
    """Computes the features of FID, with the weights in this file or where torch-fidelity stores them."""

    def __init__(self, weights: str | None = None) -> None:
        try:
            self.version = version(_PACKAGE)
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (PackageNotFoundError, ImportError) as exc:
            raise UserError(f"--fid inception: needs {_PACKAGE}; the extra `fid` has it") from exc
        path = Path(weights).expanduser() if weights else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        if not path.is_file():
            raise UserError(
                f"--fid inception: no weights at {path}; {WEIGHTS} is among {_PACKAGE}'s releases on GitHub; nothing "
                "is downloaded here"
            )
        self.source = hashlib.sha256(path.read_bytes()).hexdigest()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            # torch-fidelity unpickles the file, which can run any code. This load comes first and accepts tensors only.
            torch.load(path, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(FEATURES)], feature_extractor_weights_path=str(path)
            )
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as exc:
            raise UserError(f"--fid inception: {path} does not hold the weights of this network") from exc
        self._network = network.to(self._device)

    @torch.inference_mode()
    def features(self, levels: Levels) -> NDArray[np.float64]:
        """Features (N, 2048) of pictures (N, C, H, W) uint8; grey pictures are repeated to three channels."""
        colour = torch.from_numpy(np.repeat(levels, 3 // levels.shape[1], 1))
        chunks = tqdm(torch.split(colour, 50), desc="inception", unit="batch", mininterval=1.0)
        features = [self._network(chunk.to(self._device))[0].double().cpu() for chunk in chunks]
        joined: NDArray[np.float64] = torch.cat(features).numpy()
        return joined
