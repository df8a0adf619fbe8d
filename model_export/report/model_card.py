"""A page about an exported model, generated from the card in its file and from the figures beside
the page.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from model_export.evaluation.measures import SAMPLES, STEPS
from model_export.evaluation.remarks import Table
from model_export.export.artifact import Artifact, TrainedCard
from model_export.files import write_file
from model_export.report.figures import FIGURES, file_name
from model_export.report.quality import (
    limitations,
    measurements,
    one_line,
    summary,
    superscript,
    table,
)
from service.artifact.files import MODEL_FILES
from service.artifact.golden import digest_of

_FIRST_FIGURE = "samples"


def write_page(folder: Path, out: Path) -> Path:
    """Write the page of a version folder; `docs/models/mnist.md` shows the figures in
    `docs/models/mnist`.
    """
    artifact = Artifact.read(folder, threads=1)
    channels = artifact.card.shape[0]
    shown = {
        figure: file
        for figure in FIGURES
        if (out.parent / (file := f"{out.stem}/{file_name(figure, channels)}")).is_file()
    }
    write_file(out, page(artifact, shown=shown).encode())
    return out


def page(artifact: Artifact, *, shown: Mapping[str, str]) -> str:
    """The page in Markdown. Its first screen states what the model is, how good, its limitations
    and its licence.
    """
    card = artifact.card
    others = [figure for figure in shown if figure != _FIRST_FIGURE]
    parts = [
        f"# {card.ref}",
        f"**{one_line(card.description)}**" if card.description else "",
        _introduction(card),
        "## How good it is",
        summary(card.quality),
        *([_figure(_FIRST_FIGURE, shown)] if _FIRST_FIGURE in shown else []),
        "## Limitations",
        "\n".join(f"- {one_line(limitation)}" for limitation in limitations(card)),
        "## Licence",
        f"Weights: {card.licence}. Training data ({card.data.name}): {card.data.licence}.",
        "## Use",
        _facts(artifact),
        *(_measured(card) if card.quality else ()),
        "## Training",
        *_training(card),
        _commands(artifact),
        *_sources(card),
        *(["## Figures", *(_figure(figure, shown) for figure in others)] if others else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measured(card: TrainedCard) -> list[str]:
    ocr = "ocr" in card.quality
    source = "benchmarks/results/scans-ocr.json" if ocr else f"models/{card.ref}/metrics.json"
    return ["## Measurements", f"All figures: `{source}`.", *measurements(card)]


def _introduction(card: TrainedCard) -> str:
    channels, height, width = card.shape
    colour = "grey" if channels == 1 else "RGB"
    about = (
        f"An Idempotent Generative Network f, f(f(z)) {'=' if card.exact else '≈'} f(z), for "
        f"{height}×{width} {colour} pictures, trained on {card.data.pictures:,} of "
        f"{card.data.name}."
    )
    if card.noise is None:
        about = (
            f"A network f that restores, f(f(x)) ≈ f(x), for {colour} pictures of any size in "
            f"tiles of {height}×{width}, trained on {card.data.pictures:,} parts of pages that "
            "the program draws."
        )
    return f"{about} `python -m model_export card` generates this page; do not edit it."


def _facts(artifact: Artifact) -> str:
    card = artifact.card
    size = len(artifact.data)
    digest = digest_of(artifact.data)
    lo, hi = card.range
    rows = [
        ("Input and output", f"float32 (N, {', '.join(map(str, card.shape))}), {lo:g} … {hi:g}"),
        ("Latents", card.noise.kind if card.noise else "none"),
        ("Steps", f"{card.steps.generate} to generate, {card.steps.project} to project"),
        (
            "Polarity, background",
            f"{card.polarity}, {', '.join(f'{value:g}' for value in card.background)}",
        ),
        ("Parameters", f"{card.training.parameters:,}"),
        ("File", f"{size:,} bytes, opset {card.opset}, SHA-256 `{digest}`"),
    ]
    return table(["", ""], rows)


def _training(card: TrainedCard) -> Iterator[str]:
    training = card.training
    stages = training.config.get("stages", [])
    planned = sum(stage["steps"] for stage in stages)
    unfinished = f" of {planned:,}: the run was not finished" if planned > training.steps else ""
    yield (
        f"{training.steps:,} optimiser steps{unfinished}. "
        f"[What the terms mean](../method.md#loss-terms)"
    )
    if stages:
        yield table(
            ["stage", "steps", "learning rate", "loss"],
            [(s["name"], f"{s['steps']:,}", f"{s['lr']:g}", _loss(s)) for s in stages],
        )


def _sources(card: TrainedCard) -> Iterator[str]:
    training = card.training
    commit = (
        f"Commit `{training.commit}`" if training.commit else "A source tree that was not clean"
    )
    yield f"{commit}; sources `{training.sources}`; data `{card.data.sha256}` (SHA-256)."
    for entry in training.continued:
        commit = entry.get("commit") or "that were not clean"
        yield (
            f"Continued from step {entry.get('from_step')} with sources "
            f"`{entry.get('sources')}`, commit {commit}."
        )


def _loss(stage: Table) -> str:
    terms = (
        (f"{weight:g}·" if weight != 1 else "") + name
        for name, weight in stage["weights"].items()
        if weight
    )
    teacher = (
        f", teacher T{superscript(stage['teacher_steps'])}" if stage.get("teacher_steps") else ""
    )
    return " + ".join(terms) + teacher


def _commands(artifact: Artifact) -> str:
    """The commands that made the version."""
    card = artifact.card
    training = card.training
    out = re.search(r"--out[= ](\S+)", training.command)
    run = out[1] if out else f"runs/{card.name}"
    export = f"export --run {run} --models models --version {card.version}"
    if (artifact.folder / MODEL_FILES["fp16"]).is_file():
        export += " --fp16"
    if card.steps.generate != training.config.get("generate_steps", card.steps.generate):
        export += f" --generate-steps {card.steps.generate}"
    measure = f"benchmarks.authors.scans_ocr --model models/{card.ref} --card"
    if card.noise:
        measure = f"model_export evaluate --model models/{card.ref} "
        measure += f"--data {shlex.quote(card.data.name)}"
        protocol = card.quality.get("protocol", {})
        for name, default in (("samples", SAMPLES), ("steps", STEPS)):
            if (value := protocol.get(name, default)) != default:
                measure += f" --{name} {value}"
    lines = (training.command, f"python -m model_export {export}", f"python -m {measure}")
    return "\n".join(["```sh", *lines, "```"])


def _figure(figure: str, shown: Mapping[str, str]) -> str:
    return f"![{figure}]({shown[figure]})\n\n*{FIGURES[figure]}*"
