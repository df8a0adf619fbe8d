import hashlib
from pathlib import Path

import numpy as np
import pytest

from service.api.info.routes import ModelList, ServedCard
from service.domain.latents import STREAM, FloatRows
from service.runtime.onnx_model import OnnxModel
from tests.contract.harness import Service, checked, serving, settings


def test_models_lists_cards_without_their_arrays(service: Service) -> None:
    answer = checked(service.get("/models"), ModelList)
    assert [f"{card['name']}/{card['version']}" for card in answer.models] == [
        "colour/1",
        "grey/2",
        "grey/10",
    ]
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
    assert (card.ref, card.shape, card.range, card.background) == (
        ref,
        (1, 8, 8),
        (-1.0, 1.0),
        (-1.0,),
    )
    assert card.noise is not None
    assert card.training is not None
    assert (card.polarity, card.noise.kind, card.licence) == (
        "light-on-dark",
        "gaussian",
        "CC0-1.0",
    )
    assert (card.steps.generate, card.steps.project, card.training.parameters) == (2, 1, 9)
    assert len(card.distance_quantiles or ()) == 101
    assert card.provider == "CPUExecutionProvider"
    assert card.reproducible.model_dump() == {"kind": "exact", "difference": 0.0}
    assert card.digest == service.post("/generate", {"model": ref}).json()["model"]["digest"]


def test_a_card_tells_all_that_is_known_of_a_model(service: Service, models: Path) -> None:
    card = service.get("/models/colour").json()
    assert set(card) >= set(ServedCard.model_fields)
    assert card["noise"]["stream"] == STREAM
    assert (
        card["digest"]
        == f"sha256:{hashlib.sha256((models / 'colour/1/model.onnx').read_bytes()).hexdigest()}"
    )
    listed = next(one for one in service.get("/models").json()["models"] if one["name"] == "colour")
    assert listed == {name: value for name, value in card.items() if name != "distance_quantiles"}


def test_a_provider_that_is_only_close_says_by_how_much(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Close(OnnxModel):
        """In company, a row comes out a little different."""

        def run(self, rows: FloatRows) -> FloatRows:
            return super().run(rows) + np.float32(2e-5 * (len(rows) > 1))

    monkeypatch.setattr("service.app.OnnxModel", Close)
    with serving(settings(models)) as service:
        found = service.get("/models/grey").json()["reproducible"]
    assert found == {"kind": "close", "difference": pytest.approx(2e-5, rel=0.1)}


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
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        response = service.client.head(path)
        assert (response.status_code, response.content) == (200, b"")
        refused = service.post(path)
        assert refused.status_code == 405
        assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD"}
