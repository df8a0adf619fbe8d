"""Every method of both clients over the real app."""

import asyncio
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as PilImage

from ign_client import (
    AsyncClient,
    Client,
    Done,
    Frame,
    Image,
    Images,
    InvalidContent,
    Progress,
    ProjectedImage,
    Raw,
    Scores,
    Seed,
    Step,
    Term,
)
from service.app import build_services, create_app
from tests.contract.harness import GREY, Service, b64, latents, npy, pixels, quantised, settings, step_params
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import Ask

PICTURE = save(noise(8, 8, seed=1))
OTHER = save(noise(12, 10, 3, seed=2), "JPEG")


def raw_json(service: Service, path: str, body: dict[str, Any]) -> Any:
    """What the service answers to somebody without a client."""
    return json.loads(service.post(path, body).raise_for_status().content)


def same(images: Images[Any], answer: Any) -> None:
    """The result says what the answer says."""
    assert [(image.index, b64(image.bytes), image.distance, image.drift) for image in images] == [
        (member["index"], member["data"], member["distance"], member["drift"]) for member in answer["images"]
    ]
    assert [(image.width, image.height, image.steps, image.converged, image.format) for image in images] == [
        tuple(member[name] for name in ("width", "height", "steps", "converged", "format"))
        for member in answer["images"]
    ]
    for image, member in zip(images, answer["images"], strict=True):
        assert [(s.index, s.step, b64(s.bytes), s.change, s.format) for s in image.trajectory] == [
            (image.index, s["step"], s["data"], s["change"], image.format) for s in member["trajectory"] or []
        ]
    assert vars_of(images.model) == answer["model"]
    assert images.seed == answer.get("seed")


def vars_of(model: Any) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "digest": model.digest}


def test_generate(service: Service, ask: Ask) -> None:
    options = {"n": 2, "seed": 3, "offset": 5, "steps": 3, "record": [0, 2], "score": True, "noise_scale": 1.5}
    images = ask(service.url, "generate", **options, tolerance=1e-9, format="webp", model="grey/10", request_id="mine")
    answer = raw_json(service, "/generate", {**options, "tolerance": 1e-9, "format": "webp", "model": "grey/10"})
    same(images, answer)
    assert (images.request_id, images.model.ref, len(images)) == ("mine", "grey/10", 2)
    assert images.timing.compute_ms > 0
    assert all(isinstance(image, Image) for image in images)


def test_what_comes_out_is_f_of_the_seed(service: Service, ask: Ask) -> None:
    (image,) = ask(service.url, "generate", seed=7, steps=2)
    expected = step_params(latents(7), 2)
    np.testing.assert_array_equal(image.to_numpy(), quantised(expected)[0])
    (row,) = ask(service.url, "generate", seed=7, steps=2, format="npy")
    np.testing.assert_allclose(row.to_numpy(), expected[0], atol=1e-5)


def test_a_seed_is_chosen_and_told(service: Service, ask: Ask) -> None:
    first = ask(service.url, "generate")
    again = ask(service.url, "generate", seed=first.seed)
    assert again[0].bytes == first[0].bytes


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "npy"])
def test_generate_as(service: Service, ask: Ask, form: str) -> None:
    raw = ask(service.url, "generate_as", form, n=3, seed=3, score=True)
    media = {"npy": "application/x-npy"}.get(form, f"image/{form}")
    response = service.post("/generate", {"n": 3, "seed": 3, "score": True}, accept=media)
    assert isinstance(raw, Raw)
    assert (raw.bytes, raw.format, raw.seed, len(raw.steps)) == (response.content, form, 3, 3)
    assert ",".join(map(str, raw.distance)) == response.headers["X-IGN-Distance"]
    assert ",".join(map(str, raw.drift)) == response.headers["X-IGN-Drift"]
    assert f"{raw.model.ref}@{raw.model.digest}" == response.headers["X-IGN-Model"]
    assert raw.timing.compute_ms >= 0
    assert raw.to_numpy().shape == {"npy": (3, *GREY), "webp": (16, 16, 3)}.get(form, (16, 16))


SIZE = {"scale": 3, "resample": "smooth"}
SHEET = SIZE | {"columns": 1, "gap": 2}


@pytest.mark.parametrize(
    ("method", "given", "path", "body"),
    [
        ("generate", (), "/generate", {"n": 2, "seed": 1}),
        ("project", (PICTURE,), "/project", {"images": [b64(PICTURE)]}),
        ("latent_interpolate", ([1, 2],), "/latent-interpolate", {"points": [{"seed": 1}, {"seed": 2}], "frames": 3}),
        ("latent_arithmetic", ([1, 2],), "/latent-arithmetic", {"terms": [{"seed": 1}, {"seed": 2}]}),
    ],
)
def test_pictures_at_a_size(
    service: Service, ask: Ask, method: str, given: tuple[Any, ...], path: str, body: dict[str, Any]
) -> None:
    options = {name: value for name, value in body.items() if name in ("n", "seed", "frames")}
    images = ask(service.url, method, *given, **options, **SIZE)
    same(images, raw_json(service, path, body | SIZE))
    assert all(image.to_numpy().shape == (image.height, image.width) == (24, 24) for image in images)
    sheet = SIZE if method == "latent_arithmetic" else SHEET
    raw = ask(service.url, f"{method}_as", "png", *given, **options, **sheet)
    assert raw.bytes == service.post(path, body | sheet, accept="image/png").content
    if method in ("generate", "project"):
        with (
            closing(Client(service.url)) as client,
            getattr(client, f"stream_{method}")(*given, **options, **SIZE) as events,
        ):
            done = next(event for event in events if isinstance(event, Done)).answer
        assert [image.bytes for image in done] == [image.bytes for image in images]


def test_an_animation_at_a_size(service: Service, ask: Ask) -> None:
    raw = ask(service.url, "latent_interpolate_as", "webp", [1, 2], scale=4)
    assert raw.to_pil().size == (32, 32)
    with pytest.raises(InvalidContent, match="columns"):
        ask(service.url, "latent_interpolate_as", "webp", [1, 2], columns=4)


def test_project(service: Service, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(OTHER)
    options = {"steps": 2, "record": [0, 1, 2], "score": True, "strength": 0.5, "resize": "crop", "invert": True}
    images = ask(service.url, "project", [PICTURE, tmp_path / "x.jpg"], mask=PICTURE, **options, tolerance=1e-7)
    answer = raw_json(
        service,
        "/project",
        {"images": [b64(PICTURE), b64(OTHER)], "mask": b64(PICTURE), "tolerance": 1e-7, **options},
    )
    same(images, answer)
    assert all(isinstance(image, ProjectedImage) for image in images)
    assert [image.inverted for image in images] == [True, True]


def test_masks_of_their_own(service: Service, ask: Ask) -> None:
    all_of_it, nothing = np.ones((8, 8), bool), np.zeros((8, 8), np.uint8)
    images = ask(service.url, "project", [PICTURE, PICTURE], masks=[all_of_it, nothing], steps=1, invert=False)
    assert images[0].bytes == ask(service.url, "project", PICTURE, steps=1, invert=False)[0].bytes
    np.testing.assert_array_equal(images[1].to_numpy(), pixels(PICTURE))


def test_project_as(service: Service, ask: Ask) -> None:
    raw = ask(service.url, "project_as", "npy", [PICTURE, OTHER], strength=0.0, invert=False)
    assert raw.to_numpy().shape == (2, *GREY)
    np.testing.assert_array_equal(quantised(raw.to_numpy())[0], pixels(PICTURE))
    assert (raw.seed, raw.drift) == (None, ())
    masked = ask(service.url, "project_as", "png", PICTURE, masks=[PICTURE])
    assert masked.to_numpy().shape == (8, 8)


def test_answers_can_be_sent_back(service: Service, ask: Ask) -> None:
    once = ask(service.url, "generate", n=3, seed=1)
    twice = ask(service.url, "project", once)
    assert [image.index for image in twice] == [0, 1, 2]
    assert twice[1].bytes == ask(service.url, "project", once[1])[0].bytes


def test_latent_interpolate(service: Service, ask: Ask) -> None:
    latent = latents(9)[0]
    images = ask(service.url, "latent_interpolate", [1, Seed(2, 3), PICTURE, latent], frames=7, loop=True, steps=2)
    points = [{"seed": 1}, {"seed": 2, "index": 3}, {"image": b64(PICTURE)}, {"latent": b64(npy(latent))}]
    answer = raw_json(service, "/latent-interpolate", {"points": points, "frames": 7, "loop": True, "steps": 2})
    same(images, answer)
    assert all(isinstance(image, Frame) for image in images)
    assert [image.t for image in images] == [member["t"] for member in answer["images"]]
    assert images[0].bytes == ask(service.url, "generate", seed=1, steps=2)[0].bytes


def test_a_grid(service: Service, ask: Ask) -> None:
    images = ask(service.url, "latent_interpolate", [1, 2, 3, 4], grid=(2, 3), method="lerp")
    assert [(image.row, image.col, image.t) for image in images] == [(r, c, None) for r in (0, 1) for c in (0, 1, 2)]


@pytest.mark.parametrize("form", ["gif", "apng", "webp"])
def test_animations(service: Service, ask: Ask, form: str) -> None:
    raw = ask(service.url, "latent_interpolate_as", form, [1, 2], frames=5, fps=10)
    assert raw.format == form
    assert raw.to_pil().n_frames == 5


def test_an_array_from_the_service_is_a_point(service: Service, ask: Ask) -> None:
    (row,) = ask(service.url, "generate", seed=1, steps=1, format="npy")
    images = ask(service.url, "latent_interpolate", [row, row.to_numpy(), row.bytes], frames=3, steps=1)
    assert len({image.bytes for image in images}) == 1
    assert images[0].bytes == ask(service.url, "generate", seed=1, steps=2)[0].bytes


def test_latent_arithmetic(service: Service, ask: Ask) -> None:
    images = ask(service.url, "latent_arithmetic", [1, Term(Seed(2, 1), -0.5), Term(PICTURE)], normalize=False, steps=2)
    terms = [{"seed": 1}, {"seed": 2, "index": 1, "weight": -0.5}, {"image": b64(PICTURE)}]
    same(images, raw_json(service, "/latent-arithmetic", {"terms": terms, "normalize": False, "steps": 2}))
    raw = ask(service.url, "latent_arithmetic_as", "png", [1], normalize=False)
    assert raw.bytes == ask(service.url, "generate", seed=1)[0].bytes
    assert raw.seed is None


def test_score(service: Service, ask: Ask) -> None:
    scores = ask(service.url, "score", [PICTURE, OTHER], resize="stretch", invert=False)
    answer = raw_json(service, "/score", {"images": [b64(PICTURE), b64(OTHER)], "resize": "stretch", "invert": False})
    assert isinstance(scores, Scores)
    assert [
        {name: getattr(score, name) for name in ("index", "distance", "drift", "percentile", "in_distribution")}
        for score in scores
    ] == answer["images"]
    assert (len(scores), scores[-1].index, len(scores[:1])) == (2, 1, 1)


def test_models(service: Service, ask: Ask) -> None:
    models = ask(service.url, "models")
    answer = service.get("/models").json()
    assert [dict(card.document) for card in models.models] == answer["models"]
    assert {card.ref for card in models.models} == {"grey/2", "grey/10", "colour/1"}
    assert models.default == "grey/10"
    assert (models.limits.n, models.limits.pixels) == (64, 16_000_000)


@pytest.mark.parametrize(("name", "ref"), [("grey", "grey/10"), ("grey/2", "grey/2"), ("colour", "colour/1")])
def test_model(service: Service, ask: Ask, name: str, ref: str) -> None:
    card = ask(service.url, "model", name)
    assert card.ref == ref
    assert dict(card.document) == service.get(f"/models/{ref}").json()
    assert card.shape == ((3, 8, 8) if name == "colour" else GREY)
    assert (card.range, card.device) == ((-1.0, 1.0), "cpu")


def test_ready(service: Service, ask: Ask) -> None:
    assert ask(service.url, "ready")


def test_a_stream_ends_with_what_the_call_would_have_returned(service: Service, ask: Ask) -> None:
    options: dict[str, Any] = {"n": 2, "seed": 3, "offset": 1, "steps": 4, "record": [0, 2], "score": True}
    *events, done = ask.stream(service.url, "stream_generate", **options)
    plain = ask(service.url, "generate", **options)
    assert isinstance(done, Done)
    assert done.answer.images == plain.images
    assert (done.answer.seed, done.answer.model) == (plain.seed, plain.model)
    steps = [event for event in events if isinstance(event, Step)]
    assert sorted((step.index, step.step) for step in steps) == [(i, k) for i in (1, 2) for k in (0, 2, 4)]


@pytest.mark.parametrize("options", [{}, {"masks": [PICTURE]}, {"record": [1], "steps": 50, "tolerance": 0.01}])
def test_projections_stream(service: Service, ask: Ask, options: dict[str, Any]) -> None:
    *_, done = ask.stream(service.url, "stream_project", PICTURE, **options)
    assert done.answer.images == ask(service.url, "project", PICTURE, **options).images


def test_long_streams_tell_how_far_they_are(service: Service, ask: Ask) -> None:
    events = ask.stream(service.url, "stream_generate", steps=5_000)

    assert all(event.steps == 5_000 for event in events if isinstance(event, Progress))
    assert isinstance(events[-1], Done)


def test_numbers_of_numpy_are_numbers(service: Service, ask: Ask) -> None:
    images = ask(service.url, "generate", n=np.int64(2), seed=np.uint32(3), noise_scale=np.float32(1.5))
    assert images[1].bytes == ask(service.url, "generate", n=2, seed=3, noise_scale=1.5)[1].bytes
    for steps in (range(3), np.arange(3)):
        assert len(ask(service.url, "generate", steps=2, record=steps)[0].trajectory) == 3
    points = ask(service.url, "latent_interpolate", [np.int64(1), np.uint8(2)], frames=2)
    assert points[0].bytes == ask(service.url, "generate", seed=1)[0].bytes


def test_every_form_of_a_picture_is_the_same_picture(service: Service, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PICTURE)
    image = PilImage.open(io.BytesIO(PICTURE))
    with path.open("rb") as file:
        forms = [path, str(path), PICTURE, bytearray(PICTURE), memoryview(PICTURE), file, image, np.asarray(image)]
        images = ask(service.url, "project", forms)
    assert len({image.bytes for image in images}) == 1


def test_calls_within_a_process(models: Path) -> None:
    """As a test of somebody else's service would do it: httpx's transport into the app, no socket."""
    app = create_app(build_services(settings(models)))

    async def calls() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with AsyncClient("http://service", transport=transport, max_retries=0) as client:
                while not await client.ready():
                    pass
                images, scores = await asyncio.gather(client.generate(seed=1, n=2), client.score(PICTURE))
                assert (len(images), len(scores)) == (2, 1)
                async with client.stream_generate(seed=1, n=2) as events:
                    *_, done = [event async for event in events]
                assert isinstance(done, Done)
                assert done.answer.images == images.images

    asyncio.run(calls())


def test_a_client_may_be_shared_by_threads(service: Service) -> None:
    with Client(service.url) as client, ThreadPoolExecutor(8) as pool:
        together = client.generate(n=16, seed=1)
        alone = list(pool.map(lambda i: client.generate(seed=1, offset=i)[0], range(16)))
    assert [image.bytes for image in alone] == [image.bytes for image in together]
