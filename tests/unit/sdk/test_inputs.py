"""Which inputs methods take, what they send, and how they reject the others."""

import io
import json
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ign_client import Client, InputError, InvalidContent, Picture, Seed, Term
from ign_client._inputs import content, mask, picture, point
from tests.contract.data import array, pixels
from tests.contract.harness import Service
from tests.helpers.pictures import noise, opened, save
from tests.unit.sdk.clients import Ask, Canned, answer, problem

GREY8 = noise(5, 4)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 2), (5, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize(
    "layout", [np.ascontiguousarray, np.asfortranarray, lambda pixels: np.repeat(pixels, 2, 0)[::2]]
)
def test_arrays_are_images(shape: tuple[int, ...], layout: Any) -> None:
    source = layout(noise(*shape).reshape(shape))
    np.testing.assert_array_equal(np.asarray(opened(picture(source, "images"))), source.squeeze())


@given(st.sampled_from(["uint8", "uint16", "float32", "float64", "bool"]), st.lists(st.integers(0, 5), max_size=4))
def test_other_arrays_are_rejected(dtype: str, shape: list[int]) -> None:
    if dtype == "uint8" and 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4)):
        return
    with pytest.raises(InputError, match=r"images\.0: "):
        picture(np.zeros(shape, dtype), "images.0")


@pytest.mark.parametrize("mode", [*MODES, "F", "I", "LAB"])
def test_modes_of_pil(mode: str) -> None:
    source = Image.new("RGBA", (4, 5), (200, 100, 50, 128))
    image = source.convert("LA").convert("La") if mode == "La" else Image.new(mode, (4, 5))
    if mode not in MODES:
        with pytest.raises(InputError, match=f"images: .*{mode}"):
            picture(image, "images")
    else:
        sent = opened(picture(image, "images"))
        assert (sent.format, sent.size) == ("PNG", (4, 5))


def test_pil_images_keep_sixteen_bits_and_lose_their_orientation() -> None:
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    np.testing.assert_array_equal(np.asarray(opened(picture(Image.fromarray(deep), "images"))), deep)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY8).save(file, "PNG", exif=exif)
    image = Image.open(io.BytesIO(file.getvalue()))
    assert image.getexif()[0x0112] == 6
    assert 0x0112 not in opened(picture(image, "images")).getexif()


def test_latents_are_float32_arrays() -> None:
    latent = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    for form in (latent, np.asfortranarray(latent), latent.astype(">f4")):
        data = content(form, "points.0")
        assert array(data).dtype == np.dtype("<f4")
        np.testing.assert_array_equal(array(data), latent)
    assert set(point(latent, "points.0")) == {"latent"}
    with pytest.raises(InputError, match=r"images: .*latent"):
        picture(latent, "images")


def test_masks_may_be_boolean() -> None:
    kept = np.eye(2, dtype=bool)
    np.testing.assert_array_equal(pixels(mask(kept, "mask")), kept * np.uint8(255))


@pytest.mark.parametrize(
    ("value", "member"),
    [
        (3, {"seed": 3}),
        (np.int32(3), {"seed": 3}),
        (Seed(3, 4), {"seed": 3, "index": 4}),
        (b"x", {"image": "eA=="}),
        *((bad, None) for bad in (None, 1.5, True, object(), ["x"], {"seed": 1})),
    ],
)
def test_points(value: Any, member: Any) -> None:
    if member is not None:
        assert point(value, "points.1") == member
    else:
        with pytest.raises(InputError, match=r"points\.1: "):
            point(value, "points.1")


def test_files_are_read_from_their_position() -> None:
    file = io.BytesIO(b"0123")
    file.seek(2)
    assert content(file, "images") == b"23"


def closed(source: Any) -> Any:
    source.close()
    return source


@pytest.mark.parametrize(
    "source",
    [
        io.StringIO("text"),
        closed(io.BytesIO(b"0123")),
        closed(Image.fromarray(GREY8)),
        Image.new("L", (0, 0)),
        Image.open(io.BytesIO(save(noise(40, 40))[:60])),  # cut; Pillow reads the pixels when they are needed
        "missing.png",
        ".",
        "nul\0.png",
        "x" * 5000,
    ],
    ids=["text", "closed file", "closed image", "no pixels", "cut", "missing", "folder", "nul", "long"],
)
def test_images_that_cannot_be_read(source: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images\.2: "):
        content(f"{tmp_path}/{source}" if isinstance(source, str) else source, "images.2")


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
        ("latent_arithmetic", ([Term("missing.png")],), {}, r"terms\.0: "),
        ("latent_arithmetic", ([Term(1, "2")],), {}, r"terms\.0\.weight: "),  # type: ignore[arg-type]
        ("generate", (), {"request_id": "a b"}, "request_id: "),
        *(("generate", (), {"timeout": seconds}, "timeout: ") for seconds in (0, -1)),
        *(("generate_as", (form,), {}, "form: .*png") for form in ("tiff", None, ["png"])),
        *(("model", (name,), {}, "name: ") for name in ("", "a/b/c", None)),
    ],
)
def test_arguments_that_cannot_be_sent(ask: Ask, method: str, arguments: Any, options: Any, field: str) -> None:
    with pytest.raises(InputError, match=field):
        ask(Canned(), method, *arguments, **options)


NO_INTEGERS = ("2", 2.0, True, [2], object())
NO_NUMBERS = ("0.5", True, float("nan"), np.float32("inf"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value) for option in ("steps", "scale") for value in NO_INTEGERS),
        *((option, value) for option in ("tolerance", "timeout") for value in NO_NUMBERS),
        *(("score", value) for value in (1, "true")),
        *((option, value) for option in ("model", "request_id") for value in (3, b"grey")),
        *((option, value) for option in ("resample", "resize") for value in (3, True)),
        *(("record", value) for value in (1, "1", [1.0], ["1"])),
        *(("grid", value) for value in (5, (2,), (2, 3.0), "2x3")),
        ("invert", 1),
    ],
)
def test_options_of_another_type_are_rejected(ask: Ask, option: str, value: Any) -> None:
    """Whatever the body: JSON, or a form, in which text and numbers look alike."""
    methods = {"project": (b"x",), "stream_project": (b"x",), "generate": (), "latent_interpolate": ([1, 2],)}
    takers = {name: given for name, given in methods.items() if option in signature(getattr(Client, name)).parameters}
    assert takers
    for method, arguments in takers.items():
        call = ask.stream if method.startswith("stream") else ask
        with pytest.raises(InputError, match=f"^{option}: expected "):
            call(Canned(), method, *arguments, **{option: value})


def test_type_checkers_and_python_know_the_options() -> None:
    """mypy would call a comment useless that ignores no error."""
    client = Client(transport=Canned())
    with pytest.raises(TypeError, match="sed"):
        client.generate(sed=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        client.generate(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="images"):
        client.project()  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"^n: "):
        client.generate(n="1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^form: "):
        client.generate_as("tiff")  # type: ignore[arg-type]


def test_forms_carry_what_json_carries(service: Service, ask: Ask) -> None:
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
    body = ask(service.url, "project", GREY8, masks=[white], **{**options, "record": np.arange(2)})
    assert form.images == body.images


def test_forms_are_forms(ask: Ask) -> None:
    to = Canned(problem(422))
    with pytest.raises(InvalidContent):
        ask(to, "project", [b"one", b"two"], mask=b"three", record=[0, 1], invert=True, tolerance=0.5)
    body = to.asked[0].content
    assert body.count(b'name="image"; filename="image"') == 2
    assert b'name="mask"; filename="mask"' in body
    for name, text in ((b"record", b"0,1"), (b"invert", b"true"), (b"tolerance", b"0.5")):
        assert b'name="%b"\r\n\r\n%b\r\n' % (name, text) in body


def test_options_not_given_are_left_to_the_service() -> None:
    to = Canned(answer(), answer(2), answer())
    with Client(transport=to) as client:
        client.generate()
        client.generate(model=None, n=2, seed=None, timeout=None)
        client.project(b"x", masks=[b"y"], mask=None)
    assert [set(json.loads(request.content)) for request in to.asked] == [set(), {"n"}, {"images", "masks"}]


@pytest.mark.parametrize("missing", ["numpy", "PIL"])
def test_without_the_extra_it_says_how_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image" if missing == "PIL" else "numpy", None)
    shown = Picture(bytes=save(GREY8), format="png")
    with pytest.raises(ImportError, match=r"pip install 'ign-client\[images\]'"):
        shown.to_pil() if missing == "PIL" else shown.to_numpy()
    assert content(b"x", "images") == b"x"
