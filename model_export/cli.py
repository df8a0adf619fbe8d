"""The command line: parse, call, report. Anything the user can put right is one line and exit code 2."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_export.errors import UserError

if TYPE_CHECKING:
    import torch


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0 done, 2 a `UserError`, 130 stopped with its work saved."""
    options = _parser().parse_args(arguments)
    # Libraries warn through logging of what no user can act on.
    logging.basicConfig(level=logging.ERROR)
    try:
        code: int = options.run(options, arguments)
    except UserError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 2
    return code


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from model_export import provenance
    from model_export.data import load_dataset
    from model_export.presets import adapt, get_preset
    from model_export.train import Interrupted, Run

    preset = adapt(
        get_preset(options.preset),
        name=options.name,
        size=options.size,
        channels=options.channels,
        steps=options.steps,
        batch=options.batch,
    )
    if options.threads:
        torch.set_num_threads(options.threads)
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
        return 128 + signal.SIGINT
    _say(f"trained {run.step} steps; next: python -m model_export export --run {options.out}")
    return 0


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


def _say(line: str) -> None:
    print(line)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_export", description=__doc__)
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
    train.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    return parser
