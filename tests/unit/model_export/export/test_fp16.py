"""`model.fp16.onnx`: exported, verified, measured and served beside `model.onnx`."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_export.errors import UserError
from model_export.evaluation.evaluate import evaluate
from model_export.export.artifact import Artifact, TrainedCard, publish, read_all, stamp
from model_export.export.export import to_fp16
from model_export.export.verify import verify
from service.artifact.files import GOLDEN_FILE, MODEL_FILE, MODEL_FILES
from service.artifact.golden import digest_of
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from tests.helpers.tiny_training import SAMPLES, TinyModel, contents

HALF = MODEL_FILES["fp16"]


@pytest.fixture(scope="session")
def exported(tiny: TinyModel) -> Path:
    """`tiny/1` in both precisions; read-only."""
    return tiny.models_fp16 / "tiny" / "1"


@pytest.fixture
def both(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written to."""
    folder = tmp_path / "models" / "tiny" / "1"
    publish(folder, contents(exported))
    return folder


def test_half_precision_is_inside_and_float32_outside(exported: Path) -> None:
    assert set(contents(exported)) == {*MODEL_FILES.values(), GOLDEN_FILE}
    single, half = contents(exported)[MODEL_FILE], contents(exported)[HALF]
    model = onnx.load_model_from_string(half)
    onnx.checker.check_model(model, full_check=True)
    assert not [w.name for w in model.graph.initializer if w.data_type == TensorProto.FLOAT]
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
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
    weights.CopyFrom(onnx.numpy_helper.from_array((changed * factor).astype(changed.dtype), weights.name))
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(("file", "says"), [(MODEL_FILE, "tiny/1: .* differ by"), (HALF, "fp16: .* differ by")])
def test_verify_compares_every_file(file: str, says: str, both: Path, tiny_run: Path) -> None:
    assert list(verify(tiny_run, both, threads=1)) == list(MODEL_FILES.values())
    change_weights(both / file, 2.0)
    before = contents(both)
    with pytest.raises(UserError, match=says):
        verify(tiny_run, both, threads=1)
    assert contents(both) == before


def test_verify_wants_one_card(both: Path, tiny_run: Path) -> None:
    half = Artifact.read(both, precision="fp16", threads=1)
    card = TrainedCard.model_validate({**half.card.model_dump(), "description": "another"})
    (both / HALF).write_bytes(stamp(half.data, card))
    with pytest.raises(UserError, match="another card"):
        verify(tiny_run, both, threads=1)


def test_evaluation_measures_and_stamps_both(tiny: TinyModel) -> None:
    table = tiny.metrics
    one, other = read_all(tiny.evaluated, threads=1)
    assert one.card == other.card
    half = table["precision"]["fp16"]
    rows = one.noise.rows(0, 0, SAMPLES)
    difference = np.abs(one.function(rows).astype(np.float64) - other.function(rows))
    assert half["difference"] == pytest.approx({"mean": difference.mean(), "largest": difference.max()}, abs=1e-6)
    assert half["tolerance"] == one.card.tolerance.fp16 > half["golden"] > 0
    assert half["frechet"] == pytest.approx(table["generation"]["f"]["frechet"], rel=0.05)
    assert list(verify(tiny.run, tiny.evaluated, threads=1)) == list(MODEL_FILES.values())


def test_a_half_that_is_of_another_model_is_not_stamped(both: Path, data_file: Path, cache: Path) -> None:
    change_weights(both / HALF, 0.0)
    before = contents(both)
    with pytest.raises(UserError, match="fp16: differs from its golden rows"):
        evaluate(both, str(data_file), cache=cache, samples=20, steps=1, threads=1)
    assert contents(both) == before


def test_the_service_serves_it(tiny: TinyModel) -> None:
    folder = tiny.evaluated
    models = (
        Repository(folder.parents[1], lambda data: [OnnxModel(data, device="cpu")], default="tiny", precision="fp16")
        .load_all()
        .models
    )
    loaded = models["tiny/1"]
    assert loaded.digest == digest_of((folder / HALF).read_bytes())
    assert loaded.golden.passed
    assert 1e-6 < loaded.golden.difference < loaded.golden.tolerance == 1e-2
    rows = loaded.noise.rows(4, 0, 3)
    f = Artifact.read(folder, precision="fp16", threads=1).function
    assert np.array_equal(loaded.instances[0].run(rows), f(rows))
    loaded.close()
