"""Models that come, go and change while requests run: none fails, and each is answered by one
version, wholly.
"""

import gc
import hashlib
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.info.routes import ModelList
from service.models.registry import ModelRegistry, ServedModel
from tests.contract.data import GREY, array, latents, step_params, unb64
from tests.contract.harness import Service, checked, problem, serving, settings, write_models
from tests.contract.oip import encoded, infer
from tests.contract.test_streaming import parsed
from tests.helpers.onnx_models import write_model

INDEX = "/v2/repository/index"
ENDLESS = {"n": 64, "steps": 300_000, "record": [0]}  # half a minute at least
X = latents(1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path / "models")


@pytest.fixture
def service(models: Path) -> Iterator[Service]:
    with serving(settings(models)) as running:
        yield running


def load(service: Service, name: str, **options: Any) -> httpx.Response:
    return service.post(f"/v2/repository/models/{name}/load", **options)


def unload(service: Service, name: str, **options: Any) -> httpx.Response:
    return service.post(f"/v2/repository/models/{name}/unload", **options)


def index(service: Service, **body: Any) -> dict[str, tuple[str, str]]:
    """`name/version` → state and reason."""
    response = service.post(INDEX, body)
    assert response.status_code == 200
    return {f"{e['name']}/{e['version']}": (e["state"], e["reason"]) for e in response.json()}


def replace(models: Path, ref: str, *, scale: float, **changes: Any) -> str:
    """Put other files in a version's place; returns the digest of its model."""
    name, _, version = ref.partition("/")
    staging = models.parent / "staging"
    fresh = write_model(staging, name, version, changes.pop("shape", GREY), scale=scale, **changes)
    shutil.rmtree(models / ref, ignore_errors=True)
    (models / name).mkdir(exist_ok=True)
    fresh.rename(models / ref)
    shutil.rmtree(staging)
    return digest_of(models, ref)


def digest_of(models: Path, ref: str) -> str:
    return hashlib.sha256((models / ref / "model.onnx").read_bytes()).hexdigest()


def damage(models: Path, ref: str) -> None:
    """Golden rows that belong to another file."""
    replace(models, ref, scale=0.7)
    name, _, version = ref.partition("/")
    staging = write_model(models.parent / "staging", name, version, scale=0.9)
    shutil.copy(staging / "golden.npz", models / ref / "golden.npz")
    shutil.rmtree(models.parent / "staging")


def check_f(service: Service, model: str | None = "grey", *, scale: float = 1.0) -> None:
    """The model gives f of this scale."""
    found = service.rows("/generate", model=model, seed=1, steps=1)
    np.testing.assert_allclose(found, step_params(X, 1, scale=scale), atol=1e-6)


def running(service: Service) -> list[ServedModel]:
    """Every model that is open, whether it answers to a name or not."""
    registry = service.services.registry
    assert isinstance(registry, ModelRegistry)
    return [*registry.models.values(), *registry._retiring]


# Load


def test_a_new_version_takes_over_and_the_others_stay(service: Service, models: Path) -> None:
    digest = replace(models, "grey/11", scale=0.5)
    assert index(service)["grey/11"] == ("UNAVAILABLE", "not loaded")
    assert load(service, "grey").json() == {}
    assert index(service)["grey/11"] == ("READY", "")
    check_f(service, scale=0.5)
    check_f(service, "grey/10")
    assert service.get("/models").json()["default"] == "grey/11"
    assert service.get("/models/grey").json()["digest"] == f"sha256:{digest}"
    assert service.get("/v2/models/grey").json()["versions"] == ["2", "10", "11"]
    assert service.metric("ign_model_info", model="grey/11", digest=digest[:12]) == 1
    assert infer(service, encoded(X)).json()["model_version"] == "11"


def test_a_new_model_comes(service: Service, models: Path) -> None:
    problem(service.get("/v2/models/other/ready"), 404, "unknown_model")
    replace(models, "other/1", scale=0.25)
    with ThreadPoolExecutor(4) as pool:  # loads at the same time take turns
        calls = [pool.submit(load, service, name) for name in ("grey", "other", "grey", "other")]
        assert [call.result().status_code for call in calls] == [200] * 4
    assert sorted(model.ref for model in running(service)) == [
        "colour/1",
        "grey/10",
        "grey/2",
        "other/1",
    ]
    assert service.get("/v2/models/other/ready").status_code == 200
    check_f(service, "other", scale=0.25)


def test_a_replaced_file_is_another_model_and_only_that_is_loaded_again(
    service: Service, models: Path
) -> None:
    before = {model.ref: model for model in running(service)}
    assert load(service, "grey").status_code == 200
    assert {model.ref: model for model in running(service)} == before
    digest = replace(models, "grey/10", scale=0.5)
    assert load(service, "grey").status_code == 200
    check_f(service, scale=0.5)
    service.until(lambda: len(running(service)) == 3 and service.get("/healthz").is_success)
    after = {model.ref: model for model in running(service)}
    assert {ref for ref in after if after[ref] is not before[ref]} == {"grey/10"}
    assert service.metric("ign_model_info", model="grey/10") == 1
    assert service.metric("ign_model_info", model="grey/10", digest=digest[:12]) == 1
    counted = service.get("/v2/models/grey/versions/10/stats").json()["model_stats"][0]
    assert counted["inference_count"] == 1  # statistics begin anew


def test_a_version_whose_folder_is_gone_leaves_but_the_last_stays_until_it_is_unloaded(
    service: Service, models: Path
) -> None:
    shutil.rmtree(models / "grey" / "10")
    shutil.rmtree(models / "colour")
    assert load(service, "grey").status_code == 200
    problem(service.get("/v2/models/grey/versions/10/ready"), 404, "unknown_model")
    assert service.get("/models").json()["default"] == "grey/2"
    assert "grey/10" not in index(service, ready=True)
    check_f(service, scale=1.5)
    problem(load(service, "colour"), 404, "unknown_model")
    assert service.get("/v2/models/colour/ready").status_code == 200
    assert unload(service, "colour").status_code == 200
    problem(service.get("/v2/models/colour/ready"), 404, "unknown_model")


def test_what_is_no_model_cannot_be_loaded(service: Service, models: Path) -> None:
    (models / ".hidden" / "1").mkdir(parents=True)
    for name in ("nope", "GREY", "..", "%2e%2e", "grey%20", "x" * 300, ".hidden"):
        response = load(service, name)
        assert response.status_code == 404, name
        assert response.json()["error"]
        assert str(models) not in response.text


# What does not load


def test_a_broken_replacement_leaves_the_old_one_serving_and_says_why(
    service: Service, models: Path
) -> None:
    digest = digest_of(models, "grey/10")
    damage(models, "grey/10")
    for _ in range(2):
        failure = problem(load(service, "grey"), 400, "load_failed")
        assert "grey/10/golden.npz" in failure.detail
        assert str(models) not in failure.detail
    state, why = index(service)["grey/10"]
    assert (state, why) == ("READY", failure.detail)
    assert list(index(service, ready=True)) == ["colour/1", "grey/2", "grey/10"]
    answer = checked(service.get("/models"), ModelList)
    assert [found.model_dump() for found in answer.failures] == [
        {"name": "grey", "version": "10", "reason": why}
    ]
    assert service.get("/readyz").status_code == service.get("/v2/health/ready").status_code == 200
    check_f(service)
    assert service.get("/models/grey/10").json()["digest"] == f"sha256:{digest}"
    # Once its files are sound it takes over, and nothing is left of the failure.
    replace(models, "grey/10", scale=0.5)
    assert load(service, "grey").status_code == 200
    assert index(service)["grey/10"] == ("READY", "")
    assert service.get("/models").json()["failures"] == []
    check_f(service, scale=0.5)


def test_nothing_leaves_where_nothing_can_take_its_place(service: Service, models: Path) -> None:
    shutil.rmtree(models / "grey")
    damage(models, "grey/11")
    problem(load(service, "grey"), 400, "load_failed")
    found = index(service)
    assert [found[f"grey/{version}"][0] for version in (2, 10, 11)] == [
        "READY",
        "READY",
        "UNAVAILABLE",
    ]
    assert "its files are gone" in found["grey/2"][1]
    check_f(service)


# Unload


def test_an_unloaded_model_is_gone_until_it_is_loaded(service: Service) -> None:
    assert unload(service, "colour", json={"parameters": {"unload_dependents": True}}).json() == {}
    for path in ("/v2/models/colour", "/models/colour", "/v2/models/colour/versions/1/stats"):
        problem(service.get(path), 404, "unknown_model")
    problem(service.post("/generate", {"model": "colour"}), 404, "unknown_model")
    problem(infer(service, b"{}", path="/v2/models/colour/infer"), 404, "unknown_model")
    problem(unload(service, "colour"), 404, "unknown_model")
    service.until(lambda: index(service)["colour/1"] == ("UNAVAILABLE", "not loaded"))
    assert "colour/1" not in index(service, ready=True)
    assert service.metric("ign_model_info", model="colour/1") == 0
    assert service.get("/readyz").status_code == 200
    assert load(service, "colour").status_code == 200
    assert service.post("/generate", {"model": "colour"}).status_code == 200
    assert service.metric("ign_model_info", model="colour/1") == 1


def test_nothing_is_left_of_an_unloaded_model(service: Service) -> None:
    assert service.post("/generate", {"model": "colour"}).status_code == 200
    (found,) = [
        weakref.ref(model.loaded.instances[0])
        for model in running(service)
        if model.ref == "colour/1"
    ]
    # whose threads hold the model
    scheduler = weakref.ref(service.services.registry.models["colour/1"].scheduler)
    assert unload(service, "colour").status_code == 200
    service.until(lambda: index(service)["colour/1"] == ("UNAVAILABLE", "not loaded"))
    gc.collect()
    assert (found(), scheduler()) == (None, None)


def test_neither_the_default_nor_what_does_not_serve_can_be_unloaded(service: Service) -> None:
    for name, status in (("grey", 400), ("nope", 404), ("grey%2F10", 404), ("colour%2F1", 404)):
        assert unload(service, name).status_code == status
        assert service.post("/generate", {}).status_code == 200


def test_the_index_is_asked_for_with_any_body_or_none(service: Service) -> None:
    for content in (b"", b"{}", b'{"ready": true}', b'{"ready": false}'):
        assert len(service.post(INDEX, content=content).json()) == 3
    problem(service.post(INDEX, content=b'{"ready": "yes"}'), 400, "invalid_inference")
    for body in (
        '{"parameters": {"config": "{}"}}',
        '{"parameters": {"unload_dependents": 1}}',
        '{"force": true}',
        "[]",
    ):
        for call in ("load", "unload"):
            problem(
                service.post(f"/v2/repository/models/colour/{call}", content=body),
                400,
                "invalid_inference",
            )
    assert index(service)["colour/1"] == ("READY", "")


# While requests run


def test_a_stream_under_way_is_finished_by_the_version_that_began_it(
    service: Service, models: Path
) -> None:
    old = digest_of(models, "grey/10")
    options = {"seed": 1, "steps": 3000, "record": [1], "format": "npy"}
    with service.stream(options) as (response, lines):
        new = replace(models, "grey/10", scale=0.5)
        assert load(service, "grey").status_code == 200
        assert service.get("/models/grey/10").json()["digest"] == f"sha256:{new}"
        check_f(service, scale=0.5)
        events = parsed("\n".join(["event: step", *lines]))
    assert response.headers["X-IGN-Model"] == f"grey/10@sha256:{old}"
    assert events[-1][1]["model"]["digest"] == f"sha256:{old}"
    first = array(unb64(events[0][1]["data"]))
    np.testing.assert_allclose(first[None], step_params(X, 1), atol=1e-6)
    service.until(lambda: service.get("/healthz").is_success and len(running(service)) == 3)


def test_an_unloaded_model_finishes_what_it_has(service: Service, models: Path) -> None:
    (colour,) = [model for model in running(service) if model.ref == "colour/1"]
    with ExitStack() as later:
        with service.stream(ENDLESS | {"model": "colour"}) as (_, lines):
            replace(models, "grey/2", scale=0.5)
            assert load(service, "grey").status_code == 200  # the old one waits for the stream, too
            assert unload(service, "colour").status_code == 200
            assert index(service)["colour/1"] == ("UNLOADING", "finishes what it has")
            later.enter_context(service.stream(ENDLESS))
            assert colour in running(service)
            assert next(line for line in lines if line == "event: progress")
            # A second life beside the first.
            assert load(service, "colour").status_code == 200
            assert index(service)["colour/1"] == ("READY", "")
            assert service.post("/generate", {"model": "colour"}).status_code == 200
        service.until(lambda: service.get("/healthz").is_success and colour not in running(service))
        service.until_in_flight(1)  # it has waited for no later request
    assert service.post("/generate", {"model": "colour"}).status_code == 200
