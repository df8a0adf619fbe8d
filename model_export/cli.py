"""The command line. An error that the user can fix prints one line and exits with code 2."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model_export.errors import UserError, check_name
from model_export.importing.command import add_import

if TYPE_CHECKING:
    import torch

    from model_export.data.datasets import Dataset
    from model_export.data.picture_files import Inspection
    from model_export.training.presets import Choices, Preset
    from model_export.training.train import Run

_DATA: Final = (
    ".npz, folder or zip of pictures, or mnist, fashion_mnist, kmnist, cifar10 or svhn, "
    "which are downloaded, or scans, which is drawn"
)
_PROG: Final = "python -m model_export"
# Options that replace fields of the card.
_CARD_OPTIONS: Final = (
    "description",
    "title",
    "prompt",
    "licence",
    "polarity",
    "background",
    "generate_steps",
)
_MOST_THREADS: Final = 1024
_QUICK: Final = "--quick takes about 20 minutes"
# spares 5 GB of CUDA
_WITHOUT_GPU: Final = "(without a GPU, after PyTorch's CPU build: pytorch.org/get-started/locally)"


def main(arguments: Sequence[str], *, prog: str = _PROG) -> int:
    """Run one command, and name the program ``prog`` in help and errors.

    Returns the exit code: 0 success, 2 a `UserError`, 130 interrupted with the work saved.
    """
    options = parser(prog).parse_args(arguments)
    # The official builds of onnxruntime send telemetry unless this is set before the first import.
    os.putenv("ORT_DISABLE_TELEMETRY", "1")
    # Libraries log warnings that the user cannot act on.
    logging.basicConfig(level=logging.ERROR)
    try:
        _refuse_empty_paths(options)
        if getattr(options, "threads", 0):
            import torch

            torch.set_num_threads(options.threads)
        for line in options.run(options, arguments):
            print(line, flush=True)
    except UserError as exc:
        return _fail(options, str(exc))
    except OSError as exc:  # a folder without write permission, a full disk
        return _fail(options, f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc))
    except ModuleNotFoundError as exc:
        is_import = exc.name == "onnx" and options.command == "import"
        needed = (
            "'ign-service[import,cpu]'" if is_import else f"'ign-service[train,cpu]' {_WITHOUT_GPU}"
        )
        return _fail(options, f"this command needs {exc.name}: pip install {needed}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _fail(options: argparse.Namespace, line: str) -> int:
    print(f"{options.prog} {options.command}: {line}", file=sys.stderr)
    return 2


def _refuse_empty_paths(options: argparse.Namespace) -> None:
    """Paths without a character would stand for the current folder."""
    for name in ("data", "out", "run_folder", "models", "model", "cache"):
        if getattr(options, name, None) == "":
            raise UserError(f"--{name.removesuffix('_folder')}: the path is empty")


def _count(text: str) -> int:
    """A number of threads or processes; the `type` of an option."""
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {_MOST_THREADS}")
    return int(text)


# The commands. Each yields the lines that it prints. What needs torch is imported when a command
# runs.


def _data(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    from model_export.training.presets import SMALL, Choices

    found, preset, data = _load(options, options.data, Choices())
    bad = data.skipped
    skip = " --skip-bad" if options.skip_bad else ""
    shape = f"--size {preset.network.size} --channels {preset.network.channels}"
    yield f"{data.name}: {replace(found, count=found.count - len(bad))}"
    if bad:
        yield f"left out, {len(bad)}: {', '.join(bad[:10])}{' …' if len(bad) > 10 else ''}"
    quick = preset.name == SMALL  # which takes hours on one core
    yield f"preset that fits: {preset.name}, {shape}{f'; {_QUICK}' if quick else ''}"
    yield (
        f"next: {options.prog} train --data {shlex.quote(options.data)}{skip} "
        f"--out runs/NAME{' --quick' if quick else ''}"
    )


def _load(
    options: argparse.Namespace, name: str, choices: "Choices"
) -> "tuple[Inspection, Preset, Dataset]":
    """What the pictures are like, the preset for them, and the pictures in its size."""
    from model_export.data.datasets import open_source
    from model_export.training.presets import choose_preset

    source = open_source(name, skip_bad=options.skip_bad)
    found = source.inspect()
    preset = choose_preset(choices, source, found)
    return found, preset, source.load(size=preset.network.size, channels=preset.network.channels)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[str]:
    from model_export.training.checkpoint import record
    from model_export.training.presets import QUICK, Choices, describe_model, own_data, summary
    from model_export.training.train import Run

    _check_train_options(options)
    choices = Choices(**_given(options, Choices.__slots__))
    device = _device(options.device)
    found, base, data = _load(options, options.data or own_data(options.preset), choices)
    preset = describe_model(base, choices, data, found)
    out = Path(options.out or os.devnull)  # a dry run needs none, and makes the same checks
    run = Run(
        preset,
        data,
        out,
        seed=options.seed,
        device=device,
        bf16=bf16(options.precision, device),
        provenance=record(arguments),
        **_given(options, ("channels_last", "keep")),
    )
    lines = summary(preset, base.name, data, found)
    if run.step:
        stage = run.preset.stages[run.stage].name
        lines.append(f"begins at stage `{stage}`, step {run.step} of {run.preset.steps}")
    starting = run.step < run.preset.steps
    if starting and not options.dry_run:
        out.mkdir(parents=True, exist_ok=True)  # fails here rather than after the estimate
    if starting or options.dry_run:
        yield from lines
    if options.dry_run or (starting and run.step == 0 and options.preset in (None, QUICK)):
        yield _estimate(run, data)
    if not options.dry_run:
        yield from _train_run(run, options.prog)


def _check_train_options(options: argparse.Namespace) -> None:
    if options.name is not None:
        check_name(options.name)
    if options.out is None and not options.dry_run:
        raise UserError("--out: name the folder of the run, or say --dry-run")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: 0 or more")


def _estimate(run: "Run", data: "Dataset") -> str:
    """How long the training takes."""
    import torch

    from model_export.estimate import estimate_seconds, in_words
    from model_export.training.presets import SMALL

    seconds = estimate_seconds(run.preset, data, device=run.device, bf16=run.bf16)
    if run.device.type == "cuda":
        return f"about {in_words(seconds)} on this GPU"
    cores = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    return (
        f"about {in_words(seconds)} on one core"
        + (f", at best {in_words(seconds / cores)} on {cores}" if cores > 1 else "")
        + (f"; {_QUICK}" if run.preset.name == SMALL else "")
    )


def _train_run(run: "Run", prog: str) -> Iterator[str]:
    from model_export.training.train import Interrupted

    try:
        run.train()
    except (Interrupted, KeyboardInterrupt) as exc:
        yield f"stopped at step {run.step} of {run.preset.steps}; the same command continues"
        raise KeyboardInterrupt from exc
    yield f"trained {run.preset.steps} steps; next:"
    yield f"{prog} export --run {shlex.quote(str(run.out))} --models models"
    yield f"ign serve --models models --default-model {run.preset.name}"


def _export(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    from model_export.export.export import export

    folder, verifications = export(
        Path(options.run_folder),
        Path(options.models),
        card_fields={
            name: value
            for name, value in _given(options, _CARD_OPTIONS).items()
            if value is not None
        },
        **_given(options, ("version", "unfinished", "force", "fp16", "threads")),
    )
    yield from (f"{file}: {verification}" for file, verification in verifications.items())
    yield f"exported {folder}; next: {options.prog} evaluate --model {folder} --data DATA"


def _verify(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    from model_export.export.verify import verify

    for file, verification in verify(
        Path(options.run_folder), Path(options.model), threads=options.threads
    ).items():
        yield f"{file}: {verification}"


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    from model_export.evaluation.evaluate import evaluate
    from model_export.report.quality import summary

    table = evaluate(
        Path(options.model),
        options.data,
        cache=Path(options.cache).expanduser(),
        **_given(options, ("skip_bad", "samples", "steps", "threads")),
    )
    yield summary(table)


def _figures(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    from model_export.report.figures import draw_figures

    written = draw_figures(
        Path(options.model),
        options.data,
        Path(options.out),
        **_given(options, ("skip_bad", "seed", "threads")),
    )
    yield f"drew {len(written)} figures in {options.out}"


def _card(options: argparse.Namespace, _: Sequence[str]) -> Iterator[str]:
    from model_export.report.model_card import write_page

    yield f"wrote {write_page(Path(options.model), Path(options.out))}"


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _device(name: str) -> "torch.device":
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise UserError("--device cuda: torch finds no CUDA device")
    return torch.device(("cuda" if found else "cpu") if name == "auto" else name)


def bf16(precision: str, device: "torch.device") -> bool:
    """Whether to compute in bfloat16. `auto` does so if the hardware supports it natively."""
    import torch

    if precision == "auto":
        if device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        processor = Path("/proc/cpuinfo")  # torch does not tell whether the processor has AMX
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        return wide and processor.exists() and "amx_bf16" in processor.read_text()
    return precision == "bf16"


def _add_train_options(train: argparse.ArgumentParser) -> None:
    add = train.add_mutually_exclusive_group().add_argument
    add(
        "--preset",
        help="one of docs/training.md, such as mnist or small (default: what fits the data)",
    )
    add(
        "--quick",
        dest="preset",
        action="store_const",
        const="quick",
        help="own pictures in 20 minutes on one core, 32×32",
    )
    add = train.add_argument
    add("--data", help=f"{_DATA} (default: the preset's own)")
    add("--out", help="folder of the run: checkpoint, log, sample grids")
    add("--dry-run", action="store_true", help="say what would be trained and how long, and end")
    add("--name", help="name of the model (default: the preset's, for other data that of the data)")
    add("--size", type=int, help="height and width of the pictures")
    add("--channels", type=int, choices=(1, 3))
    add("--steps", type=int, help="optimiser steps in total, split over the stages; may grow later")
    add("--licence", help="of the weights (default: none stated, but for the presets' own data)")
    add("--batch", type=int, help="pictures per step")
    add("--seed", type=int, default=0, help="of all random numbers (default 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add(
        "--corruptions",
        nargs="+",
        metavar="NAME",
        help="corruptions that f learns to undo: noise, blur, low_resolution, hole, grey, sketch",
    )
    add("--channels-last", action="store_true", help="keep weights and activations in NHWC order")
    add("--keep", type=int, default=1, help="checkpoints to keep (default 1: only checkpoint.pt)")


def _add_export_options(export: argparse.ArgumentParser) -> None:
    add = export.add_argument
    add("--models", default="models", help="model directory (default models)")
    add("--version", type=int, help="number of the version (default: the next free one)")
    add("--unfinished", action="store_true", help="export a run that is not finished")
    add("--force", action="store_true", help="replace an existing version")
    add("--fp16", action="store_true", help="also write model.fp16.onnx: half precision, for CUDA")
    add("--description", help="one or two sentences in place of the preset's")
    add("--title", help="short name for people, such as Digits")
    add("--prompt", help='what the page asks people to draw, such as "Draw a digit, 0-9"')
    add("--licence", help="of the weights, in place of the run's")
    add(
        "--generate-steps",
        type=int,
        help="how often f is applied to generate (default: the preset's)",
    )
    add("--polarity", choices=("light-on-dark", "dark-on-light", "none"), help="of the pictures")
    add(
        "--background",
        type=float,
        nargs="+",
        help="letterbox colour, -1 to 1, one for each channel",
    )


def parser(prog: str = _PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(
        prog=prog, description="Train, export and measure an IGN.", allow_abbrev=False
    )
    top.set_defaults(prog=prog)
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(run: Callable[..., Iterator[str]], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(run.__name__[1:], help=summary, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    data = add(_data, "look at pictures, and say what train would make of them")
    data.add_argument("data", metavar="DATA", help=_DATA)

    train = add(_train, "train a preset; the same command again continues")
    _add_train_options(train)

    export = add(_export, "write a run's network as model.onnx, checked against the run")
    _add_export_options(export)

    verify = add(_verify, "check an exported model against its run; write its golden rows")

    evaluate = add(_evaluate, "measure an exported model; write metrics.json and its card")
    evaluate.add_argument(
        "--samples", type=int, default=3000, help="pictures to generate (default 3000)"
    )
    evaluate.add_argument(
        "--steps", type=int, default=1000, help="most applications of f (default 1000)"
    )
    evaluate.add_argument(
        "--cache", default="~/.cache/ign-service", help="folder of the trained classifier"
    )

    figures = add(_figures, "draw figures of an exported model")
    figures.add_argument(
        "--out", required=True, help="folder for the figures, such as docs/models/mnist"
    )
    figures.add_argument("--seed", type=int, default=0, help="of the latents (default 0)")

    card = add(_card, "write a page about an exported model from its card")
    card.add_argument("--out", required=True, help="page to write, such as docs/models/mnist.md")

    add_import(commands)

    for command in (export, verify):
        command.add_argument("--run", dest="run_folder", required=True, help="folder of the run")
    for command in (evaluate, figures):
        command.add_argument(
            "--data", required=True, help="the data the model was trained on, as for train"
        )
    for command in (data, train, evaluate, figures):
        command.add_argument(
            "--skip-bad", action="store_true", help="leave out files that are no readable pictures"
        )
    for command in (verify, evaluate, figures, card):
        command.add_argument(
            "--model", required=True, help="version folder, such as models/mnist/1"
        )
    for command in (train, export, verify, evaluate, figures):
        command.add_argument(
            "--threads",
            type=_count,
            default=0,
            help="CPU threads (default: chosen by the libraries)",
        )
    return top
