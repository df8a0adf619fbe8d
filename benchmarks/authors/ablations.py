"""Ablations of the training objective on short schedules: the table in docs/training-results.md.

    python -m benchmarks.authors.ablations --data mnist.npz --results benchmarks/results/ablations.json

Variants share their first stages: each continues the finished run of the one before. Finished runs and measurements are
not repeated, so the command can be stopped and started again. Several commands can share the work (--only, --seeds) if
each has its own --results; `--table` prints the table of one or more result files.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.harness.common import flattened
from benchmarks.harness.tables import table
from model_export.cli import bf16
from model_export.data.datasets import Dataset, load_dataset
from model_export.errors import UserError
from model_export.evaluation.classifier import classifier_for
from model_export.evaluation.measures import Evaluation
from model_export.export.export import card_of
from model_export.files import atomic_write
from model_export.training import checkpoint as checkpoints
from model_export.training.checkpoint import load_run
from model_export.training.presets import Preset, get_preset
from model_export.training.stages import Stage, Weights, ign_stages, naign_stages
from model_export.training.train import Run
from service.domain.latents import FloatRows, NoiseSource

_BASE: Final = replace(get_preset("mnist"), corruptions=get_preset("small").corruptions)
_IMLE, _BALANCE, _LAST = naign_stages(960, 480, 480)


def _last(**weights: float) -> Stage:
    """The recommended last stage with other weights; a term that is not given is off."""
    return replace(_LAST, weights=Weights(project=0.5, **weights))


# Variant: the one whose finished run it continues, and its own stage; docs/training-results.md describes them.
VARIANTS: Final[Mapping[str, tuple[str, Stage]]] = {
    "paper": ("", ign_stages(960, Weights(rec=1.0, idem=1.0, tight=0.1), lr=1e-4, clamp=None)[0]),
    "imle": ("", _IMLE),
    "balance": ("imle", _BALANCE),
    "distill": ("balance", replace(_last(distill=1.0, settle=0.0), lr=6e-4, betas=_IMLE.betas)),
    "critic": ("balance", _LAST),
    "no-settle": ("balance", _last(distill=0.4, critic=0.01)),
    "no-distill": ("balance", _last(settle=0.5, critic=0.01)),
    "no-balance": ("imle", _LAST),
}
_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {"paper": {"objective": "ign"}}
_COLUMNS: Final = {
    **{power: f"generation.{name}.frechet" for power, name in (("f", "f"), ("f²", "f2"), ("f³", "f3"), ("f⁴", "f4"))},
    "KL": "generation.f.kl",
    "confidence": "generation.f.confidence",
    "drift": "drift.f",
    "σ = 0.8 read": "restoration.noise_0.8.f.accuracy",
    "clean SSIM": "clean.ssim",
    "f¹⁰⁰⁰": "repeated_application.samples.f1000.frechet",
    **{f"class kept, {of}": f"repeated_application.{of}.f1000.same_class" for of in ("samples", "pictures")},
}


def main() -> int:
    cli = argparse.ArgumentParser(description="Train and measure variants of the objective.")
    cli.add_argument("--data", default="mnist", help="MNIST as an .npz, or its name (default mnist)")
    cli.add_argument("--out", default="runs/ablations", help="folder for the runs")
    cli.add_argument("--results", default="benchmarks/results/ablations.json", help="file for the measures")
    cli.add_argument("--only", nargs="+", choices=list(VARIANTS), help="variants (default: all)")
    cli.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (default 0)")
    cli.add_argument("--table", nargs="+", metavar="FILE", help="only print the table of these results")
    options = cli.parse_args()
    try:
        if options.table:
            reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in options.table]
            print(table(means([row for each in reports for row in each["rows"]])))
        else:
            measure_all(options)
    except (UserError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def measure_all(options: argparse.Namespace) -> None:
    """Train and measure what is missing; the results file is complete after every variant."""
    torch.set_num_threads(1)
    data = load_dataset(options.data, size=_BASE.network.size, channels=_BASE.network.channels)
    results = Path(options.results)
    rows: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.is_file() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for name in options.only or VARIANTS:
            if (name, seed) in done:
                continue
            run = trained(name, seed, data, Path(options.out))
            rows.append({"variant": name, "seed": seed, **measured(run, data)})
            report = {"benchmark": "ablations", "data": data.name, "sha256": data.sha256, "rows": rows}
            with atomic_write(results) as file:
                file.write((json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
            print(table(means(rows[-1:])))


def trained(name: str, seed: int, data: Dataset, out: Path) -> Path:
    """The folder of a variant's finished run; the variants before it are trained first."""
    before, folder = VARIANTS[name][0], out / f"{name}-{seed}"
    if before and not (folder / checkpoints.FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        finished = trained(before, seed, data, out) / checkpoints.FILE
        with atomic_write(folder / checkpoints.FILE) as file, finished.open("rb") as source:
            shutil.copyfileobj(source, file)
    device = torch.device("cpu")
    origin = {
        "command": f"python -m benchmarks.authors.ablations --only {name} --seeds {seed}",
        "commit": checkpoints.commit(),
        "sources": checkpoints.source_digest(),
        "threads": 1,
        "torch": str(torch.__version__),
    }
    precision = bf16("auto", device)
    Run(preset_of(name), data, folder, seed=seed, device=device, bf16=precision, provenance=origin).train()
    return folder


def preset_of(name: str) -> Preset:
    """The preset with all stages of a variant, including those of the variants before it."""
    before, stage = VARIANTS[name]
    if not before:
        return replace(_BASE, stages=(stage,), **_PRESETS.get(name, {}))
    preset = preset_of(before)
    return replace(preset, stages=(*preset.stages, stage))


def measured(folder: Path, data: Dataset) -> dict[str, Any]:
    """`Evaluation.brief` of the averaged network, as the export computes it."""
    model = load_run(folder)

    def f(rows: FloatRows) -> FloatRows:
        with torch.inference_mode():
            return np.concatenate([model.network(part).numpy() for part in torch.split(torch.from_numpy(rows), 256)])

    noise = NoiseSource(model.preset.shape)
    classifier = classifier_for(data, Path("~/.cache/ign-service").expanduser())
    evaluation = Evaluation(f, card=card_of(model, "1", {}), noise=noise, data=data, classifier=classifier)
    return {"steps": model.checkpoint.step, **evaluation.brief()}


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a variant: the mean over its seeds."""
    lines = []
    for name in VARIANTS:
        values = [_values(row) for row in rows if row["variant"] == name]
        if values:
            columns = {key: statistics.mean(each[key] for each in values if key in each) for key in values[0]}
            lines.append({"variant": name, "seeds": len(values), **columns})
    return lines


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    figures = dict(flattened(row))
    values = {column: figures[name] for column, name in _COLUMNS.items() if name in figures}
    if "repeated_application.samples.f1000.frechet" in figures:
        values["f¹⁰⁰⁰/f"] = values.pop("f¹⁰⁰⁰") / figures["repeated_application.samples.f.frechet"]
    return values


if __name__ == "__main__":
    sys.exit(main())
