"""Deadlines, a full queue, callers that leave, loading and draining."""

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.artifact.card import Tiles
from service.images.decode import EncodedImage, Picture
from tests.contract.data import CALLS, PICTURE, b64, latents
from tests.contract.harness import (
    LIMIT_S,
    PATIENCE_S,
    Service,
    busy_codec,
    gated,
    held,
    later,
    problem,
    serving,
    settings,
)
from tests.contract.oip import INFER, as_json
from tests.helpers.connection import Connection
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import chunk, noise, save

JPEG = save(noise(8, 8, seed=1), "JPEG")  # decoded in the codec pool
BODY = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
)
SMALL = {"queue_rows": 4, "max_images": 4, "max_batch_rows": 1}
Patch = pytest.MonkeyPatch


CALLS_TO_REFUSE: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {}),
    (INFER, as_json(latents(1), parameters={"timeout": 3_000_000})),
    *((path, {"images": [b64(JPEG)]}) for path, body in CALLS.items() if "images" in body),
    ("/latent-interpolate", {**CALLS["/latent-interpolate"], "frames": 2}),
    ("/latent-arithmetic", {"terms": [{"image": b64(JPEG), "weight": 1.0}]}),
]


def test_a_full_queue_is_429(models: Path, monkeypatch: Patch) -> None:
    """Nothing of what it refuses is decoded."""
    decoded: list[str] = []
    decode_image = EncodedImage.decode

    def decode(image: EncodedImage) -> Picture:
        decoded.append(image.field)
        return decode_image(image)

    monkeypatch.setattr(EncodedImage, "decode", decode)
    with (
        held(monkeypatch, settings(models, **SMALL)) as (service, gate),
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = later(service, pool, {"seed": 1, "n": 4})
        service.until_queued(4)
        for path, body in CALLS_TO_REFUSE:
            response = service.post(path, body)
            problem(response, 429, "queue_full")
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert "X-Should-Retry" not in response.headers
        assert service.get("/readyz").status_code == 200
        refused = service.metric("ign_rejected_requests_total", reason="queue_full")
        assert refused == len(CALLS_TO_REFUSE)
        gate.opened.set()
        assert waiting().status_code == 200
        assert decoded == []
        for path, body in CALLS_TO_REFUSE:
            assert service.post(path, body).status_code == 200
        assert len(decoded) == str(CALLS_TO_REFUSE).count(b64(JPEG))


def test_a_missed_deadline_is_504_and_its_rows_never_run(models: Path, monkeypatch: Patch) -> None:
    with held(monkeypatch, settings(models, max_batch_rows=1), loop="asyncio") as (service, gate):
        headers = {"X-Request-Timeout": f"{LIMIT_S}"}
        response = service.overdue(
            lambda: service.post("/generate", {"n": 8}, headers=headers),
            lambda: service.until_queued(8),
        )
        problem(response, 504, "deadline_exceeded")
        gate.opened.set()
        assert service.post("/generate", {"steps": 1}).status_code == 200
        assert len(gate.sizes) == 2


def test_the_operators_timeout_is_default_and_maximum(models: Path, monkeypatch: Patch) -> None:
    chosen = settings(models, max_batch_rows=1, request_timeout_s=LIMIT_S)
    with gated(monkeypatch, chosen, loop="asyncio") as (service, gate), gate:
        for headers, begun in (
            ({}, lambda: gate.entered.wait(PATIENCE_S)),
            ({"X-Request-Timeout": f"{2 * LIMIT_S}"}, lambda: service.until_queued(1)),
        ):
            response = service.overdue(
                partial(service.post, "/generate", {}, headers=headers), begun
            )
            problem(response, 504, "deadline_exceeded")


def test_a_deadline_in_doubt_is_429(models: Path, monkeypatch: Patch) -> None:
    # The deadline has room for a machine on which a pass takes many times as long as the gate makes
    # it.
    seconds = {"X-Request-Timeout": "200"}
    patient = settings(models, max_batch_rows=1, request_timeout_s=3600.0)
    with gated(monkeypatch, patient) as (service, gate), ThreadPoolExecutor(1) as pool:
        gate.pass_s = 0.1
        # it learns what a pass costs
        assert service.post("/generate", {"steps": 10}).status_code == 200
        running = later(service, pool, {"n": 64, "steps": 50})
        service.until(lambda: service.metric("ign_queue_rows") > 0)
        response = service.post("/generate", {"steps": 50}, headers=seconds)  # alone: 5 s
        problem(response, 429, "would_miss_deadline")  # behind 64 × 50 passes: 320 s
        assert int(response.headers["Retry-After"]) >= 1
        # alone: 320 s
        response = service.post("/generate", {"n": 64, "steps": 50}, headers=seconds)
        problem(response, 504, "deadline_unreachable")
        assert response.headers["X-Should-Retry"] == "false"
        assert "Retry-After" not in response.headers
        gate.pass_s = 0.0
        assert running().status_code == 200


def test_a_deadline_covers_the_body(service: Service) -> None:
    with Connection(service.address).send(BODY + b"X-Request-Timeout: 0.1\r\n\r\n{") as connection:
        status, _, body = connection.answer()
    assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")


def test_a_slow_body_is_408(models: Path) -> None:
    with serving(settings(models, receive_timeout_s=0.1)) as service:
        with Connection(service.address).send(BODY + b"\r\n{") as connection:
            status, headers, body = connection.answer()
            assert connection.is_over()
        assert (status, json.loads(body)["code"], headers["connection"]) == (
            408,
            "body_too_slow",
            "close",
        )


def test_small_images_need_no_thread_of_the_codec_pool(models: Path) -> None:
    with serving(settings(models)) as service, busy_codec(service):
        assert service.post("/project", {"images": [b64(PICTURE)]}).status_code == 200
        assert service.post("/generate", {"n": 64, "steps": 1}).status_code == 200


# the server stops reading while a request has so much to read
@pytest.mark.parametrize("spaces", [0, 200_000])
def test_rows_of_a_client_that_left_never_run(
    models: Path, monkeypatch: Patch, spaces: int
) -> None:
    monkeypatch.setattr("service.server.protocol.LINGER_S", 0.01)
    head = BODY.replace(b": 2", b": %d" % (17 + spaces))
    body = b'{"n":7,"steps":1' + b" " * spaces + b"}"
    with held(monkeypatch, settings(models, max_batch_rows=1)) as (service, gate):
        with Connection(service.address).send(head + b"\r\n" + body[:1]) as connection:
            service.until_in_flight(2)
            connection.send(body[1:])
            service.until_queued(7)
        service.until_metric("ign_cancelled_rows_total", 7.0, model="grey/10")
        service.until_metric("ign_requests_total", 1.0, endpoint="/generate", status="4xx")  # 499
        gate.opened.set()
        assert service.post("/generate", {"steps": 1}).status_code == 200
        assert gate.sizes == [1, 1]


def test_while_loading_it_answers_503(models: Path, monkeypatch: Patch) -> None:
    with gated(monkeypatch, settings(models), ready=False) as (service, gate):
        assert service.get("/healthz").status_code == 200
        assert service.metric("ign_ready") == 0
        assert service.get("/docs").status_code == 200
        paths = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
        assert [service.client.head(path).status_code for path in paths] == [200, 503, 200, 503]
        asked = (
            "/readyz",
            "/models",
            "/models/grey",
            "/v2/health/ready",
            "/v2/models/grey/ready",
            "/v2/models/stats",
        )
        gets = [service.get(path) for path in asked]
        for response in (
            *gets,
            *(service.post(path, {}) for path in (*CALLS, INFER, "/v2/repository/index")),
        ):
            assert "loaded" in problem(response, 503, "not_ready").detail
            assert int(response.headers["Retry-After"]) >= 1
        gate.opened.set()
        service.until(lambda: service.get("/readyz").status_code == 200)
        assert service.metric("ign_ready") == 1
        assert service.post("/generate", {}).status_code == 200


def test_while_draining_new_requests_are_503_and_old_ones_finish(
    models: Path, monkeypatch: Patch
) -> None:
    with held(monkeypatch, settings(models)) as (service, _):
        service.services.in_flight.draining = True
        for response in (
            service.post("/generate", {}),
            service.get("/readyz"),
            service.get("/models"),
        ):
            problem(response, 503, "draining")
            assert int(response.headers["Retry-After"]) >= 1
        assert service.get("/healthz").status_code == 200
        assert service.metric("ign_ready") == 0


def test_only_requests_for_a_model_without_device_are_refused(
    models: Path, monkeypatch: Patch
) -> None:
    with serving(settings(models)) as service:
        scheduler = service.services.registry.models["grey/10"].scheduler
        monkeypatch.setattr(scheduler, "device_error", "CUDA failure 700")
        monkeypatch.setattr(
            type(scheduler), "healthy", property(lambda self: self is not scheduler)
        )
        for path in ("/readyz", "/v2/health/ready"):
            assert "of grey/10 is lost" in problem(service.get(path), 503, "not_ready").detail
        problem(service.get("/v2/models/grey/versions/10/ready"), 503, "not_ready")
        assert service.get("/v2/models/grey/versions/2/ready").status_code == 200
        problem(service.post("/generate", {}), 503, "not_ready")
        problem(service.post("/generate", {"model": "grey/10"}), 503, "not_ready")
        for other in ("grey/2", "colour"):
            assert service.post("/generate", {"model": other}).status_code == 200
        assert service.get("/models").status_code == 200
        assert service.metric("ign_ready") == 0
        monkeypatch.undo()
        assert service.get("/readyz").status_code == 200
        assert service.post("/generate", {}).status_code == 200


def test_a_model_that_fails_is_500_and_stays_up(models: Path, monkeypatch: Patch) -> None:
    with gated(monkeypatch, settings(models)) as (service, gate):
        gate.fails = True
        response = service.post("/generate", {"n": 2})
        found = problem(response, 500, "model_failure")
        assert "secret" not in response.text
        assert found.request_id in service.errors[0].getMessage()
        service.errors.clear()
        gate.fails = False
        assert service.post("/generate", {"n": 2}).status_code == 200


def test_the_operators_limits(models: Path) -> None:
    limits = {
        "max_images": 3,
        "max_steps": 10,
        "max_body_bytes": 6000,
        "max_pixels": 100,
        "queue_rows": 8,
    }
    with serving(settings(models, **limits)) as service:
        shown = service.get("/models").json()["limits"]
        assert shown == {
            "n": 3,
            "images": 3,
            "steps": 10,
            "frames": 256,
            "body_bytes": 6000,
            "pixels": 100,
        }
        assert service.post("/generate", {"n": 3, "steps": 10}).status_code == 200
        whole = as_json(latents(1, n=3), parameters={"steps": 10})
        assert service.post(INFER, whole).status_code == 200
        problem(service.post("/generate", {"n": 4, "steps": 11}), 422, "invalid_value", "n")
        problem(service.post("/generate", {"steps": 11}), 422, "invalid_value", "steps")
        images = [b64(PICTURE)] * 4
        problem(service.post("/project", {"images": images}), 422, "invalid_value", "images")
        big = b64(save(noise(10, 11)))
        problem(service.post("/project", {"images": [big]}), 413, "image_too_large", "images.0")
        for beyond in (as_json(latents(1, n=4)), as_json(latents(1), parameters={"steps": 11})):
            problem(service.post(INFER, beyond), 400, "invalid_inference")
        assert service.get("/v2/models/grey/config").json()["max_batch_size"] == 3


def test_an_image_of_any_size_may_have_more_pixels_and_the_error_says_what_to_do(
    tmp_path: Path,
) -> None:
    """The pixels of the pictures are missing, so that one within the limit is soon refused."""
    write_model(tmp_path, "grey")
    write_model(
        tmp_path, "pages", shape=(1, 32, 32), polarity="none", imported=True, tiles=Tiles(overlap=1)
    )
    with serving(settings(tmp_path)) as service:
        for model, limit, width, code in (
            ("grey", "16", 4961, "image_too_large"),
            ("pages", "40", 8064, "image_too_large"),
            ("pages", "", 4961, "undecodable_image"),
        ):
            head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 7016, 8, 0, 0, 0, 0))
            body = {"images": [b64(PICTURE[:8] + head + chunk(b"IDAT", b"x"))], "model": model}
            response = service.post("/project", body)
            detail = problem(response, 413 if limit else 422, code, "images.0").detail
            assert f"7016 pixels, at most {limit} million" in detail or not limit


def test_bodies_beyond_the_limit_are_413(models: Path) -> None:
    long = b'{"model": "%s"}' % (b"x" * 4000)
    with serving(settings(models, max_body_bytes=4000)) as service:
        pieces = (long[i : i + 500] for i in range(0, len(long), 500))  # without a Content-Length
        for path, kind, content in (
            ("/generate", "application/json", long),
            ("/generate", "application/json", pieces),
            (INFER, "application/json", long),
            ("/project", "multipart/form-data; boundary=x", b"--x\r\n" + long),
            ("/project", "image/png", long),
        ):
            headers = {"Content-Type": kind}
            response = service.post(path, content=content, headers=headers)
            problem(response, 413, "too_large")
        assert service.post("/generate", {}).status_code == 200
