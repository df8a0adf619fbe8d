"""`--fid inception` with a stand-in for torch-fidelity, which is neither installed nor has weights here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.cli import main
from model_export.data.datasets import load_dataset
from model_export.evaluation.inception import FEATURES, WEIGHTS, Inception
from model_export.evaluation.metrics import frechet
from model_export.export.artifact import Artifact
from service.artifact.files import METRICS_FILE
from tests.helpers.tiny_training import contents, patterns

EXTRACTOR = f'''
import torch

class FeatureExtractorInceptionV3(torch.nn.Module):
    """The interface of torch-fidelity 0.3 and 0.4; features are the pictures' own first values."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["{FEATURES}"])
        if feature_extractor_weights_path is None:
            raise AssertionError("would download")
        self.scale = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3, x.shape
        return (self.scale * x.flatten(1)[:, :16].float(),)
'''


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity, as far as it is used, on disk where Python finds it; torch.hub's folder is empty."""
    site = tmp_path_factory.mktemp("site")
    (site / "torch_fidelity").mkdir()
    (site / "torch_fidelity" / "__init__.py").write_text("")
    (site / "torch_fidelity" / "feature_extractor_inceptionv3.py").write_text(EXTRACTOR)
    (site / "torch_fidelity-0.4.0.dist-info").mkdir()
    (site / "torch_fidelity-0.4.0.dist-info" / "METADATA").write_text("Name: torch-fidelity\nVersion: 0.4.0\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "torch_fidelity", raising=False)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(site / "hub"))


@pytest.fixture
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({"scale": torch.tensor(0.5)}, path)
    return path


@pytest.mark.usefixtures("package")
def test_features_of_grey_and_of_colour(weights: Path) -> None:
    inception = Inception(str(weights))
    grey = patterns(70, 0)[0][:, None]  # more than one batch
    features = inception.features(grey)
    np.testing.assert_allclose(features, 0.5 * grey.reshape(70, -1)[:, :16])
    np.testing.assert_array_equal(inception.features(np.repeat(grey, 3, 1)), features)


@pytest.mark.usefixtures("package")
def test_fid_is_measured_with_the_users_weights(
    folder: Path, data_file: Path, cache: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--model", str(folder), "--data", str(data_file), "--cache", str(cache), "--samples", "60"]
    assert (
        main([*arguments, "--steps", "4", "--threads", "1", "--fid", "inception", "--fid-weights", str(weights)]) == 0
    )
    capsys.readouterr()
    table = json.loads((folder / METRICS_FILE).read_text())
    assert list(table["inception"]) == ["f", "f2", "f3", "training"]
    held_out = load_dataset(str(data_file), size=8, channels=1).held_out.numpy()
    artifact, inception = Artifact.read(folder, threads=1), Inception(str(weights))
    served = artifact.function(artifact.noise.rows(0, 0, 60)).clip(-1, 1)
    levels = np.rint((served + 1) * 127.5).astype(np.uint8)
    expected = frechet(inception.features(levels), inception.features(held_out))
    assert table["inception"]["f"] == pytest.approx(expected, rel=1e-4)
    assert table["protocol"]["inception"].startswith("FID: ")
    assert "torch-fidelity 0.4.0" in table["protocol"]["inception"]
    assert artifact.card.quality["inception"] == table["inception"]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", f"no weights at {{hub}}/checkpoints/{WEIGHTS}; {WEIGHTS} is among torch-fidelity's releases on GitHub; "),
        ("{data}", "{data} does not hold the weights of this network"),
        ("{other}", "{other} does not hold the weights of this network"),
    ],
)
def test_weights_that_are_missing_or_others_are_one_line(
    given: str, says: str, folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pth"
    torch.save({"other": torch.zeros(1)}, other)
    places = {"tmp": tmp_path, "data": data_file, "other": other, "hub": torch.hub.get_dir()}
    before = contents(tmp_path)
    arguments = ["evaluate", "--model", str(folder), "--data", str(data_file), "--fid", "inception"]
    assert main([*arguments, *(["--fid-weights", given.format(**places)] if given else [])]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"python -m model_export evaluate: --fid inception: {says.format(**places)}")
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_without_the_package_the_extra_is_named(
    folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert main(["evaluate", "--model", str(folder), "--data", str(data_file), "--fid", "inception"]) == 2
    assert capsys.readouterr().err.endswith(" --fid inception: needs torch-fidelity; the extra `fid` has it\n")
