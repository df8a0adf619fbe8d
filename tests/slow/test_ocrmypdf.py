"""The plugin in OCRmyPDF, as a person runs it: `ocrmypdf --plugin ocrmypdf_ign scan.pdf out.pdf`."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.helpers.live import ROOT, SHIPPED, run
from tests.helpers.onnx_models import write_model

pypdfium2 = pytest.importorskip("pypdfium2")
pytest.importorskip("ocrmypdf")
if shutil.which("tesseract") is None:
    pytest.skip("tesseract is not installed", allow_module_level=True)

PLUGIN = ROOT / "plugins" / "ocrmypdf_ign" / "ocrmypdf_ign.py"
DPI = 200
# Half of a page lies in a shadow, where tesseract reads nothing.
LIGHT = ["The quick brown fox jumps over the lazy dog", "while the farmer sleeps beside his basket"]
DARK = ["and every morning brings another letter", "that nobody in the village ever answers"]


def scanned(
    lines: list[str], size: tuple[int, int] = (1240, 700), *, corners: bool = False
) -> Image.Image:
    """A page of 200 dots per inch with lines of text and a shadow over its lower half, or over the
    corners at the right above and the left below.
    """
    page = Image.new("L", size, 255)
    font = ImageFont.load_default(size=44)
    for i, line in enumerate(lines):
        top = round((i + 0.4) / len(lines) * size[1])
        ImageDraw.Draw(page).text((80, top), line, fill=0, font=font)
    width, height = (np.linspace(-0.5, 0.5, side) for side in size)
    depth = np.outer(height, -400 * width) - 8 if corners else 40 * height[:, None]
    shadow = 1 - 0.75 / (1 + np.exp(-depth))
    return Image.fromarray((np.asarray(page) * shadow).astype(np.uint8))


def pdf(file: Path, *pages: Image.Image) -> Path:
    pages[0].save(file, save_all=True, append_images=pages[1:], resolution=DPI)
    return file


def ocrmypdf(*command: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """What `ocrmypdf --plugin ocrmypdf_ign` does with these options and files."""
    # Threads of tesseract wait for each other in a loop: minutes, on a busy machine.
    patient = ("--tesseract-timeout", "1800", "--plugin", PLUGIN)
    variables["OMP_THREAD_LIMIT"] = "1"
    return run(sys.executable, "-m", "ocrmypdf", *patient, *command, **variables)


def texts(file: Path) -> list[str]:
    """The text layer of each page, its words with single spaces."""
    with pypdfium2.PdfDocument(file) as document:
        return [" ".join(page.get_textpage().get_text_range().split()) for page in document]


def looks(file: Path) -> list[np.ndarray]:
    with pypdfium2.PdfDocument(file) as document:
        return [page.render(scale=1).to_numpy().astype(float) for page in document]


def test_words_in_a_shadow_are_read_and_the_pages_look_as_before(tmp_path: Path) -> None:
    scan = pdf(tmp_path / "scan.pdf", scanned(LIGHT + DARK), scanned(DARK + LIGHT, (1000, 800)))
    out = tmp_path / "out.pdf"
    done = ocrmypdf("--jobs", "2", "-v", "1", scan, out)
    assert done.returncode == 0, done.stderr
    for text in texts(out):
        assert all(line in text for line in LIGHT + DARK), text
    for before, after in zip(looks(scan), looks(out), strict=True):
        assert after.shape == before.shape
        assert np.abs(after - before).mean() < 1
    for word in ("not cleaned", "loading", "verified", "golden", "selector", SHIPPED["scans"]):
        assert word not in done.stderr


def test_a_shadow_in_two_corners_of_a_large_page_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out.pdf"
    page = scanned(5 * (LIGHT + DARK), (1240, 2200), corners=True)
    done = ocrmypdf(pdf(tmp_path / "scan.pdf", page), out)
    assert done.returncode == 0, done.stderr
    (text,) = texts(out)
    assert sum(text.count(line) for line in LIGHT + DARK) >= 18  # of 20


def test_a_page_that_fails_is_read_as_it_is_with_one_warning(tmp_path: Path) -> None:
    wide = Image.new("L", (16_500, 120), 255)  # a side of more pixels than the network takes
    ImageDraw.Draw(wide).text((80, 40), LIGHT[0], fill=0, font=ImageFont.load_default(size=44))
    out = tmp_path / "out.pdf"
    scan = pdf(tmp_path / "scan.pdf", wide, scanned(LIGHT + DARK))
    done = ocrmypdf("--ign-always", "--use-threads", "--jobs", "2", scan, out)
    assert done.returncode == 0, done.stderr
    wide_text, text = texts(out)
    assert LIGHT[0] in wide_text
    assert DARK[1] in text
    (warning,) = (line for line in done.stderr.splitlines() if "not cleaned" in line)
    assert "1 " in warning.partition("not")[0]
    assert "Traceback" not in done.stderr


def test_a_page_that_is_worse_cleaned_is_read_as_it_is_unless_told_always(tmp_path: Path) -> None:
    models = tmp_path / "models"
    # Of a page nothing is left.
    write_model(models, "blank", shape=(1, 64, 64), scale=0.0, tiles={"overlap": 1})
    scan = pdf(tmp_path / "scan.pdf", scanned(LIGHT + DARK))
    out = tmp_path / "out.pdf"
    for options, kept in (([], True), (["--ign-always"], False)):
        done = ocrmypdf("--ign-model", "blank", *options, scan, out, IGN_MODEL_DIR=str(models))
        assert done.returncode == 0, done.stderr
        (text,) = texts(out)
        assert (LIGHT[0] in text) is kept


@pytest.mark.parametrize(
    ("model", "words"), [("nope", "there is"), ("mnist", "28×28"), ("scans/999", "there is")]
)
def test_an_unfit_model_is_refused_in_a_line_before_any_page(
    model: str, words: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.pdf"
    done = ocrmypdf("--ign-model", model, pdf(tmp_path / "scan.pdf", scanned(LIGHT + DARK)), out)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--ign-model" in line
    assert words in line
    assert not out.exists()
