import re
from pathlib import Path
from typing import Any

import pytest

from model_export.cli import main, parser
from model_export.export.artifact import Artifact, TrainedCard
from model_export.report.figures import FIGURES, file_name
from model_export.report.model_card import page
from model_export.report.quality import limitations
from service.artifact.golden import digest_of
from tests.helpers.tiny_training import TinyModel, contents

QUALITY: dict[str, Any] = {
    "warnings": ["collapse: f(z) are alike"],
    "generation": {
        "f": {"frechet": 30.0, "kl": 0.0312},
        "f2": {"frechet": 12.0},
        "training": {"frechet": 2.4},
    },
    "drift": {"f": 0.0567},
    "repeated_application": {
        "samples": {"f": {}, "f100": {"at_rest": 0.5, "same_class": 0.27}},
        "pictures": {"f": {}, "f100": {"at_rest": 1.0, "same_class": 0.88}},
    },
    "nearest": {"other_sample": {"rare": 0.115}, "training_picture": {"rare": 0.001}},
    "clean": {"psnr": 27.41, "ssim": 0.953},
    "restoration": {
        "noise_0.8": {"input": {"psnr": 11.0}, "f": {"psnr": 17.48}},
        "hole_0.4": {"input": {"psnr": 14.35}, "f": {"psnr": 14.29}},
    },
    "drawings": {},
}


@pytest.fixture
def card(tiny: TinyModel) -> TrainedCard:
    return Artifact.read(tiny.models / "tiny" / "1", threads=1).card


def with_quality(card: TrainedCard, quality: dict[str, Any] = QUALITY) -> TrainedCard:
    quantiles = tuple(i / 1000 for i in range(101))
    return TrainedCard.model_validate(
        {**card.model_dump(), "quality": quality, "distance_quantiles": quantiles}
    )


def written(card: TrainedCard, *shown: str) -> str:
    files = {figure: f"{card.name}/{file_name(figure, 1)}" for figure in shown}
    return page(card, digest="d" * 64, size=1234, shown=files)


def commands(text: str) -> list[str]:
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def test_the_command_writes_the_page_of_an_evaluated_model(tiny: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "models" / "tiny.md"
    assert main(["card", "--model", str(tiny.evaluated), "--out", str(out)]) == 0
    text = out.read_text()
    model = (tiny.evaluated / "model.onnx").read_bytes()
    assert text.startswith("# tiny/1\n")
    assert digest_of(model) in text
    table = tiny.metrics
    assert f"{table['generation']['f']['frechet']:.2f}" in text
    assert f"{table['drift']['f']:.4f}" in text
    for name, row in table["restoration"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{row['input']['psnr']:.1f} → {row['f']['psnr']:.1f}" in line
    assert str(tmp_path) not in text
    assert str(tiny.folder) not in text
    assert main(["card", "--model", str(tiny.evaluated), "--out", str(out)]) == 0
    assert out.read_text() == text
    assert set(contents(out.parent)) == {"tiny.md"}


def test_the_first_screen_states_quality_limitations_and_licence(card: TrainedCard) -> None:
    text = written(with_quality(card), *FIGURES)
    chapters = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert chapters[:3] == ["How good it is", "Limitations", "Licence"]
    first = text[: text.index("## Use")]
    assert all(
        value in first
        for value in (card.licence, card.data.licence, "30.00", "0.0567", "0.953", "11.0 → 17.5")
    )
    assert first.index("collapse: f(z) are alike") < first.index("30.00")
    limited = " ".join(limitations(with_quality(card)))
    for said in (
        "12.5 times",
        "2 steps",
        "11.5 %",
        "does not restore `hole_0.4`",
        "After 100 steps they add up: 27 % of samples and 88 %",
    ):
        assert said in limited
    assert "not been measured" in limitations(card)[-1]


def test_the_page_says_how_the_model_was_made(card: TrainedCard) -> None:
    text = written(card)
    for value in (card.data.sha256, card.training.sources, card.training.command, card.description):
        assert value in text
    for stage in card.training.config["stages"]:
        assert re.search(
            rf"^\| {stage['name']} \| {stage['steps']:,} \| {stage['lr']:g} \|", text, re.MULTILINE
        )
    assert [
        parser().parse_args(command.split()[3:]).run.__name__[1:] for command in commands(text)
    ] == [
        "train",
        "export",
        "evaluate",
    ]
    train, export, _ = commands(text)
    assert f"--run {train.split('--out ')[1].split()[0]} " in export
