"""A small convolutional classifier that measures generated pictures. It trains here, on the same
data, in two minutes.

Its penultimate features give the Fréchet distance; its classes show what is generated and how
evenly. It is never served. For data without classes it learns the attributes of a picture instead,
or, where there are none either, to recognise four rotations (Gidaris et al., 2018, arXiv
1803.07728): this gives features, but no classes to count.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model_export.data.datasets import Dataset, to_model_range
from model_export.evaluation.metrics import kl_to_uniform, psnr, ssim
from model_export.progress import progress
from model_export.training.checkpoint import write_tensors
from service.artifact.pixels import Levels, to_levels, to_rows
from service.domain.latents import FloatRows

Table = dict[str, Any]
Task = Literal["classes", "attributes", "rotation"]

FEATURES: Final = 128
_MAX_CLASSES: Final = 1000  # labels beyond this are identities or measurements, not classes
ROTATIONS: Final = 4
_LARGE: Final = 64
_BATCH: Final = 128
_CHUNK: Final = 500
_EPOCHS: Final = 4
# at least, for small data; at most, to bound the time. Pictures beyond 28×28 get fewer.
_STEPS: Final = (300, 2000)
_ATTRIBUTE_EPOCHS: Final = 8  # many values, some told by few pixels, take longer
_LR: Final = 4e-3

_PIXELS: Final = 784  # of the 28×28 picture for which sample counts are stated
_MIN_SHARE: Final = 16  # larger pictures get at least 1/16 of the samples


class ConvNet(nn.Module):
    """Blocks of convolution, batch norm and pooling until the side is below 8, then 128 features
    and the classes.

    Pictures of 64 pixels and more first pass a convolution of stride 2: at full size, the first
    block would take as long as all others.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 16
        while size >= _LARGE:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU()]
            channels = width
            size = size // 2
        while size >= 8:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
            width = width * 2
            size = size // 2
        layers += [nn.Flatten(), nn.Linear(channels * size * size, FEATURES), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [−1, 1] → logits (B, classes)."""
        return self.head(functional.dropout(self.features(x), 0.25, self.training))


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What the classifier computes for N pictures."""

    levels: Levels  # the pictures, (N, C, H, W) uint8
    features: NDArray[np.float64]  # (N, 128)
    # (N, classes); for attributes those of all their values side by side
    probabilities: NDArray[np.float64]
    values: NDArray[np.int64]  # the most likely one of each head, (N, heads)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """A trained classifier, and the measures that need one."""

    network: ConvNet  # in evaluation mode
    task: Task  # `classes` of the data; without them its `attributes`, or else `rotation`
    heads: tuple[int, ...]  # number of classes, or of the values of each attribute
    attributes: tuple[str, ...] = ()  # the names of the attributes of the data

    @torch.inference_mode()
    def predict(self, levels: Levels) -> Predictions:
        """Classify pictures (N, C, H, W) uint8."""
        chunks = []
        for chunk in torch.split(torch.from_numpy(to_rows(levels)), _CHUNK):
            features = self.network.features(chunk)
            logits = self.network.head(features).double().split(self.heads, 1)
            parts = [part.softmax(1) for part in logits]
            values = torch.stack([part.argmax(1) for part in parts], 1)
            chunks.append((features.double(), torch.cat(parts, 1), values))
        return Predictions(levels, *(torch.cat(each).numpy() for each in zip(*chunks, strict=True)))

    def coverage(self, predictions: Predictions) -> Table:
        """How evenly the classes occur; empty without classes."""
        if self.task != "classes":
            return {}
        counts = np.bincount(predictions.values[:, 0], minlength=self.heads[0])
        return {"kl": kl_to_uniform(counts)}

    def compare(self, rows: FloatRows, x: FloatRows, truth: NDArray[np.int64] | None) -> Table:
        """Mean PSNR and SSIM of rows against clean pictures x, (N, C, H, W) each, and the share
        classified as truth.

        ``truth`` (N, heads) is None without classes and attributes.
        """
        predictions = self.predict(to_levels(rows))
        rounded = to_rows(predictions.levels)
        table: Table = {"psnr": psnr(rounded, x).mean(), "ssim": ssim(rounded, x).mean()}
        if truth is not None:
            shares = (predictions.values == truth).mean(0).tolist()
            if self.task == "attributes":
                table["attributes"] = dict(zip(self.attributes, shares, strict=True))
            else:
                table["accuracy"] = shares[0]
        return table


def sample_budget(pictures: int, shape: tuple[int, ...]) -> int:
    """The number of pictures (C, H, W) that cost a slow measure as much as ``pictures`` of 28×28;
    at least 1/16.
    """
    return max(pictures // _MIN_SHARE, min(pictures, pictures * _PIXELS // prod(shape)))


def classifier_for(data: Dataset, cache: Path) -> Classifier:
    """Load the classifier of a data set from the cache, or train and store it."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    shape = tuple(data.train.shape[1:])
    task, train, _ = targets(data)
    heads = heads_of(data)
    key = hashlib.sha256(f"{source} {data.sha256} {shape} {task} {heads}".encode()).hexdigest()[:16]
    path = cache / f"classifier-{key}.pt"
    # A fixed seed makes a retrained classifier equal to a cached one; fork_rng keeps the caller's
    # random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConvNet(shape[0], shape[1], sum(heads))
        if not _load_weights(network, path):
            _fit(network, data.train, train, heads)
            write_tensors(network.state_dict(), path)
    network.eval()
    return Classifier(
        network=network,
        task=task,
        heads=heads,
        attributes=data.attributes.names if data.attributes else (),
    )


def targets(data: Dataset) -> tuple[Task, Tensor | None, Tensor | None]:
    """What to learn, and its values (N, heads) for the training and the held-out pictures; None for
    rotations.
    """
    train = data.train_labels
    held_out = data.held_out_labels
    if train is not None and held_out is not None:
        lowest, highest = torch.cat([train, held_out]).aminmax()
        if lowest >= 0 and highest < _MAX_CLASSES:
            return "classes", train[:, None], held_out[:, None]
    if data.attributes is not None:
        return (
            "attributes",
            torch.from_numpy(data.attributes.train),
            torch.from_numpy(data.attributes.held_out),
        )
    return "rotation", None, None


def heads_of(data: Dataset) -> tuple[int, ...]:
    """The number of values of each target."""
    _, train, held_out = targets(data)
    if train is None or held_out is None:
        return (ROTATIONS,)
    return tuple((torch.cat([train, held_out]).amax(0) + 1).tolist())


def _load_weights(network: ConvNet, path: Path) -> bool:
    """Load cached weights; false if there are none or they are damaged."""
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # torch.load passes on errors of any type from a damaged file; the classifier is then trained
    # again.
    except Exception:
        return False
    return True


def _fit(
    network: ConvNet, pictures: Tensor, targets: Tensor | None, heads: tuple[int, ...]
) -> None:
    count = len(pictures)
    area = pictures.shape[-2] * pictures.shape[-1]
    affordable = min(_EPOCHS * count // _BATCH, _STEPS[1]) * min(1.0, _PIXELS / area)
    steps = max(int(affordable), _STEPS[0])
    if len(heads) > 1:
        steps = max(steps, min(_ATTRIBUTE_EPOCHS * count // _BATCH, _STEPS[1]))
    network.train()

    def batches() -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        for index in islice(_batch_indices(count), steps):
            x, target = inputs_and_targets(
                pictures[index], None if targets is None else targets[index]
            )
            yield shifted(x, x.shape[-1] // 14), target.T.unbind()

    train_heads(network, heads, batches(), steps=steps, lr=_LR, name="classifier")


def train_heads(
    network: nn.Module,
    heads: Sequence[int],
    batches: Iterable[tuple[Tensor, Sequence[Tensor]]],
    *,
    steps: int,
    lr: float,
    name: str,
) -> None:
    """Train a network by the cross-entropy of all heads, with a progress bar.

    A batch is pictures (B, C, H, W) and for each head the values of its first rows.
    """
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps)
    for x, columns in progress(batches, desc=name, total=steps, unit="step"):
        parts = network(x).split(heads, 1)
        terms = [
            functional.cross_entropy(part[: len(column)], column.to(x.device))
            for part, column in zip(parts, columns, strict=True)
        ]
        optimiser.zero_grad()
        torch.autograd.backward(torch.stack(terms).sum())
        optimiser.step()
        schedule.step()


def _batch_indices(count: int) -> Iterator[Tensor]:
    """Every epoch is a permutation; its incomplete last batch is dropped."""
    while True:
        yield from torch.split(torch.randperm(count), _BATCH)[: max(1, count // _BATCH)]


def inputs_and_targets(pictures: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pictures in [−1, 1] with their targets (N, heads); without any, turned pictures with the
    number of turns.
    """
    x = to_model_range(pictures)
    if targets is not None:
        return x, targets
    turns = torch.arange(len(x)) % ROTATIONS
    for turn in range(1, ROTATIONS):
        x[turns == turn] = torch.rot90(x[turns == turn], turn, (2, 3))
    return x, turns[:, None]


def shifted(x: Tensor, limit: int, generator: torch.Generator | None = None) -> Tensor:
    """The whole batch, moved by up to ``limit`` pixels, at random."""
    down, right = torch.randint(2 * limit + 1, (2,), generator=generator, device=x.device).tolist()
    padded = functional.pad(x, (limit, limit, limit, limit), mode="replicate")
    return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]
