"""Directories with broken, pinned and many models."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.api.info.routes import ModelList
from service.models import on_demand
from service.settings import Settings
from tests.contract.data import b64, latents
from tests.contract.harness import Service, checked, problem, serving, settings, write_models
from tests.contract.oip import encoded, infer
from tests.contract.test_oip_repository import check_f
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, save


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path / "models")


def test_a_broken_version_is_reported_and_the_others_serve(models: Path) -> None:
    for ref in ("colour/1", "grey/10"):
        (models / ref / "golden.npz").unlink()
    why = "colour/1/golden.npz: no such file"
    with serving(settings(models)) as service:
        listed = checked(service.get("/models"), ModelList)
        other = "grey/10/golden.npz: no such file"
        assert [found.reason for found in listed.failures] == [why, other]
        assert service.metric("ign_failed_models") == 2
        check_f(service, scale=1.5)
        assert (
            "it failed to load"
            in problem(service.post("/generate", {"model": "colour"}), 404, "unknown_model").detail
        )
        index = service.post("/v2/repository/index").json()
        assert [(e["state"], e["reason"]) for e in index if e["name"] == "colour"] == [
            ("UNAVAILABLE", why)
        ]
        # Repaired, it loads on request.
        shutil.rmtree(models / "colour" / "1")
        write_model(models, "colour", "1", (3, 8, 8))
        assert service.post("/v2/repository/models/colour/load").status_code == 200
        assert service.metric("ign_failed_models") == 1


def test_a_pinned_name_stands_for_its_version_whatever_comes_and_goes(models: Path) -> None:
    with serving(settings(models, versions=("grey=2",))) as service:
        assert service.get("/models").json()["default"] == "grey/2"
        write_model(models, "grey", "11", (1, 8, 8), scale=0.5)
        shutil.rmtree(models / "grey" / "2")
        assert service.post("/v2/repository/models/grey/load").status_code == 200
        for name in ("grey", None):
            check_f(service, name, scale=1.5)
        check_f(service, "grey/11", scale=0.5)
        assert infer(service, encoded(latents(1))).json()["model_version"] == "2"


def test_a_page_is_for_no_small_model_that_nobody_chose(models: Path) -> None:
    with serving(Settings(model_dir=models, device="cpu", threads=1)) as service:
        for side, model, status in ((120, None, 200), (140, "grey", 200), (140, None, 422)):
            image = b64(save(noise(side, side)))
            points = [{"image": image}, {"seed": 1}]
            answers = [
                service.post("/project", {"model": model, "images": [image]}),
                service.post("/latent-interpolate", {"model": model, "points": points}),
            ]
            assert [answer.status_code for answer in answers] == [status] * 2
        for answer in answers:
            detail = problem(answer, 422, "invalid_value", field="model").detail
            assert "name one of colour, grey" in detail


@pytest.fixture
def few(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Six models, two of which may be open at a time."""
    for number in range(3):
        write_model(models, f"m{number}", scale=0.5 + number)
    sizes = [file.stat().st_size for file in models.glob("*/*/model.onnx")]
    monkeypatch.setattr(on_demand, "resident_bytes", lambda: 0)
    monkeypatch.setattr(on_demand, "_ESTIMATE", 2)
    monkeypatch.setattr(on_demand, "_MIB", 2 * max(sizes))
    with serving(settings(models, device="cpu", model_memory_mib=2)) as service:
        yield service


def test_more_models_serve_than_memory_holds(few: Service) -> None:
    assert few.metric("ign_open_models") == 2
    assert {entry["state"] for entry in few.post("/v2/repository/index").json()} == {"READY"}
    scales = {"grey": 1.0, "grey/2": 1.5, "m0": 0.5, "m1": 1.5, "m2": 2.5}
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda name: check_f(few, name, scale=scales[name]), [*scales] * 4))
    assert few.get("/readyz").status_code == 200
    assert few.metric("ign_open_models") <= 2
    assert few.metric("ign_opened_models_total") >= 3
    assert 0 < few.metric("ign_model_memory_bytes") <= 2 * on_demand._MIB
    assert few.post("/v2/repository/models/m0/unload").status_code == 200
    assert few.post("/v2/repository/models/m0/load").status_code == 200
    check_f(few, "m0", scale=0.5)


def test_a_model_whose_file_is_no_longer_the_verified_one_fails_its_requests_and_is_reported(
    few: Service, models: Path, tmp_path: Path
) -> None:
    file = models / "m0" / "1" / "model.onnx"
    verified = file.read_bytes()
    file.write_bytes((write_model(tmp_path / "other", "m0", scale=0.9) / "model.onnx").read_bytes())
    for name in ("m1", "m2", "grey"):  # m0 is closed
        few.post("/generate", {"model": name})
    problem(few.post("/generate", {"model": "m0"}), 500, "model_failure")
    few.errors.clear()
    failures = {entry["name"]: entry["reason"] for entry in few.get("/models").json()["failures"]}
    assert list(failures) == ["m0"]
    assert failures["m0"].startswith("m0/1/model.onnx: changed")
    assert few.metric("ign_failed_models") == 1
    file.write_bytes(verified)
    check_f(few, "m0", scale=0.5)
    assert few.get("/models").json()["failures"] == []
