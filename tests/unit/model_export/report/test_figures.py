from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.cli import main
from model_export.data.corruptions import CORRUPTIONS
from model_export.data.datasets import Dataset
from model_export.export.artifact import Artifact
from model_export.report.figures import FIGURES, figures, file_name, first_of_classes
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import slerp
from tests.helpers.tiny_training import contents

GREY = {file_name(name, 1) for name in FIGURES if name not in ("grey", "sketch_3.5", "pages")}


def test_the_figures_show_what_f_makes(
    models: Path, data_file: Path, data: Dataset, tmp_path: Path
) -> None:
    folder = models / "tiny" / "1"
    words = ["figures", "--model", str(folder), "--data", str(data_file), "--out", str(tmp_path)]
    assert main([*words, "--threads", "1"]) == 0
    assert set(contents(tmp_path)) == GREY
    artifact = Artifact.read(folder, threads=1)
    f = artifact.function
    assert data.held_out_labels is not None
    x = to_rows(data.held_out[first_of_classes(data.held_out_labels.numpy(), 80, 12)].numpy())
    corrupted = CORRUPTIONS["noise_0.8"](x)
    image = Image.open(tmp_path / "noise_0.8.png")
    assert (image.mode, image.info) == ("L", {})  # no text, no dates
    for row, rows in enumerate([x, corrupted, f(corrupted), f(f(corrupted))]):
        for column, levels in enumerate(to_levels(rows)[:, 0]):
            left, top = 2 + 26 * column, 2 + 26 * row
            large = levels.repeat(3, 0).repeat(3, 1)
            part = image.crop((left, top, left + 24, top + 24))
            assert np.array_equal(np.asarray(part), large)
    drawn = dict(figures(artifact, data, 0))
    z = artifact.noise.rows(0, 0, 8)
    arc = np.stack([slerp(z[6], z[7], i / 10) for i in range(11)])
    np.testing.assert_array_equal(drawn["interpolation"][3], f(arc))


@pytest.mark.parametrize("labels", [None, np.array([2, 2, 0, 1, 0])])
def test_the_first_pictures_of_every_class_are_shown(labels: np.ndarray | None) -> None:
    expected = [0, 1, 2, 3] if labels is None else [2, 3, 0, 4]
    assert first_of_classes(labels, 5, 4).tolist() == expected
