"""Every method of both clients over the real app, and calls with more images than one request
takes.
"""

import json
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from PIL import Image as PilImage

from ign_client import (
    Frame,
    Image,
    InvalidContent,
    ProjectedImage,
    Seed,
    Step,
    Term,
)
from ign_client._picture import MEDIA
from tests.contract.data import PICTURE, b64, latents, npy
from tests.contract.harness import Service
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import Ask, answer

OTHER = save(noise(12, 10, 3, seed=2), "JPEG")
LATENT = latents(9)[0]
SIZE = {"scale": 3, "resample": "smooth"}
UPLOADS = {"images": [b64(PICTURE), b64(OTHER)]}
POINTS = {
    "points": [
        {"seed": 1},
        {"seed": 2, "index": 3},
        {"image": b64(PICTURE)},
        {"latent": b64(npy(LATENT))},
    ]
}
TERMS = {"terms": [{"seed": 1}, {"seed": 2, "index": 1, "weight": -0.5}, {"image": b64(PICTURE)}]}
OF_NOISE = {
    "n": 2,
    "seed": 3,
    "offset": 5,
    "steps": 3,
    "record": [0, 2],
    "score": True,
    "noise_scale": 1.5,
}
OF_UPLOADS = {"steps": 2, "record": [0, 1, 2], "resize": "crop", "invert": True, "tolerance": 1e-7}
WALK: list[Any] = [1, Seed(2, 3), PICTURE, LATENT]
GRID = {"points": [{"seed": i} for i in range(4)], "grid": {"rows": 2, "cols": 3}}
SUM: list[Any] = [1, Term(Seed(2, 1), -0.5), Term(PICTURE)]
# A method, its arguments, the members of the body that hold them, the options, the class of an
# image.
CALLS: list[tuple[str, list[Any], dict[str, Any], dict[str, Any], type]] = [
    ("generate", [], {}, OF_NOISE | {"tolerance": 1e-9}, Image),
    ("generate", [], {}, SIZE | {"seed": 3, "n": 2, "model": "grey/10", "format": "webp"}, Image),
    (
        "project",
        [[PICTURE, OTHER]],
        UPLOADS,
        SIZE | {"score": True, "strength": 0.5},
        ProjectedImage,
    ),
    ("project", [[PICTURE, OTHER]], UPLOADS | {"mask": b64(PICTURE)}, OF_UPLOADS, ProjectedImage),
    ("latent_interpolate", [WALK], POINTS, {"frames": 7, "loop": True, "steps": 2}, Frame),
    ("latent_interpolate", [range(4)], GRID, {"grid": (2, 3), "method": "lerp", **SIZE}, Frame),
    ("latent_arithmetic", [SUM], TERMS, {"normalize": False, "steps": 2, **SIZE}, Image),
]


@pytest.mark.parametrize(("method", "arguments", "body", "options", "kind"), CALLS)
def test_results_hold_what_the_service_answers(
    service: Service, ask: Ask, method: str, arguments: Any, body: Any, options: Any, kind: type
) -> None:
    path = f"/{method.replace('_', '-')}"
    mask = {"mask": PICTURE} if "mask" in body else {}
    result = ask(service.url, method, *arguments, **options, **mask, request_id="mine")
    response = json.loads(service.post(path, options | body).raise_for_status().content)
    for image, member in zip(result, response["images"], strict=True):
        for value, said in zip(
            (image, *image.trajectory), (member, *(member.pop("trajectory") or ())), strict=True
        ):
            assert b64(value.bytes) == said.pop("data")
            assert said.items() <= asdict(value).items()
    assert {type(image) for image in result} == {kind}
    assert (asdict(result.model), result.request_id) == (response["model"], "mine")
    assert (result.seed, result.timing.compute_ms > 0) == (response.get("seed"), True)

    if method in ("generate", "project"):
        *events, done = ask(service.url, f"stream_{method}", *arguments, **options, **mask)
        assert done.answer.images == result.images
        steps = [step for step in events if isinstance(step, Step)]
        assert all(step in steps for image in result for step in image.trajectory)
    # The same as one file.
    options = {
        name: value for name, value in options.items() if name not in ("record", "format", *SIZE)
    }
    for form, own in (("png", options | SIZE), ("npy", options)):
        raw = ask(service.url, f"{method}_as", form, *arguments, **own, **mask)
        file = service.post(path, own | body, accept=MEDIA[form])
        assert (raw.bytes, raw.format, raw.seed) == (file.content, form, result.seed)
        assert ",".join(map(str, raw.distance)) == file.headers["X-IGN-Distance"]
        assert ",".join(map(str, raw.drift)) == file.headers.get("X-IGN-Drift", "")
        assert f"{raw.model.ref}@{raw.model.digest}" == file.headers["X-IGN-Model"]


def test_results_can_be_sent_back(service: Service, ask: Ask) -> None:
    once = ask(service.url, "generate", n=2, seed=1)
    both = ask(service.url, "project", once)
    assert both[1].bytes == ask(service.url, "project", once[1])[0].bytes
    (row,) = ask(service.url, "generate", seed=1, steps=1, format="npy")
    images = ask(service.url, "latent_interpolate", [row, row.to_numpy()], frames=2, steps=1)
    (twice,) = ask(service.url, "generate", seed=1, steps=2)
    assert {image.bytes for image in images} == {twice.bytes}


def test_scores(service: Service, ask: Ask) -> None:
    scores = ask(service.url, "score", [PICTURE, OTHER], resize="stretch", invert=False)
    response = service.post("/score", UPLOADS | {"resize": "stretch", "invert": False})
    assert list(map(asdict, scores)) == response.json()["images"]


def test_models(service: Service, ask: Ask) -> None:
    models = ask(service.url, "models")
    assert [dict(card.document) for card in models] == service.get("/models").json()["models"]
    assert (models.default, models.limits.n) == ("grey/10", 64)
    for name, ref in (("grey", "grey/10"), ("grey/2", "grey/2"), ("colour", "colour/1")):
        card = ask(service.url, "model", name)
        assert (card.ref, dict(card.document)) == (ref, service.get(f"/models/{ref}").json())


PICTURES = [save(noise(8, 8, seed=i)) for i in range(100)]


def test_many_images_give_what_each_gives_alone(service: Service, ask: Ask) -> None:
    masks = PICTURES[::-1]
    found = ask(service.url, "project", PICTURES, record=[0, 1], masks=masks)
    assert [image.index for image in found] == list(range(100))
    for i in (0, 63, 64, 99):
        (alone,) = ask(service.url, "project", PICTURES[i], masks=[masks[i]])
        assert found[i].bytes == alone.bytes
        assert [step.index for step in found[i].trajectory] == [i, i]
    scores = ask(service.url, "score", PICTURES)
    assert [score.index for score in scores] == list(range(100))


def test_every_page_of_a_tiff_is_an_image(service: Service, ask: Ask) -> None:
    pages = [PilImage.fromarray(noise(8, 8, seed=i)) for i in range(1, 4)]
    scan = save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    found = ask(service.url, "project", [PICTURES[0], scan, PICTURES[0], scan])
    assert [image.index for image in found] == list(range(8))
    assert [image.bytes for image in found] == [
        image.bytes for image in ask(service.url, "project", PICTURES[:4])
    ] * 2
    *_, done = ask(service.url, "stream_project", scan)
    assert len(done.answer) == 3


@pytest.mark.parametrize(
    "options", [{"n": 150}, {"seed": "Ada", "n": 70, "offset": 5}, {"n": 3, "scale": 32}]
)
def test_any_number_of_generated_images(
    service: Service, ask: Ask, options: dict[str, Any]
) -> None:
    start = options.get("offset", 0)
    found = ask(service.url, "generate", **options)
    assert [image.index for image in found] == list(range(start, start + options["n"]))
    last = ask(
        service.url, "generate", **options | {"n": 1, "seed": found.seed, "offset": found[-1].index}
    )
    assert last[0].bytes == found[-1].bytes


@pytest.mark.parametrize("method", ["project", "score"])
# in one request, and in several
@pytest.mark.parametrize(("bad", "count"), [(3, 10), (3, 100), (99, 100)])
def test_an_error_names_the_image_of_the_whole_call(
    service: Service, ask: Ask, method: str, bad: int, count: int
) -> None:
    images: list[Any] = [*PICTURES[:bad], b"no image", *PICTURES[bad + 1 : count]]
    with pytest.raises(InvalidContent, match=rf"images\.{bad}: ") as rejected:
        ask(service.url, method, images)
    assert [error.field for error in rejected.value.errors] in ([f"images.{bad}"], [])
    if method == "project":
        with pytest.raises(InvalidContent, match=rf"masks\.{bad}: "):
            ask(service.url, method, PICTURES[:count], masks=images)


@pytest.mark.parametrize(
    ("count", "size", "options", "requests"),
    [
        *((64, 10, {}, 1), (65, 10, {}, 2), (20, 10, {"scale": 32}, 20), (20, 10, {"scale": 0}, 1)),
        *((4, 3_000_000, {}, 2), (4, 3_000_000, {"mask": bytes(3_000_000)}, 4)),
        (4, 2_000_000, {"masks": [bytes(3_000_000)] * 4}, 4),
    ],
)
def test_requests_keep_to_number_and_bytes(
    ask: Ask, count: int, size: int, options: Any, requests: int
) -> None:
    counts: list[int] = []

    def counted(request: httpx.Request) -> httpx.Response:
        body = request.read()
        counts.append(body.count(b'filename="image"') or len(json.loads(body)["images"]))
        return answer(counts[-1])

    found = ask(httpx.MockTransport(counted), "project", [bytes(size)] * count, **options)
    assert [image.index for image in found] == list(range(count))
    assert (sum(counts), len(counts)) == (count, requests)
