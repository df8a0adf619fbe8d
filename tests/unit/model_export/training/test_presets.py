import dataclasses
import json
import re
import time

import onnx
import pytest
import torch

from model_export.data.datasets import Dataset, FileSource, Source
from model_export.data.picture_files import Inspection
from model_export.errors import UserError
from model_export.estimate import estimate_seconds, in_words
from model_export.training.log import TERMS, legend
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
from model_export.training.stages import Weights
from service.artifact.files import NAME_PATTERN
from tests.helpers.live import GENERATORS, MODELS, ROOT


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_built_and_survives_json(name: str) -> None:
    preset = get_preset(name)
    assert re.fullmatch(NAME_PATTERN, preset.name)
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    build_network(preset.network)
    assert preset.steps == sum(stage.steps for stage in preset.stages) > 0
    assert all(-1.0 <= value <= 1.0 for value in preset.background)


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
    with pytest.raises(TypeError):
        Preset.from_dict({**config, "unknown": 1})


def test_steps_are_shared_out_in_proportion() -> None:
    whole = get_preset("fashion_mnist")
    preset = with_overrides(whole, Choices(steps=whole.steps // 40))
    assert [stage.steps for stage in whole.stages] == [7000, 1600, 5500]
    assert [stage.steps for stage in preset.stages] == [174, 41, 137]
    assert preset.steps == whole.steps // 40
    assert [
        stage.steps for stage in with_overrides(get_preset("tiny"), Choices(steps=3)).stages
    ] == [1, 1, 1]
    assert all(
        with_overrides(whole, Choices(steps=steps)).steps == steps
        for steps in (8, 299, 300, 301, 20_000)
    )


def pictures(known: str = "") -> Source:
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
    return describe_model(choose_preset(choices, pictures(), found), choices, data, found)


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
        choose_preset(Choices(preset=preset), pictures(), found)
    told = Choices(preset=preset, size=size, channels=found.channels)
    assert choose_preset(told, pictures(), found).shape == (found.channels, size, size)


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


def test_every_loss_has_words() -> None:
    assert {field.name for field in dataclasses.fields(Weights)} | {"health"} == TERMS.keys()
    names = {line.split()[0] for line in legend(PRESETS["tiny"])}
    assert names == {"rec", "imle", "match", "distill", "project", "settle", "critic"}
    assert "health" in {line.split()[0] for line in legend(PRESETS["ign"])}
    assert {line.split()[0] for line in legend(PRESETS["scans"])} == {"project", "marks", "again"}


def test_the_estimate_grows_with_the_steps(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    short = PRESETS["tiny"]
    long = dataclasses.replace(
        short,
        stages=tuple(dataclasses.replace(stage, steps=100 * stage.steps) for stage in short.stages),
    )
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    seconds = [
        estimate_seconds(p, data, device=torch.device("cpu"), bf16=False) for p in (short, long)
    ]
    assert 0 < seconds[0] < seconds[1]
    assert [in_words(s) for s in (4, 2400, 9000)] == ["10 s", "40 min", "2.5 h"]
