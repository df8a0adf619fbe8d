"""The event loop belongs to everybody: whatever one caller sends, it must not be held up for the
others.
"""

import struct
import zlib
from collections.abc import Iterator

import pytest

from benchmarks.load_generator.messages import post, upload
from tests.contract.any_size import ask
from tests.contract.harness import Service, serving, settings, write_models
from tests.contract.test_shapes import ask_quickly
from tests.helpers import watchdog
from tests.helpers.pictures import chunk

MIB = 1 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = write_models(tmp_path_factory.mktemp("models"))
    with serving(settings(models), loop="asyncio") as service:
        yield service


def two_headers() -> bytes:
    """A PNG of 2 KB that promises 8×8 pixels first and 4000×4000 then."""
    small, large = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) for side in (8, 4000)
    )
    pixels = chunk(b"IDAT", zlib.compress(bytes(4001 * 4000), 9))
    data = b"\x89PNG\r\n\x1a\n" + small + large + pixels + chunk(b"IEND")
    assert len(data) < 1 << 15
    return data


WALK = {"points": [{"seed": i} for i in range(16)], "frames": 256}
ENLARGED = {"n": 64, "scale": 24, "resample": "smooth"}
REQUESTS = {
    "64 colour pictures": post("/generate", {"n": 64, "model": "colour"}),
    "a sheet of enlarged pictures": post("/generate", ENLARGED, "image/png"),
    "1024 recorded pictures": post("/generate", {"n": 64, "steps": 16, "record": [*range(1, 17)]}),
    "an animation": post("/latent-interpolate", WALK, "image/webp"),
    "a megabyte of mistakes": post("/project", {"images": ["A" * 4] * (MIB // 8)}),
    "a PNG with two headers": upload("/project", two_headers()),
    "a repository call of 1700 members": post(
        "/v2/repository/index", {f"{number}": 0 for number in range(1700)}
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_no_request_holds_the_event_loop_up(
    name: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LIMIT_S", 0.01)
    ask(service, REQUESTS[name])  # the first one may import modules
    ask_quickly(service, REQUESTS[name])
