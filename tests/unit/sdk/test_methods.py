"""Every method of both clients over the real app."""

import asyncio
import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as PilImage

import ign_client
from ign_client import AsyncClient, Client, Done, Frame, Image, ProjectedImage, Raw, Scores, Seed, Step, Term
from service.app import build_services, create_app
from tests.contract.data import GREY, b64, latents, npy, pixels, quantised
from tests.contract.harness import Service, settings
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import Ask

PICTURE = save(noise(8, 8, seed=1))
OTHER = save(noise(12, 10, 3, seed=2), "JPEG")
LATENT = latents(9)[0]
SIZE = {"scale": 3, "resample": "smooth"}
UPLOADS = {"images": [b64(PICTURE), b64(OTHER)]}
MASKED = UPLOADS | {"mask": b64(PICTURE)}
POINTS = {
    "points": [{"seed": 1}, {"seed": 2, "index": 3}, {"image": b64(PICTURE)}, {"latent": b64(npy(LATENT))}],
}
TERMS = {"terms": [{"seed": 1}, {"seed": 2, "index": 1, "weight": -0.5}, {"image": b64(PICTURE)}]}
OF_NOISE = {"n": 2, "seed": 3, "offset": 5, "steps": 3, "record": [0, 2], "score": True, "noise_scale": 1.5}
OF_UPLOADS = {"steps": 2, "record": [0, 1, 2], "resize": "crop", "invert": True, "tolerance": 1e-7}
# A method, its positional argument, the members of the body that hold it, the options, the class of an image.
CALLS: list[tuple[str, Any, dict[str, Any], dict[str, Any], type]] = [
    ("generate", None, {}, OF_NOISE | {"tolerance": 1e-9}, Image),
    ("generate", None, {}, SIZE | {"seed": 3, "n": 2, "model": "grey/10", "format": "webp"}, Image),
    ("project", [PICTURE, OTHER], UPLOADS, SIZE | {"score": True, "strength": 0.5}, ProjectedImage),
    ("project", [PICTURE, OTHER], MASKED, OF_UPLOADS, ProjectedImage),
    ("latent_interpolate", [1, Seed(2, 3), PICTURE, LATENT], POINTS, {"frames": 7, "loop": True, "steps": 2}, Frame),
    ("latent_interpolate", [1, Seed(2, 3), PICTURE, LATENT], POINTS, {"frames": 3, "method": "lerp", **SIZE}, Frame),
    ("latent_arithmetic", [1, Term(Seed(2, 1), -0.5), Term(PICTURE)], TERMS, {"normalize": False, "steps": 2}, Image),
    ("latent_arithmetic", [1, Term(Seed(2, 1), -0.5), Term(PICTURE)], TERMS, SIZE, Image),
]


def members(result: Any) -> list[dict[str, Any]]:
    """The images of a result as the members of a JSON response, without those that are null."""
    names = ("index", "format", "width", "height", "steps", "converged", "distance", "drift", "inverted", "t")
    found = []
    for image in result:
        steps = [{"step": s.step, "data": b64(s.bytes), "change": s.change} for s in image.trajectory]
        values = {name: getattr(image, name, None) for name in names} | {"trajectory": steps or None}
        found.append({name: value for name, value in values.items() if value is not None} | {"data": b64(image.bytes)})
    return found


@pytest.mark.parametrize(("method", "argument", "body", "options", "kind"), CALLS)
def test_results_hold_what_the_service_answers(
    service: Service, ask: Ask, method: str, argument: Any, body: Any, options: Any, kind: type
) -> None:
    arguments, mask = () if argument is None else (argument,), {"mask": PICTURE} if "mask" in body else {}
    result = ask(service.url, method, *arguments, **options, **mask, request_id="mine")
    path = f"/{method.replace('_', '-')}"
    response = json.loads(service.post(path, body | options).raise_for_status().content)
    expected = [{name: value for name, value in each.items() if value is not None} for each in response["images"]]
    assert members(result) == expected
    model = {"name": result.model.name, "version": result.model.version, "digest": result.model.digest}
    assert (model, result.seed, result.request_id) == (response["model"], response.get("seed"), "mine")
    assert result.timing.compute_ms > 0
    assert {type(image) for image in result} == {kind}

    # The same as one file.
    options = {name: value for name, value in options.items() if name not in ("record", "format")}
    for form, media in (("png", "image/png"), ("npy", "application/x-npy")):
        own = {**options, "columns": 1, "gap": 2} if form == "png" and method in ("generate", "project") else options
        own = {name: value for name, value in own.items() if name not in SIZE or form == "png"}
        raw = ask(service.url, f"{method}_as", form, *arguments, **own, **mask)
        file = service.post(path, body | own, accept=media)
        assert (type(raw), raw.bytes, raw.format) == (Raw, file.content, form)
        assert ",".join(map(str, raw.distance)) == file.headers["X-IGN-Distance"]
        assert ",".join(map(str, raw.drift)) == file.headers.get("X-IGN-Drift", "")
        assert f"{raw.model.ref}@{raw.model.digest}" == file.headers["X-IGN-Model"]
        assert raw.seed == result.seed

    if method in ("generate", "project"):
        *events, done = ask.stream(service.url, f"stream_{method}", *arguments, **options, **mask, record=[0])
        assert isinstance(done, Done)
        assert [image.trajectory[0].step for image in done.answer] == [0] * len(result)
        assert (done.answer.seed, done.answer.model) == (result.seed, result.model)
        assert [(image.index, image.distance, image.steps) for image in done.answer] == [
            (image.index, image.distance, image.steps) for image in result
        ]
        found = {(event.index, event.step) for event in events if isinstance(event, Step)}
        assert found == {(image.index, k) for image in result for k in (0, image.steps)}


def test_masks(service: Service, ask: Ask) -> None:
    all_of_it, nothing = np.ones((8, 8), bool), np.zeros((8, 8), np.uint8)
    images = ask(service.url, "project", [PICTURE, PICTURE], masks=[all_of_it, nothing], steps=1, invert=False)
    assert images[0].bytes == ask(service.url, "project", PICTURE, steps=1, invert=False)[0].bytes
    np.testing.assert_array_equal(images[1].to_numpy(), pixels(PICTURE))
    for mask in ({"mask": nothing}, {"masks": [nothing]}):
        raw = ask(service.url, "project_as", "npy", PICTURE, invert=False, **mask)
        np.testing.assert_array_equal(quantised(raw.to_numpy())[0], pixels(PICTURE))
        *_, done = ask.stream(service.url, "stream_project", PICTURE, invert=False, **mask)
        np.testing.assert_array_equal(done.answer[0].to_numpy(), pixels(PICTURE))


def test_results_can_be_sent_back(service: Service, ask: Ask) -> None:
    once = ask(service.url, "generate", n=3, seed=1)
    twice = ask(service.url, "project", once)
    assert [image.index for image in twice] == [0, 1, 2]
    assert twice[1].bytes == ask(service.url, "project", once[1])[0].bytes
    (row,) = ask(service.url, "generate", seed=1, steps=1, format="npy")
    images = ask(service.url, "latent_interpolate", [row, row.to_numpy(), row.bytes], frames=3, steps=1)
    assert {image.bytes for image in images} == {ask(service.url, "generate", seed=1, steps=2)[0].bytes}


def test_a_grid(service: Service, ask: Ask) -> None:
    images = ask(service.url, "latent_interpolate", [1, 2, 3, 4], grid=(2, 3), method="lerp")
    assert [(image.row, image.col, image.t) for image in images] == [(r, c, None) for r in (0, 1) for c in (0, 1, 2)]


@pytest.mark.parametrize("form", ["gif", "apng", "webp"])
def test_animations(service: Service, ask: Ask, form: str) -> None:
    raw = ask(service.url, "latent_interpolate_as", form, [1, 2], frames=5, fps=10, scale=4)
    assert (raw.format, raw.to_pil().n_frames, raw.to_pil().size) == (form, 5, (32, 32))
    with pytest.raises(ign_client.InvalidContent, match="columns"):
        ask(service.url, "latent_interpolate_as", form, [1, 2], columns=4)


def test_score(service: Service, ask: Ask) -> None:
    scores = ask(service.url, "score", [PICTURE, OTHER], resize="stretch", invert=False)
    response = json.loads(service.post("/score", UPLOADS | {"resize": "stretch", "invert": False}).content)
    assert isinstance(scores, Scores)
    for score, member in zip(scores, response["images"], strict=True):
        assert dataclasses.asdict(score).items() <= member.items()
    assert (len(scores), scores[-1].index, len(scores[:1])) == (2, 1, 1)


def test_models(service: Service, ask: Ask) -> None:
    models = ask(service.url, "models")
    assert [dict(card.document) for card in models.models] == service.get("/models").json()["models"]
    assert {card.ref for card in models.models} == {"grey/2", "grey/10", "colour/1"}
    assert (models.default, models.limits.n, models.limits.pixels) == ("grey/10", 64, 16_000_000)
    for name, ref in (("grey", "grey/10"), ("grey/2", "grey/2"), ("colour", "colour/1")):
        card = ask(service.url, "model", name)
        assert (card.ref, dict(card.document)) == (ref, service.get(f"/models/{ref}").json())
        assert card.shape == ((3, 8, 8) if name == "colour" else GREY)
        assert (card.range, card.device) == ((-1.0, 1.0), "cpu")
    assert ask(service.url, "ready")


def test_every_form_of_an_image_is_the_same_image(service: Service, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PICTURE)
    image = PilImage.open(io.BytesIO(PICTURE))
    with path.open("rb") as file:
        forms = [path, str(path), PICTURE, bytearray(PICTURE), memoryview(PICTURE), file, image, np.asarray(image)]
        images = ask(service.url, "project", forms)
    assert len({image.bytes for image in images}) == 1


def test_calls_within_a_process(models: Path) -> None:
    """As in a test of somebody else's service: httpx's transport into the app, no socket."""
    app = create_app(build_services(settings(models)))

    async def calls() -> None:
        async with app.lifespan():
            transport = httpx.ASGITransport(app)
            async with AsyncClient("http://service", transport=transport, max_retries=0) as client:
                while not await client.ready():
                    pass
                images, scores = await asyncio.gather(client.generate(seed=1, n=2), client.score(PICTURE))
                assert scores[0].worst is not None
                assert scores[0].worst.distance >= scores[0].distance
                assert (len(images), len(scores)) == (2, 1)
                async with client.stream_generate(seed=1, n=2) as events:
                    *_, done = [event async for event in events]
                assert isinstance(done, Done)
                assert done.answer.images == images.images

    asyncio.run(calls())


def test_a_client_may_be_shared_by_threads(service: Service) -> None:
    with Client(service.url, timeout=300) as client, ThreadPoolExecutor(8) as pool:
        together = client.generate(n=16, seed=1)
        alone = list(pool.map(lambda i: client.generate(seed=1, offset=i)[0], range(16)))
    assert [image.bytes for image in alone] == [image.bytes for image in together]
