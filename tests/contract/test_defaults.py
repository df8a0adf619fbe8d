"""What is left out is as if its default had been said, of requests and of settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.native.schemas import MAX_FRAMES, MAX_PICTURES
from service.settings import load_settings
from tests.contract.data import b64
from tests.contract.harness import Service
from tests.helpers.pictures import noise, save

# neither of the model's shape nor of its polarity
WIDE = b64(save(255 - np.pad(noise(6, 12, seed=1), 1)))
POINTS = [{"seed": 1, "index": 0}, {"seed": 2, "index": 5}]
PATH = {"points": POINTS}
TERMS = [{"seed": 1}, {"seed": 2}]

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "/generate",
        {"seed": 7},
        {"n": 1, "offset": 0, "steps": 2, "noise_scale": 1.0, "score": False, "format": "png"},
    ),
    ("/generate", {"seed": 7}, {"model": "grey/10", "tolerance": None, "record": None}),
    ("/generate", {"seed": 7}, {"scale": 1, "resample": "smooth"}),
    (
        "/project",
        {"images": [WIDE]},
        {"steps": 1, "strength": 1.0, "resize": "fit", "invert": "auto"},
    ),
    (
        "/project",
        {"images": [WIDE]},
        {"model": "grey", "score": False, "format": "png", "mask": None, "masks": None},
    ),
    (
        "/latent-interpolate",
        PATH,
        {"steps": 2, "frames": 9, "method": "slerp", "loop": False, "format": "png"},
    ),
    ("/latent-arithmetic", {"terms": TERMS}, {"steps": 2, "normalize": True, "format": "png"}),
    (
        "/latent-arithmetic",
        {"terms": TERMS},
        {"terms": [term | {"weight": 1.0, "index": 0} for term in TERMS]},
    ),
    ("/score", {"images": [WIDE]}, {"model": "grey", "resize": "fit", "invert": "auto"}),
]


@pytest.mark.parametrize(("path", "body", "defaults"), CASES)
def test_options(
    service: Service, path: str, body: dict[str, Any], defaults: dict[str, Any]
) -> None:
    assert service.images(path, body) == service.images(path, body | defaults)


def test_animations_have_twelve_frames_a_second(service: Service) -> None:
    options: tuple[dict[str, int], ...] = ({"fps": 12}, {"fps": 13}, {})
    said, other, silent = (
        service.post("/latent-interpolate", PATH | fps, accept="image/webp").content
        for fps in options
    )
    assert silent == said != other


SETTINGS: dict[str, object] = {
    "host": "127.0.0.1",
    "port": 8000,
    "model_dir": Path(__file__).parents[2] / "models",
    "default_model": "mnist",
    "device": "auto",
    "precision": "fp32",
    "workers": 0,
    "max_batch_rows": 64,
    "queue_rows": 4096,
    "api_keys_file": None,
    "trusted_proxies": (),
    "log_format": "text",
    "max_images": 64,
    "max_steps": 300_000,
    "max_body_bytes": 16 * 1024 * 1024,
    "max_pixels": 16_000_000,
    "max_request_pixels": 64_000_000,  # four times max_pixels
    "max_inflight_bytes": 512 * 1024 * 1024,
    "request_timeout_s": 30.0,
    "stream_timeout_s": 900.0,
    "receive_timeout_s": 15.0,
    "drain_delay_s": 0.0,
    "drain_s": 30.0,
    "rate_limit": None,
    "cors_origins": (),
}


def test_settings() -> None:
    found = load_settings({})
    assert {name: getattr(found, name) for name in SETTINGS} == SETTINGS
    assert (MAX_FRAMES, MAX_PICTURES) == (256, 1024)


def test_the_longest_side_there_may_be(service: Service) -> None:
    line = b64(save(np.zeros((1, 16_384), np.uint8)))
    assert len(service.images("/project", {"images": [line]})) == 1


def test_as_many_pictures_as_one_answer_may_hold(service: Service) -> None:
    found = service.images("/generate", {"n": 64, "steps": 16, "record": list(range(1, 17))})
    assert sum(len(image["trajectory"]) for image in found) == 1024
    body = {"images": [WIDE] * 64, "steps": 16}
    found = service.images("/project", body | {"record": list(range(16))})
    assert sum(len(image["trajectory"]) for image in found) == 1024
    assert service.post("/project", body | {"record": list(range(17))}).status_code == 422


def test_as_many_steps_as_may_be_recorded(service: Service) -> None:
    (image,) = service.images("/generate", {"steps": 100, "record": list(range(64))})
    assert [step["step"] for step in image["trajectory"]] == list(range(64))
    assert service.post("/generate", {"steps": 100, "record": list(range(65))}).status_code == 422
