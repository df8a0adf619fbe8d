"""Values in and out: which inputs methods take, what they send, how they reject the others; and
what images and results show and save.
"""

import dataclasses
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from ign_client import (
    Client,
    Image,
    Images,
    InputError,
    InvalidContent,
    ModelRef,
    Picture,
    Step,
    Term,
    Timing,
    UnexpectedAnswer,
)
from ign_client._inputs import content, mask, picture, point
from tests.contract.data import array, npy, pixels
from tests.helpers.pictures import noise, opened, save
from tests.unit.sdk.clients import Ask, Canned, answer, problem

GREY8 = noise(5, 4)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV"]
LAYOUTS: list[Callable[[Any], Any]] = [
    np.ascontiguousarray,
    np.asfortranarray,
    lambda x: np.repeat(x, 2, 0)[::2],
]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 2), (5, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_images(shape: tuple[int, ...], layout: Any) -> None:
    source = layout(noise(*shape).reshape(shape))
    np.testing.assert_array_equal(np.asarray(opened(picture(source, "images"))), source.squeeze())


@given(
    st.sampled_from(["uint8", "uint16", "float32", "float64", "bool"]),
    st.lists(st.integers(0, 5), max_size=4),
)
def test_other_arrays_are_rejected(dtype: str, shape: list[int]) -> None:
    if (
        dtype == "uint8"
        and 0 not in shape
        and (len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4))
    ):
        return
    with pytest.raises(InputError, match=r"images\.0: "):
        picture(np.zeros(shape, dtype), "images.0")


@pytest.mark.parametrize("mode", [*MODES, "F", "I", "LAB"])
def test_modes_of_pil(mode: str) -> None:
    source = PilImage.new("RGBA", (4, 5), (200, 100, 50, 128))
    image = source.convert("LA").convert("La") if mode == "La" else PilImage.new(mode, (4, 5))
    if mode in MODES:
        assert opened(picture(image, "images")).size == (4, 5)
    else:
        with pytest.raises(InputError, match=f"images: .*{mode}"):
            picture(image, "images")


def test_pil_images_keep_sixteen_bits_and_lose_their_orientation() -> None:
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    exif = PilImage.Exif()
    exif[0x0112] = 6
    image = opened(save(PilImage.fromarray(deep), exif=exif))
    assert image.getexif()[0x0112] == 6
    sent = opened(picture(image, "images"))
    np.testing.assert_array_equal(np.asarray(sent), deep)
    assert 0x0112 not in sent.getexif()


def test_latents_are_float32_arrays_and_masks_may_be_boolean() -> None:
    latent = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    for form in (np.asfortranarray(latent), latent.astype(">f4")):
        np.testing.assert_array_equal(array(content(form, "points.0")), latent)
    assert set(point(latent, "points.0")) == {"latent"}
    with pytest.raises(InputError, match=r"images: .*latent"):
        picture(latent, "images")
    np.testing.assert_array_equal(pixels(mask(np.eye(2, dtype=bool), "mask")), np.eye(2) * 255)


def test_every_form_of_a_file_is_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    shown = Picture(bytes=PNG, format="png")
    with path.open("rb") as file:
        for form in (path, str(path), PNG, bytearray(PNG), memoryview(PNG), file, shown):
            assert content(form, "images") == PNG


def closed(source: Any) -> Any:
    source.close()
    return source


@pytest.mark.parametrize(
    "source",
    [
        io.StringIO("text"),
        closed(io.BytesIO(b"0123")),
        closed(PilImage.fromarray(GREY8)),
        PilImage.new("L", (0, 0)),
        # cut; Pillow reads the pixels when they are needed
        PilImage.open(io.BytesIO(save(noise(40, 40))[:60])),
        "missing.png",
        ".",
        "nul\0.png",
        "x" * 5000,
    ],
)
def test_images_that_cannot_be_read(source: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images\.2: "):
        content(f"{tmp_path}/{source}" if isinstance(source, str) else source, "images.2")


@pytest.mark.parametrize(
    ("method", "arguments", "options", "field"),
    [
        *((method, ([],), {}, "images: ") for method in ("project", "score")),
        ("project", (b"x",), {"mask": b"x", "masks": [b"x"]}, "masks"),
        *(("project", ([b"x"] * count,), {"masks": [b"x"] * 2}, "masks") for count in (1, 100)),
        ("project", (b"x",), {"mask": 3}, "mask: "),
        ("project", ([b"x", 3],), {}, r"images\.1: "),
        ("latent_arithmetic", ([Term("missing.png")],), {}, r"terms\.0: "),
        ("latent_arithmetic", ([Term(1, "2")],), {}, r"terms\.0\.weight: "),  # type: ignore[arg-type]
        ("generate", (), {"request_id": "a b"}, "request_id: "),
        ("generate", (), {"timeout": 0}, "timeout: "),
        ("generate", (), {"n": 10**12}, "n: .*at most"),
        *(("generate_as", (form,), {}, "form: .*png") for form in ("tiff", None, ["png"])),
        ("model", (None,), {}, "name: "),
        *(
            ("latent_interpolate", ([1, point],), {}, r"points\.1: ")
            for point in (None, 1.5, True, object(), ["x"], {"seed": 1})
        ),
        *(
            ("latent_interpolate", ([1],), {"grid": grid}, "grid: ")
            for grid in (5, (2,), (2, 3.0), "2x3")
        ),
        *(("project", (b"x",), {"invert": value}, "invert: ") for value in (1, [True])),
    ],
)
def test_what_cannot_be_sent(
    ask: Ask, method: str, arguments: Any, options: Any, field: str
) -> None:
    with pytest.raises(InputError, match=field):
        ask(Canned(), method, *arguments, **options)


@pytest.mark.parametrize("method", ["generate", "project", "stream_project"])
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("steps", ("2", 2.0, True, [2], object())),
        ("tolerance", ("0.5", True, float("nan"), np.float32("inf"))),
        ("score", (1, "true")),
        ("model", (3, b"grey")),
        ("record", (1, "1", [1.0], ["1"])),
    ],
)
def test_options_of_another_type_are_not_sent(
    ask: Ask, method: str, option: str, values: Any
) -> None:
    """Whatever the body: JSON, or a form, in which text and numbers look alike."""
    for value in values:
        with pytest.raises(InputError, match=f"^{option}: expected "):
            ask(Canned(), method, *([b"x"] if "project" in method else []), **{option: value})


def test_type_checkers_and_python_know_the_options() -> None:
    """mypy would call a comment useless that ignores no error."""
    client = Client(transport=Canned())
    with pytest.raises(TypeError, match="sed"):
        client.generate(sed=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="images"):
        client.project()  # type: ignore[call-arg]


def test_what_is_sent(ask: Ask) -> None:
    to = Canned(answer(2), answer(), problem(422))
    file = io.BytesIO(b"0123")
    file.seek(2)
    ask(to, "generate", model=None, n=np.int32(2), seed=None, timeout=None)
    ask(to, "project", file, masks=[b"y"], mask=None, score=np.bool_(True))
    bodies = [json.loads(request.content) for request in to.asked]
    # from the position of the file
    assert bodies == [{"n": 2}, {"images": ["MjM="], "masks": ["eQ=="], "score": True}]
    options: dict[str, Any] = {"record": np.arange(2), "invert": True, "tolerance": np.float32(0.5)}
    with pytest.raises(InvalidContent):
        ask(to, "project", [b"one", b"two"], mask=b"three", **options)
    form = to.asked[2].content
    assert [
        form.count(b'name="%b"; filename="%b"' % (name, name)) for name in (b"image", b"mask")
    ] == [2, 1]
    for name, text in ((b"record", b"0,1"), (b"invert", b"true"), (b"tolerance", b"0.5")):
        assert b'name="%b"\r\n\r\n%b\r\n' % (name, text) in form


@pytest.mark.parametrize("missing", ["numpy", "PIL"])
def test_without_the_extra_it_says_how_to_get_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image" if missing == "PIL" else "numpy", None)
    shown = Picture(bytes=save(GREY8), format="png")
    with pytest.raises(ImportError, match=r"pip install 'ign-client\[images\]'"):
        shown.to_pil() if missing == "PIL" else shown.to_numpy()
    assert content(b"x", "images") == b"x"


PNG = save(noise(4, 5, 3))
MODEL = ModelRef(name="toy", version="2", digest="sha256:0123456789abcdef")
TIMING = Timing(decode_ms=0.1, queue_ms=0.2, compute_ms=0.3, encode_ms=0.4)
STEP = Step(bytes=PNG, format="png", index=0, step=1, change=0.25)
IMAGE = Image(
    bytes=PNG,
    format="png",
    index=0,
    width=5,
    height=4,
    steps=2,
    converged=False,
    distance=0.5,
    trajectory=(STEP,),
)
IMAGES = Images(images=(IMAGE, IMAGE), model=MODEL, request_id="abc", timing=TIMING, seed=7)


def test_values_are_picklable_and_their_reprs_hold_no_bytes() -> None:
    for value in (IMAGE, IMAGES, Picture(bytes=PNG, format="npy")):
        assert pickle.loads(pickle.dumps(value)) == value
        assert "\\x" not in repr(value)
    assert (len(IMAGES), IMAGES[-1], IMAGES[:1]) == (2, IMAGE, (IMAGE,))


def test_notebooks_show_a_part_of_many() -> None:
    html = dataclasses.replace(IMAGES, images=(IMAGE,) * 103)._repr_html_()
    assert (html.count('src="data:image/png;base64,'), "100 of 103" in html) == (100, True)
    assert Picture(bytes=b"x", format="npy")._repr_html_() is None


def test_images_are_decoded() -> None:
    np.testing.assert_array_equal(IMAGE.to_numpy(), noise(4, 5, 3))
    assert (IMAGE.to_pil().size, IMAGE.png()) == ((5, 4), PNG)
    lossless = Picture(bytes=save(noise(4, 5, 3), "WEBP", lossless=True), format="webp")
    np.testing.assert_array_equal(
        Picture(bytes=lossless.png(), format="png").to_numpy(), IMAGE.to_numpy()
    )
    array = Picture(bytes=npy(np.ones((1, 2, 2), np.float32)), format="npy")
    np.testing.assert_array_equal(array.to_numpy(), np.ones((1, 2, 2), np.float32))
    with pytest.raises(InputError, match="to_numpy"):
        array.to_pil()
    with pytest.raises(UnexpectedAnswer, match="allow_pickle"):
        Picture(bytes=npy(np.array([{}], dtype=object)), format="npy").to_numpy()


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("x.PNG", ""),
        ("x", ""),
        ("x.apng", ""),
        ("x.jpg", "jpeg"),
        ("x.npy", "npy"),
    ],
)
def test_saving(tmp_path: Path, name: str, promised: str) -> None:
    target = tmp_path / name
    target.write_bytes(b"before")
    if promised:
        with pytest.raises(InputError, match=promised):
            IMAGE.save(target)
    else:
        assert IMAGE.save(str(target)) == target
    assert target.read_bytes() == (b"before" if promised else PNG)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    target = tmp_path / "target.png"
    pipe = tmp_path / "pipe.png"
    link.symlink_to(target)
    IMAGE.save(link)
    assert (link.is_symlink(), target.read_bytes()) == (True, PNG)
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read_bytes)
        IMAGE.save(pipe)
        assert received.result(timeout=300) == PNG
    assert pipe.is_fifo()
