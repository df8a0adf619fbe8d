"""The judge of `scans`: its arithmetic, and its tiles."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.authors import scans_ocr
from benchmarks.authors.scans_methods import Method, error_rate
from benchmarks.harness.tables import render


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


def test_means_and_shares_by_group() -> None:
    rates = {"clean": (0.0, 0.0), "light": (0.4, 0.1), "fade": (0.1, 0.3), "new: moire": (0.2, 0.2)}
    block = {
        condition: {"cer": {"raw": raw, "f": f}, "changed": 0.01, "moved": 0.002}
        for condition, (raw, f) in rates.items()
    }
    result = scans_ocr.summarise([block] * 2)
    assert result["blocks"] == 2
    assert result["cer"]["light"] == pytest.approx({"raw": 40.0, "f": 10.0})
    assert result["means"]["seen"] == pytest.approx({"raw": 25.0, "f": 20.0})
    assert result["worse"]["seen"]["f"] == 50.0
    assert result["worse"]["unseen"]["f"] == 0.0
    assert result["best_of_each"]["seen"] == pytest.approx(25.0)
    assert result["pixels"]["clean"] == pytest.approx({"changed": 1.0, "moved": 0.2})
    assert "| light | 40 | 10 |" in render(result)


def test_pages_of_a_folder_are_read_by_every_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "letter.png", dpi=(150, 150))
    (tmp_path / "letter.txt").write_text("abcd")
    monkeypatch.setattr(
        scans_ocr,
        "read",
        lambda images, layout: {
            name: "abcd" if image.max() > 250 else "ab" for name, image in images.items()
        },
    )
    methods: dict[str, Method] = {
        "raw": lambda image, _: image,
        "white": lambda image, dpi: np.full_like(
            image, 255 if dpi == 300 and image.shape == (80, 60) else 0
        ),
    }
    rates = scans_ocr.real_pages(tmp_path, methods)
    assert rates == {"letter": {"raw": 50.0, "white": 0.0}, "mean": {"raw": 50.0, "white": 0.0}}


@pytest.mark.slow
def test_one_block_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(model=str(scans_ocr.NEWEST), blocks=1, sheet="", real="", card="")
    try:
        result = scans_ocr.measure(options)
    except OSError as exc:
        pytest.skip(str(exc))
    assert result["cer"]["clean"]["raw"] < 5
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(OSError, match="needs tesseract"):
        scans_ocr.measure(options)
