"""Calls with more images than one request takes."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from ign_client import AsyncClient, Client, InvalidContent
from tests.contract.harness import Service
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import Ask, answer, limited, problem

PICTURES = [save(noise(8, 8, seed=i)) for i in range(100)]


@pytest.mark.parametrize(
    "options", [{"mask": save(noise(8, 8, seed=7))}, {"masks": PICTURES[::-1]}]
)
def test_many_images_give_what_each_gives_alone(
    service: Service, ask: Ask, options: dict[str, Any]
) -> None:
    found = ask(service.url, "project", PICTURES, record=[0, 1], **options)
    assert [image.index for image in found] == list(range(100))
    for i in (0, 63, 64, 99):
        own = {
            name: value[i : i + 1] if name == "masks" else value for name, value in options.items()
        }
        assert found[i].bytes == ask(service.url, "project", PICTURES[i], **own)[0].bytes
        assert [step.index for step in found[i].trajectory] == [i, i]
    scores = ask(service.url, "score", PICTURES)
    assert [score.index for score in scores] == list(range(100))


def test_every_page_of_a_tiff_is_an_image(service: Service, ask: Ask) -> None:
    pages = [Image.fromarray(noise(8, 8, seed=i)) for i in range(1, 4)]
    scan = save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    found = ask(service.url, "project", [PICTURES[0], scan, PICTURES[0], scan])
    assert [image.index for image in found] == list(range(8))
    assert [image.bytes for image in found] == [
        image.bytes for image in ask(service.url, "project", PICTURES[:4])
    ] * 2
    *_, done = ask(service.url, "stream_project", scan)
    assert len(done.answer) == len(ask(service.url, "score", scan)) == 3


@pytest.mark.parametrize("options", [{"n": 150}, {"seed": "Ada", "n": 70, "offset": 5}])
def test_any_number_of_generated_images(
    service: Service, ask: Ask, options: dict[str, Any]
) -> None:
    start = options.get("offset", 0)
    found = ask(service.url, "generate", record=[0], **options)
    for indices in (
        [image.index for image in found],
        [image.trajectory[0].index for image in found],
    ):
        assert indices == list(range(start, start + options["n"]))
    last = ask(
        service.url, "generate", **options | {"n": 1, "seed": found.seed, "offset": found[-1].index}
    )
    assert last[0].bytes == found[-1].bytes


@pytest.mark.parametrize("method", ["project", "score"])
# in one request, and in several
@pytest.mark.parametrize(("bad", "count"), [(3, 10), (3, 100), (99, 100)])
def test_an_error_names_the_image_of_the_whole_call_and_its_file(
    service: Service, ask: Ask, method: str, bad: int, count: int, tmp_path: Path
) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(b"no image")
    images: list[Any] = [*PICTURES[:bad], file, *PICTURES[bad + 1 : count]]
    with pytest.raises(InvalidContent, match=re.escape(f"images.{bad} ({file}): ")) as rejected:
        ask(service.url, method, images)
    assert [error.field for error in rejected.value.errors] in ([f"images.{bad}"], [])
    if method == "project":
        with pytest.raises(InvalidContent, match=rf"masks\.{bad}: "):
            ask(service.url, method, PICTURES[:count], masks=images)


class Small(httpx.MockTransport):
    """A service that takes little, and rejects every image of more than a megabyte."""

    def __init__(self, **limits: int) -> None:
        self.counts: list[int] = []
        self.asked_for_limits = 0
        self.limits = {"n": 5, "images": 3, "body_bytes": 2_000_000} | limits
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/models":
            self.asked_for_limits += 1
            return limited(**self.limits)
        body = request.read()
        if len(body) > 2_000_000:
            return problem(413)
        options = {} if b'filename="image"' in body else json.loads(body)
        count = (
            options.get("n") or len(options.get("images", ())) or body.count(b'filename="image"')
        )
        self.counts.append(count)
        return answer(count, options.get("offset", 0))


@pytest.mark.parametrize(
    ("count", "size", "options", "requests"),
    [
        *((16, 1, {}, 1), (20, 10, {}, 7), (20, 900_000, {}, 10), (20, 600_000, {}, 7)),
        (20, 500_000, {"masks": [bytes(500_000)] * 20}, 20),
        *((20, 10, {"scale": 16}, 7), (20, 10, {"scale": 32}, 20), (20, 10, {"scale": 0}, 7)),
        *(
            (16, 0, {}, 1),
            (16, 0, {"scale": 8}, 1),
            (17, 0, {}, 4),
            (17, 0, {"scale": 16}, 5),
            (2, 0, {"scale": 32}, 2),
        ),
    ],
)
def test_requests_keep_to_number_and_bytes(
    ask: Ask, count: int, size: int, options: Any, requests: int
) -> None:
    to = Small()
    if size:
        found = ask(to, "project", [bytes(size)] * count, **options)
    else:
        found = ask(to, "generate", n=count, offset=0, **options)
    assert [image.index for image in found] == list(range(count))
    assert (sum(to.counts), len(to.counts)) == (count, requests)
    assert to.asked_for_limits == (requests > 1)  # few small ones need none


@pytest.mark.parametrize("most", [5, 0, -(10**9)])  # the limits of a service may be nonsense
def test_a_client_asks_for_the_limits_once(most: int) -> None:
    to = Small(n=most, images=most, body_bytes=most)
    with Client(transport=to) as client:
        assert len(client.project([b"x"] * 17)) == len(client.generate(n=17)) == 17

    async def calls() -> None:
        async with AsyncClient(transport=to) as client:
            for _ in range(2):
                await client.generate(n=20)

    asyncio.run(calls())
    assert to.asked_for_limits == 2
