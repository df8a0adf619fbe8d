"""Measure an exported model; write the figures beside it and into its card."""

import json
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from model_export.data.datasets import Dataset, load_data_of
from model_export.errors import UserError
from model_export.evaluation.classifier import Table, classifier_for
from model_export.evaluation.measures import SAMPLES, STEPS, Evaluation
from model_export.export.artifact import TrainedCard, check_golden, publish, read_all, with_card
from model_export.files import atomic_write
from service.artifact.files import GOLDEN_FILE, METRICS_FILE, MODEL_FILE
from service.artifact.golden import digest_of
from service.domain.latents import FloatRows

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
    threads: int = 0,
) -> Table:
    """Measure the model in a version folder, write `metrics.json`, and put the figures into the
    card of every file.

    With ``out`` the figures go there; `metrics.json` of an earlier evaluation is replaced as well.
    If anything fails, the version is unchanged.
    """
    artifacts = read_all(folder, threads=threads)
    exported = artifacts[0]
    card = exported.card
    golden = exported.golden()
    if card.noise is None:
        raise UserError(
            f"{card.ref}: makes nothing of noise; `python -m benchmarks.authors.scans_ocr` "
            "measures it"
        )
    golden_rows = {
        artifact.precision: check_golden(artifact.function, golden, card, artifact.precision)
        for artifact in artifacts
    }
    data = load_data_of(card, source, skip_bad=skip_bad)
    _check_usable(data, samples, steps)
    classifier = classifier_for(data, cache)
    with tqdm(desc="measuring", unit=" images", mininterval=1.0) as bar:

        def counted(rows: FloatRows) -> FloatRows:
            bar.update(len(rows))
            return exported.function(rows)

        measures = Evaluation(
            counted,
            card=card,
            noise=exported.noise,
            data=data,
            classifier=classifier,
            samples=samples,
            steps=steps,
            variants={artifact.precision: artifact.function for artifact in artifacts[1:]},
        ).run()
    for precision, table in measures.get("precision", {}).items():
        table |= {"golden": golden_rows[precision], "tolerance": getattr(card.tolerance, precision)}
    quality = {
        key: _without_histograms(value)
        for key, value in measures.items()
        if key not in _NOT_QUALITY
    }
    measured = {"quality": quality, "distance_quantiles": measures["distance_quantiles"]}
    files = with_card(artifacts, TrainedCard.model_validate({**card.model_dump(), **measured}))
    digests = {name: digest_of(content) for name, content in files.items() if name != GOLDEN_FILE}
    identity = {
        "name": card.name,
        "version": card.version,
        "digest": digests[MODEL_FILE],
        "files": digests,
    }
    table = {"model": identity, **measures}
    text = (json.dumps(table, indent=1, allow_nan=False) + "\n").encode()
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
        lines.append(_row(name, *cells, table.get("drift", {}).get(name)))
    if exact := table.get("exact"):
        lines.append(
            _row(
                "drift: not informative",
                *(f"σ {sigma}" for sigma in exact["returned"]),
                "forged",
                "change",
            )
        )
        lines.append(_row("returned", *exact["returned"].values(), *exact["forged"].values()))
    lines.append(_row("restoration", "PSNR", "after f", "SSIM", "after f", "accuracy", "after f"))
    for name, row in {"clean": {"input": {}, "f": table["clean"]}, **table["restoration"]}.items():
        lines.append(
            _row(
                name,
                *(
                    row[way].get(key)
                    for key in ("psnr", "ssim", "accuracy")
                    for way in ("input", "f")
                ),
            )
        )
    lines.append(_row("drawings", "AUROC", "sure", "after f", "after f3", "classes", "own"))
    for name, row in table["drawings"].items():
        sure = (row.get("sure", {}).get(way) for way in ("u", "f", "f3"))
        lines.append(
            _row(name, row["auroc"], *sure, row.get("effective_classes", {}).get("f"), row["own"])
        )
    return "\n".join([*lines, *(f"warning: {line}" for line in table["warnings"])])


def _row(name: str, *cells: float | str | None) -> str:
    texts = (
        "–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells
    )
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
