"""The judge of generated pictures: a small convolutional classifier, trained here on the same data in a minute or two.

Its penultimate features carry the Fréchet distance, its classes show what is generated and how evenly. It is never
part of what is served. Data without classes have it trained to tell four rotations of a picture instead
(Gidaris et al., 2018, arXiv 1803.07728), which yields features but no classes worth counting.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from model_export.data.datasets import Dataset, to_model_range
from model_export.files import atomic
from service.domain.latents import FloatRows

FEATURES: Final = 128
CACHE: Final = "~/.cache/ign-service"
_CLASSES: Final = 1000  # more are no classes but identities or measurements
_ROTATIONS: Final = 4
_BATCH: Final = 128
_CHUNK: Final = 500
_EPOCHS: Final = 4
_STEPS: Final = (300, 2000)  # fewest, for small data; most, for bounded time
_LR: Final = 4e-3


class ConvNet(nn.Module):
    """Convolutions with batch norm, halved until less than 8×8 is left, then 128 features and the classes.

    Args:
        channels: of the pictures.
        size: their height and width.
        classes: how many.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 16
        while size >= 8:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels, width, size = width, width * 2, size // 2
        layers += [nn.Flatten(), nn.Linear(channels * size * size, FEATURES), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [−1, 1] → (B, classes), unnormalised."""
        out: Tensor = self.head(functional.dropout(self.features(x), 0.25, self.training))
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What the classifier sees in N pictures: features (N, 128) and probabilities (N, classes)."""

    features: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The likeliest class of each picture, (N,)."""
        likeliest: NDArray[np.int64] = self.probabilities.argmax(1)
        return likeliest

    @property
    def confidence(self) -> float:
        """Mean probability of the likeliest class."""
        return float(self.probabilities.max(1).mean())

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        """Share of pictures read as labelled."""
        return float((self.classes == labels).mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """A trained classifier.

    Args:
        network: in evaluation mode.
        task: `classes` of the data, or `rotation` where those are unknown.
        accuracy: on the held-out pictures.
        source: SHA-256 of this module, which decides what is trained.
    """

    network: ConvNet
    task: Literal["classes", "rotation"]
    accuracy: float
    source: str

    @torch.inference_mode()
    def read(self, rows: FloatRows) -> Reading:
        """Look at pictures (N, C, H, W) in [−1, 1]."""
        features, probabilities = [], []
        for chunk in torch.split(torch.from_numpy(rows), _CHUNK):
            seen = self.network.features(chunk)
            features.append(seen.double())
            probabilities.append(self.network.head(seen).double().softmax(1))
        return Reading(features=torch.cat(features).numpy(), probabilities=torch.cat(probabilities).numpy())


def classifier_for(data: Dataset, cache: Path) -> Classifier:
    """The classifier of a data set: from the cache, else trained now and kept there.

    Args:
        data: pictures, with labels or without.
        cache: folder.
    """
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    shape = tuple(data.train.shape[1:])
    key = hashlib.sha256(f"{source} {data.sha256} {shape}".encode()).hexdigest()[:16]
    path = cache / f"classifier-{key}.pt"
    labels = _labels(data)
    task: Literal["classes", "rotation"] = "rotation" if labels is None else "classes"
    classes = _ROTATIONS if labels is None else int(torch.cat(labels).max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConvNet(shape[0], shape[1], classes)
        if not _restore(network, path):
            _fit(network, data.train, None if labels is None else labels[0])
            with atomic(path) as file:
                torch.save(network.state_dict(), file)
    network.eval()
    accuracy = _accuracy(network, data.held_out, None if labels is None else labels[1])
    return Classifier(network=network, task=task, accuracy=accuracy, source=source)


def _labels(data: Dataset) -> tuple[Tensor, Tensor] | None:
    """Labels of the training and of the held-out pictures, where both have usable ones."""
    if data.train_labels is None or data.held_out_labels is None:
        return None
    least, most = torch.cat([data.train_labels, data.held_out_labels]).aminmax()
    return (data.train_labels, data.held_out_labels) if least >= 0 and most < _CLASSES else None


def _restore(network: ConvNet, path: Path) -> bool:
    """Load cached weights; False when there are none, or none that can be used."""
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        return False
    # A damaged cache is made anew; torch.load raises whatever its readers meet.
    except Exception:
        return False
    return True


def _fit(network: ConvNet, pictures: Tensor, labels: Tensor | None) -> None:
    count = len(pictures)
    steps = min(max(_EPOCHS * count // _BATCH, _STEPS[0]), _STEPS[1])
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=_LR, total_steps=steps)
    network.train()
    for index in tqdm(_batches(count, steps), desc="classifier", total=steps, unit="step", mininterval=1.0):
        x, wanted = _task(pictures[index], None if labels is None else labels[index])
        loss = functional.cross_entropy(network(_shifted(x)), wanted)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    order, place = torch.randperm(count), 0
    for _ in range(steps):
        if place and place + _BATCH > count:
            order, place = torch.randperm(count), 0
        yield order[place : place + _BATCH]
        place += _BATCH


def _task(pictures: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pictures in [−1, 1] and what is to be said of them: their class, or the quarter turns they were given."""
    x = to_model_range(pictures)
    if labels is not None:
        return x, labels
    turns = torch.arange(len(x)) % _ROTATIONS
    for turn in range(1, _ROTATIONS):
        x[turns == turn] = torch.rot90(x[turns == turn], turn, (2, 3))
    return x, turns


def _shifted(x: Tensor) -> Tensor:
    """The whole batch moved by up to a fourteenth of its side."""
    most = x.shape[-1] // 14
    down, right = torch.randint(2 * most + 1, (2,)).tolist()
    padded = functional.pad(x, (most, most, most, most), mode="replicate")
    return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]


@torch.inference_mode()
def _accuracy(network: ConvNet, pictures: Tensor, labels: Tensor | None) -> float:
    right = 0
    for index in torch.split(torch.arange(len(pictures)), _CHUNK):
        x, wanted = _task(pictures[index], None if labels is None else labels[index])
        right += int((network(x).argmax(1) == wanted).sum())
    return right / len(pictures)
