"""Measure an exported model, and write what was found beside it and into its card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from model_export.data.datasets import Dataset, load_dataset
from model_export.errors import UserError
from model_export.evaluation.classifier import classifier_for
from model_export.evaluation.inception import Inception
from model_export.evaluation.judge import Table
from model_export.evaluation.measures import SAMPLES, STEPS, Evaluation
from model_export.export.artifact import (
    FILES,
    GOLDEN,
    METRICS,
    Golden,
    OnnxFunction,
    Precision,
    digest_of,
    publish,
    read_all,
    stamp,
)
from model_export.files import atomic
from service.artifact.card import ModelCard

_LEAST: Final = 2  # pictures of either part, for a covariance and a nearest pair
_NOT_QUALITY: Final = ("data", "distance_quantiles")  # the card has them elsewhere


def evaluate(
    folder: Path,
    source: str,
    *,
    cache: Path,
    out: Path | None = None,
    samples: int = SAMPLES,
    steps: int = STEPS,
    inception: Inception | None = None,
    threads: int = 0,
) -> Table:
    """Measure the model in a version folder, write `metrics.json`, and put the figures into the card of every file.

    Args:
        folder: the version folder.
        source: the data it was trained on, as for `load_dataset`.
        cache: folder that keeps the classifier.
        out: file for the figures; `metrics.json` in the version folder when not given.
        samples: pictures to generate.
        steps: how often f is repeated at most, ≥ 1.
        inception: measures FID as well.
        threads: CPU threads of onnxruntime; 0 leaves the choice to it.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: no model there, its golden rows missing or not what it computes, other data than it was trained on,
            or too few pictures or steps.
    """
    artifacts = read_all(folder, threads=threads)
    exported = artifacts[0]
    card, golden = exported.card, exported.golden()
    golden_rows = {
        artifact.precision: _check(artifact.function, golden, card, artifact.precision) for artifact in artifacts
    }
    data = load_dataset(source, size=card.shape[1], channels=card.shape[0])
    _usable(data, card, samples, steps)
    found = Evaluation(
        exported.function,
        card=card,
        noise=exported.noise,
        data=data,
        classifier=classifier_for(data, cache),
        samples=samples,
        steps=steps,
        variants={artifact.precision: artifact.function for artifact in artifacts[1:]},
        inception=inception,
    ).run()
    for precision, table in found.get("precision", {}).items():
        table |= {"golden": golden_rows[precision], "tolerance": getattr(card.tolerance, precision)}
    told = _with_quality(card, found)
    stamped = {artifact.precision: stamp(artifact.data, told, exported.noise) for artifact in artifacts}
    for precision, content in stamped.items():
        _check(OnnxFunction(content, threads=1), golden, told, precision)
    table = {"model": _names(card, stamped), **found}
    text = (json.dumps(table, indent=1, allow_nan=False) + "\n").encode()
    files = {FILES[precision]: content for precision, content in stamped.items()}
    files[GOLDEN] = golden.to_bytes(stamped["fp32"])
    publish(folder, files if out else {**files, METRICS: text}, keep=True)
    if out:
        with atomic(out) as file:
            file.write(text)
    return table


def summary(table: Table) -> str:
    """The figures that matter most, for people."""
    lines = [_row("generation", "Fréchet", "× floor", "KL", "confidence", "drift")]
    for name, row in table["generation"].items():
        cells = (row.get(key) for key in ("frechet", "multiple", "kl", "confidence"))
        lines.append(_row(name, *cells, table["drift"].get(name)))
    lines.append(_row("restoration", "PSNR", "after f", "SSIM", "after f", "accuracy", "after f"))
    for name, row in {"clean": {"input": {}, "f": table["clean"]}, **table["restoration"]}.items():
        lines.append(_row(name, *(row[way].get(key) for key in ("psnr", "ssim", "accuracy") for way in ("input", "f"))))
    return "\n".join([*lines, *(f"warning: {line}" for line in table["warnings"])])


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
        return {key: _without_histograms(item) for key, item in value.items() if key != "classes"}
    return value


def _names(card: ModelCard, stamped: Mapping[Precision, bytes]) -> Table:
    digests = {FILES[precision]: digest_of(content) for precision, content in stamped.items()}
    return {"name": card.name, "version": card.version, "digest": digests[FILES["fp32"]], "files": digests}


def _usable(data: Dataset, card: ModelCard, samples: int, steps: int) -> None:
    if data.sha256 != card.data.sha256:
        raise UserError(f"--data {data.name}: not what {card.ref} was trained on, {card.data.name} of another SHA-256")
    if min(len(data.train), len(data.held_out), samples) < _LEAST:
        raise UserError(f"--data {data.name}: needs at least {_LEAST} training and {_LEAST} held-out pictures")
    if steps < 1:
        raise UserError(f"--steps {steps}: at least 1")


def _check(function: OnnxFunction, golden: Golden, card: ModelCard, precision: Precision) -> float:
    """That a file still computes what training computed; the largest difference."""
    difference = float(np.abs(function(golden.x) - golden.y).max())
    if not difference <= getattr(card.tolerance, precision):
        name = card.ref if precision == "fp32" else f"{card.ref} in {precision}"
        raise UserError(f"{name}: differs from its golden rows by {difference:.2g}; `verify` it first")
    return round(difference, 6)
