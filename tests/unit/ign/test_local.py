"""`--local`: the commands in this process, without a service."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.domain.errors import Draining
from tests.contract.data import frames
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, opened, save
from tests.unit.ign.test_commands import ign

TILE = 32


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of one size and one of any, of which nothing listens."""
    write_model(tmp_path / "models")
    shape = (1, TILE, TILE)
    tiles = {"overlap": 1, "smaller": (16,)}
    write_model(
        tmp_path / "models", "pages", shape=shape, polarity="none", imported=True, tiles=tiles
    )
    monkeypatch.setenv("IGN_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("IGN_DEFAULT_MODEL", "toy")
    monkeypatch.setenv("IGN_DEVICE", "cpu")
    monkeypatch.setattr(socket.socket, "listen", None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pages of several sizes; the third file is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        page = Image.fromarray(noise(20 + 17 * number, 90 - 11 * number, seed=number))
        page.save(folder / f"{number}.png", dpi=(300, 200))
    (folder / "2.png").write_bytes(b"\x89PNG broken")
    return folder


def project(words: str = "") -> Any:
    return ign(f"project --local --model pages in -o out {words}")


def test_a_broken_file_is_a_line_and_the_others_are_written(folder: Path, tmp_path: Path) -> None:
    (folder / "scan.pdf").touch()
    done = project()
    assert done.exit_code == 1, done.output
    assert done.stderr.splitlines() == [
        "in/scan.pdf: left out, as any PDF in a folder; name it itself",
        "in/2.png: image: is not a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF image",
    ]
    assert done.stdout == "out: 5 images, 1 failed\n"
    for number in (0, 1, 3, 4, 5):
        made = opened((tmp_path / "out" / f"{number}.png").read_bytes())
        assert made.size == (90 - 11 * number, 20 + 17 * number)
        assert [round(each) for each in made.info["dpi"]] == [300, 200]
    scores = ign("score --local --model pages in").stdout.splitlines()[1:]
    assert [line.partition("\t")[0] for line in scores] == [
        f"in/{number}.png" for number in (0, 1, 3, 4, 5)
    ]


def test_a_page_is_for_no_small_model_that_nobody_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "models", "mnist")
    Path("page.png").write_bytes(save(noise(140, 140)))
    assert ign("project --local page.png -o toy.png").exit_code == 0
    monkeypatch.delenv("IGN_DEFAULT_MODEL")
    done = ign("project --local page.png -o made.png")
    assert done.exit_code == 1
    assert "name one of mnist, pages, toy" in done.stderr
    assert not Path("made.png").exists()


def test_the_resolution_is_kept(folder: Path) -> None:
    (folder / "2.png").unlink()
    assert project("--format jpeg").exit_code == 0
    assert opened(Path("out/5.jpg").read_bytes()).info["dpi"] == (300, 200)
    assert project("--scale 2").exit_code == 0  # the page would be twice as large
    assert "dpi" not in opened(Path("out/5.png").read_bytes()).info


def test_options_of_a_service_have_their_meaning(tmp_path: Path) -> None:
    pages = [Image.fromarray(noise(50, 40, seed=each)) for each in range(3)]
    (tmp_path / "in").mkdir()
    pages[0].save("in/a.tif", save_all=True, append_images=pages[1:])
    Path("keep.png").write_bytes(save(np.zeros((50, 40), np.uint8)))
    assert project("--mask keep.png").exit_code == 0
    np.testing.assert_array_equal(
        np.asarray(opened(Path("out/a.page2.png").read_bytes())), np.asarray(pages[1])
    )
    assert project("--force --scale 3 --resample smooth").exit_code == 0
    assert opened(Path("out/a.png").read_bytes()).size == (120, 150)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--strength 2", "--strength: must be at most 1"),
        ("--steps 0", "--steps: must be at least 1"),
        ("--model nobody", "no model 'nobody'; there is pages/1, toy/1"),
        ("--format npy --scale 2", "scale: only images of 8 bits"),
    ],
)
def test_what_the_service_rejects_is_one_line(
    words: str, says: str, folder: Path, tmp_path: Path
) -> None:
    done = project(words)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert done.output.startswith(f"ign project: {says}")
    assert not (tmp_path / "out").exists()


def test_paths_sheets_and_many_images_have_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_API_KEYS_FILE", "/nowhere")
    monkeypatch.setenv("IGN_RATE_LIMIT", "1/m")
    assert ign("interpolate --local 1 2 --frames 3 -o walk.gif").exit_code == 0
    assert len(frames(Path("walk.gif").read_bytes())) == 3
    assert ign("generate --local -n 100 --columns 20 --seed 7 -o sheet.png").exit_code == 0
    assert ign("generate --local -n 100 --seed 7 -o many").exit_code == 0
    assert len(list(Path("many").iterdir())) == 100
    assert opened(Path("sheet.png").read_bytes()).size == (160, 40)


def test_only_the_model_that_is_asked_for_is_loaded(folder: Path, tmp_path: Path) -> None:
    """So another one that is damaged is in nobody's way."""
    (tmp_path / "models/toy/1/golden.npz").write_bytes(b"damaged")
    assert project().stdout == "out: 5 images, 1 failed\n"
    assert ign("bulk score in scores --model pages").exit_code == 1


def test_limits_hold_where_they_are_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_MAX_PIXELS", "2000")
    assert "in/5.png: image: 35×105 pixels, at most " in project().stderr


def test_what_concerns_all_images_ends_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def draining(*_: Any) -> None:
        raise Draining("no device is left")

    monkeypatch.setattr("service.bulk.pipeline.Pipeline.run", draining)
    assert project().output == "ign project: no device is left\n"
