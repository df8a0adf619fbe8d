"""Measure an exported model; write the figures beside it and into its card."""

import json
from pathlib import Path
from typing import Final

from model_export.data.datasets import load_data_of
from model_export.errors import UserError
from model_export.evaluation.classifier import Table, classifier_for
from model_export.evaluation.measures import SAMPLES, STEPS, Evaluation
from model_export.export.artifact import check_golden, publish, read_all, with_fields
from model_export.progress import progress
from service.artifact.files import METRICS_FILE, MODEL_FILE
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
    samples: int = SAMPLES,
    steps: int = STEPS,
    threads: int = 0,
) -> Table:
    """Measure the model in a version folder, write `metrics.json`, and put the figures into the
    card of every file.

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
    for artifact in artifacts:
        check_golden(artifact.function, golden, card, artifact.precision)
    data = load_data_of(card, source, skip_bad=skip_bad)
    if samples < _MIN_PICTURES:
        raise UserError(f"--samples {samples}: at least {_MIN_PICTURES}")
    if min(len(data.train), len(data.held_out)) < _MIN_PICTURES:
        needed = f"at least {_MIN_PICTURES} training and {_MIN_PICTURES} held-out pictures"
        raise UserError(f"--data {data.name}: needs {needed}")
    if steps < 1:
        raise UserError(f"--steps {steps}: at least 1")
    classifier = classifier_for(data, cache)
    with progress(desc="measuring", unit=" images") as bar:

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
        ).run()
    quality = {key: value for key, value in measures.items() if key not in _NOT_QUALITY}
    files = with_fields(
        artifacts, quality=quality, distance_quantiles=measures["distance_quantiles"]
    )
    digest = digest_of(files[MODEL_FILE])
    identity = {"name": card.name, "version": card.version, "digest": digest}
    table = {"model": identity, **measures}
    text = (json.dumps(table, indent=1, allow_nan=False) + "\n").encode()
    publish(folder, files | {METRICS_FILE: text}, keep=True)
    return table
