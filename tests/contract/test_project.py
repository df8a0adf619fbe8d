import itertools
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ImageCms

from service.api.native.answers import ProjectAnswer
from service.domain.latents import FloatRows
from tests.contract.data import Pixels, array, b64, pixels, quantised, step_params, unb64
from tests.contract.harness import Service, checked, send
from tests.helpers.pictures import exif, noise, save

DARK = np.pad(noise(6, 6, seed=1), 1)  # 8×8, its border black
PICTURE = save(DARK)
LIGHT = save(255 - DARK)
WIDE = np.full((8, 16), 255, dtype=np.uint8)
LEFT = np.zeros((8, 8), dtype=np.uint8)
LEFT[:, :4] = 255
MASK = save(LEFT)  # regenerate the left half


def prepared(picture: Pixels) -> FloatRows:
    return (picture.astype(np.float64) * 2 / 255 - 1).astype(np.float32)[None, None]


def projected(service: Service, *images: bytes, **options: Any) -> ProjectAnswer:
    body = {"images": [b64(image) for image in images or (PICTURE,)], **options}
    return checked(service.post("/project", body), ProjectAnswer)


def rows(service: Service, *images: bytes, **options: Any) -> FloatRows:
    body = {"images": [b64(image) for image in images or (PICTURE,)], **options}
    response = service.post("/project", body, accept="application/x-npy")
    assert response.status_code == 200, response.text
    return array(response.content)


def form(
    service: Service, *images: bytes, mask: bytes | None = None, **options: Any
) -> httpx.Response:
    files = [("image", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]
    if mask is not None:
        files.append(("mask", ("mask.png", mask, "image/png")))
    return service.post("/project", files=files, data=options)


def raw(service: Service, image: bytes, kind: str = "image/png", **query: Any) -> httpx.Response:
    return send(service, "/project", image, kind, params=query)


def test_defaults(service: Service) -> None:
    response = service.post("/project", {"images": [b64(PICTURE)]})
    answer = checked(response, ProjectAnswer)
    assert list(response.json()) == ["model", "request_id", "images", "timing"]
    image = answer.images[0]
    assert (image.index, image.inverted, image.steps, image.format) == (0, False, 1, "png")
    expected = step_params(prepared(DARK), 1)
    np.testing.assert_allclose(rows(service), expected, atol=1e-5)
    np.testing.assert_array_equal(pixels(unb64(image.data)), quantised(rows(service))[0])
    assert image.distance == pytest.approx(np.abs(expected - prepared(DARK)).mean(), abs=2e-6)
    assert "X-IGN-Seed" not in response.headers
    assert response.headers["X-IGN-Model"].startswith("grey/10@")


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (PICTURE, "image/png"),
        (LIGHT, "image/png"),
        (save(noise(30, 40, 3, seed=2)), "image/png"),
        (save(noise(30, 40, 4, seed=3)), "image/png"),
        (save(noise(30, 40, 3, seed=4), "JPEG", exif=b"Exif\0\0" + exif(6)), "image/jpeg"),
        (save(noise(9, 5, 3, seed=5), "WEBP", lossless=True), "image/webp"),
        (PICTURE, "image/jpeg"),  # the bytes decide, not their type
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "steps": 3,
            "tolerance": 0.01,
            "record": [0, 1],
            "score": True,
            "format": "webp",
            "model": "grey/2",
            "scale": 3,
            "resample": "smooth",
        },
        {"strength": 0.25, "resize": "crop", "invert": True, "format": "npy", "model": "colour"},
        {"resize": "stretch", "invert": False, "format": "jpeg"},
        {"invert": "auto", "score": False},
    ],
)
def test_three_ways_in_give_the_same_bytes(
    service: Service, picture: bytes, kind: str, options: dict[str, Any]
) -> None:
    texts: dict[str, Any] = {
        name: ",".join(map(str, value)) if name == "record" else str(value).lower()
        for name, value in options.items()
    }
    json_answer = projected(service, picture, **options)
    digits = {"true": "1", "false": "0"}
    query = {name: digits.get(text, text) for name, text in texts.items()}
    for response in (form(service, picture, **texts), raw(service, picture, kind, **query)):
        answer = checked(response, ProjectAnswer)
        assert answer.images == json_answer.images
        assert answer.model == json_answer.model


def test_several_pictures_keep_their_order(service: Service) -> None:
    pictures = [save(np.pad(noise(6, 6, seed=seed), 1)) for seed in range(5)]
    answer = projected(service, *pictures)
    assert [image.index for image in answer.images] == [0, 1, 2, 3, 4]
    sheet = service.post(
        "/project", {"images": [b64(picture) for picture in pictures]}, accept="image/png"
    )
    expected = np.concatenate([*quantised(rows(service, *pictures))[:3]], axis=1)
    np.testing.assert_array_equal(pixels(sheet.content)[:8], expected)
    assert sheet.headers["X-IGN-Steps"] == "1,1,1,1,1"
    assert checked(form(service, *pictures), ProjectAnswer).images == answer.images
    for i, picture in enumerate(pictures):
        alone = projected(service, picture).images[0]
        assert alone.model_copy(update={"index": i}) == answer.images[i]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/webp;base64,"])
def test_base64_with_or_without_prefix_and_white_space(service: Service, prefix: str) -> None:
    text = b64(PICTURE)
    answer = checked(
        service.post("/project", {"images": [f"{prefix}{text[:40]}\r\n {text[40:]}\n"]}),
        ProjectAnswer,
    )
    assert answer.images == projected(service).images


@pytest.mark.parametrize(
    ("resize", "where"), [("fit", np.s_[2:6, :]), ("crop", np.s_[:, :]), ("stretch", np.s_[:, :])]
)
def test_resize(service: Service, resize: str, where: Any) -> None:
    expected = np.zeros((8, 8))
    expected[where] = 255
    data = projected(service, save(WIDE), resize=resize, invert=False, strength=0).images[0].data
    np.testing.assert_array_equal(pixels(unb64(data)), expected)


def test_invert_is_automatic_for_light_borders_and_said(service: Service) -> None:
    image = projected(service, LIGHT).images[0]
    assert image.inverted
    assert image.data == projected(service).images[0].data  # not undone
    assert not projected(service, LIGHT, invert=False).images[0].inverted
    assert not projected(service, LIGHT, model="colour").images[0].inverted  # polarity: none
    assert projected(service, PICTURE, invert=True).images[0].inverted


def test_strength_blends_towards_the_input(service: Service) -> None:
    x = prepared(DARK)
    y = rows(service, steps=2)
    assert pixels(unb64(projected(service, strength=0).images[0].data)).tolist() == DARK.tolist()
    np.testing.assert_array_equal(rows(service, steps=2, strength=0), x)
    np.testing.assert_array_equal(rows(service, steps=2, strength=1), y)
    np.testing.assert_allclose(rows(service, steps=2, strength=0.3), 0.7 * x + 0.3 * y, atol=1e-6)
    whole, half = (projected(service, steps=2, strength=s, score=True).images[0] for s in (1, 0.5))
    assert (whole.distance, whole.drift) == (half.distance, half.drift)


def test_strength_blends_the_trajectory_but_not_its_input(service: Service) -> None:
    image = projected(service, steps=2, strength=0.3, record=[0, 1], format="npy").images[0]
    start, first = (array(unb64(step.data)) for step in image.trajectory or [])
    np.testing.assert_array_equal(start, prepared(DARK)[0])
    np.testing.assert_allclose(first, 0.7 * start + 0.3 * rows(service, steps=1)[0], atol=1e-6)
    changes = [
        step.change
        for step in projected(service, steps=2, record=[0, 1]).images[0].trajectory or []
    ]
    assert [step.change for step in image.trajectory or []] == changes


def in_painted(steps: int) -> FloatRows:
    x = prepared(DARK)
    y = x
    for _ in range(steps):
        y = np.where(LEFT > 127, step_params(y, 1), x)
    return y


def test_masked_pixels_are_put_back_after_every_step(service: Service) -> None:
    found = rows(service, steps=3, mask=b64(MASK))
    np.testing.assert_allclose(found, in_painted(3), atol=1e-5)
    np.testing.assert_array_equal(found[..., 4:], prepared(DARK)[..., 4:])
    image = projected(service, steps=3, mask=b64(MASK), record=[1]).images[0]
    expected = np.abs(step_params(prepared(DARK), 1) - prepared(DARK)).mean()
    assert image.distance == pytest.approx(expected, abs=2e-6)  # before the mask
    change = np.abs(in_painted(1) - prepared(DARK)).mean()  # after it
    assert (image.trajectory or [])[0].change == pytest.approx(change, abs=2e-6)


def test_masks_arrive_in_every_form(service: Service) -> None:
    images = projected(service, PICTURE, LIGHT, steps=2, mask=b64(MASK)).images
    assert projected(service, PICTURE, LIGHT, steps=2, masks=[b64(MASK)] * 2).images == images
    assert (
        checked(form(service, PICTURE, LIGHT, mask=MASK, steps="2"), ProjectAnswer).images == images
    )
    assert checked(form(service, PICTURE, LIGHT, steps="2"), ProjectAnswer).images != images
    files = [("image", ("a.png", PICTURE, "image/png")), ("image", ("b.png", LIGHT, "image/png"))]
    response = service.post("/project", files=files, data={"steps": "2", "mask": b64(MASK)})
    assert checked(response, ProjectAnswer).images == images
    other = b64(save(LEFT.T.copy()))
    both = rows(service, PICTURE, PICTURE, masks=[b64(MASK), other], steps=2)  # one each
    for row, mask in zip(both, (b64(MASK), other), strict=True):
        np.testing.assert_array_equal(row, rows(service, mask=mask, steps=2)[0])


def test_colour_profiles_are_ignored(service: Service) -> None:
    colours = noise(8, 8, 3, seed=4)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # red is blue
    swapped = profile.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ")
    assert swapped != profile
    plain, marked = (
        projected(service, picture, model="colour", strength=0, format="npy").images[0].data
        for picture in (save(colours), save(colours, icc_profile=swapped))
    )
    assert marked == plain


@pytest.mark.parametrize(
    "kind", ["text/plain", "image/gif", "application/octet-stream", "nonsense"]
)
def test_only_the_requests_own_content_type_matters(service: Service, kind: str) -> None:
    response = service.post("/project", files={"image": ("x", PICTURE, kind)})
    assert checked(response, ProjectAnswer).images == projected(service).images
    text = f"data:image/gif;base64,{b64(PICTURE)}"
    assert (
        checked(service.post("/project", {"images": [text]}), ProjectAnswer).images
        == projected(service).images
    )


def test_tolerance_looks_at_what_is_left_once_kept_pixels_are_put_back(service: Service) -> None:
    states = [in_painted(k) for k in range(12)]
    changes = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(states)]
    tolerance = (changes[2] + changes[3]) / 2
    # without a mask
    assert (
        float(np.abs(step_params(prepared(DARK), 4) - step_params(prepared(DARK), 3)).mean())
        > tolerance
    )
    image = projected(
        service, steps=50, mask=b64(MASK), tolerance=tolerance, format="npy", score=True
    ).images[0]
    assert (image.steps, image.converged) == (4, True)
    assert image.drift is not None
    np.testing.assert_allclose(array(unb64(image.data)), states[4][0], atol=1e-5)
