"""Calls of `project` and `score` with more pictures than one request takes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from ign_client._calls.project import project
from ign_client._split import Upload

from ign_client import AsyncClient, Client, InputError, InvalidContent, Limits, TooLarge
from tests.contract.harness import Service
from tests.helpers.pictures import noise, save
from tests.unit.sdk.asking import IMAGE, MODEL, TIMING, Ask, Canned

PICTURES = [save(noise(8, 8, seed=i)) for i in range(100)]


@pytest.mark.parametrize("options", [{}, {"mask": save(noise(8, 8, seed=7))}, {"masks": list(reversed(PICTURES))}])
def test_many_pictures_give_what_each_gives_alone(service: Service, ask: Ask, options: dict[str, Any]) -> None:
    found = ask(service.url, "project", PICTURES, record=[0, 1], **options)
    assert [image.index for image in found] == list(range(100))
    for i in (0, 63, 64, 99):
        own = {name: value[i] if name == "masks" else value for name, value in options.items()}
        alone = ask(service.url, "project", PICTURES[i], record=[0, 1], **{name.rstrip("s"): own[name] for name in own})
        assert found[i].bytes == alone[0].bytes
        assert [step.index for step in found[i].trajectory] == [i, i]
    assert found.timing.compute_ms > 0


def test_many_scores_are_in_order(service: Service, ask: Ask) -> None:
    found = ask(service.url, "score", PICTURES)
    assert [score.index for score in found] == list(range(100))
    assert found[99].distance == pytest.approx(ask(service.url, "score", PICTURES[99])[0].distance)


@pytest.mark.parametrize("method", ["project", "score"])
def test_an_error_names_the_picture_of_the_whole_call(service: Service, ask: Ask, method: str) -> None:
    for bad in (3, 70, 99):
        with pytest.raises(InvalidContent) as refused:
            ask(service.url, method, [*PICTURES[:bad], b"no picture", *PICTURES[bad + 1 :]])
        assert refused.value.code == "undecodable_image"
        assert refused.value.detail.startswith(f"images.{bad}: ")
        assert [error.field for error in refused.value.errors] in ([f"images.{bad}"], [])


def test_an_error_names_the_file(service: Service, ask: Ask, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(70)]
    for path, data in zip(files, PICTURES, strict=False):
        path.write_bytes(data)
    files[68].write_bytes(b"no picture")
    for some in (files, files[60:]):  # in several requests, and in one
        with pytest.raises(InvalidContent) as refused:
            ask(service.url, "project", some)
        assert f".{some.index(files[68])} ({files[68]}): " in refused.value.detail


def test_few_small_pictures_are_sent_without_asking_for_limits(ask: Ask) -> None:
    answer = {"model": MODEL, "request_id": "abc", "images": [], "timing": TIMING}
    to = Canned(httpx.Response(200, json=answer))
    ask(to, "score", PICTURES[:16])
    assert [request.url.path for request in to.asked] == ["/score"]


@pytest.mark.parametrize(("scale", "most"), [(1, 64), (4, 64), (8, 16), (16, 4), (32, 1), ("8", 64), (0, 64)])
def test_enlarged_pictures_are_sent_in_smaller_requests(scale: Any, most: int) -> None:
    upload = Upload(project, (PICTURES,), {"scale": scale})
    assert not upload.is_small
    limits = Limits(n=64, images=64, steps=1, frames=2, body_bytes=1 << 24, pixels=1)
    assert [part.offset for part in upload.parts(limits)] == list(range(0, 100, most))
    assert Upload(project, (PICTURES[:16],), {"scale": scale}).is_small == (most >= 16)


def test_any_number_of_enlarged_pictures(service: Service, ask: Ask) -> None:
    found = ask(service.url, "project", PICTURES[:20], scale=32)
    assert [(image.index, image.width, image.to_numpy().shape) for image in found] == [
        (i, 256, (256, 256)) for i in range(20)
    ]


class Small(httpx.MockTransport):
    """A service that takes little, and refuses every picture of more than a megabyte."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.asked_for_limits = 0
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/models":
            self.asked_for_limits += 1
            limits = {"n": 1, "images": 3, "steps": 1, "frames": 2, "body_bytes": 2_000_000, "pixels": 1}
            return httpx.Response(200, json={"models": [], "default": "toy/1", "limits": limits})
        body = request.read()
        self.sizes.append(len(body))
        if len(body) > 2_000_000:
            problem = {"code": "too_large", "detail": "the body is too large"}
            return httpx.Response(413, json=problem, headers={"Content-Type": "application/problem+json"})
        count = body.count(b'filename="image"') or len(json.loads(body)["images"])
        images = [{**IMAGE, "index": i, "inverted": False} for i in range(count)]
        return httpx.Response(200, json={"model": MODEL, "request_id": "abc", "images": images, "timing": TIMING})


@pytest.mark.parametrize(("size", "requests"), [(10, 7), (900_000, 10), (600_000, 7)])
def test_requests_keep_to_number_and_bytes(ask: Ask, size: int, requests: int) -> None:
    to = Small()
    found = ask(to, "project", [bytes(size)] * 20)
    assert [image.index for image in found] == list(range(20))
    assert (len(to.sizes), max(to.sizes) <= 2_000_000) == (requests, True)


def test_a_client_asks_for_the_limits_once() -> None:
    blocking, awaited = Small(), Small()
    with Client(transport=blocking) as client:
        for _ in range(2):
            client.project([b"x"] * 20)

    async def calls() -> None:
        async with AsyncClient(transport=awaited) as client:
            for _ in range(2):
                await client.project([b"x"] * 20)

    asyncio.run(calls())
    assert (blocking.asked_for_limits, awaited.asked_for_limits) == (1, 1)


def test_masks_count_as_bytes_too(ask: Ask) -> None:
    to = Small()
    ask(to, "project", [bytes(500_000)] * 20, masks=[bytes(500_000)] * 20)
    assert (len(to.sizes), max(to.sizes) <= 2_000_000) == (20, True)


def test_a_picture_that_is_too_large_alone_is_refused(ask: Ask) -> None:
    with pytest.raises(TooLarge):
        ask(Small(), "project", [bytes(3_000_000)] * 2)


def test_masks_must_be_as_many_as_pictures() -> None:
    def build(images: object, masks: object) -> Any:
        raise AssertionError

    limits = Limits(n=1, images=3, steps=1, frames=1, body_bytes=1 << 20, pixels=1)
    with pytest.raises(InputError, match="masks"):
        Upload(build, [PICTURES], {"masks": PICTURES[:2]}).parts(limits)
