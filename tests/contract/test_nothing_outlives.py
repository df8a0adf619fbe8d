"""Nothing outlives its request: however one ends, its images are gone at once, also those in
reference cycles.

Garbage collection is off meanwhile. `tracemalloc` counts bytes and the arrays of NumPy; Pillow's
images are counted.
"""

import gc
import logging
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.load_generator.messages import JSON, post, upload
from tests.contract.any_size import INFER, TILE, WAYS, ask, asking, form, in_json, png, write_tiles
from tests.contract.data import b64
from tests.contract.harness import PATIENCE_S, Gate, Service, busy_codec, gated, settings
from tests.helpers.onnx_models import write_model

RECORDED = "/project, recorded stream"
SIZE = (TILE + 1, 8 * TILE)
STILL = (1, 128, 128)  # of a model that takes one size
# of what is counted: images, their files and bodies; what is smaller may stay in a cache
BLOCK_BYTES = 1 << 14
LEFT_BYTES = 1 << 16  # half of an image
CLOSED_BYTES = 3 << 19  # a closed model keeps the batches that it had
LOOKS = 10  # on a busy machine, a worker may not have dropped its batch at the first one
BROKEN = png(SIZE)[:60]
FILES = [png(SIZE)] * 8
POINTS = [{"seed": 1}, {"image": b64(png(STILL[1:]))}]
WALK = {"model": "still", "points": POINTS, "frames": 9}
WAYS_OF_TILES = (
    "/project, JSON, text/event-stream",
    RECORDED,
    "/score, JSON, application/json",
    "/v1/images/edits",
)
REQUESTS = {
    **{name: WAYS[name](SIZE, 8) for name in WAYS_OF_TILES},
    **{
        name: WAYS[name](SIZE, 3)
        for name in (f"/generate, {JSON}", f"{INFER}, JSON", f"{INFER}, binary")
    },
    "/project, raw": upload("/project?steps=2", png((8 * TILE, 8 * TILE))),
    "/project, form with a mask": form("/project", "image/png", ("mask", png(SIZE)))(FILES),
    "/latent-interpolate": post("/latent-interpolate", WALK, "image/webp"),
    "/latent-arithmetic": post(
        "/latent-arithmetic", {"model": "still", "terms": POINTS, "scale": 16}
    ),
    "/generate of one size": post("/generate", {"model": "still", "n": 9}),
    "/project to one size": in_json("/project", JSON, model="still")(FILES),
}
LITTLE = [post("/generate", {"model": name, "n": 1}) for name in ("tiles", "still")]
"""After these no model runs for another request, and none holds rows of one."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiles(tmp_path_factory.mktemp("models"))
    write_model(folder, "still", "1", STILL)
    return folder


End = Callable[[Service, Gate, bytes], None]
"""Lets a request end in one way."""


def answer(service: Service, _: Gate, data: bytes) -> None:
    assert ask(service, data) == 200


def refuse(service: Service, _: Gate, data: bytes) -> None:
    assert ask(service, in_json("/project", JSON)([*FILES, BROKEN])) == 422


def miss_the_deadline(service: Service, gate: Gate, data: bytes) -> None:
    # 200: a stream has begun; 429: on a busy machine the deadline is too early to begin.
    with gate:
        assert ask(service, data, X_Request_Timeout="0.2") in (200, 429, 504)


def leave(service: Service, gate: Gate, data: bytes) -> None:
    with gate, asking(service, data) as connection:
        assert gate.entered.wait(PATIENCE_S)
        connection.close()
        service.until_idle()


def fail(service: Service, gate: Gate, data: bytes) -> None:
    gate.fails = True
    assert ask(service, data) in (200, 500)
    gate.fails = False


def drain(service: Service, gate: Gate, data: bytes) -> None:
    with gate, asking(service, data):
        assert gate.entered.wait(PATIENCE_S)
        for model in service.services.registry.models.values():
            model.close(0.0)
        service.until_idle()


@pytest.fixture(scope="module")
def pictures() -> Iterator[list[weakref.ref[Image.Image]]]:
    """The images of Pillow that are made from now on. What there is already is left out of
    collections.
    """
    found: list[weakref.ref[Image.Image]] = []
    make = Image.Image.__init__

    def made(image: Image.Image) -> None:
        make(image)
        found.append(weakref.ref(image))

    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "__init__", made)
        yield found
    gc.unfreeze()


@contextmanager
def without_collection() -> Iterator[None]:
    """No collection, and no log: a record of a failure holds the frames of its traceback."""
    gc.collect()
    gc.disable()
    logging.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
        gc.enable()


def held(service: Service) -> int:
    """Bytes of blocks when no request is in flight, and no job and no model runs."""
    service.until_idle()
    for data in LITTLE:
        assert ask(service, data) in (200, 503)
    with busy_codec(service):
        pass
    blocks = (trace.size for trace in tracemalloc.take_snapshot().traces)
    return sum(size for size in blocks if size >= BLOCK_BYTES)


# Each service misses one deadline: a pass that was held up makes a later one unreachable.
ENDS: Sequence[End] = (answer, refuse, miss_the_deadline, leave, fail, drain)
CASES = {name: (name, ENDS) for name in REQUESTS} | {
    RECORDED: (RECORDED, (answer, leave, fail, drain)),
    f"{RECORDED}, too long": (RECORDED, (miss_the_deadline,)),
}


@pytest.mark.parametrize(("name", "ends"), CASES.values(), ids=CASES)
def test_images_are_gone_when_their_request_has_ended(
    name: str,
    ends: Sequence[End],
    models: Path,
    pictures: list[weakref.ref[Image.Image]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.server.protocol.LINGER_S", 0.01)  # of who closes a connection
    data = REQUESTS[name]
    stream_s = 300.0 if answer in ends else 1.0
    chosen = settings(
        models, default_model="tiles", request_timeout_s=300.0, stream_timeout_s=stream_s
    )
    with gated(monkeypatch, chosen) as (service, gate):
        ask(service, data)  # what is loaded with the first request stays
        with without_collection():
            for end in ends:
                most = held(service) + (CLOSED_BYTES if end is drain else LEFT_BYTES)
                pictures.clear()
                end(service, gate, data)
                for _ in range(LOOKS):
                    after = held(service)
                    left = [image for image in pictures if image() is not None]
                    if after < most and not left:
                        break
                assert not left, end.__name__
                assert after < most, end.__name__
            assert sum(rows() is not None for rows in gate.rows) <= len(LITTLE)
