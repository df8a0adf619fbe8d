import dataclasses
import json
import pickle
import re
import resource
import signal
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from model_export.data.datasets import Dataset, FileSource, Source
from model_export.data.picture_files import Inspection
from model_export.errors import UserError
from model_export.estimate import estimate_seconds, in_words
from model_export.files import atomic_write
from model_export.training import checkpoint as checkpoints
from model_export.training.batches import BalancedPairs, CandidatePool
from model_export.training.checkpoint import Checkpoint
from model_export.training.log import open_log
from model_export.training.presets import (
    NO_LICENCE,
    PRESETS,
    Choices,
    Preset,
    choose_preset,
    describe_model,
    get_preset,
    with_overrides,
)
from model_export.training.restorer import build_network
from service.artifact.files import NAME_PATTERN
from tests.helpers.folders import contents
from tests.helpers.live import GENERATORS, MODELS, ROOT
from tests.unit.model_export.conftest import seeded


def example(step: int = 3) -> Checkpoint:
    return Checkpoint(
        preset={"name": "tiny"},
        seed=1,
        stage=0,
        stage_step=step,
        step=step,
        network={"w": torch.arange(3.0)},
        average={"w": torch.ones(3)},
        optimiser={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        teacher=None,
        data={"name": "x.npz"},
        provenance={"command": "train"},
        critic=None,
    )


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    # The first save imports modules of torch. Under the limit, Python would cut off the byte code
    # that it keeps of them.
    checkpoints.save(example(), tmp_path / "first.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            checkpoints.save(example(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path)
    assert contents(tmp_path).keys() == {"first.pt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, pickle.PicklingError])
def test_a_failed_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error):
        write()
    assert contents(tmp_path) == {"file": b"old"}


class Foreign:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, r"no checkpoint at .*checkpoint\.pt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "damaged checkpoint"),
        (lambda path: torch.save({"format": 1, "preset": Foreign()}, path), "damaged checkpoint"),
        (lambda path: torch.save({"format": 1, "preset": {}}, path), "damaged checkpoint"),
        (lambda path: torch.save({"format": 2}, path), "written by another version"),
    ],
    ids=["missing", "cut", "pickle", "fields", "format"],
)
def test_damaged_and_foreign_files_are_refused(
    damage: Callable[[Path], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(example(), path)
    damage(path)
    with pytest.raises(UserError, match=says):
        checkpoints.load(path)
    assert capsys.readouterr().out == ""


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-mine.pt").touch()
    for step in (8, 16, 24, 24):  # the same step again replaces its copy
        checkpoints.save(example(step), tmp_path / checkpoints.FILE)
        checkpoints.rotate(tmp_path, step, 2)
    expected = [
        "checkpoint-0000016.pt",
        "checkpoint-0000024.pt",
        "checkpoint-mine.pt",
        "checkpoint.pt",
    ]
    assert sorted(contents(tmp_path)) == expected
    assert checkpoints.load(tmp_path / "checkpoint-0000016.pt").step == 16
    checkpoints.rotate(tmp_path, 32, 1)  # one is one, and touches no others
    assert sorted(contents(tmp_path)) == expected


def test_what_lies_past_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"step": 4, "stage": "imle", "rec": 0.5}\n'
    path.write_text(kept + '{"step": 5, "stage": "imle"}\n{"ste')
    with open_log(path, 4) as write:
        write(5, "imle", {"rec": 0.25})
    assert path.read_text() == kept + '{"step": 5, "stage": "imle", "rec": 0.25}\n'


def f(z: Tensor) -> Tensor:
    return torch.tanh(z)


def latents(count: int, seed: int = 1) -> Tensor:
    return torch.randn((count, 1, 4, 4), generator=seeded(seed))


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand((6, 1, 4, 4), generator=seeded(7)) * 2 - 1


@pytest.fixture
def pairs(pictures: Tensor) -> BalancedPairs:
    weight = torch.ones(1, requires_grad=True)
    return BalancedPairs(lambda z: f(z * weight), latents(6), pictures)


def test_the_nearest_candidate_is_the_nearest(pictures: Tensor) -> None:
    z = latents(1100)  # more than one chunk
    pool = CandidatePool(f, z)
    for picture, chosen in zip(pictures, pool.nearest(pictures), strict=True):
        assert torch.equal(chosen, z[(f(z) - picture).square().sum((1, 2, 3)).argmin()])


def test_pairs_are_one_to_one_and_cheapest(pairs: BalancedPairs, pictures: Tensor) -> None:
    z, partners = pairs.batch(0, len(pictures))
    assert torch.equal(z, latents(6))
    order = [int((pictures == partner).flatten(1).all(1).nonzero()) for partner in partners]
    assert sorted(order) == list(range(len(pictures)))
    cost = torch.cdist(f(z).flatten(1).double(), pictures.flatten(1).double()).square()
    totals = {p: float(cost[range(len(p)), p].sum()) for p in permutations(range(len(pictures)))}
    assert totals[tuple(order)] == pytest.approx(min(totals.values()))


def test_turns_deal_all_pairs_without_a_graph_then_begin_again(pairs: BalancedPairs) -> None:
    everything, partners = pairs.batch(0, 6)
    turns = torch.cat([pairs.batch(turn, 4)[0] for turn in range(3)])
    assert torch.equal(turns, torch.cat([everything, everything]))
    assert not everything.requires_grad
    assert not partners.requires_grad


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_built_and_survives_json(name: str) -> None:
    preset = get_preset(name)
    assert re.fullmatch(NAME_PATTERN, preset.name)
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    build_network(preset.network)
    assert preset.steps == sum(stage.steps for stage in preset.stages) > 0
    assert all(-1.0 <= value <= 1.0 for value in preset.background)


@pytest.mark.parametrize(
    ("name", "weight"), [("tiny", "gate"), ("avatars64", "imle"), ("scans", "critic")]
)
def test_a_weight_that_would_have_no_effect_is_refused(name: str, weight: str) -> None:
    preset = get_preset(name)
    weights = dataclasses.replace(preset.stages[0].weights, **{weight: 0.1})
    stage = dataclasses.replace(preset.stages[0], weights=weights)
    with pytest.raises(ValueError, match=f"no term `{weight}`"):
        dataclasses.replace(preset, stages=(stage,))


def test_the_documented_steps_are_those_of_the_presets() -> None:
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d ]+)[;|]", text, re.MULTILINE)
    documented = {name: int(steps.replace(" ", "")) for name, steps in rows}
    assert documented == {name: preset.steps for name, preset in PRESETS.items() if name != "tiny"}


@pytest.mark.parametrize("ref", GENERATORS)
def test_the_presets_of_shipped_models_are_read(ref: str) -> None:
    metadata = {
        entry.key: entry.value for entry in onnx.load(MODELS / ref / "model.onnx").metadata_props
    }
    config = json.loads(metadata["ign.card"])["training"]["config"]
    read = Preset.from_dict(config)
    now = get_preset(ref.partition("/")[0])
    assert (read.network, len(read.stages)) == (now.network, len(now.stages))
    for value in ({**config, "unknown": 1}, {**config, "network": {}}):
        with pytest.raises(ValueError, match=r"unknown|network"):
            Preset.from_dict(value)


def test_steps_are_shared_out_in_proportion() -> None:
    whole = get_preset("fashion_mnist")
    preset = with_overrides(whole, Choices(steps=whole.steps // 40))
    assert [stage.steps for stage in whole.stages] == [7000, 1600, 5500]
    assert [stage.steps for stage in preset.stages] == [174, 41, 137]
    assert all(
        with_overrides(whole, Choices(steps=steps)).steps == steps
        for steps in (3, 8, 299, 300, 301, 20_000)
    )


def unread(known: str = "") -> Source:
    """A source whose content is not read."""
    source = FileSource("My shapes", (), skip_bad=False)
    source.known = known
    return source


COLOUR = Inspection(
    count=300,
    smallest=(32, 32),
    largest=(32, 32),
    channels=3,
    background=(255, 255, 250),
    ground="light",
)
GREY = dataclasses.replace(
    COLOUR, channels=1, background=(51,), ground="dark", smallest=(100, 90), largest=(400, 300)
)


def chosen(choices: Choices, found: Inspection, data: Dataset) -> Preset:
    return describe_model(choose_preset(choices, unread(), found), choices, data, found)


def test_pictures_without_a_preset_get_one_that_fits(data: Dataset) -> None:
    colour = chosen(Choices(), COLOUR, dataclasses.replace(data, name="My shapes"))
    assert (colour.shape, colour.name, colour.polarity, colour.licence) == (
        (3, 32, 32),
        "my-shapes",
        "none",
        NO_LICENCE,
    )
    assert colour.background == pytest.approx((1.0, 1.0, 0.9608), abs=1e-4)
    grey = chosen(Choices(size=48, licence="MIT", name="other"), GREY, data)
    assert (grey.shape, grey.name, grey.polarity, grey.licence) == (
        (1, 48, 48),
        "other",
        "light-on-dark",
        "MIT",
    )
    assert grey.background == pytest.approx((-0.6,))
    assert chosen(Choices(), GREY, data).shape == (1, 64, 64)
    for found in (COLOUR, GREY):
        assert chosen(Choices(preset="quick"), found, data).shape == (found.channels, 32, 32)


@pytest.mark.parametrize(
    ("preset", "found"), [("mnist", COLOUR), ("avatars64", GREY), ("ign", GREY)]
)
def test_a_preset_of_other_colours_is_refused_with_the_options_that_fit(
    preset: str, found: Inspection
) -> None:
    size = min(64, *found.smallest)
    with pytest.raises(
        UserError, match=f"--size {size} --channels {found.channels}, or leave out --preset"
    ):
        choose_preset(Choices(preset=preset), unread(), found)
    told = Choices(preset=preset, size=size, channels=found.channels)
    assert choose_preset(told, unread(), found).shape == (found.channels, size, size)


def test_name_description_and_licence_of_a_preset_belong_to_its_own_data(data: Dataset) -> None:
    own = dataclasses.replace(data, known="mnist")
    mnist = PRESETS["mnist"]
    assert describe_model(mnist, Choices(), own, GREY) == mnist
    assert describe_model(mnist, Choices(licence="MIT"), own, GREY) == dataclasses.replace(
        mnist, licence="MIT"
    )
    for choices, described in ((Choices(), data), (Choices(name="patterns"), own)):
        other = describe_model(mnist, choices, described, GREY)
        assert (other.name, other.description, other.licence) == ("patterns", "", NO_LICENCE)


@pytest.mark.parametrize("known", ["avatars64", "mnist"])
def test_only_the_own_pictures_of_a_preset_have_its_parts(data: Dataset, known: str) -> None:
    preset = PRESETS["avatars64"]
    described = dataclasses.replace(data, known=known)
    network = describe_model(preset, Choices(name="mine"), described, GREY).network
    assert network.parts == (preset.network.parts if known == preset.data else ())
    assert with_overrides(preset, Choices(size=32)).network.parts == ()


def test_the_estimate_grows_with_the_steps(data: Dataset) -> None:
    short = PRESETS["tiny"]
    long = dataclasses.replace(
        short,
        stages=tuple(dataclasses.replace(stage, steps=100 * stage.steps) for stage in short.stages),
    )
    seconds = [
        estimate_seconds(p, data, device=torch.device("cpu"), bf16=False) for p in (short, long)
    ]
    assert 0 < seconds[0] < seconds[1]
    assert [in_words(s) for s in (4, 2400, 9000)] == ["10 s", "40 min", "2.5 h"]
