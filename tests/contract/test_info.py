import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from service.api.info.routes import ModelList, ServedCard
from service.api.native.schemas import (
    Answer,
    ArithmeticAnswer,
    GenerateAnswer,
    InterpolateAnswer,
    ProjectAnswer,
    ScoreAnswer,
)
from service.domain.latents import STREAM, FloatRows
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import cuda_is_built_in
from tests.contract.harness import Service, checked, serving, settings

MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
ANSWERS: dict[str, type[Answer]] = {
    "/generate": GenerateAnswer,
    "/project": ProjectAnswer,
    "/latent-interpolate": InterpolateAnswer,
    "/latent-arithmetic": ArithmeticAnswer,
    "/score": ScoreAnswer,
}


def test_models_lists_cards_without_their_arrays(service: Service) -> None:
    answer = checked(service.get("/models"), ModelList)
    assert [f"{card['name']}/{card['version']}" for card in answer.models] == ["colour/1", "grey/2", "grey/10"]
    assert answer.default == "grey/10"
    assert answer.failures == []
    assert answer.limits.model_dump() == {
        "n": 64,
        "images": 64,
        "steps": 300_000,
        "frames": 256,
        "body_bytes": 16 * 1024 * 1024,
        "pixels": 16_000_000,
    }
    for card in answer.models:
        assert "distance_quantiles" not in card
        assert card["device"] == "cpu"


@pytest.mark.parametrize(
    ("path", "ref"),
    [("/models/grey", "grey/10"), ("/models/grey/2", "grey/2"), ("/models/grey/10", "grey/10")],
)
def test_one_card(service: Service, path: str, ref: str) -> None:
    card = checked(service.get(path), ServedCard)
    assert card.ref == ref
    assert card.shape == (1, 8, 8)
    assert card.range == (-1.0, 1.0)
    assert card.background == (-1.0,)
    assert card.polarity == "light-on-dark"
    assert (card.steps.generate, card.steps.project) == (2, 1)
    assert card.noise.kind == "gaussian"
    assert card.licence == "CC0-1.0"
    assert card.training.parameters == 9
    assert len(card.distance_quantiles or ()) == 101
    assert card.provider == "CPUExecutionProvider"
    assert card.reproducible.model_dump() == {"kind": "exact", "difference": 0.0}
    digest = service.post("/generate", {"model": ref}).json()["model"]["digest"]
    assert card.digest == digest


def test_a_card_tells_all_that_is_known_of_a_model(service: Service, models: Path) -> None:
    card = service.get("/models/colour").json()
    members = {
        "title",
        "prompt",
        "shape",
        "range",
        "background",
        "noise",
        "steps",
        "training",
        "quality",
        "licence",
        "digest",
        "provider",
    }
    assert set(card) >= members
    assert card["noise"]["stream"] == STREAM
    assert card["digest"] == f"sha256:{hashlib.sha256((models / 'colour/1/model.onnx').read_bytes()).hexdigest()}"
    listed = next(one for one in service.get("/models").json()["models"] if one["name"] == "colour")
    assert listed == {name: value for name, value in card.items() if name != "distance_quantiles"}


def test_a_provider_that_is_only_close_says_by_how_much(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Close(OnnxModel):
        """In company, a row comes out a little different."""

        def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
            return super().run(rows, out) + np.float32(2e-5 * (len(rows) > 1))

    monkeypatch.setattr("service.app.OnnxModel", Close)
    with serving(settings(models)) as service:
        found = service.get("/models/grey").json()["reproducible"]
    assert found == {"kind": "close", "difference": pytest.approx(2e-5, rel=0.1)}


def test_auto_says_which_device_it_took(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service"), serving(settings(models, device="auto")) as service:
        found = service.get("/readyz").json()["models"]["grey/10"]
    assert found["device"] == ("cuda" if found["fallback_reason"] is None else "cpu")
    assert f"serving grey/10 on {found['device']}" in caplog.text
    assert "CUDA" not in caplog.text or cuda_is_built_in(), "nobody asked a build for CPUs for CUDA"


def test_health(service: Service) -> None:
    assert service.get("/healthz").json() == {"status": "alive"}
    ready = service.get("/readyz").json()
    assert ready["status"] == "ready"
    assert list(ready["models"]) == ["colour/1", "grey/2", "grey/10"]
    assert ready["models"]["grey/10"] == {
        "device": "cpu",
        "provider": "CPUExecutionProvider",
        "fallback_reason": None,
    }


def test_metrics_are_prometheus_text(service: Service) -> None:
    response = service.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert names >= {"ign_requests", "ign_request_seconds", "ign_queue_rows", "ign_batch_rows", "ign_model_info"}


def test_requests_are_counted_by_route_status_and_model(service: Service) -> None:
    def count(**labels: str) -> float:
        return service.metric("ign_requests_total", **labels)

    before = [
        count(endpoint="/generate", status="2xx", model="grey/2"),
        count(endpoint="/generate", status="4xx"),
        count(endpoint="/models/{name}", status="4xx"),
        service.metric("ign_http_errors_total", code="unknown_model"),
        service.metric("ign_distance_count", model="grey/2", endpoint="/generate"),
        service.metric("ign_drift_count", model="grey/2", endpoint="/generate"),
    ]
    service.post("/generate", {"model": "grey/2", "n": 3, "score": True})
    service.post("/generate", {"n": 0})
    service.get("/models/nope")
    after = [
        count(endpoint="/generate", status="2xx", model="grey/2"),
        count(endpoint="/generate", status="4xx"),
        count(endpoint="/models/{name}", status="4xx"),
        service.metric("ign_http_errors_total", code="unknown_model"),
        service.metric("ign_distance_count", model="grey/2", endpoint="/generate"),
        service.metric("ign_drift_count", model="grey/2", endpoint="/generate"),
    ]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 1, 3, 3]


def test_docs_work_offline(service: Service) -> None:
    page = service.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js"):
        assert f"docs/{asset}" in page.text
        assert service.get(f"/docs/{asset}").status_code == 200


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/openapi.json").json()
    return found


def test_openapi_describes_every_path(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == __version__
    assert set(document["paths"]) == {
        "/generate",
        "/project",
        "/latent-arithmetic",
        "/latent-interpolate",
        "/score",
        "/models",
        "/models/{name}",
        "/models/{name}/{version}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        *(f"{model}{suffix}" for model in MODEL_PATHS for suffix in ("", "/ready", "/config", "/stats", "/infer")),
        "/v2/repository/index",
        "/v2/repository/models/{name}/load",
        "/v2/repository/models/{name}/unload",
    }


def test_openapi_names_every_part_of_a_path(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = [entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path), path


def test_openapi_offers_no_query_where_there_is_none(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            queries = [entry for entry in operation.get("parameters", []) if entry["in"] == "query"]
            assert not queries or path in ("/project", "/score")


@pytest.mark.parametrize("path", ANSWERS)
def test_every_example_can_be_sent(service: Service, document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for example in examples.values():
        checked(service.post(path, example["value"]), ANSWERS[path])


@pytest.mark.parametrize("path", ANSWERS)
def test_every_declared_form_is_answered(service: Service, document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    body = next(iter(content["examples"].values()))["value"]
    forms = operation["responses"]["200"]["content"]
    pictures = {"image/png", "image/webp", "image/jpeg", "application/x-npy"}
    assert set(forms) >= {"application/json"} | (pictures if path != "/score" else set())
    for form in forms:
        response = service.post(path, body, accept=form)
        assert response.headers["Content-Type"].partition(";")[0] == form
    assert set(operation["responses"]) >= {"400", "401", "404", "406", "408", "413", "415", "422", "429", "503", "504"}
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert set(schema["properties"]) >= ({"model", "steps", "format"} if path != "/score" else {"model", "images"})
    assert schema["additionalProperties"] is False


PREPARING = {"model", "resize", "invert"}
APPLYING = {"steps", "format", "tolerance", "record", "score", "strength", "scale", "resample", "columns", "gap"}


@pytest.mark.parametrize(
    ("path", "options", "files"),
    [("/project", PREPARING | APPLYING, {"image", "mask"}), ("/score", PREPARING, {"image"})],
)
def test_uploads_are_described_in_all_three_forms(
    path: str, options: set[str], files: set[str], document: dict[str, Any]
) -> None:
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data", "image/png", "image/jpeg", "image/webp"}
    assert set(content["multipart/form-data"]["schema"]["properties"]) == options | files
    assert {entry["name"] for entry in operation["parameters"] if entry["in"] == "query"} == options


def test_healthz_answers_without_looking_at_anything(service: Service) -> None:
    with httpx.Client() as client:
        assert client.get(f"{service.url}/healthz", headers={"Accept": "image/png"}).status_code == 200
