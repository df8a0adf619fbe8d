"""Measure an exported model, and write what was found beside it and into its card."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from model_export.artifact import GOLDEN, METRICS, MODEL, Artifact, Golden, OnnxFunction, digest_of, publish, stamp
from model_export.checkpoint import atomic
from model_export.classifier import classifier_for
from model_export.data import load_dataset
from model_export.errors import UserError
from model_export.protocol import SAMPLES, Evaluation, Table
from service.card import ModelCard

_LEAST: Final = 2  # pictures of either part, for a covariance and a nearest pair
_NOT_QUALITY: Final = ("data", "distance_quantiles")  # the card has them elsewhere


def evaluate(
    folder: Path,
    source: str,
    *,
    cache: Path,
    out: Path | None = None,
    samples: int = SAMPLES,
    threads: int = 0,
) -> Table:
    """Measure the model in a version folder, write `metrics.json`, and put the figures into the model's card.

    Args:
        folder: the version folder.
        source: the data it was trained on, as for `load_dataset`.
        cache: folder that keeps the classifier.
        out: file for the figures; `metrics.json` in the version folder when not given.
        samples: pictures to generate.
        threads: CPU threads of onnxruntime; 0 leaves the choice to it.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: no model there, its golden rows missing, other data than it was trained on, or too few pictures.
    """
    artifact = Artifact.read(folder, threads=threads)
    card, golden = artifact.card, artifact.golden()
    data = load_dataset(source, size=card.shape[1], channels=card.shape[0])
    if data.sha256 != card.data.sha256:
        raise UserError(f"--data {data.name}: not what {card.ref} was trained on, {card.data.name} of another SHA-256")
    if min(len(data.train), len(data.held_out), samples) < _LEAST:
        raise UserError(f"--data {data.name}: needs at least {_LEAST} training and {_LEAST} held-out pictures")
    found = Evaluation(
        artifact.function,
        card=card,
        noise=artifact.noise,
        data=data,
        classifier=classifier_for(data, cache),
        samples=samples,
    ).run()
    stamped = stamp(artifact.data, _with_quality(card, found), artifact.noise)
    _check(stamped, golden, card)
    table = {"model": {"name": card.name, "version": card.version, "digest": digest_of(stamped)}, **found}
    text = (json.dumps(table, indent=1, allow_nan=False) + "\n").encode()
    files = {MODEL: stamped, GOLDEN: golden.to_bytes(stamped)}
    publish(folder, files if out else {**files, METRICS: text}, keep=True)
    if out:
        with atomic(out) as file:
            file.write(text)
    return table


def summary(table: Table) -> str:
    """The figures that matter most, for people."""
    lines = [_row("generation", "Fréchet", "KL", "confidence", "drift")]
    for name, row in table["generation"].items():
        lines.append(_row(name, row.get("frechet"), row.get("kl"), row.get("confidence"), table["drift"].get(name)))
    lines.append(_row("restoration", "PSNR", "after f", "SSIM", "after f", "accuracy", "after f"))
    for name, row in {"clean": {"input": {}, "f": table["clean"]}, **table["restoration"]}.items():
        lines.append(_row(name, *(row[way].get(key) for key in ("psnr", "ssim", "accuracy") for way in ("input", "f"))))
    return "\n".join(lines)


def _row(name: str, *cells: float | str | None) -> str:
    texts = ("–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells)
    return f"{name:18}" + "".join(f"{text:>11}" for text in texts)


def _with_quality(card: ModelCard, found: Table) -> ModelCard:
    quality = {key: _without_histograms(value) for key, value in found.items() if key not in _NOT_QUALITY}
    return ModelCard.model_validate(
        {**card.model_dump(), "quality": quality, "distance_quantiles": found["distance_quantiles"]}
    )


def _without_histograms(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_histograms(item) for key, item in value.items() if not isinstance(item, list)}
    return value


def _check(data: bytes, golden: Golden, card: ModelCard) -> None:
    """The file with its new card still computes what training computed."""
    difference = float(np.abs(OnnxFunction(data, threads=1)(golden.x) - golden.y).max())
    if not difference <= card.tolerance.fp32:
        raise UserError(f"{card.ref}: differs from its golden rows by {difference:.2g}; `verify` it first")
