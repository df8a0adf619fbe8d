"""What a request leaves behind is let go at once: the garbage collector comes seldom."""

import gc
from collections.abc import Callable

from tests.contract.data import b64
from tests.contract.harness import Service
from tests.helpers.pictures import noise, save

PNG = {"Content-Type": "image/png"}
PICTURE = save(noise(8, 8, seed=1), "PNG")


def of_a_request(found: object) -> bool:
    if isinstance(found, dict):
        return found.get("type") == "http"  # the scope
    return type(found).__module__.partition(".")[0] in (
        "fastapi",
        "service",
        "starlette",
        "uvicorn",
    )


JSON = {"Content-Type": "application/json"}
REQUESTS: list[Callable[[Service], object]] = [
    lambda service: service.post("/project", content=PICTURE, headers=PNG, accept="image/png"),
    # not on the event loop
    lambda service: service.post("/project", {"images": [b64(PICTURE)] * 9}),
    lambda service: service.post("/project", files=[("image", ("0.png", PICTURE, "image/png"))]),
    lambda service: service.post("/generate", {"n": 2}, accept="text/event-stream"),
    lambda service: service.post("/project", content=PICTURE[:40], headers=PNG),
    lambda service: service.post("/generate", {"n": "x"}),
    lambda service: service.post("/generate", {"model": "x"}),
    lambda service: service.post("/generate", content=b"{", headers=JSON),
    lambda service: service.get("/models"),
    lambda service: service.get("/nowhere"),
]


def test_requests_leave_no_cycles(service: Service) -> None:
    """A collection takes a second beside other tests, so there is one for all requests."""
    for ask in REQUESTS:  # what is made once is made
        ask(service)
    gc.collect()
    gc.freeze()  # the collection below then looks at new objects only
    gc.disable()
    try:
        for ask in REQUESTS:
            ask(service)
        service.get("/healthz")  # by the same connection: it has let go of the request before
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [found for found in gc.garbage if of_a_request(found)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()
