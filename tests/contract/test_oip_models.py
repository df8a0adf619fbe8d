"""What `/v2` says of the service and its models, and who may ask."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import __version__
from service.api.oip.tensors import ModelConfig, ModelMetadata, ServerMetadata, StatisticsAnswer
from tests.contract.harness import Service, checked, gated, latents, problem, serving, settings
from tests.contract.oip import INFER, encoded, infer

X = latents(3, n=3)
BOTH = ["/v2/models/grey", "/v2/models/grey/versions/2"]


def test_the_server(service: Service) -> None:
    answer = checked(service.get("/v2"), ServerMetadata)
    assert (answer.name, answer.version) == ("ign-service", __version__)
    assert answer.extensions == ["binary_tensor_data", "model_configuration", "statistics", "model_repository"]


def test_health(service: Service) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", *(f"{path}/ready" for path in BOTH)):
        assert service.get(path).status_code == 200


def test_a_service_that_is_not_ready_says_so(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, settings(models), ready=False) as (service, gate):
        assert service.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/grey", "/v2/models/grey/ready", "/v2/models/stats"):
            problem(service.get(path), 503, "not_ready")
        problem(infer(service, encoded(X)), 503, "not_ready")
        problem(service.post("/v2/repository/index"), 503, "not_ready")
        gate.opened.set()
        service.until(lambda: service.get("/v2/health/ready").status_code == 200)


def test_a_worker_that_is_being_replaced_is_not_ready(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(settings(models)) as service:
        with monkeypatch.context() as patch:
            scheduler = service.services.registry.models["grey/2"].scheduler
            patch.setattr(type(scheduler), "healthy", property(lambda self: self is not scheduler))
            problem(service.get("/v2/health/ready"), 503, "not_ready")
            problem(service.get("/v2/models/grey/versions/2/ready"), 503, "not_ready")
        assert service.get("/v2/models/grey/versions/2/ready").status_code == 200


@pytest.mark.parametrize("path", BOTH)
def test_metadata(service: Service, path: str) -> None:
    x, y = ({"name": name, "datatype": "FP32", "shape": [-1, 1, 8, 8]} for name in "xy")
    expected = {"name": "grey", "versions": ["2", "10"], "platform": "onnxruntime_onnx", "inputs": [x], "outputs": [y]}
    assert checked(service.get(path), ModelMetadata).model_dump() == expected


@pytest.mark.parametrize("path", BOTH)
def test_config(service: Service, path: str) -> None:
    answer = checked(service.get(f"{path}/config"), ModelConfig)
    assert (answer.name, answer.platform, answer.max_batch_size) == ("grey", "onnxruntime_onnx", 64)
    (x,), (y,) = answer.input, answer.output
    assert [(x.name, x.data_type, x.dims), (y.name, y.data_type, y.dims)] == [
        (name, "TYPE_FP32", [1, 8, 8]) for name in "xy"
    ]


def test_colour_has_three_channels(service: Service) -> None:
    assert checked(service.get("/v2/models/colour"), ModelMetadata).inputs[0].shape == [-1, 3, 8, 8]
    assert checked(service.get("/v2/models/colour/config"), ModelConfig).input[0].dims == [3, 8, 8]


# Statistics


def test_statistics_count_what_was_done(models: Path) -> None:
    with serving(settings(models)) as service:
        content = encoded(X, parameters={"steps": 2})
        for _ in range(4):
            assert infer(service, content).status_code == 200
        assert service.post("/generate", {"n": 2, "steps": 1}).status_code == 200
        late = encoded(X, parameters={"timeout": 1})
        problem(infer(service, late), 504, "deadline_unreachable")
        (found,) = checked(service.get("/v2/models/grey/versions/10/stats"), StatisticsAnswer).model_stats
        assert (found.name, found.version) == ("grey", "10")
        assert (found.inference_count, found.execution_count) == (4 * 3 + 2, 4 * 2 + 1)
        parts = found.inference_stats
        assert (parts.success.count, parts.fail.count) == (5, 1)
        inner = (parts.queue, parts.compute_input, parts.compute_infer, parts.compute_output)
        assert {part.count for part in inner} == {5}
        assert all(part.ns > 0 for part in inner)
        assert sum(part.ns for part in inner) == pytest.approx(parts.success.ns, abs=100)  # rounded one by one
        assert {batch.batch_size: batch.compute_infer.count for batch in found.batch_stats} == {2: 1, 3: 8}
        assert found.last_inference > 1.6e12
        (idle,) = checked(service.get("/v2/models/grey/versions/2/stats"), StatisticsAnswer).model_stats
        assert (idle.inference_count, idle.execution_count, idle.last_inference) == (0, 0, 0)
        assert (idle.inference_stats.success.count, idle.batch_stats) == (0, [])


def test_statistics_of_several(service: Service) -> None:
    def versions(path: str) -> list[str]:
        found = checked(service.get(path), StatisticsAnswer).model_stats
        return [f"{model.name}/{model.version}" for model in found]

    assert versions("/v2/models/grey/stats") == ["grey/2", "grey/10"]
    assert versions("/v2/models/grey/versions/10/stats") == ["grey/10"]
    assert versions("/v2/models/stats") == ["colour/1", "grey/2", "grey/10"]


# What is not there


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats", "/infer"])
@pytest.mark.parametrize(
    "model", ["nope", "GREY", *(f"grey/versions/{version}" for version in ("3", "02", "latest", "-1"))]
)
def test_unknown_models_and_versions_are_404(service: Service, model: str, suffix: str) -> None:
    path = f"/v2/models/{model}{suffix}"
    response = infer(service, encoded(X), path=path) if suffix == "/infer" else service.get(path)
    assert "grey/10" in problem(response, 404, "unknown_model").detail


MISSING = "/ /nope /models /models/grey/versions /models/grey/nope /models/grey%2F10 /trace/setting /logging"


@pytest.mark.parametrize("path", [*MISSING.split(), "/systemsharedmemory/status", "/cudasharedmemory/status"])
def test_other_paths_are_404(service: Service, path: str) -> None:
    problem(service.get(f"/v2{path}"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2", "GET"),
        ("POST", "/v2/models/grey/config", "GET"),
        ("GET", INFER, "POST"),
        ("GET", "/v2/repository/index", "POST"),
        ("DELETE", "/v2/repository/models/grey/unload", "POST"),
    ],
)
def test_other_methods_are_405(service: Service, method: str, path: str, allowed: str) -> None:
    response = service.client.request(method, path)
    problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == allowed


def test_a_body_beyond_the_limit_is_413(service: Service) -> None:
    problem(infer(service, b" " * (16 * 1024 * 1024 + 1)), 413, "too_large")


# Who may


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = [
        {"name": name, "sha256": hashlib.sha256(f"{name}-key".encode()).hexdigest(), "scopes": [scope]}
        for name, scope in (("alice", "infer"), ("ops", "admin"))
    ]
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps(keys))
    with serving(settings(models, api_keys_file=file)) as running:
        yield running


def key(name: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {name}-key"}}


def test_health_needs_no_key_and_everything_else_does(guarded: Service) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert guarded.get(path).status_code == 200
    for path in ("/v2", "/v2/models/grey", "/v2/models/grey/ready", "/v2/models/stats", "/v2/nope"):
        problem(guarded.get(path), 401, "unauthorized")
        problem(guarded.get(path, **key("ops")), 403, "forbidden")
        assert guarded.get(path, **key("alice")).status_code in (200, 404)


def test_the_index_needs_a_key_and_changes_need_an_admins(guarded: Service) -> None:
    index, load = "/v2/repository/index", "/v2/repository/models/colour/load"
    problem(guarded.post(index), 401, "unauthorized")
    assert len(guarded.post(index, **key("alice")).json()) == 3
    for path in (load, "/v2/repository/models/colour/unload"):
        problem(guarded.post(path), 401, "unauthorized")
        problem(guarded.post(path, **key("alice")), 403, "forbidden")
    assert guarded.post(load, **key("ops")).status_code == 200


def test_several_processes_have_no_repository_to_change(models: Path) -> None:
    with serving(settings(models, workers=2)) as service:  # one of the two
        for path in ("index", "models/colour/load", "models/colour/unload"):
            detail = problem(service.post(f"/v2/repository/{path}"), 501, "not_supported").detail
            assert "IGN_WORKERS" in detail
        assert "model_repository" not in checked(service.get("/v2"), ServerMetadata).extensions
        assert infer(service, encoded(X)).status_code == 200
