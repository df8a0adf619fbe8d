"""A page about an exported model, written from the card inside its file and the figures beside the page."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from model_export.export.artifact import Artifact, digest_of
from model_export.files import atomic
from model_export.report.figures import FIGURES, LOSSES
from model_export.report.limitations import limits
from model_export.report.markdown import Table, block, leaves, one_line, power, table
from model_export.report.quality import measured
from service.artifact.card import ModelCard


def write(folder: Path, out: Path) -> Path:
    """Write the page of a version folder; it shows the figures that lie in the folder of the page's own name.

    Args:
        folder: the version folder.
        out: the page; `docs/models/mnist.md` shows `docs/models/mnist/*.png`.

    Returns:
        ``out``.

    Raises:
        UserError: no model there, or none that this program exported.
    """
    artifact = Artifact.read(folder, threads=1)
    figures = [name for name in FIGURES if (out.with_suffix("") / name).is_file()]
    text = page(artifact.card, digest=digest_of(artifact.data), size=len(artifact.data), folder=out.stem, shown=figures)
    with atomic(out) as file:
        file.write(text.encode())
    return out


def page(card: ModelCard, *, digest: str, size: int, folder: str, shown: Sequence[str]) -> str:
    """The page in Markdown.

    Args:
        card: of the model.
        digest: SHA-256 of `model.onnx`.
        size: of `model.onnx` in bytes.
        folder: where the figures lie, relative to the page.
        shown: file names of the figures that are there.
    """
    parts = [
        f"# {card.ref}",
        one_line(card.description),
        "Written by `python -m model_export card` from the card inside `model.onnx`; do not edit.",
        "## What it is",
        _facts(card, digest, size),
        "## Data",
        table(["", ""], _data(card)),
        "## Training",
        *_training(card),
        *([_picture(folder, LOSSES)] if LOSSES in shown else []),
        "## Making it again",
        *_reproduction(card),
        "## Measured quality",
        *measured(card),
        *_pictures(folder, [name for name in shown if name != LOSSES]),
        "## Limits",
        "\n".join(f"- {one_line(limit)}" for limit in limits(card)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(card: ModelCard, digest: str, size: int) -> str:
    channels, height, width = card.shape
    lo, hi = card.range
    rows = [
        ("Input `x` and output `y`", f"{channels}×{height}×{width}, values {lo:g} … {hi:g}, float32, any batch size"),
        ("Objective", card.objective),
        ("Latents", f"{card.noise.kind}, mean length {card.noise.norm:g}; stream {card.noise.stream}"),
        ("Steps recommended", f"{card.steps.generate} to generate, {card.steps.project} to project"),
        ("Polarity, background", f"{card.polarity}, {', '.join(f'{value:g}' for value in card.background)}"),
        ("Parameters", f"{card.training.parameters:,}"),
        ("File", f"{size:,} bytes, opset {card.opset}, SHA-256 `{digest}`"),
        ("Licence of the weights", card.licence),
    ]
    return table(["", ""], rows)


def _data(card: ModelCard) -> list[tuple[str, str]]:
    return [
        ("Name", card.data.name),
        ("Training pictures", f"{card.data.pictures:,}"),
        ("Licence", card.data.licence),
        ("SHA-256", f"`{card.data.sha256}`"),
    ]


def _training(card: ModelCard) -> Iterator[str]:
    training, config = card.training, card.training.config
    stages = config.get("stages", [])
    planned = sum(stage["steps"] for stage in stages)
    unfinished = f" of {planned:,}: the run was not finished" if planned > training.steps else ""
    yield f"{training.steps:,} optimiser steps{unfinished}. `docs/training.md` explains the terms."
    if stages:
        yield table(
            ["stage", "steps", "learning rate", "loss"],
            [(s["name"], f"{s['steps']:,}", f"{s['lr']:g}", _loss(s)) for s in stages],
        )
    settings = {key: value for key, value in config.items() if key not in ("stages", "name", "description", "licence")}
    yield "Settings: " + ", ".join(f"`{key}` {value}" for key, value in leaves(settings)) + "."


def _loss(stage: Table) -> str:
    terms = ((f"{weight:g}·" if weight != 1 else "") + name for name, weight in stage["weights"].items() if weight)
    teacher = f", teacher T{power(stage['teacher_steps'])}" if stage.get("teacher_steps") else ""
    return " + ".join(terms) + teacher


def _reproduction(card: ModelCard) -> Iterator[str]:
    training, data = card.training, shlex.quote(card.data.name)
    run = shlex.quote(_option(training.command, "--out") or f"runs/{card.name}")
    half = " --fp16" if "fp16" in card.quality.get("precision", {}) else ""
    model, docs = f"models/{card.ref}", f"docs/models/{card.name}"
    yield block(
        training.command,
        f"python -m model_export export --run {run} --models models --version {card.version}{half}",
        f"python -m model_export evaluate --model {model} --data {data}",
        f"python -m model_export figures --model {model} --data {data} --out {docs} --run {run}",
        f"python -m model_export card --model {model} --out {docs}.md",
    )
    commit = f"commit `{training.commit}`" if training.commit else "a source tree that was not clean"
    yield f"Trained with {commit}; SHA-256 of the sources that decide what training computes: `{training.sources}`."
    for entry in training.continued:
        commit = entry.get("commit") or "that were not clean"
        yield f"Continued from step {entry.get('from_step')} with sources `{entry.get('sources')}`, commit {commit}."


def _pictures(folder: str, shown: Sequence[str]) -> Iterator[str]:
    if shown:
        yield "## Figures"
        yield "Drawn by `python -m model_export figures`; latents and pictures are the first ones, none is picked."
        yield "How often f was applied stands beside the rows; `--steps` bounds it, by default at 300 000."
        yield from (_picture(folder, name) for name in shown)


def _picture(folder: str, name: str) -> str:
    return f"![{FIGURES[name]}]({folder}/{name})\n\n*{FIGURES[name]}*"


def _option(command: str, name: str) -> str | None:
    words = shlex.split(command)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
