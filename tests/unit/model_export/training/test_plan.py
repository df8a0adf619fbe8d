import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_export.data.datasets import Dataset, open_source
from model_export.data.picture_files import Inspection
from model_export.errors import UserError
from model_export.training import log
from model_export.training.train import estimate_seconds, in_words
from model_export.training.network import Autoencoder
from model_export.training.presets import Choices, choose_preset, describe_model, summary
from model_export.training.presets import NO_LICENCE, PRESETS, Preset, network_for
from model_export.training.stages import Weights


@dataclasses.dataclass
class Pictures:
    """Stands in for a source whose content is not read."""

    name: str = "My shapes"
    known: str = ""

    def inspect(self) -> Inspection:
        raise NotImplementedError

    def load(self, *, size: int, channels: int) -> Dataset:
        raise NotImplementedError


COLOUR = Inspection(
    count=300, smallest=(32, 32), largest=(32, 32), channels=3, background=(255, 255, 250), ground="light"
)
GREY = dataclasses.replace(COLOUR, channels=1, background=(51,), ground="dark", smallest=(100, 90), largest=(400, 300))


def chosen(choices: Choices, found: Inspection, data: Dataset) -> Preset:
    return describe_model(choose_preset(choices, Pictures(), found), choices, data, found)


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
    assert (grey.shape, grey.name, grey.polarity, grey.licence) == ((1, 48, 48), "other", "light-on-dark", "MIT")
    assert grey.background == pytest.approx((-0.6,))
    assert chosen(Choices(), GREY, data).shape == (1, 64, 64)
    as_grey = chosen(Choices(channels=1), COLOUR, data)
    assert as_grey.shape == (1, 32, 32)
    assert as_grey.background == pytest.approx((254 / 127.5 - 1,), abs=1e-2)


@pytest.mark.parametrize("preset", [None, "small"])
def test_small_learns_to_colour_pictures_in_colour(preset: str | None) -> None:
    def corruptions(found: Inspection, **more: Any) -> tuple[str, ...]:
        return choose_preset(Choices(preset=preset, **more), Pictures(), found).corruptions

    own = PRESETS["small"].corruptions
    assert corruptions(COLOUR) == (*own, "grey", "sketch")
    assert corruptions(COLOUR, corruptions=["noise"]) == ("noise",)
    assert corruptions(COLOUR, channels=1) == corruptions(GREY) == corruptions(GREY, channels=3) == own


def test_a_published_set_gets_the_preset_of_its_name() -> None:
    found = dataclasses.replace(GREY, smallest=(28, 28), largest=(28, 28))
    assert choose_preset(Choices(), Pictures(known="mnist"), found) == PRESETS["mnist"]
    assert choose_preset(Choices(), Pictures(known="kmnist"), found).name == "small"


@pytest.mark.parametrize(("preset", "found"), [("mnist", COLOUR), ("celeba64", GREY)])
def test_a_preset_of_other_colours_is_refused_with_the_options_that_fit(preset: str, found: Inspection) -> None:
    size = min(64, *found.smallest)
    with pytest.raises(UserError, match=f"--size {size} --channels {found.channels}, or leave out --preset"):
        choose_preset(Choices(preset=preset), Pictures(), found)
    told = Choices(preset=preset, size=size, channels=found.channels)
    assert choose_preset(told, Pictures(), found).shape == (found.channels, size, size)


def test_pictures_can_be_too_small() -> None:
    with pytest.raises(UserError, match="smallest picture"):
        choose_preset(Choices(), Pictures(), dataclasses.replace(COLOUR, smallest=(300, 4)))


def test_name_description_and_licence_of_a_preset_belong_to_its_own_data(data: Dataset) -> None:
    own = dataclasses.replace(data, known="mnist")
    mnist = PRESETS["mnist"]
    assert describe_model(mnist, Choices(), own, GREY) == mnist
    assert describe_model(mnist, Choices(licence="MIT"), own, GREY) == dataclasses.replace(mnist, licence="MIT")
    for choices, described in ((Choices(), data), (Choices(name="patterns"), own)):
        other = describe_model(mnist, choices, described, GREY)
        assert (other.name, other.description, other.licence) == ("patterns", "", NO_LICENCE)


def test_the_summary_names_what_was_found_and_chosen(data: Dataset) -> None:
    skipping = dataclasses.replace(data, skipped=("a.png", "b.png"))
    lines = "\n".join(summary(chosen(Choices(), GREY, data), "small", skipping, GREY))
    for part in ("100×90 to 400×300, grey, dark", "`small`, --size 64 --channels 1", "a.png, b.png", "`patterns`"):
        assert part in lines


@pytest.mark.parametrize("size", [8, 20, 28, 32, 64, 100, 128])
def test_the_network_fits_the_size(size: int) -> None:
    config = network_for(size, 3)
    assert 3 <= config.sizes()[-1] <= 5
    x = torch.zeros((1, 3, size, size))
    assert Autoencoder(config)(x).shape == x.shape


def test_every_loss_has_words() -> None:
    assert {field.name for field in dataclasses.fields(Weights)} | {"health"} == legend.TERMS.keys()
    names = {line.split()[0] for line in legend.legend(PRESETS["tiny"])}
    assert names == {"rec", "imle", "match", "distill", "project", "settle", "critic"}
    assert "health" in {line.split()[0] for line in legend.legend(PRESETS["celeba64_paper"])}


def test_the_estimate_grows_with_the_steps(data: Dataset) -> None:
    short = PRESETS["tiny"]
    long = dataclasses.replace(
        short, stages=tuple(dataclasses.replace(stage, steps=100 * stage.steps) for stage in short.stages)
    )
    seconds = [estimate_seconds(p, data, device=torch.device("cpu"), bf16=False) for p in (short, long)]
    assert 0 < seconds[0] < seconds[1]
    assert [in_words(s) for s in (4, 2400, 9000)] == ["10 s", "40 min", "2.5 h"]


def test_a_folder_is_inspected_and_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a b.npz", x_train=np.zeros((20, 28, 28), np.uint8), x_test=np.zeros((3, 28, 28), np.uint8))
    source = open_source(str(tmp_path / "a b.npz"))
    found = source.inspect()
    base = choose_preset(Choices(), source, found)
    data = source.load(size=base.network.size, channels=base.network.channels)
    assert re.fullmatch("a-b", describe_model(base, Choices(), data, found).name)
