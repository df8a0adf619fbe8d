"""The event loop belongs to everybody: whatever one caller sends, it must not be held up for the
others.
"""

import struct
import zlib
from collections.abc import Callable, Iterator

import pytest

from tests.contract.harness import Service, serving, settings, write_models
from tests.helpers import watchdog
from tests.helpers.pictures import chunk

MIB = 1 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = write_models(tmp_path_factory.mktemp("models"))
    with serving(settings(models), loop="asyncio") as service:
        yield service


def latents() -> Callable[[Service], object]:
    points = [{"seed": i} for i in range(16)]
    return lambda service: service.post(
        "/latent-interpolate", {"points": points, "frames": 256}, accept="image/webp"
    )


def broken() -> Callable[[Service], object]:
    return lambda service: service.post("/project", {"images": ["A" * 4] * (MIB // 8)})


def two_headers() -> Callable[[Service], object]:
    """A PNG of 2 KB that promises 8×8 pixels first and 4000×4000 then."""
    small, large = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) for side in (8, 4000)
    )
    pixels = chunk(b"IDAT", zlib.compress(bytes(4001 * 4000), 9))
    data = b"\x89PNG\r\n\x1a\n" + small + large + pixels + chunk(b"IEND")
    assert len(data) < 1 << 15
    return lambda service: service.post(
        "/project", content=data, headers={"Content-Type": "image/png"}
    )


def repository_call() -> Callable[[Service], object]:
    body = b"{" + b",".join(b'"%d":0' % number for number in range(1700)) + b"}"
    assert len(body) < 1 << 14
    return lambda service: service.post("/v2/repository/index", content=body)


ENLARGED = {"n": 64, "scale": 24, "resample": "smooth"}
REQUESTS: dict[str, Callable[[Service], object]] = {
    "64 colour pictures": lambda service: service.post("/generate", {"n": 64, "model": "colour"}),
    "a sheet of enlarged pictures": lambda service: service.post(
        "/generate", ENLARGED, accept="image/png"
    ),
    "1024 recorded pictures": lambda service: service.post(
        "/generate", {"n": 64, "steps": 16, "record": list(range(1, 17))}
    ),
    "an animation": latents(),
    "a megabyte of mistakes": broken(),
    "a PNG with two headers": two_headers(),
    "a repository call of 1700 members": repository_call(),
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_no_request_holds_the_event_loop_up(
    request_name: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LIMIT_S", 0.01)
    REQUESTS[request_name](service)  # the first one may import modules
    # what the service does is slow each time, unlike what others do on the same core
    for _ in range(3):
        watchdog.slow.clear()
        REQUESTS[request_name](service)
        service.get("/healthz")  # the callback that answered has ended, and been timed
        if not watchdog.slow:
            break
