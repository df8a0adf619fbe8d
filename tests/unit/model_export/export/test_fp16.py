"""`model.fp16.onnx`: exported, verified, measured and served beside `model.onnx`."""

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_export.cli import main
from model_export.errors import UserError
from model_export.evaluation.evaluate import evaluate
from model_export.export.artifact import FILES, GOLDEN, METRICS, Artifact, digest_of, publish, read_all, stamp
from model_export.export.export import export, to_onnx
from model_export.export.fp16 import to_fp16
from model_export.export.verify import verify
from model_export.training.network import Autoencoder, NetworkConfig
from service.artifact.card import ModelCard
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from tests.helpers.tiny_training import contents

HALF = FILES["fp16"]


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny/1` in both precisions; not to be written to."""
    folder, _ = export(tiny_run, tmp_path_factory.mktemp("models"), version=1, fp16=True, threads=1)
    return folder


@pytest.fixture
def both(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written to."""
    folder = tmp_path / "models" / "tiny" / "1"
    publish(folder, contents(exported))
    return folder


def test_half_precision_is_inside_and_float32_outside(exported: Path, models: Path) -> None:
    assert set(contents(exported)) == {*FILES.values(), GOLDEN}
    whole, half = contents(exported)[FILES["fp32"]], contents(exported)[HALF]
    assert whole == (models / "tiny" / "1" / FILES["fp32"]).read_bytes()  # the first is what it is without the second
    model = onnx.load_model_from_string(half)
    onnx.checker.check_model(model, full_check=True)
    assert not [w.name for w in model.graph.initializer if w.data_type == TensorProto.FLOAT]
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert to_fp16(whole) == half
    one, other = read_all(exported, threads=1)
    assert (one.card, one.file, other.file) == (other.card, *FILES.values())
    rows = one.noise.rows(9, 0, 40)
    difference = np.abs(one.function(rows) - other.function(rows)).max()
    assert 1e-6 < difference < 1e-2


def test_networks_that_resize_convert_as_well() -> None:
    network = Autoencoder(NetworkConfig(size=11, channels=3, widths=(8, 16), bottleneck=8, upsampling="resize")).eval()
    half = onnx.load_model_from_string(to_fp16(to_onnx(network, (3, 11, 11))))
    assert "Resize" in {node.op_type for node in half.graph.node}


def test_the_command_exports_and_verifies_both(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--run", str(tiny_run), "--models", str(tmp_path), "--fp16", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == list(FILES.values())
    folder = tmp_path / "tiny" / "1"
    assert main(["verify", "--run", str(tiny_run), "--model", str(folder), "--threads", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:2]
    found = re.search(r"differ by at most (\S+);", lines[1])
    assert found is not None
    assert 1e-5 < float(found[1]) < 1e-2


def test_exporting_again_without_it_takes_the_old_one_away(both: Path, tiny_run: Path) -> None:
    export(tiny_run, both.parent.parent, version=1, force=True, threads=1)
    assert set(contents(both)) == {FILES["fp32"], GOLDEN}


def test_verify_compares_every_file(both: Path, tiny_run: Path) -> None:
    assert list(verify(tiny_run, both, threads=1)) == list(FILES.values())
    model = onnx.load(both / HALF)
    weights = next(w for w in model.graph.initializer if w.name == "encoder.0.weight")
    changed = onnx.numpy_helper.to_array(weights) + np.float16(0.2)
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    (both / HALF).write_bytes(model.SerializeToString())
    before = contents(both)
    with pytest.raises(UserError, match=r"tiny/1 in fp16: torch and onnxruntime differ by \S+, allowed are 0\.01"):
        verify(tiny_run, both, threads=1)
    assert contents(both) == before


def test_verify_wants_one_card(both: Path, tiny_run: Path) -> None:
    half = Artifact.read(both, precision="fp16", threads=1)
    card = ModelCard.model_validate({**half.card.model_dump(), "description": "another"})
    (both / HALF).write_bytes(stamp(half.data, card, half.noise))
    with pytest.raises(UserError, match=r"model\.fp16\.onnx: another card than model\.onnx; `export` it again"):
        verify(tiny_run, both, threads=1)


def test_evaluation_measures_and_stamps_both(both: Path, tiny_run: Path, data_file: Path, cache: Path) -> None:
    table = evaluate(both, str(data_file), cache=cache, samples=60, steps=4, threads=1)
    assert set(contents(both)) == {*FILES.values(), GOLDEN, METRICS}
    assert table["model"]["files"] == {name: digest_of((both / name).read_bytes()) for name in FILES.values()}
    one, other = read_all(both, threads=1)
    assert one.card == other.card
    assert one.card.quality["generation"]["f"]["frechet"] == table["generation"]["f"]["frechet"]
    half = table["precision"]["fp16"]
    rows = one.noise.rows(0, 0, 60)
    difference = np.abs(one.function(rows).astype(np.float64) - other.function(rows))
    assert half["difference"] == pytest.approx({"mean": difference.mean(), "largest": difference.max()}, abs=1e-6)
    assert half["tolerance"] == one.card.tolerance.fp16 > half["golden"] > 0
    assert half["frechet"] == pytest.approx(table["generation"]["f"]["frechet"], rel=0.05)
    assert list(verify(tiny_run, both, threads=1)) == list(FILES.values())


def test_a_half_that_is_of_another_model_is_not_stamped(both: Path, data_file: Path, cache: Path) -> None:
    model = onnx.load(both / HALF)
    weights = next(w for w in model.graph.initializer if w.name == "encoder.0.weight")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(weights.dims), np.float16), weights.name))
    (both / HALF).write_bytes(model.SerializeToString())
    before = contents(both)
    with pytest.raises(UserError, match=r"tiny/1 in fp16: differs from its golden rows by \S+; `verify` it first"):
        evaluate(both, str(data_file), cache=cache, samples=20, steps=1, threads=1)
    assert contents(both) == before


@pytest.mark.parametrize("measured", [False, True])
def test_the_service_serves_it(measured: bool, both: Path, data_file: Path, cache: Path) -> None:
    if measured:
        evaluate(both, str(data_file), cache=cache, samples=20, steps=1, threads=1)
    models = Repository(
        both.parent.parent, lambda data: [OnnxModel(data, device="cpu")], default="tiny", precision="fp16"
    ).load_all()
    loaded = models["tiny/1"]
    assert loaded.digest == hashlib.sha256((both / HALF).read_bytes()).hexdigest()
    assert loaded.golden.passed
    assert 1e-6 < loaded.golden.difference < loaded.golden.tolerance == 1e-2
    rows = loaded.noise.rows(4, 0, 3)
    assert np.array_equal(
        loaded.instances[0].run(rows), Artifact.read(both, precision="fp16", threads=1).function(rows)
    )
    loaded.close()
