import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_export.training import checkpoint as checkpoints
from model_export.training.execution import World, join_world
from model_export.training.presets import PRESETS
from model_export.training.stages import Weights, ign_stages
from tests.helpers.live import ROOT, environment
from tests.helpers.ranks import Job, assert_gradients_agree, train_alone, train_in_ranks
from tests.helpers.tiny_training import contents, train_arguments

slow = pytest.mark.slow  # real processes

TINY = PRESETS["tiny"]
NAIGN = dataclasses.replace(
    TINY,
    stages=tuple(dataclasses.replace(stage, steps=8, warmup=0) for stage in TINY.stages),
    matching=dataclasses.replace(TINY.matching, pool=65, pairs=31),  # shares of unequal size
    corruptions=("noise", "blur", "hole"),
)
PAPER = dataclasses.replace(
    TINY,
    objective="ign",
    distance="l1",
    stages=ign_stages(8, Weights(rec=20.0, idem=20.0, tight=2.5), lr=1e-3, clamp=1.5),
)
# Tolerance of a weight after all steps. Adam without momentum, which the discriminator uses, divides tiny gradients by
# tiny moments and so amplifies rounding, to about 1e-5. A rank that kept its own gradients would differ by the learning
# rate.
ROUNDING = 5e-5
TERM_TOLERANCE = 5e-4  # of a logged term: the discriminator's score is the most sensitive

OBJECTIVES = {"naign": NAIGN, "ign": PAPER}


@pytest.fixture(scope="module")
def two_ranks(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that two ranks did."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [Job(preset, folder / name) for name, preset in OBJECTIVES.items()]
    jobs.append(Job(NAIGN, folder / "stopped", signal_at=9))
    train_in_ranks(2, jobs, data_file, folder)
    return folder


def largest_difference(a: Path, b: Path) -> float:
    one, other = (checkpoints.load(out / checkpoints.FILE) for out in (a, b))
    assert (one.stage, one.step) == (other.stage, other.step)
    assert_gradients_agree(one, other)
    return max(
        float((before - after).abs().max())
        for x, y in ((one.network, other.network), (one.average, other.average))
        for before, after in zip(x.values(), y.values(), strict=True)
    )


def logged(out: Path) -> list[dict[str, float]]:
    """The numbers of every line; of the throughput only the steps."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    flat = [{**line, **line.get("throughput", {})} for line in lines]
    timed = {"stage", "throughput", "seconds", "pictures_per_second", "outside", "phases"}
    return [{name: value for name, value in line.items() if name not in timed} for line in flat]


@slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_compute_what_one_does(name: str, two_ranks: Path, data_file: Path, tmp_path: Path) -> None:
    train_alone(Job(OBJECTIVES[name], tmp_path), data_file)
    assert largest_difference(two_ranks / name, tmp_path) < ROUNDING
    for a, b in zip(logged(tmp_path), logged(two_ranks / name), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=TERM_TOLERANCE)
    assert contents(tmp_path).keys() == contents(two_ranks / name).keys()


@slow
def test_one_rank_that_is_asked_to_stop_stops_all_and_one_rank_goes_on(
    two_ranks: Path, data_file: Path, tmp_path: Path
) -> None:
    assert checkpoints.load(two_ranks / "stopped" / checkpoints.FILE).step == 12
    train_alone(Job(NAIGN, two_ranks / "stopped"), data_file)
    train_alone(Job(NAIGN, tmp_path), data_file)
    assert largest_difference(two_ranks / "stopped", tmp_path) < ROUNDING


@slow
def test_torchrun(data_file: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = train_arguments(data_file, tmp_path / "two", "--steps", "12")
    done = subprocess.run(
        [*launch, "-m", "model_export", *arguments],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 12 steps; next: python -m model_export export") == 1
    assert done.stdout.count("in all: 12 steps") == 1
    saved = checkpoints.load(tmp_path / "two" / checkpoints.FILE)
    assert (saved.step, saved.provenance["execution"]["ranks"]) == (12, 2)
    assert "--nproc" not in saved.provenance["command"]


def test_rows_are_shared_out_whole() -> None:
    rows = torch.arange(10)
    shares = [World(rank, 4).shard(rows).tolist() for rank in range(4)]
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_alone_nothing_is_exchanged() -> None:
    rows, single = torch.arange(4.0), World()
    for unchanged in (single.shard(rows), single.all_gather(rows, 4), single.mean(rows), single.broadcast(rows)):
        assert unchanged.tolist() == [0.0, 1.0, 2.0, 3.0]
    with join_world(torch.device("cpu")) as (world, device):
        assert (world, device.type) == (single, "cpu")
        assert not torch.distributed.is_initialized()
