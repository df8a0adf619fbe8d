"""Measure an exported model; write the figures beside it and into its card."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from model_export.data.datasets import Dataset, load_data_of
from model_export.errors import UserError
from model_export.evaluation.classifier import Table, classifier_for
from model_export.evaluation.inception import Inception
from model_export.evaluation.measures import SAMPLES, STEPS, Evaluation
from model_export.export.artifact import OnnxFunction, publish, read_all, stamp
from model_export.files import atomic_write
from service.artifact.card import ModelCard
from service.artifact.files import GOLDEN_FILE, METRICS_FILE, MODEL_FILE, MODEL_FILES, Precision
from service.artifact.golden import Golden, digest_of, max_abs_diff

_MIN_PICTURES: Final = 2  # of each part: a covariance and a nearest neighbour need two
_NOT_QUALITY: Final = ("data", "distance_quantiles")  # other fields of the card hold them


def evaluate(
    folder: Path,
    source: str,
    *,
    cache: Path,
    skip_bad: bool = False,
    out: Path | None = None,
    samples: int = SAMPLES,
    steps: int = STEPS,
    inception: Inception | None = None,
    threads: int = 0,
) -> Table:
    """Measure the model in a version folder, write `metrics.json`, and put the figures into the card of every file.

    With ``out`` the figures go there; `metrics.json` of an earlier evaluation is replaced as well. If anything fails,
    the version is unchanged.
    """
    artifacts = read_all(folder, threads=threads)
    exported = artifacts[0]
    card, golden = exported.card, exported.golden()
    golden_rows = {
        artifact.precision: _check_golden(artifact.function, golden, card, artifact.precision) for artifact in artifacts
    }
    data = load_data_of(card, source, skip_bad=skip_bad)
    _check_usable(data, samples, steps)
    measures = Evaluation(
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
    for precision, table in measures.get("precision", {}).items():
        table |= {"golden": golden_rows[precision], "tolerance": getattr(card.tolerance, precision)}
    quality = {key: _without_histograms(value) for key, value in measures.items() if key not in _NOT_QUALITY}
    measured = {"quality": quality, "distance_quantiles": measures["distance_quantiles"]}
    new_card = ModelCard.model_validate({**card.model_dump(), **measured})
    stamped = {artifact.precision: stamp(artifact.data, new_card) for artifact in artifacts}
    # The rewritten files must still compute the same before they replace the old ones.
    for precision, content in stamped.items():
        _check_golden(OnnxFunction(content, threads=1), golden, new_card, precision)
    files = {MODEL_FILES[precision]: content for precision, content in stamped.items()}
    digests = {name: digest_of(content) for name, content in files.items()}
    identity = {"name": card.name, "version": card.version, "digest": digests[MODEL_FILE], "files": digests}
    table = {"model": identity, **measures}
    text = (json.dumps(table, indent=1, allow_nan=False) + "\n").encode()
    files[GOLDEN_FILE] = dataclasses.replace(golden, digest=digests[MODEL_FILE]).to_bytes()
    if out:  # first, because it may fail
        with atomic_write(out) as file:
            file.write(text)
    if not out or (folder / METRICS_FILE).exists():  # of an earlier evaluation
        files[METRICS_FILE] = text
    publish(folder, files, keep=True)
    return table


def summary(table: Table) -> str:
    """The most important figures as a table of text."""
    lines = [_row("generation", "Fréchet", "× floor", "KL", "confidence", "drift")]
    for name, row in table["generation"].items():
        cells = (row.get(key) for key in ("frechet", "multiple", "kl", "confidence"))
        lines.append(_row(name, *cells, table["drift"].get(name)))
    lines.append(_row("restoration", "PSNR", "after f", "SSIM", "after f", "accuracy", "after f"))
    for name, row in {"clean": {"input": {}, "f": table["clean"]}, **table["restoration"]}.items():
        lines.append(_row(name, *(row[way].get(key) for key in ("psnr", "ssim", "accuracy") for way in ("input", "f"))))
    lines.append(_row("drawings", "AUROC", "sure", "after f", "after f3", "classes", "own"))
    for name, row in table["drawings"].items():
        sure = (row.get("sure", {}).get(way) for way in ("u", "f", "f3"))
        lines.append(_row(name, row["auroc"], *sure, row.get("effective_classes", {}).get("f"), row["own"]))
    return "\n".join([*lines, *(f"warning: {line}" for line in table["warnings"])])


def _row(name: str, *cells: float | str | None) -> str:
    texts = ("–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells)
    return f"{name:18}" + "".join(f"{text:>11}" for text in texts)


def _without_histograms(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_histograms(item) for key, item in value.items() if key != "classes"}
    return value


def _check_usable(data: Dataset, samples: int, steps: int) -> None:
    if samples < _MIN_PICTURES:
        raise UserError(f"--samples {samples}: at least {_MIN_PICTURES}")
    if min(len(data.train), len(data.held_out)) < _MIN_PICTURES:
        needed = f"at least {_MIN_PICTURES} training and {_MIN_PICTURES} held-out pictures"
        raise UserError(f"--data {data.name}: needs {needed}")
    if steps < 1:
        raise UserError(f"--steps {steps}: at least 1")


def _check_golden(function: OnnxFunction, golden: Golden, card: ModelCard, precision: Precision) -> float:
    """Largest difference of a file from the golden rows; a `UserError` if it exceeds the tolerance of the card."""
    difference = max_abs_diff(function(golden.x), golden.y)
    if difference > getattr(card.tolerance, precision):
        name = card.ref if precision == "fp32" else f"{card.ref} in {precision}"
        raise UserError(f"{name}: differs from its golden rows by {difference:.2g}; `verify` it first")
    return round(difference, 6)
