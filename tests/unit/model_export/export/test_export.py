"""`model.fp16.onnx`: exported, verified, measured and served beside `model.onnx`."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from model_export.errors import UserError
from model_export.export.artifact import Artifact, OnnxFunction, publish, read_all
from model_export.export.export import export, to_fp16, to_onnx
from model_export.export.verify import verify
from model_export.training import checkpoint as checkpoints
from model_export.training.checkpoint import load_run
from model_export.training.network import Autoencoder, NetworkConfig
from model_export.training.restorer import build_network
from service.artifact.files import GOLDEN_FILE, MODEL_FILE, MODEL_FILES
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import NoiseSource
from tests.helpers.folders import contents
from tests.helpers.tiny_training import TinyModel
from tests.unit.model_export.conftest import seeded


def altered_run(run: Path, out: Path, **changes: object) -> Path:
    checkpoint = checkpoints.load(run / checkpoints.FILE)
    checkpoints.save(dataclasses.replace(checkpoint, **changes), out / checkpoints.FILE)  # type: ignore[arg-type]
    return out


def test_averaged_weights_are_exported(tiny_run: Path) -> None:
    weights = load_run(tiny_run).network.state_dict()
    checkpoint = checkpoints.load(tiny_run / checkpoints.FILE)
    assert all(torch.equal(weights[name], checkpoint.average[f"module.{name}"]) for name in weights)
    assert not torch.equal(weights["encoder.0.weight"], checkpoint.network["encoder.0.weight"])


def test_the_file_is_one_and_holds_no_path_of_this_machine(models: Path) -> None:
    folder = models / "tiny" / "1"
    assert set(contents(folder)) == {MODEL_FILE, GOLDEN_FILE}
    data = (folder / MODEL_FILE).read_bytes()
    assert b".py" not in data
    assert os.fsencode(Path(__file__).parents[4]) not in data


def test_the_same_run_gives_the_same_bytes_and_prints_nothing(
    models: Path, tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(tiny_run, tmp_path, version=1)
    assert capfd.readouterr() == ("", "")
    assert contents(tmp_path) == contents(models)


def test_an_unfinished_run(tiny_run: Path, tmp_path: Path) -> None:
    run = altered_run(tiny_run, tmp_path / "run", step=40)
    with pytest.raises(UserError, match="--unfinished"):
        export(run, tmp_path / "models")
    with pytest.raises(UserError, match="--fp16: an exact model"):
        export(tiny_run, tmp_path / "models", fp16=True, card_fields={"exact": True})
    assert not (tmp_path / "models").exists()
    folder, _ = export(run, tmp_path / "models", unfinished=True)
    assert Artifact.read(folder).card.training.steps == 40


def test_versions_are_not_overwritten_unasked(folder: Path, tiny_run: Path) -> None:
    directory = folder.parent.parent
    before = contents(directory)
    with pytest.raises(UserError, match="--force"):
        export(tiny_run, directory, version=1)
    assert contents(directory) == before
    (folder / "notes.txt").write_text("of the old version")
    export(tiny_run, directory, version=1, force=True)
    assert contents(directory) == before
    folder.rename(folder.with_name("6"))
    export(tiny_run, directory)
    # the next free version
    assert sorted(path.name for path in folder.parent.iterdir()) == ["6", "7"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preset": {"batch": 8}}, "by its batch;"),
        ({"data": {"sha256": "0" * 64}}, "by its data;"),
        ({"provenance": {"command": "train --seed 1"}}, "by its command; .*train"),
        ({"step": 60}, "by its steps; .*export it again"),
    ],
)
def test_a_model_of_another_run_is_told_apart(
    change: dict[str, Any], says: str, models: Path, tiny_run: Path, tmp_path: Path
) -> None:
    saved = checkpoints.load(tiny_run / checkpoints.FILE)
    changes = {
        name: {**getattr(saved, name), **value} if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(UserError, match=says):
        verify(altered_run(tiny_run, tmp_path, **changes), models / "tiny" / "1")


def test_golden_rows_come_from_torch_and_verify_mends_them(
    models: Path, folder: Path, tiny_run: Path, tmp_path: Path
) -> None:
    golden = Artifact.read(folder).golden()
    assert golden.x.shape == golden.y.shape == (16, 1, 8, 8)
    # a background of −1 is also the lowest value
    assert len(np.unique(golden.x.reshape(16, -1), axis=0)) >= 15
    with torch.inference_mode():
        expected = load_run(tiny_run).network(torch.from_numpy(golden.x.copy())).numpy()
    np.testing.assert_allclose(golden.y, expected, atol=1e-6)
    saved = checkpoints.load(tiny_run / checkpoints.FILE)
    changed = {
        "preset": {**saved.preset, "licence": "MIT"},
        "provenance": {**saved.provenance, "command": "train x"},
    }
    # what only the card uses may change
    assert verify(altered_run(tiny_run, tmp_path / "run", **changed), folder)
    (folder / GOLDEN_FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match="`verify`"):
        Artifact.read(folder).golden()
    verify(tiny_run, folder)
    assert contents(folder) == contents(models / "tiny" / "1")


def test_other_files_are_no_models(models: Path, tmp_path: Path) -> None:
    model = onnx.load(models / "tiny" / "1" / MODEL_FILE)
    del model.metadata_props[:]
    for content, says in (
        (b"", "not a model that onnxruntime can run"),
        (b"no model", "not a model that onnxruntime can run"),
        (model.SerializeToString(), "metadata"),
    ):
        (tmp_path / MODEL_FILE).write_bytes(content)
        with pytest.raises(UserError, match=says):
            Artifact.read(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            NetworkConfig(size=11, channels=3, widths=(8, 16), bottleneck=8), marks=pytest.mark.slow
        ),
        NetworkConfig(size=8, channels=3, widths=(8,), bottleneck=6, palette=4),
        NetworkConfig(size=8, channels=1, widths=(8, 16), bottleneck=12, blocks=2),
    ],
    ids=["odd", "crisp", "exact"],
)
def test_every_architecture_is_exported(config: NetworkConfig) -> None:
    torch.manual_seed(0)
    network = build_network(config).eval()
    shape = (config.channels, config.size, config.size)
    rows = NoiseSource(shape).rows(0, 0, 30)
    for (
        parameter
    ) in network.parameters():  # some begin with 0, and then hide what they are multiplied with
        parameter.data += 0.05 * torch.randn_like(parameter)
    blocks = network.blocks if isinstance(network, Autoencoder) else None
    if blocks is not None:
        blocks.fit(torch.from_numpy(rows).clip(-1, 1), 3, 8, seeded(0))
    with torch.inference_mode():
        expected = network(torch.from_numpy(rows)).numpy()
    data = to_onnx(network, shape)
    function = OnnxFunction(data)
    np.testing.assert_allclose(function(rows), expected, atol=1e-4)  # what a card allows
    # rows stay independent of the batch
    assert np.array_equal(function(rows)[:1], function(rows[:1]))
    if blocks is None:
        np.testing.assert_allclose(OnnxFunction(to_fp16(data))(rows), expected, atol=1e-2)
    else:
        once = function(10 * rows)
        assert np.array_equal(function(once), once)
        assert np.array_equal(function(to_rows(to_levels(once))), once)


def test_a_failed_publication_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "1"
    publish(folder, {"x": b"1", "y": b"1"})
    publish(folder, {"x": b"2"}, keep=True)
    assert contents(folder) == {"x": b"2", "y": b"1"}
    publish(folder, {"x": b"1"})
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target == folder and self.name == "new":
            raise OSError("no space left")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no space left"):
        publish(folder, {"x": b"2"})
    assert contents(tmp_path) == {"1/x": b"1"}


@pytest.mark.parametrize(
    "damage",
    [{"preset": {"unknown": 1}}, {"average": {"w": torch.ones(1)}}],
    ids=["preset", "weights"],
)
def test_a_checkpoint_of_other_code_is_refused(
    damage: dict[str, object], tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not know its network"):
        export(altered_run(tiny_run, tmp_path / "run", **damage), tmp_path)


HALF = MODEL_FILES["fp16"]


@pytest.fixture(scope="session")
def exported(tiny: TinyModel) -> Path:
    """`tiny/1` in both precisions; read-only."""
    return tiny.models_fp16 / "tiny" / "1"


def test_half_precision_is_inside_and_float32_outside(exported: Path) -> None:
    assert set(contents(exported)) == {*MODEL_FILES.values(), GOLDEN_FILE}
    single = contents(exported)[MODEL_FILE]
    half = contents(exported)[HALF]
    model = onnx.load_model_from_string(half)
    onnx.checker.check_model(model, full_check=True)
    assert not [w.name for w in model.graph.initializer if w.data_type == TensorProto.FLOAT]
    assert to_fp16(single) == half
    one, other = read_all(exported, threads=1)
    assert one.card == other.card
    rows = one.noise.rows(9, 0, 40)
    difference = np.abs(one.function(rows) - other.function(rows)).max()
    assert 1e-6 < difference < 1e-2


def change_weights(file: Path, factor: float) -> None:
    """Scale the weights of the first layer in a model file."""
    model = onnx.load(file)
    weights = next(w for w in model.graph.initializer if w.name == "encoder.0.weight")
    changed = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(
        onnx.numpy_helper.from_array((changed * factor).astype(changed.dtype), weights.name)
    )
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("file", "says"), [(MODEL_FILE, "tiny/1: .* differ by"), (HALF, "fp16: .* differ by")]
)
def test_verify_compares_every_file(
    file: str, says: str, exported: Path, folder: Path, tiny_run: Path
) -> None:
    publish(folder, contents(exported))
    assert list(verify(tiny_run, folder, threads=1)) == list(MODEL_FILES.values())
    change_weights(folder / file, 2.0)
    before = contents(folder)
    with pytest.raises(UserError, match=says):
        verify(tiny_run, folder, threads=1)
    assert contents(folder) == before
