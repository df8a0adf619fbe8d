"""Ablations of the training objective on short schedules: the table in docs/training-results.md.

    python benchmarks/training_ablations.py --data mnist.npz --results benchmarks/results/ablations.json

Variants share their first stages: each continues the finished run of its `after`. Finished runs and measurements are
not repeated, so the command can be stopped and started again. Several commands can share the work (--only, --seeds) if
each has its own --results; `--table` prints the table of one or more result files.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

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
from model_export.training.stages import Stage, Weights, ign_stages, naign_stages, quantised_stage
from model_export.training.train import Run
from service.domain.latents import FloatRows, NoiseSource

_CHUNK: Final = 256
_BASE: Final = dataclasses.replace(get_preset("mnist"), corruptions=get_preset("small").corruptions)
_IMLE, _BALANCE, _DISTILL = naign_stages(960, 480, 480)
_DRIFTING: Final = dataclasses.replace(
    _DISTILL,
    weights=dataclasses.replace(_DISTILL.weights, critic=0.0, drifting=0.015),
    drift_pictures=128,
)
_QUANTISE: Final = quantised_stage(480)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table.

    Args:
        title: its description in the table.
        stages: its own stages.
        after: the variant whose finished run it continues.
        base: preset fields; only for a variant without ``after``.
    """

    title: str
    stages: tuple[Stage, ...]
    after: str | None = None
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _last(**weights: float) -> tuple[Stage, ...]:
    """The recommended last stage with other weights; a term that is not given is off."""
    return (dataclasses.replace(_DISTILL, weights=Weights(project=0.5, **weights)),)


def _without_quantiser() -> Stage:
    """The stage `quantise` without its quantiser."""
    weights = dataclasses.replace(_QUANTISE.weights, code_consistency=0.0)
    return dataclasses.replace(_QUANTISE, name="longer", weights=weights, code_noise=0.0, quantizer_deviation=0.0)


VARIANTS: Final[Mapping[str, Variant]] = {
    "paper": Variant(
        title="the paper's objective (MSE, 1 : 1 : 0.1, no clamp) with group norm",
        stages=ign_stages(960, Weights(rec=1.0, idem=1.0, tight=0.1), lr=1e-4, clamp=None),
        base={"objective": "ign"},
    ),
    "imle": Variant(title="reconstruction and IMLE", stages=(_IMLE,)),
    "balance": Variant(title="imle, then balanced matching", stages=(_BALANCE,), after="imle"),
    "distill": Variant(
        title="balance, then distillation of T⁴ and projection",
        stages=(
            dataclasses.replace(
                _DISTILL, lr=6e-4, betas=_IMLE.betas, weights=Weights(distill=1.0, project=0.5, settle=0.0)
            ),
        ),
        after="balance",
    ),
    "critic": Variant(title="balance, then distillation with a discriminator", stages=(_DISTILL,), after="balance"),
    "drifting": Variant(title="balance, then distillation with drifting", stages=(_DRIFTING,), after="balance"),
    "no-settle": Variant(title="critic without settle", stages=_last(distill=0.4, critic=0.01), after="balance"),
    "no-distill": Variant(title="critic without distillation", stages=_last(settle=0.5, critic=0.01), after="balance"),
    "no-balance": Variant(title="critic straight after imle", stages=(_DISTILL,), after="imle"),
    "longer": Variant(
        title="critic, then the stage of the quantiser without it",
        stages=(_without_quantiser(),),
        after="critic",
    ),
    "quantise": Variant(title="critic, then the quantiser: the preset `mnist`", stages=(_QUANTISE,), after="critic"),
}
_KEPT: Final = ("class kept, samples", "class kept, pictures")
_COLUMNS: Final = (
    *("steps", "f", "f²", "f³", "f⁴", "f¹⁰⁰⁰/f", *_KEPT),
    *("KL", "confidence", "drift", "σ = 0.8 read", "clean SSIM"),
)


def main() -> int:
    options = _parser().parse_args()
    try:
        if options.table:
            reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in options.table]
            print("\n".join(table([row for each in reports for row in each["rows"]])))
        else:
            measure_all(options)
    except UserError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:
        print(f"error: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return 2
    return 0


def measure_all(options: argparse.Namespace) -> None:
    """Train and measure what is missing; the results file is complete after every variant."""
    torch.set_num_threads(options.threads)
    data = load_dataset(options.data, size=_BASE.network.size, channels=_BASE.network.channels)
    results = Path(options.results)
    rows: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.is_file() else []
    for seed in options.seeds:
        for name in options.only or VARIANTS:
            if any((row["variant"], row["seed"]) == (name, seed) for row in rows):
                continue
            run = trained(name, seed, data, Path(options.out))
            rows.append({"variant": name, "seed": seed, **measured(run, data)})
            report = {"benchmark": "ablations", "data": data.name, "sha256": data.sha256, "rows": rows}
            with atomic_write(results) as file:
                file.write((json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
            print("\n".join(table(rows[-1:])))


def trained(name: str, seed: int, data: Dataset, out: Path) -> Path:
    """The folder of a variant's finished run; the variants before it are trained first."""
    variant, folder = VARIANTS[name], out / f"{name}-{seed}"
    if variant.after is not None and not (folder / checkpoints.FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        before = trained(variant.after, seed, data, out) / checkpoints.FILE
        with atomic_write(folder / checkpoints.FILE) as file, before.open("rb") as source:
            shutil.copyfileobj(source, file)
    device = torch.device("cpu")
    run = Run(
        preset_of(name),
        data,
        folder,
        seed=seed,
        device=device,
        bf16=bf16("auto", device),
        provenance={
            "command": f"python benchmarks/training_ablations.py --only {name} --seeds {seed}",
            "commit": checkpoints.commit(),
            "sources": checkpoints.source_digest(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        },
    )
    run.train()
    return folder


def preset_of(name: str) -> Preset:
    """The preset with all stages of a variant, including those of the variants before it."""
    variant = VARIANTS[name]
    if variant.after is None:
        return dataclasses.replace(_BASE, stages=variant.stages, **variant.base)
    before = preset_of(variant.after)
    return dataclasses.replace(before, stages=(*before.stages, *variant.stages))


def measured(folder: Path, data: Dataset) -> dict[str, Any]:
    """`Evaluation.brief` of the averaged network, as the export computes it."""
    model = load_run(folder)

    def f(rows: FloatRows) -> FloatRows:
        with torch.inference_mode():
            return np.concatenate([model.network(part).numpy() for part in torch.split(torch.from_numpy(rows), _CHUNK)])

    evaluation = Evaluation(
        f,
        card=card_of(model, "1", {}),
        noise=NoiseSource(model.preset.shape),
        data=data,
        classifier=classifier_for(data, Path("~/.cache/ign-service").expanduser()),
    )
    return {"steps": model.checkpoint.step, **evaluation.brief()}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Markdown: the mean over seeds, ± half the range where there are several; – where it was not measured."""
    yield "| variant | " + " | ".join(_COLUMNS) + " |"
    yield "|---" * (len(_COLUMNS) + 1) + "|"
    for name, variant in VARIANTS.items():
        values = [_values(row) for row in rows if row["variant"] == name]
        if values:
            seeds = f", {len(values)} seeds" if len(values) > 1 else ""
            cells = [_cell(column, [each[column] for each in values if column in each]) for column in _COLUMNS]
            yield f"| `{name}`: {variant.title}{seeds} | " + " | ".join(cells) + " |"


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    generation, noisy = row["generation"], row["restoration"]["noise_0.8"]["f"]
    powers = zip(("f", "f²", "f³", "f⁴"), ("f", "f2", "f3", "f4"), strict=True)
    return {
        "steps": row["steps"],
        **{column: generation[key]["frechet"] for column, key in powers},
        "KL": generation["f"]["kl"],
        "confidence": generation["f"]["confidence"],
        "drift": row["drift"]["f"],
        "σ = 0.8 read": noisy["accuracy"],
        "clean SSIM": row["clean"]["ssim"],
        **(_lasting(row["repeated_application"]) if "repeated_application" in row else {}),
    }


def _lasting(repeated: Mapping[str, Any]) -> dict[str, float]:
    samples, pictures = repeated["samples"], repeated["pictures"]
    kept = (start["f1000"]["same_class"] for start in (samples, pictures))
    return {
        "f¹⁰⁰⁰/f": samples["f1000"]["frechet"] / samples["f"]["frechet"],
        **dict(zip(_KEPT, kept, strict=True)),
    }


def _cell(column: str, values: list[float]) -> str:
    if not values:
        return "–"
    digits = {"f¹⁰⁰⁰/f": 2, "KL": 4, "confidence": 3, "drift": 4, "σ = 0.8 read": 3, "clean SSIM": 3}.get(column, 1)
    digits = 0 if column == "steps" else 2 if column in _KEPT else digits
    middle = f"{statistics.mean(values):.{digits}f}"
    half = (max(values) - min(values)) / 2
    return f"{middle} ± {half:.{digits}f}" if len(values) > 1 and column != "steps" else middle


def _parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(description="Train and measure variants of the objective.")
    cli.add_argument("--data", default="MNIST", help="MNIST as an .npz, or the torchvision name (default MNIST)")
    cli.add_argument("--out", default="runs/ablations", help="folder for the runs")
    cli.add_argument("--results", default="benchmarks/results/ablations.json", help="file for the measures")
    cli.add_argument("--only", nargs="+", choices=list(VARIANTS), help="variants (default: all)")
    cli.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (default 0)")
    cli.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    cli.add_argument("--table", nargs="+", metavar="FILE", help="only print the table of these results")
    return cli


if __name__ == "__main__":
    sys.exit(main())
