"""The command `data`: look at pictures, or draw the set of faces."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from model_export.arguments import count

AVATARS = "avatars"


def add_options(data: argparse.ArgumentParser) -> None:
    """Add the options of the set of faces to those of the command."""
    group = data.add_argument_group("avatars", "draw faces in colour with their attributes; needs the extra avatars")
    group.add_argument("--out", help="file to write, such as avatars64.npz")
    group.add_argument("--n", type=int, default=40_000, help="pictures; a tenth is held out (default 40000)")
    group.add_argument("--size", type=int, default=64, help="height and width (default 64)")
    group.add_argument("--seed", type=int, default=0, help="of the pictures (default 0)")
    group.add_argument("--backgrounds", nargs="+", default=(), metavar="RRGGBB", help="default: five pastel colours")
    group.add_argument("--processes", type=count, default=0, help="processes that draw (default: one for each core)")


def run(options: argparse.Namespace, _: Sequence[str]) -> int:
    """Draw the set of faces if it is named together with a file to write; else look at the pictures."""
    for line in _draw(options) if options.data == AVATARS and options.out else _look(options):
        print(line)  # noqa: T201
    return 0


def _draw(options: argparse.Namespace) -> list[str]:
    from model_export.data.avatars import AvatarOptions, write_avatars

    chosen = AvatarOptions(options.n, options.size, options.seed, tuple(options.backgrounds))
    write_avatars(chosen, Path(options.out), processes=options.processes)
    return [f"wrote {options.out}", f"next: {options.prog} train --data {options.out} --out runs/NAME"]


def _look(options: argparse.Namespace) -> list[str]:
    from model_export.data.datasets import open_source
    from model_export.training import plan

    source = open_source(options.data, skip_bad=options.skip_bad)
    found = source.inspect()
    preset = plan.choose_preset(plan.Choices(), source, found)
    network = preset.network
    source.load(size=network.size, channels=network.channels)  # refuses what `train` would refuse
    skip = " --skip-bad" if options.skip_bad else ""
    return [
        f"{source.name}: {found}",
        f"preset that fits: {preset.name}, --size {network.size} --channels {network.channels}",
        f"next: {options.prog} train --data {options.data}{skip} --out runs/NAME",
    ]
