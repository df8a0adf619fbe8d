import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from service.api.info.routes import ModelList, ServedCard
from service.domain.latents import STREAM, FloatRows
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import cuda_is_built_in
from tests.contract.harness import Service, checked, serving, settings

MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


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
    assert (card.ref, card.shape, card.range, card.background) == (ref, (1, 8, 8), (-1.0, 1.0), (-1.0,))
    assert (card.polarity, card.noise.kind, card.licence) == ("light-on-dark", "gaussian", "CC0-1.0")
    assert (card.steps.generate, card.steps.project, card.training.parameters) == (2, 1, 9)
    assert len(card.distance_quantiles or ()) == 101
    assert card.provider == "CPUExecutionProvider"
    assert card.reproducible.model_dump() == {"kind": "exact", "difference": 0.0}
    assert card.digest == service.post("/generate", {"model": ref}).json()["model"]["digest"]


def test_a_card_tells_all_that_is_known_of_a_model(service: Service, models: Path) -> None:
    card = service.get("/models/colour").json()
    members = {"title", "prompt", "shape", "range", "background", "noise", "steps", "training", "quality", "licence"}
    assert set(card) >= members | {"digest", "provider"}
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
    assert ready["models"]["grey/10"] == {"device": "cpu", "provider": "CPUExecutionProvider", "fallback_reason": None}
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        response = service.client.head(path)
        assert (response.status_code, response.content) == (200, b"")
        refused = service.client.post(path)
        assert refused.status_code == 405
        assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_metrics_are_prometheus_text(service: Service) -> None:
    response = service.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert names >= {"ign_requests", "ign_request_seconds", "ign_queue_rows", "ign_batch_rows", "ign_model_info"}


def test_requests_are_counted_by_route_status_and_model(service: Service) -> None:
    def counts() -> list[float]:
        return [
            service.metric("ign_requests_total", endpoint="/generate", status="2xx", model="grey/2"),
            service.metric("ign_requests_total", endpoint="/generate", status="4xx"),
            service.metric("ign_requests_total", endpoint="/models/{name}", status="4xx"),
            service.metric("ign_http_errors_total", code="unknown_model"),
            service.metric("ign_distance_count", model="grey/2", endpoint="/generate"),
            service.metric("ign_drift_count", model="grey/2", endpoint="/generate"),
        ]

    before = counts()
    service.post("/generate", {"model": "grey/2", "n": 3, "score": True})
    service.post("/generate", {"n": 0})
    service.get("/models/nope")
    assert [b - a for a, b in zip(before, counts(), strict=True)] == [1, 1, 1, 1, 3, 3]


def test_openapi_describes_every_path(service: Service) -> None:
    document = service.get("/openapi.json").json()
    assert document["info"]["version"] == __version__
    native = ["/generate", "/project", "/latent-arithmetic", "/latent-interpolate", "/score"]
    service_paths = ["/models", "/models/{name}", "/models/{name}/{version}", "/healthz", "/readyz", "/metrics"]
    oip = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index"]
    oip += [f"/v2/repository/models/{{name}}/{change}" for change in ("load", "unload")]
    oip += [f"{model}{suffix}" for model in MODEL_PATHS for suffix in ("", "/ready", "/config", "/stats", "/infer")]
    assert set(document["paths"]) == {*native, *service_paths, *oip}
