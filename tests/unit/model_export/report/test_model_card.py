import re
from pathlib import Path
from typing import Any

import pytest

from model_export import cli
from model_export.cli import main
from model_export.evaluation.evaluate import evaluate
from model_export.export.artifact import Artifact, digest_of
from model_export.report.figures import FIGURES
from model_export.report.limitations import limits
from model_export.report.model_card import page
from service.artifact.card import ModelCard
from tests.helpers.tiny_training import contents

QUALITY: dict[str, Any] = {
    "protocol": {"samples": 77, "frechet": "samples against all | held-out", "classifier": {"accuracy": 0.9925}},
    "generation": {
        "f": {"frechet": 30.0, "kl": 0.0312, "confidence": 0.912},
        "f2": {"frechet": 12.0, "kl": 0.004, "confidence": 0.95},
        "training": {"frechet": 2.4, "kl": 0.003, "confidence": 0.99},
    },
    "drift": {"f": 0.0567},
    "nearest": {
        "other_sample": {
            "samples": {"n": 77, "least": 0.01, "percentile_1": 0.0321, "median": 0.2345},
            "real": {"n": 77, "least": 0.02, "percentile_1": 0.0654, "median": 0.3456},
            "rare": 0.115,
        }
    },
    "clean": {"psnr": 27.41, "ssim": 0.953},
    "distance": {"n": 1234, "mean": 0.0303, "inverted": 0},
    "restoration": {
        "noise_0.8": {
            "input": {"psnr": 11.0, "ssim": 0.425},
            "f": {"psnr": 17.48, "ssim": 0.64},
            "baselines": {
                "n": 1000,
                "f": {"psnr": 17.5, "ssim": 0.641},
                "non_local_means": {"psnr": 18.25, "ssim": 0.6, "setting": "h 0.8 σ"},
            },
        },
        "hole_0.4": {
            "input": {"psnr": 14.35, "ssim": 0.354},
            "f": {"psnr": 14.29, "ssim": 0.388},
            "with_mask": {"f": {"psnr": 14.61, "ssim": 0.5}, "f4": {"psnr": 14.82, "ssim": 0.6}},
        },
    },
    "diversity": 0.681,
    "repeated": {
        "n": 64,
        "f": {"drift": 0.0123, "moved": 0.0, "kl": 0.02},
        "f1000": {"drift": 0.001, "moved": 0.3, "kl": 0.2},
    },
    "inception": {"fid": 41.5},
}


@pytest.fixture
def card(folder: Path) -> ModelCard:
    return Artifact.read(folder, threads=1).card


def with_quality(card: ModelCard, quality: dict[str, Any] = QUALITY) -> ModelCard:
    quantiles = tuple(i / 1000 for i in range(101))
    return ModelCard.model_validate({**card.model_dump(), "quality": quality, "distance_quantiles": quantiles})


def written(card: ModelCard, *shown: str) -> str:
    return page(card, digest="d" * 64, size=1234, folder=card.name, shown=shown)


def row(text: str, head: str, name: str) -> list[str]:
    """The cells of a named row of the table whose first head cell is this."""
    table = text.partition(f"| {head} |")[2].partition("\n\n")[0]
    return next(line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(f"| {name} |"))[1:]


def test_the_command_writes_the_page_of_an_evaluated_model(
    folder: Path, data_file: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = evaluate(folder, str(data_file), cache=cache, samples=60, threads=1)
    out = tmp_path / "docs" / "models" / "tiny.md"
    assert main(["card", "--model", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    text, model = out.read_text(), (folder / "model.onnx").read_bytes()
    assert text.startswith("# tiny/1\n")
    assert digest_of(model) in text
    assert f"{len(model):,} bytes" in text
    f, floor = table["generation"]["f"], table["generation"]["training"]["frechet"]
    found = row(text, "pictures", "f(z)")
    assert found[:2] == [f"{f['frechet']:.2f}", f"{f['frechet'] / floor:.2f}"]
    assert found[4] == f"{table['drift']['f']:.4f}"
    for name, degraded in table["restoration"].items():
        psnr = row(text, "PSNR, dB", name)
        assert psnr[:2] == [f"{degraded[way]['psnr']:.2f}" for way in ("input", "f")]
        accuracy = row(text, "read correctly", name)
        assert accuracy[1] == f"{100 * degraded['f']['accuracy']:.1f} %"
    assert f"{table['distance_quantiles'][50]:.4f}" in text
    for word in table["protocol"].values():
        if isinstance(word, str):
            assert word in text
    assert str(tmp_path) not in text
    assert main(["card", "--model", str(folder), "--out", str(out)]) == 0
    assert out.read_text() == text
    assert set(contents(out.parent)) == {"tiny.md"}


def test_the_page_says_how_the_model_was_made(card: ModelCard) -> None:
    text = written(card)
    assert card.training.command in text
    assert "--data patterns.npz" in text
    for value in (card.data.sha256, card.training.sources, card.licence, card.description, f"{card.data.pictures}"):
        assert value in text
    for stage in card.training.config["stages"]:
        steps, lr, loss = row(text, "stage", stage["name"])
        assert (steps, lr) == (f"{stage['steps']:,}", f"{stage['lr']:g}")
        assert loss.count("+") == sum(weight > 0 for weight in stage["weights"].values()) - 1
    assert f"{card.training.steps} optimiser steps. " in text
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    commands = block[1].splitlines()
    assert [command.split()[3] for command in commands] == ["train", "export", "evaluate", "figures", "card"]
    assert f"--run {commands[0].split('--out ')[1].split()[0]} " in commands[1]


def test_the_commands_of_the_page_are_ones_that_exist(card: ModelCard) -> None:
    block = re.search(r"```sh\n(.*?)```", written(card), re.DOTALL)
    assert block is not None
    for command in block[1].splitlines():
        cli._parser().parse_args(command.split()[3:])


def test_a_version_with_half_precision_is_exported_with_it(card: ModelCard) -> None:
    command = f"--models models --version {card.version}"
    assert f"{command}\n" in written(card)
    half = with_quality(card, {**QUALITY, "precision": {"fp16": {"frechet": 30.1}}})
    assert f"{command} --fp16\n" in written(half)
    assert row(written(half), "measure", "precision.fp16.frechet") == ["30.1"]


def test_unfinished_and_continued_trainings_say_so(card: ModelCard) -> None:
    training = {**card.training.model_dump(), "steps": 40, "commit": "c0ffee"}
    training["continued"] = [{"from_step": 21, "sources": "beef", "commit": None}]
    text = written(ModelCard.model_validate({**card.model_dump(), "training": training}))
    assert "40 optimiser steps of 56: the run was not finished" in text
    assert "commit `c0ffee`" in text
    assert "from step 21 with sources `beef`" in text


def test_measures_stand_in_tables_with_their_protocol(card: ModelCard) -> None:
    text = written(with_quality(card))
    assert row(text, "pictures", "f(z)") == ["30.00", "12.50", "0.0312", "91.2 %", "0.0567"]
    assert row(text, "pictures", "f²(z)") == ["12.00", "5.00", "0.0040", "95.0 %", "–"]
    assert row(text, "to the nearest", "other sample") == ["0.2345", "0.3456", "0.0321", "0.0654", "11.5 %"]
    assert row(text, "PSNR, dB", "noise_0.8") == ["11.00", "17.48", "–", "–"]
    assert row(text, "PSNR, dB", "clean") == ["–", "27.41", "–", "–"]
    assert row(text, "SSIM", "hole_0.4") == ["0.354", "0.388", "0.500", "0.600"]
    assert "| PSNR, dB | input | f | with mask f | with mask f⁴ |" in text
    assert "| noise_0.8 | 1,000 | f | 17.50 | 0.641 | – |" in text
    assert "| noise_0.8 | 1,000 | non local means (h 0.8 σ) | 18.25 | 0.600 | – |" in text
    assert "Diversity: 0.681." in text
    assert row(text, "y", "f¹⁰⁰⁰(z)") == ["0.0010", "0.3000", "0.2000", "–"]
    assert "| read correctly | input" not in text  # no classes, no column
    assert "over 1,234 held-out pictures" in text
    assert "| 0.0010 | 0.0050 | 0.0250 | 0.0500 | 0.0750 | 0.0950 | 0.0990 | 0.1000 |" in text
    assert row(text, "measure", "inception.fid") == ["41.5"]
    assert "- Fréchet distance: samples against all | held-out" in text
    assert "- classifier.accuracy: 0.9925" in text


def test_limits_come_from_the_numbers(card: ModelCard) -> None:
    found = limits(with_quality(card))
    said = " ".join(found)
    for words in (
        "the Fréchet distance of f(z) is 30.00, 12.5 times the 2.40",
        "2 steps reach a Fréchet distance of 12.00",
        "0.031 nats over 77 samples",
        "moves the pixels of f(z) by 0.0567",
        "Applied 1000 times, f favours some classes: KL divergence from uniform 0.200 nats over 64 samples, 0.020",
        "11.5 % of f(z) are nearer to another sample",
        "SSIM 0.953",
        "does not restore `hole_0.4`: PSNR 14.35 dB before, 14.29 dB after one step; with a mask 14.82 dB.",
        "For `noise_0.8`, non local means does better: PSNR 18.25 dB, f 17.50 dB",
    ):
        assert words in said
    assert "does not restore `noise_0.8`" not in said
    assert all(f"- {limit}" in written(with_quality(card)) for limit in found)


def test_warnings_come_first(card: ModelCard) -> None:
    flagged = with_quality(card, {**QUALITY, "warnings": ["collapse: f(z) are alike"]})
    assert "## Measured quality\n\n- **Warning**: collapse: f(z) are alike\n" in written(flagged)
    assert limits(flagged)[1] == "Evaluation flags it: collapse: f(z) are alike."


def test_a_better_model_has_fewer_limits(card: ModelCard) -> None:
    better = {
        **QUALITY,
        "generation": {"f": {"frechet": 5.0, "kl": 0.001}, "f2": {"frechet": 4.8}, "training": {"frechet": 2.4}},
        "nearest": {"other_sample": {**QUALITY["nearest"]["other_sample"], "rare": 0.011}},
        "clean": {"psnr": 40.0, "ssim": 0.995},
        "repeated": {"n": 64, "f": {"kl": 0.02}, "f1000": {"kl": 0.04}},
        "restoration": {
            "noise_0.8": {"input": {"psnr": 11.0}, "f": {"psnr": 17.0}, "baselines": {"bicubic": {"psnr": 12.0}}}
        },
    }
    found = limits(with_quality(card, better))
    assert len(found) == 3  # only these pictures, not real ones, nearly idempotent
    assert "2.1 times" in found[1]


def test_what_was_not_measured_is_said(card: ModelCard) -> None:
    assert limits(card)[-1] == "Its quality has not been measured."
    text = written(card)
    assert "`python -m model_export evaluate` has not been run" in text
    assert "PSNR" not in text


def test_figures_are_shown_when_they_are_there(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "tiny.md"
    figures = out.parent / "tiny"
    figures.mkdir(parents=True)
    for name in ("losses.svg", "generation.png", "unknown.png"):
        (figures / name).write_bytes(b"")
    assert main(["card", "--model", str(folder), "--out", str(out)]) == 0
    text = out.read_text()
    links = re.findall(r"\]\((.+?)\)", text)
    assert links == ["tiny/losses.svg", "tiny/generation.png"]
    assert FIGURES["generation.png"] in text
    (figures / "generation.png").unlink()
    (figures / "losses.svg").unlink()
    assert main(["card", "--model", str(folder), "--out", str(out)]) == 0
    assert "![" not in out.read_text()


@pytest.mark.parametrize(
    ("model", "out", "says"),
    [("{tmp}", "{tmp}/card.md", "no model at"), ("{folder}", "{folder}/model.onnx/card.md", "model.onnx")],
)
def test_errors_are_one_line_and_leave_nothing(
    model: str, out: str, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path)
    places = {"tmp": tmp_path, "folder": folder}
    assert main(["card", "--model", model.format(**places), "--out", out.format(**places)]) == 2
    said, error = capsys.readouterr()
    assert said == ""
    assert re.fullmatch(r"error: .+\n", error)
    assert says in error
    assert contents(tmp_path) == before
