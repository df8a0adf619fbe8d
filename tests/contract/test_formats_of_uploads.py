"""Every format of an uploaded image, TIFF files of several pages, and bodies without a
Content-Type.
"""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from service.api.native.answers import ProjectAnswer
from tests.contract.data import FILE, b64, pixels, unb64
from tests.contract.harness import Service, checked, problem
from tests.contract.test_project import projected
from tests.helpers.pictures import noise, save

PIXELS = [np.pad(noise(6, 6, seed=seed), 1) for seed in range(3)]  # 8×8, its border black
FILES = [save(pixels) for pixels in PIXELS]
PAGES = save(
    Image.fromarray(PIXELS[0]),
    "TIFF",
    save_all=True,
    append_images=list(map(Image.fromarray, PIXELS[1:])),
)
OTHERS = {
    "TIFF": save(PIXELS[0], "TIFF", compression="tiff_lzw"),
    "BMP": save(PIXELS[0], "BMP"),
    "GIF": save(PIXELS[0], "GIF"),
    "16 bits": save(Image.fromarray(PIXELS[0].astype(np.uint16) * 257), "TIFF"),
}


def raw(service: Service, image: bytes, path: str = "/project", kind: str | None = None) -> Any:
    return service.post(path, content=image, headers={} if kind is None else {"Content-Type": kind})


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_pixels_give_the_same_answer_in_any_format(service: Service, name: str) -> None:
    expected = projected(service, FILES[0]).images
    assert projected(service, OTHERS[name]).images == expected
    form = service.post("/project", files={"image": ("scan", OTHERS[name])})
    assert checked(form, ProjectAnswer).images == expected
    for kind in (None, f"image/{name.lower()}" if " " not in name else "image/tiff"):
        assert checked(raw(service, OTHERS[name], kind=kind), ProjectAnswer).images == expected


@pytest.mark.parametrize("how", ["JSON", "form", "raw"])
def test_every_page_of_a_tiff_is_an_image(service: Service, how: str) -> None:
    if how == "JSON":
        response = service.post("/project", {"images": [b64(PAGES)]})
    elif how == "form":
        response = service.post("/project", files={"image": ("scan.tif", PAGES)})
    else:
        response = raw(service, PAGES)
    answer = checked(response, ProjectAnswer)
    assert answer.images == projected(service, *FILES).images
    assert [image.index for image in answer.images] == [0, 1, 2]


def test_one_mask_serves_all_pages_and_masks_serve_images(service: Service) -> None:
    mask = b64(save(np.tile(np.array([0, 255], np.uint8), (8, 4))))
    assert (
        projected(service, PAGES, mask=mask).images == projected(service, *FILES, mask=mask).images
    )
    body = {"images": [b64(PAGES), b64(FILES[0])], "masks": [mask, mask]}
    problem(service.post("/project", body), 422, "invalid_value", "masks")
    problem(
        service.post("/project", {"images": [b64(FILES[0])], "mask": b64(PAGES)}),
        422,
        "undecodable_image",
        "mask",
    )


def test_pages_count_as_images(service: Service) -> None:
    page = Image.fromarray(PIXELS[0])
    many = save(page, "TIFF", save_all=True, append_images=[page] * 64)
    problem(service.post("/project", {"images": [b64(many)]}), 422, "invalid_value", "images")
    assert (
        len(projected(service, save(page, "TIFF", save_all=True, append_images=[page] * 63)).images)
        == 64
    )


def test_a_damaged_page_is_named(service: Service) -> None:
    broken = save(
        Image.fromarray(PIXELS[0]),
        "TIFF",
        save_all=True,
        append_images=[Image.fromarray(PIXELS[1])],
        compression="tiff_adobe_deflate",
    )
    second = broken.rindex(b"\x78\x9c" if b"\x78\x9c" in broken else b"\x78")
    broken = broken[:second] + bytes(8) + broken[second + 8 :]
    problem(
        service.post("/project", {"images": [b64(broken)]}),
        422,
        "undecodable_image",
        "images.0.page.1",
    )
    cut = PAGES[: len(PAGES) // 2]
    problem(service.post("/project", {"images": [b64(cut)]}), 422, "undecodable_image", "images.0")


@pytest.mark.parametrize("path", ["/project", "/score"])
def test_a_body_without_a_content_type_is_an_image_if_it_begins_like_one(
    service: Service, path: str
) -> None:
    for image in (*FILES, *OTHERS.values()):
        assert raw(service, image, path).status_code == 200
    for other in (b"{}", b"hello", FILE["image"][1][1:]):
        problem(raw(service, other, path), 415, "unsupported_media_type", "Content-Type")
    problem(raw(service, b"", path), 422, "invalid_value", "images")
    problem(raw(service, FILES[0], path + "?nonsense=1"), 422, "invalid_value", "nonsense")


def pages(response: Any) -> list[np.ndarray[Any, Any]]:
    assert (response.status_code, response.headers["content-type"]) == (200, "image/tiff")
    with Image.open(io.BytesIO(response.content)) as image:
        return [np.array(page) for page in ImageSequence.Iterator(image)]


def test_an_answer_as_tiff_has_a_page_for_each_row_and_16_bits_of_grey(service: Service) -> None:
    body = {"seed": 3, "n": 3}
    rows = service.rows("/generate", **body)
    answer = service.post("/generate", body, accept="image/tiff")
    expected = np.rint((rows[:, 0].astype(np.float64) + 1) * 65_535 / 2).clip(0, 65_535)
    np.testing.assert_array_equal(pages(answer), expected)
    assert len(projected(service, answer.content).images) == 3
    colour = body | {"model": "colour"}
    made = [pixels(unb64(image["data"])) for image in service.images("/generate", colour)]
    np.testing.assert_array_equal(
        pages(service.post("/generate", colour, accept="image/tiff")), made
    )
    for option in ("scale", "gap", "columns"):
        problem(
            service.post("/generate", body | {option: 2}, accept="image/tiff"),
            422,
            "invalid_value",
            option,
        )
