"""What one hostile body may cost: the work of a request ends with it, and its size is bounded
before it is decoded.
"""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain.latents import FloatRows
from service.images.decode import EncodedImage, Picture
from service.runtime.onnx_model import OnnxModel
from tests.contract.data import CALLS, GREY, b64, latents, npy
from tests.contract.harness import (
    LIMIT_S,
    PATIENCE_S,
    Service,
    busy_codec,
    problem,
    send,
    serving,
    settings,
)
from tests.contract.oip import INFER, as_binary, infer
from tests.contract.test_fairness import newcomer
from tests.helpers.connection import Connection
from tests.helpers.pictures import noise, save

JPEG = save(noise(8, 8, seed=1), "JPEG")  # decoded in the codec pool
FIELDS = ("image", ("x.jpg", JPEG, "image/jpeg"))
SMALL = save(noise(10, 10, seed=1))
Patch = pytest.MonkeyPatch
Body = dict[str, Any]

MANY_PICTURES: list[tuple[str, Body]] = [
    ("/project", {"files": [FIELDS] * 8}),
    ("/score", {"json": {"images": [b64(JPEG)] * 8}}),
    ("/latent-interpolate", {"json": {"points": [{"image": b64(JPEG)}] * 8}}),
    ("/latent-arithmetic", {"json": {"terms": [{"image": b64(JPEG)}] * 8}}),
]


DECODE = EncodedImage.decode


class Decoder:
    """Stands in for `EncodedImage.decode`; the first call waits until it is let go."""

    def __init__(self) -> None:
        self.entered, self.free = threading.Event(), threading.Event()
        self.calls = 0

    def wait(self) -> None:
        """Until the first call."""
        assert self.entered.wait(PATIENCE_S)

    def __call__(self, image: EncodedImage) -> Picture:
        self.calls += 1
        self.entered.set()
        assert self.free.wait(PATIENCE_S)
        return DECODE(image)


@pytest.mark.parametrize(("path", "body"), MANY_PICTURES, ids=[path for path, _ in MANY_PICTURES])
def test_after_the_deadline_no_further_picture_is_decoded(
    path: str, body: Body, models: Path, monkeypatch: Patch
) -> None:
    decoder = Decoder()
    monkeypatch.setattr(EncodedImage, "decode", lambda *each: decoder(*each))
    with serving(settings(models, request_timeout_s=LIMIT_S), loop="asyncio") as service:
        response = service.overdue(lambda: service.post(path, **body), decoder.wait)
        problem(response, 504, "deadline_exceeded")
        decoder.free.set()
        with busy_codec(service):  # when it has every thread, no other job runs
            assert decoder.calls == 1
        assert service.post(path, **body).status_code == 200


def test_after_a_disconnect_no_further_picture_is_decoded(models: Path, monkeypatch: Patch) -> None:
    decoder = Decoder()
    monkeypatch.setattr(EncodedImage, "decode", lambda *each: decoder(*each))
    monkeypatch.setattr("service.server.protocol.LINGER_S", 0.01)
    content = json.dumps({"images": [b64(JPEG)] * 8}).encode()
    head = (
        b"POST /project HTTP/1.1\r\nHost: x\r\nContent-Type: "
        b"application/json\r\nContent-Length: %d\r\n\r\n"
    )
    with serving(settings(models)) as service:
        with Connection(service.address).send(head % len(content) + content):
            decoder.wait()
            assert service.metric("ign_requests_in_flight") == 1
        service.until_in_flight(0)
        decoder.free.set()
        with busy_codec(service):
            assert decoder.calls == 1


def test_pixels_are_bounded_for_each_request(models: Path, monkeypatch: Patch) -> None:
    decoded: list[str] = []

    def decode(image: EncodedImage) -> Picture:
        decoded.append(image.field)
        return DECODE(image)

    monkeypatch.setattr(EncodedImage, "decode", decode)
    one = b64(SMALL)  # 100 pixels
    with serving(settings(models, max_pixels=100)) as service:
        files = [("image", ("x.png", SMALL, "image/png"))]
        for path, body, field in (
            ("/project", {"json": {"images": [one] * 5}}, "images.4"),
            ("/project", {"files": files * 5}, "image.4"),
            ("/project", {"json": {"images": [one] * 4, "mask": one}}, "mask"),
            ("/project", {"json": {"images": [one] * 3, "masks": [one] * 3}}, "masks.1"),
            ("/score", {"json": {"images": [one] * 5}}, "images.4"),
            ("/latent-interpolate", {"json": {"points": [{"image": one}] * 5}}, "points.4.image"),
            ("/latent-arithmetic", {"json": {"terms": [{"image": one}] * 5}}, "terms.4.image"),
        ):
            problem(service.post(path, **body), 413, "image_too_large", field)
        assert decoded == []
        assert service.post("/project", {"images": [one] * 4}).status_code == 200
        assert service.post("/project", {"images": [one] * 3, "mask": one}).status_code == 200
        points = [{"image": one}] * 4 + [{"seed": 1}] * 3 + [{"latent": b64(npy(latents(1)[0]))}]
        assert service.post("/latent-interpolate", {"points": points}).status_code == 200
        small = [b64(save(noise(4, 4)))] * 20  # 320 pixels
        assert service.post("/project", {"images": small}).status_code == 200
        broken = [one] * 4 + [b64(b"no picture")]
        problem(service.post("/project", {"images": broken}), 422, "undecodable_image", "images.4")


def test_bytes_in_flight_are_bounded(models: Path) -> None:
    limits = {"max_body_bytes": 60_000, "max_inflight_bytes": 100_000}
    head = (
        b"POST /project HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: "
        b"60000\r\n\r\n"
    )
    with serving(settings(models, **limits)) as service:
        held = service.services.in_flight
        with Connection(service.address).send(head + b"\0" * 50_000):
            service.until_bytes(lambda size: size > 45_000)  # the last 4 KiB may not count
            for content in (b"\0" * 60_000, (b"\0" * 6_000 for _ in range(10))):
                response = service.post(
                    "/project", content=content, headers={"Content-Type": "image/png"}
                )
                problem(response, 429, "over_share")
                assert int(response.headers["Retry-After"]) >= 1
            assert 45_000 < held.bytes.total <= 50_000
            with newcomer(service) as client:
                kind = {"Content-Type": "image/png"}
                response = client.post("/project", content=b"\0" * 60_000, headers=kind)
                problem(response, 422, "undecodable_image", "body")
            assert service.metric("ign_http_errors_total", code="over_share") == 2
            problem(
                send(service, "/project", b"\0" * 40_000, "image/png"),
                422,
                "undecodable_image",
                "body",
            )
            assert service.post("/generate", {}).status_code == 200
        service.until_bytes(lambda size: size == 0)
    with serving(settings(models, max_body_bytes=60_000, max_inflight_bytes=60_000)) as service:
        # the largest body fits if nothing else is in flight, and leaves nothing behind
        for _ in range(3):
            problem(
                send(service, "/project", b"\0" * 60_000, "image/png"),
                422,
                "undecodable_image",
                "body",
            )
            problem(send(service, INFER, b"\0" * 60_000), 400, "malformed")
            problem(send(service, "/generate", b"\0" * 60_001), 413, "too_large")


REPOSITORY = [
    "/v2/repository/index",
    "/v2/repository/models/grey/load",
    "/v2/repository/models/colour/unload",
]


@pytest.mark.parametrize("path", REPOSITORY)
def test_repository_calls_have_small_bodies(service: Service, path: str) -> None:
    long = b'{"points":[' + b",".join([b"{}"] * 30_000) + b"]}"
    problem(send(service, path, long), 413, "too_large")
    problem(send(service, path, long[:15_000]), 400, "malformed")
    problem(send(service, path, b'{"a": 1}'), 400, "invalid_inference")


MIB_OF_VALUES = {
    "objects": b'{"images":[' + b",".join([b"{}"] * 1_000_000) + b"]}",
    "arrays": b'{"images":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "numbers": b'{"images":[' + b",".join([b"0"] * 1_000_000) + b"]}",
    "strings": b'{"images":[' + b",".join([b'""'] * 1_000_000) + b"]}",
    "members": b"{" + b",".join([b'"%d":0' % i for i in range(300_000)]) + b"}",
}


@pytest.mark.parametrize("name", MIB_OF_VALUES)
def test_values_of_a_json_body_are_bounded(service: Service, name: str) -> None:
    body = MIB_OF_VALUES[name]
    for path in CALLS:
        problem(send(service, path, body), 422, "invalid_value", "body")
    found = problem(send(service, INFER, body), 400, "invalid_inference")
    assert found.detail.startswith("body: ")


def test_the_largest_nested_inference_passes(models: Path) -> None:
    # 264 000 values with their arrays; other bodies have at most 200 000
    rows = np.zeros((1200, 3, 8, 8), np.float32)
    body = {
        "inputs": [
            {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.tolist()}
        ]
    }
    with serving(settings(models, max_images=1200)) as service:
        assert service.post("/v2/models/colour/infer", body).status_code == 200


class Overflowing(OnnxModel):
    """Overflows from large values, as a model of half precision does."""

    def run(self, rows: FloatRows) -> FloatRows:
        y = super().run(rows)
        y[np.abs(rows) > 1e4] = np.inf
        return y


def test_rows_whose_first_step_overflows_are_the_callers_fault(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.OnnxModel", Overflowing)
    rows = np.full((1, *GREY), 1e5, np.float32)
    with serving(settings(models)) as service:
        points = [{"latent": b64(npy(rows[0]))}, {"seed": 1}]
        problem(service.post("/latent-interpolate", {"points": points}), 422, "invalid_value")
        problem(infer(service, *as_binary(rows)), 400, "invalid_inference")
        assert service.post("/generate", {}).status_code == 200
        assert service.metric("ign_scheduled_requests_total", outcome="model_failure") == 0
        assert service.errors == []
