"""The command line: parse, call, report. Anything the user can put right is one line and exit code 2."""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_export.errors import UserError

if TYPE_CHECKING:
    import torch

    from model_export.export.verify import Verification
    from model_export.training.train import Run


_INTERRUPTED = 128 + signal.SIGINT
_FACTS = ("description", "licence", "polarity", "background")  # of the card, which the command line may say better


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0 done, 2 a `UserError`, 130 stopped with its work saved."""
    options = _parser().parse_args(arguments)
    # onnxruntime's official builds report to their maker unless told not to before their first import.
    os.putenv("ORT_DISABLE_TELEMETRY", "1")
    # Libraries warn through logging of what no user can act on.
    logging.basicConfig(level=logging.ERROR)
    try:
        code: int = options.run(options, arguments)
    except UserError as exc:
        return _refuse(str(exc))
    except OSError as exc:  # a folder that can't be written, a full disk
        return _refuse(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc))
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from model_export.data.datasets import load_dataset
    from model_export.training import provenance
    from model_export.training.distributed import joined
    from model_export.training.execution import Execution
    from model_export.training.presets import adapt, get_preset
    from model_export.training.train import Run
    from service.artifact.card import NAME_PATTERN

    if options.name is not None and not re.fullmatch(NAME_PATTERN, options.name):
        raise UserError(f"--name {options.name}: small letters, digits, and _ . - after the first, 64 at most")
    preset = adapt(
        get_preset(options.preset),
        name=options.name,
        size=options.size,
        channels=options.channels,
        steps=options.steps,
        batch=options.batch,
        degradations=options.degradations,
        eight_bit=options.eight_bit,
    )
    _set_threads(options.threads)
    with joined(_device(options.device)) as (ranks, device):
        data = load_dataset(options.data, size=preset.network.size, channels=preset.network.channels)
        run = Run(
            preset,
            data,
            Path(options.out),
            seed=options.seed,
            device=device,
            bf16=bf16(options.precision, device),
            provenance={
                "command": provenance.command(arguments),
                "commit": provenance.commit(),
                "sources": provenance.source_digest(),
                "threads": torch.get_num_threads(),
                "torch": str(torch.__version__),
            },
            execution=Execution(
                ranks=ranks,
                accumulate=options.accumulate,
                compile=options.compile,
                channels_last=options.channels_last,
                keep=options.keep,
                tensorboard=options.tensorboard,
            ),
        )
        return _run_to_its_end(run)


def _run_to_its_end(run: "Run") -> int:
    from model_export.training.train import Interrupted

    try:
        run.train()
    except Interrupted:
        code, line = _INTERRUPTED, f"stopped at step {run.step} of {run.preset.steps}; the same command continues"
    else:
        code, line = 0, f"trained {run.step} steps; next: python -m model_export export --run {run.out}"
    if run.ranks.main:
        for stage, throughput in run.throughput:
            _say(f"{stage}: {throughput}")
        if len(run.throughput) > 1:
            _say(f"in all: {run.total}")
        _say(line)
    return code


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.export.export import export

    _set_threads(options.threads)
    folder, compared = export(
        Path(options.run_folder),
        Path(options.models),
        version=options.version,
        unfinished=options.unfinished,
        force=options.force,
        fp16=options.fp16,
        facts={name: value for name in _FACTS if (value := getattr(options, name)) is not None},
        threads=options.threads,
    )
    _report(compared)
    _say(f"exported {folder}; next: python -m model_export evaluate --model {folder} --data DATA")
    return 0


def _verify(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.export.verify import verify

    _set_threads(options.threads)
    _report(verify(Path(options.run_folder), Path(options.model), threads=options.threads))
    return 0


def _report(compared: Mapping[str, "Verification"]) -> None:
    for file, verification in compared.items():
        _say(f"{file}: {verification}")


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.evaluation.evaluate import evaluate, summary
    from model_export.evaluation.inception import Inception

    _set_threads(options.threads)
    weights = Path(options.fid_weights).expanduser() if options.fid_weights else None
    table = evaluate(
        Path(options.model),
        options.data,
        cache=Path(options.cache).expanduser(),
        out=Path(options.out) if options.out else None,
        samples=options.samples,
        steps=options.steps,
        inception=Inception(weights) if options.fid else None,
        threads=options.threads,
    )
    _say(summary(table))
    return 0


def _figures(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.report.figures import draw

    _set_threads(options.threads)
    written = draw(
        Path(options.model),
        options.data,
        Path(options.out),
        steps=options.steps,
        seed=options.seed,
        run=Path(options.run_folder) if options.run_folder else None,
        threads=options.threads,
    )
    _say(f"drew {len(written)} figures in {options.out}")
    return 0


def _card(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.report.model_card import write

    _say(f"wrote {write(Path(options.model), Path(options.out))}")
    return 0


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    return torch.device(name)


def bf16(precision: str, device: "torch.device") -> bool:
    """Whether to compute in bfloat16; `auto` does so where the hardware multiplies it natively."""
    import torch

    if precision == "auto":
        if device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        return torch.backends.cpu.get_cpu_capability() == "AVX512" and _amx()
    return precision == "bf16"


def _amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    return 2


def _say(line: str) -> None:
    print(line)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_export", description="Train, export and measure an IGN.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a preset; the same command again continues")
    train.set_defaults(run=_train)
    train.add_argument("--preset", required=True, help="mnist, fashion_mnist, celeba64 or tiny")
    train.add_argument("--data", required=True, help=".npz, folder or zip of pictures, or a torchvision name")
    train.add_argument("--out", required=True, help="folder of the run: checkpoint, log, sample grids")
    train.add_argument("--name", help="name of the model; default: the preset's")
    train.add_argument("--size", type=int, help="height and width of the pictures")
    train.add_argument("--channels", type=int, help="1 or 3")
    train.add_argument("--steps", type=int, help="optimiser steps in all, shared out over the stages")
    train.add_argument("--batch", type=int, help="pictures per step")
    train.add_argument("--seed", type=int, default=0, help="of every draw (default 0)")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    train.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    train.add_argument("--degradations", nargs="+", metavar="NAME", help="ways to spoil what is learned to be restored")
    train.add_argument("--eight-bit", type=float, help="share of spoiled pictures that are rounded to 8 bits, 0 to 1")
    train.add_argument("--accumulate", type=int, default=1, help="micro-batches that make up a batch (default 1)")
    train.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    train.add_argument("--channels-last", action="store_true", help="keep weights and activations in NHWC order")
    train.add_argument("--keep", type=int, default=1, help="checkpoints to keep (default 1: only checkpoint.pt)")
    train.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too, in the run's folder")

    export = commands.add_parser("export", help="write a run's network as model.onnx, checked against the run")
    export.set_defaults(run=_export)
    export.add_argument("--run", dest="run_folder", required=True, help="folder of the run")
    export.add_argument("--models", default="models", help="model directory (default models)")
    export.add_argument("--version", type=int, help="number of the version (default: the next free one)")
    export.add_argument("--unfinished", action="store_true", help="export a run that is not at its end")
    export.add_argument("--force", action="store_true", help="replace a version that is there")
    export.add_argument("--fp16", action="store_true", help="write model.fp16.onnx too: half precision, for CUDA")
    export.add_argument("--description", help="one or two sentences in place of the preset's")
    export.add_argument("--licence", help="of the weights, in place of the preset's")
    export.add_argument("--polarity", choices=("light-on-dark", "dark-on-light", "none"), help="of the pictures")
    export.add_argument("--background", type=float, nargs="+", help="letterbox colour, -1 to 1, one for each channel")

    verify = commands.add_parser("verify", help="check an exported model against its run; write its golden rows")
    verify.set_defaults(run=_verify)
    verify.add_argument("--run", dest="run_folder", required=True, help="folder of the run")
    verify.add_argument("--model", required=True, help="version folder, such as models/mnist/1")

    evaluate = commands.add_parser("evaluate", help="measure an exported model; write metrics.json and its card")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--model", required=True, help="version folder, such as models/mnist/1")
    evaluate.add_argument("--data", required=True, help="what the model was trained on, as for train")
    evaluate.add_argument("--out", help="file for the figures (default: metrics.json in the version folder)")
    evaluate.add_argument("--samples", type=int, default=3000, help="pictures to generate (default 3000)")
    evaluate.add_argument("--steps", type=int, default=1000, help="most steps of f repeated (default 1000)")
    evaluate.add_argument("--fid", choices=("inception",), help="measure FID too; needs the extra fid and its weights")
    evaluate.add_argument(
        "--fid-weights", help="file of Inception's weights (default: where torch.hub keeps its files)"
    )
    evaluate.add_argument("--cache", default="~/.cache/ign-service", help="folder that keeps the judging classifier")

    figures = commands.add_parser("figures", help="draw what an exported model does, as PNG")
    figures.set_defaults(run=_figures)
    figures.add_argument("--model", required=True, help="version folder, such as models/mnist/1")
    figures.add_argument("--data", required=True, help="what the model was trained on, as for train")
    figures.add_argument("--out", required=True, help="folder for the figures, such as docs/models/mnist")
    figures.add_argument("--steps", type=int, default=300_000, help="most steps of repeated.png (default 300000)")
    figures.add_argument("--seed", type=int, default=0, help="of the latents (default 0)")
    figures.add_argument("--run", dest="run_folder", help="folder of the training run, to draw its losses too")

    card = commands.add_parser("card", help="write a page about an exported model from the card inside it")
    card.set_defaults(run=_card)
    card.add_argument("--model", required=True, help="version folder, such as models/mnist/1")
    card.add_argument("--out", required=True, help="page to write, such as docs/models/mnist.md")

    for command in (train, export, verify, evaluate, figures):
        command.add_argument("--threads", type=int, default=0, help="CPU threads (default: the libraries' choice)")
    return parser
