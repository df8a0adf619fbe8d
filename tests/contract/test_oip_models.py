"""What `/v2` says of the service and its models, and who may ask."""

from pathlib import Path
from typing import Any

import pytest

from service import __version__
from service.api.oip.tensors import ModelMetadata, ServerMetadata
from tests.contract.data import latents
from tests.contract.harness import Service, checked, problem, serving, settings
from tests.contract.oip import encoded, infer

X = latents(3, n=3)
BOTH = ["/v2/models/grey", "/v2/models/grey/versions/2"]


def test_the_server(service: Service) -> None:
    answer = checked(service.get("/v2"), ServerMetadata)
    assert (answer.name, answer.version) == ("ign-service", __version__)
    assert answer.extensions == [
        "binary_tensor_data",
        "model_configuration",
        "statistics",
        "model_repository",
    ]


@pytest.mark.parametrize("path", BOTH)
def test_metadata(service: Service, path: str) -> None:
    assert checked(service.get("/v2/models/colour"), ModelMetadata).inputs[0].shape == [-1, 3, 8, 8]
    x, y = ({"name": name, "datatype": "FP32", "shape": [-1, 1, 8, 8]} for name in "xy")
    expected = {
        "name": "grey",
        "versions": ["2", "10"],
        "platform": "onnxruntime_onnx",
        "inputs": [x],
        "outputs": [y],
    }
    assert checked(service.get(path), ModelMetadata).model_dump() == expected


@pytest.mark.parametrize("path", BOTH)
def test_config(service: Service, path: str) -> None:
    answer = service.get(f"{path}/config").json()
    assert (answer["name"], answer["platform"], answer["max_batch_size"]) == (
        "grey",
        "onnxruntime_onnx",
        64,
    )
    form = {"data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [1, 8, 8]}
    assert [*answer["input"], *answer["output"]] == [{"name": name, **form} for name in "xy"]


# Statistics


def statistics(service: Service, path: str) -> list[dict[str, Any]]:
    return service.get(path).json()["model_stats"]


def test_statistics_count_what_was_done(models: Path) -> None:
    with serving(settings(models)) as service:
        content = encoded(X, parameters={"steps": 2})
        for _ in range(4):
            assert infer(service, content).status_code == 200
        assert service.post("/generate", {"n": 2, "steps": 1}).status_code == 200
        late = encoded(X, parameters={"timeout": 1})
        problem(infer(service, late), 504, "deadline_unreachable")
        (found,) = statistics(service, "/v2/models/grey/versions/10/stats")
        assert (found["name"], found["version"]) == ("grey", "10")
        assert (found["inference_count"], found["execution_count"]) == (4 * 3 + 2, 4 * 2 + 1)
        parts = found["inference_stats"]
        assert (parts["success"]["count"], parts["fail"]["count"]) == (5, 1)
        assert parts["cache_hit"] == parts["cache_miss"] == {"count": 0, "ns": 0}
        inner = [
            parts[name] for name in ("queue", "compute_input", "compute_infer", "compute_output")
        ]
        assert {part["count"] for part in inner} == {5}
        assert all(part["ns"] > 0 for part in inner)
        # rounded one by one
        assert sum(part["ns"] for part in inner) == pytest.approx(parts["success"]["ns"], abs=100)
        assert {
            batch["batch_size"]: batch["compute_infer"]["count"] for batch in found["batch_stats"]
        } == {2: 1, 3: 8}
        assert found["last_inference"] > 1.6e12
        (idle,) = statistics(service, "/v2/models/grey/versions/2/stats")
        assert (idle["inference_count"], idle["execution_count"], idle["last_inference"]) == (
            0,
            0,
            0,
        )
        assert (idle["inference_stats"]["success"]["count"], idle["batch_stats"]) == (0, [])


# What is not there


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats", "/infer"])
@pytest.mark.parametrize(
    "model", ["nope", "GREY", *(f"grey/versions/{version}" for version in ("3", "02", "latest"))]
)
def test_unknown_models_and_versions_are_404(service: Service, model: str, suffix: str) -> None:
    path = f"/v2/models/{model}{suffix}"
    response = infer(service, encoded(X), path=path) if suffix == "/infer" else service.get(path)
    assert "grey/10" in problem(response, 404, "unknown_model").detail
