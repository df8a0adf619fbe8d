"""The judge of `scans`: its arithmetic, and its tiles."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.authors import real_pages, scans_ocr
from benchmarks.authors.scans_methods import error_rate


@pytest.mark.parametrize(
    ("found", "wanted", "rate"),
    [
        ("the same text", "the same text", 0.0),
        ("the  same\ntext\n", "the same text", 0.0),
        ("the sane text", "the same text", 1 / 13),
        ("the same tex", "the same text", 1 / 13),
        ("", "four", 1.0),
        ("it’s “so”", 'it\'s "so"', 0.0),
        ("far more letters than there were", "far", 1.0),
    ],
)
def test_the_error_rate_counts_edits(found: str, wanted: str, rate: float) -> None:
    assert error_rate(found, wanted) == pytest.approx(rate)


@pytest.mark.slow
def test_one_block_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(model=str(scans_ocr.NEWEST), blocks=1, sheet="", card="")
    try:
        result = scans_ocr.measure(options)
    except OSError as exc:
        pytest.skip(str(exc))
    assert result["cer"]["clean"]["raw"] < 5
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(OSError, match="needs tesseract"):
        scans_ocr.measure(options)


def test_real_pages_are_compared_with_their_clean_ones(tmp_path: Path) -> None:
    for name, paper in (("1", 200), ("1.clean", 255)):
        page = np.full((8, 8), paper, np.uint8)
        page[2:4] = 0
        Image.fromarray(page).save(tmp_path / f"{name}.png")
    done = real_pages.judged(tmp_path / "1.png", {"raw": lambda image, _: image}, 300)
    assert done["rms"] == [pytest.approx(0.75**0.5 * 55 / 255)]
    assert done["f_measure"] == [1.0]
