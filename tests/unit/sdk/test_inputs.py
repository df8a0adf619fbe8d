"""What may be handed in, and what is said of what may not."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ign_client import Client, InputError, Picture, Seed, Term
from ign_client._inputs import content, mask, picture, point
from tests.contract.harness import Service, array, pixels
from tests.helpers.pictures import noise, opened, save
from tests.unit.sdk.asking import Ask, Canned

GREY8 = noise(5, 4)


@pytest.mark.parametrize(
    "array",
    [
        GREY8,
        GREY8[:, :, None],
        noise(5, 4, 2),
        noise(5, 4, 3),
        noise(5, 4, 4),
        noise(10, 4)[::2],
        np.asfortranarray(GREY8),
    ],
)
def test_arrays_are_pictures(array: Any) -> None:
    np.testing.assert_array_equal(np.asarray(opened(picture(array, "images"))), array.squeeze())


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((1, 4, 4), np.float64),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), bool),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((), np.uint8),
    ],
)
def test_other_arrays_are_not(bad: Any) -> None:
    with pytest.raises(InputError, match=r"images\.0: "):
        picture(bad, "images.0")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV"]
)
def test_modes_of_pil(mode: str) -> None:
    source = Image.new("RGBA", (4, 5), (200, 100, 50, 128))
    image = source.convert("LA").convert("La") if mode == "La" else Image.new(mode, (4, 5))
    sent = opened(picture(image, "images"))
    assert (sent.format, sent.size) == ("PNG", (4, 5))


def test_sixteen_bits_stay_sixteen() -> None:
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    np.testing.assert_array_equal(np.asarray(opened(picture(Image.fromarray(deep), "images"))), deep)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_scale(mode: str) -> None:
    with pytest.raises(InputError, match=f"images: .*{mode}"):
        picture(Image.new(mode, (4, 5)), "images")


def test_pil_images_go_as_they_are_shown() -> None:
    """An orientation beside the pixels is the file's affair, not the image's."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY8).save(file, "PNG", exif=exif)
    image = Image.open(io.BytesIO(file.getvalue()))
    assert image.getexif()[0x0112] == 6
    assert 0x0112 not in opened(picture(image, "images")).getexif()


def test_latents_are_arrays_of_the_models_numbers() -> None:
    latent = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    for form in (latent, np.asfortranarray(latent), latent.astype(">f4")):
        data = content(form, "points.0")
        assert array(data).dtype == np.dtype("<f4")
        np.testing.assert_array_equal(array(data), latent)
    assert set(point(latent, "points.0")) == {"latent"}
    with pytest.raises(InputError, match=r"images: .*latent"):
        picture(latent, "images")


def test_masks_may_be_true_or_false() -> None:
    kept = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(pixels(mask(kept, "mask")), kept * np.uint8(255))


def test_points() -> None:
    assert point(3, "p") == {"seed": 3}
    assert point(np.int32(3), "p") == {"seed": 3}
    assert point(Seed(3, 4), "p") == {"seed": 3, "index": 4}
    assert point(b"x", "p") == {"image": "eA=="}


@pytest.mark.parametrize("bad", [None, 1.5, True, object(), ["x"], {"seed": 1}])
def test_what_is_no_point(bad: Any) -> None:
    with pytest.raises(InputError, match=r"points\.1: "):
        point(bad, "points.1")


def test_files_are_read_from_where_they_are() -> None:
    file = io.BytesIO(b"0123")
    file.seek(2)
    assert content(file, "images") == b"23"
    with pytest.raises(InputError, match="images: "):
        content(io.StringIO("x"), "images")  # type: ignore[arg-type]


with io.BytesIO() as _buffer:
    Image.fromarray(noise(40, 40)).save(_buffer, "PNG")
    PNG = _buffer.getvalue()


def _closed(source: Any) -> Any:
    source.close()
    return source


@pytest.mark.parametrize(
    "source",
    [
        _closed(io.BytesIO(b"0123")),
        _closed(Image.fromarray(GREY8)),
        Image.new("L", (0, 0)),
        Image.open(io.BytesIO(PNG[:60])),  # cut; Pillow reads the pixels when they are needed
    ],
    ids=["closed file", "closed image", "no pixels", "cut file"],
)
def test_pictures_that_cannot_be_read(source: Any) -> None:
    with pytest.raises(InputError, match=r"images\.2: "):
        content(source, "images.2")


@pytest.mark.parametrize("name", ["missing.png", ".", "nul\0.png", "x" * 5000])
def test_paths_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"images\.0: ") as caught:
        content(f"{tmp_path}/{name}", "images.0")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("method", "arguments", "options", "field"),
    [
        ("project", ([],), {}, "images: "),
        ("score", ([],), {}, "images: "),
        ("project", (b"x",), {"mask": b"x", "masks": [b"x"]}, "masks"),
        ("project", (b"x",), {"mask": 3}, "mask: "),
        ("project", ([b"x", 3],), {}, r"images\.1: "),
        ("latent_interpolate", (3,), {}, "points: .*int"),
        ("latent_interpolate", ("ab",), {}, "points: .*str"),
        ("latent_interpolate", ([1, 2],), {"grid": 5}, "grid: "),
        ("latent_interpolate", ([1, 2],), {"grid": (2,)}, "grid: "),
        ("generate", (), {"timeout": "soon"}, "timeout: "),
        ("latent_arithmetic", ([Term("missing.png")],), {}, r"terms\.0: "),
        ("generate", (), {"noise_scale": float("nan")}, "noise_scale: "),
        ("generate", (), {"n": object()}, "n: "),
        ("generate", (), {"request_id": "a b"}, "request_id: "),
        ("generate", (), {"request_id": 7}, "request_id: "),
        ("generate_as", ("tiff",), {}, "form: .*png"),
        ("generate_as", (None,), {}, "form: .*png"),
        ("generate_as", (["png"],), {}, "form: .*png"),
        ("model", ("",), {}, "name: "),
        ("model", ("a/b/c",), {}, "name: "),
    ],
)
def test_nothing_is_sent_that_cannot_be_meant(
    ask: Ask, method: str, arguments: Any, options: Any, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=field):
        ask(Canned(), method, *arguments, **options)


def test_misspelt_options_are_type_errors(ask: Ask) -> None:
    with pytest.raises(TypeError, match="sed"):
        ask(Canned(), "generate", sed=1)
    with pytest.raises(TypeError):
        ask(Canned(), "generate", 1)


def test_forms_carry_what_json_carries(service: Service, ask: Ask) -> None:
    """A form of text and a JSON body: the same options, the same picture."""
    options: dict[str, Any] = {
        "steps": 3,
        "tolerance": 1e-07,
        "record": range(2),
        "score": np.bool_(True),
        "strength": np.float32(0.25),
        "invert": False,
    }
    white = np.full((5, 4), 255, np.uint8)
    form = ask(service.url, "project", GREY8, mask=white, **options)
    body = ask(service.url, "project", GREY8, masks=[white], **{**options, "record": [0, 1]})
    assert form.images == body.images


def test_forms_are_forms() -> None:
    to = Canned(httpx.Response(422))
    with Client(transport=to) as client, pytest.raises(Exception, match="422"):
        client.project([b"one", b"two"], mask=b"three", record=[0, 1], invert=True)
    body = to.asked[0].content
    assert body.count(b'name="image"; filename="image"') == 2
    assert b'name="mask"; filename="mask"' in body
    assert b'name="record"\r\n\r\n0,1\r\n' in body
    assert b'name="invert"\r\n\r\ntrue\r\n' in body


def test_options_not_given_are_left_to_the_service() -> None:
    to = Canned(httpx.Response(422))
    with Client(transport=to) as client, pytest.raises(Exception, match="422"):
        client.generate()
    assert json.loads(to.asked[0].content) == {"n": 1, "offset": 0, "noise_scale": 1.0, "score": False, "format": "png"}


@pytest.mark.parametrize("missing", ["numpy", "PIL"])
def test_without_the_extra_it_says_how_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PIL.Image" if missing == "PIL" else "numpy"
    monkeypatch.setitem(sys.modules, name, None)
    shown = Picture(bytes=save(GREY8), format="png")
    with pytest.raises(ImportError, match=r"pip install 'ign-client\[images\]'"):
        shown.to_pil() if missing == "PIL" else shown.to_numpy()
    assert content(b"x", "images") == b"x"
