"""Exported weights are read back, and a training starts from them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.cli import main
from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.export.artifact import Artifact, publish
from model_export.export.export import export
from model_export.export.weights import read_weights, start_weights
from model_export.training import checkpoint, perceptual
from model_export.training.checkpoint import StartWeights, record
from model_export.training.network import NetworkConfig
from model_export.training.presets import PRESETS, Preset
from model_export.training.stages import crisp_stages, exact_stages
from model_export.training.train import Run
from service.artifact.files import GOLDEN_FILE
from tests.helpers.tiny_training import TinyModel, contents

TINY = PRESETS["tiny"]
LAST = dataclasses.replace(exact_stages(2, 2)[1], drift_pictures=16, fit_blocks=2)
LONGER = dataclasses.replace(TINY, network=dataclasses.replace(TINY.network, blocks=2), stages=(*TINY.stages, LAST))

CRISP = dataclasses.replace(
    TINY,
    network=NetworkConfig(size=8, channels=1, widths=(8,), bottleneck=4, palette=3),
    stages=tuple(dataclasses.replace(stage, drift_pictures=16) for stage in crisp_stages(2, 2, 2)),
)


def run(preset: Preset, data: Dataset, out: Path, start: StartWeights | None) -> Run:
    return Run(
        preset, data, out, seed=0, device=torch.device("cpu"), bf16=False, provenance=record(["test"]), start=start
    )


@pytest.fixture(scope="module")
def weights(models: Path) -> StartWeights:
    return read_weights(models / "tiny" / "1")


@pytest.mark.slow
def test_weights_that_do_not_reproduce_the_golden_rows_are_refused(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "1"
    golden = Artifact.read(models / "tiny" / "1").golden()
    wrong = dataclasses.replace(golden, y=np.roll(golden.y, 1, axis=0))
    publish(folder, {**contents(models / "tiny" / "1"), GOLDEN_FILE: wrong.to_bytes()})
    with pytest.raises(UserError, match="golden rows"):
        read_weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [LONGER, CRISP], ids=["exact", "crisp"])
def test_the_weights_of_other_networks_are_read_back(
    preset: Preset, weights: StartWeights, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual, "STEPS", 2)
    begun = run(preset, data, tmp_path / "runs" / "longer", weights if preset is LONGER else None)
    begun.train()
    folder, _ = export(begun.out, tmp_path / "models")
    exported, trained = read_weights(folder), checkpoint.load_run(begun.out)
    assert exported.preset == trained.preset
    assert exported.state.keys() == trained.network.state_dict().keys()
    assert all(torch.equal(exported.state[name], value) for name, value in trained.network.state_dict().items())


def test_another_preset_of_the_same_network_trains_all_its_stages(
    weights: StartWeights, data: Dataset, tmp_path: Path
) -> None:
    begun = run(LONGER, data, tmp_path, weights)  # what the version lacks keeps its first weights
    assert (begun.stage, begun.step) == (0, 0)
    assert all(torch.equal(begun.network.state_dict()[name], value) for name, value in weights.state.items())
    wider = dataclasses.replace(TINY, network=dataclasses.replace(TINY.network, bottleneck=24))
    with pytest.raises(UserError, match="another network"):
        run(wider, data, tmp_path, weights)


def test_a_run_keeps_the_version_that_it_started_from(
    tiny: TinyModel, models: Path, tiny_run: Path, tmp_path: Path
) -> None:
    version, out = tiny.evaluated, tmp_path / "run"
    begun = {"start": read_weights(models / "tiny" / "1").digest}
    other = {"start": "0" * 64}
    for provenance, accepted in ((begun, True), (other, False), ({"start": None}, False)):
        saved = checkpoint.load(tiny_run / checkpoint.FILE)
        checkpoint.save(dataclasses.replace(saved, provenance=provenance), out / checkpoint.FILE)
        if accepted:  # `evaluate` changed the file, but not the weights
            assert start_weights(str(version), out) is None
        else:
            with pytest.raises(UserError, match="did not start with"):
                start_weights(str(version), out)


def test_the_command_starts_from_a_version(
    models: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version, out = models / "tiny" / "1", tmp_path / "run"
    arguments = ["train", "--preset", "tiny", "--data", str(data_file), "--out", str(out), "--steps", "3"]
    assert main([*arguments, "--start", str(version)]) == 0
    assert main([*arguments, "--start", str(tmp_path / "removed")]) == 0  # a run that exists has its weights
    assert checkpoint.load(out / checkpoint.FILE).provenance["start"] == read_weights(version).digest
    assert "begins at stage `imle`, step 0 of 3" in capsys.readouterr().out
