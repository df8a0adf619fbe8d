"""The command line: parse, call, report. Anything the user can put right is one line and exit code 2."""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_export.errors import UserError

if TYPE_CHECKING:
    import torch


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

    from model_export import provenance
    from model_export.data import load_dataset
    from model_export.presets import adapt, get_preset
    from model_export.train import Interrupted, Run
    from service.card import NAME_PATTERN

    if options.name is not None and not re.fullmatch(NAME_PATTERN, options.name):
        raise UserError(f"--name {options.name}: small letters, digits, and _ . - after the first, 64 at most")
    preset = adapt(
        get_preset(options.preset),
        name=options.name,
        size=options.size,
        channels=options.channels,
        steps=options.steps,
        batch=options.batch,
    )
    _set_threads(options.threads)
    device = _device(options.device)
    data = load_dataset(options.data, size=preset.network.size, channels=preset.network.channels)
    run = Run(
        preset,
        data,
        Path(options.out),
        seed=options.seed,
        device=device,
        bf16=_bf16(options.precision, device),
        provenance={
            "command": provenance.command(arguments),
            "commit": provenance.commit(),
            "sources": provenance.source_digest(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        },
    )
    try:
        run.train()
    except Interrupted:
        _say(f"stopped at step {run.step} of {preset.steps}; the same command continues")
        return _INTERRUPTED
    _say(f"trained {run.step} steps; next: python -m model_export export --run {options.out}")
    return 0


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.export import export

    _set_threads(options.threads)
    folder, verification = export(
        Path(options.run_folder),
        Path(options.models),
        version=options.version,
        unfinished=options.unfinished,
        force=options.force,
        facts={name: value for name in _FACTS if (value := getattr(options, name)) is not None},
        threads=options.threads,
    )
    _say(f"{verification}")
    _say(f"exported {folder}; next: python -m model_export evaluate --model {folder} --data DATA")
    return 0


def _verify(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.verify import verify

    _set_threads(options.threads)
    _say(f"{verify(Path(options.run_folder), Path(options.model), threads=options.threads)}")
    return 0


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.evaluate import evaluate, summary

    _set_threads(options.threads)
    table = evaluate(
        Path(options.model),
        options.data,
        cache=Path(options.cache).expanduser(),
        out=Path(options.out) if options.out else None,
        samples=options.samples,
        threads=options.threads,
    )
    _say(summary(table))
    return 0


def _figures(options: argparse.Namespace, _: Sequence[str]) -> int:
    from model_export.figures import draw

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
    from model_export.cards import write

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


def _bf16(precision: str, device: "torch.device") -> bool:
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

    export = commands.add_parser("export", help="write a run's network as model.onnx, checked against the run")
    export.set_defaults(run=_export)
    export.add_argument("--run", dest="run_folder", required=True, help="folder of the run")
    export.add_argument("--models", default="models", help="model directory (default models)")
    export.add_argument("--version", type=int, help="number of the version (default: the next free one)")
    export.add_argument("--unfinished", action="store_true", help="export a run that is not at its end")
    export.add_argument("--force", action="store_true", help="replace a version that is there")

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
