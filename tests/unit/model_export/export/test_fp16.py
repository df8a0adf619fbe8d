"""`model.fp16.onnx`: exported, verified, measured and served beside `model.onnx`."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_export.errors import UserError
from model_export.export.artifact import publish, read_all
from model_export.export.export import to_fp16
from model_export.export.verify import verify
from service.artifact.files import GOLDEN_FILE, MODEL_FILE, MODEL_FILES
from tests.helpers.tiny_training import TinyModel, contents

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
def test_verify_compares_every_file(file: str, says: str, both: Path, tiny_run: Path) -> None:
    assert list(verify(tiny_run, both, threads=1)) == list(MODEL_FILES.values())
    change_weights(both / file, 2.0)
    before = contents(both)
    with pytest.raises(UserError, match=says):
        verify(tiny_run, both, threads=1)
    assert contents(both) == before
