"""Images of every format decode to the pixels that they hold."""

import io
import struct
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from service.domain.errors import IgnError
from service.images.decode import ImageBytes
from service.images.untrusted import png_chunks
from tests.helpers.pictures import (
    GREY,
    PALETTE,
    RGB,
    RGBA,
    chunk,
    damaged,
    decode_picture,
    exif,
    levels,
    noise,
    save,
    smooth,
)
from tests.helpers.pictures import png as make_png

COLOURS = Image.fromarray(noise(37, 51, 3))
ALPHA = Image.fromarray(noise(37, 51, 4))
DEEP = np.random.default_rng(1).integers(0, 65_536, (37, 51), dtype=np.uint16)
LOSSLESS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "PNG": ("1 L LA P RGB RGBA", [{}]),
    "WEBP": ("RGB RGBA", [{"lossless": True, "exact": True}]),
    "BMP": ("1 L P RGB", [{}]),
    "TIFF": (
        "1 L LA P RGB RGBA CMYK I;16",
        [{"compression": name} for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")],
    ),
}
FAX = [{"compression": name} for name in ("group3", "group4")]


@pytest.mark.parametrize(
    ("form", "mode"),
    [(form, mode) for form, (modes, _) in LOSSLESS.items() for mode in modes.split()],
)
def test_lossless_pictures_decode_exactly(form: str, mode: str) -> None:
    image = (
        Image.fromarray(DEEP)
        if mode == "I;16"
        else COLOURS.quantize(99)
        if mode == "P"
        else ALPHA.convert(mode)
    )
    plain = {"1": "L", "P": "RGB", "CMYK": "RGB", "I;16": "L"}.get(mode, mode)
    expected = np.rint(DEEP / 257) if mode == "I;16" else np.asarray(image.convert(plain))
    for options in LOSSLESS[form][1] + (FAX if (form, mode) == ("TIFF", "1") else []):
        picture = decode_picture(save(image, form, **options))
        assert (picture.image.mode, picture.stored_size) == (plain, (51, 37))
        assert np.array_equal(np.asarray(picture.image), expected)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("is_keyed", [False, True])
@pytest.mark.parametrize(
    ("colour", "bands", "depth"),
    [
        *((GREY, 1, depth) for depth in (1, 2, 4, 8, 16)),
        (4, 2, 16),
        (RGB, 3, 8),
        (RGB, 3, 16),
        (RGBA, 4, 16),
    ],
)
def test_every_level_is_scaled_and_rounded(
    colour: int, bands: int, depth: int, is_keyed: bool, interlaced: bool
) -> None:
    """… and a transparent colour is compared in all bits of all bands."""
    top = 2**depth - 1
    samples = np.resize(np.arange(top + 1, dtype=np.uint16), (128, 512, bands))
    before = b""
    expected = np.rint(samples * 255.0 / top)
    if is_keyed and bands % 2:
        samples[0, 1] = key = samples[0, 0]
        samples[0, 1, -1] ^= 1
        before = chunk(b"tRNS", key.astype(">u2").tobytes())
        alpha = np.where((samples == key).all(axis=2), 0.0, 255.0)
        expected = np.dstack((np.rint(samples * 255.0 / top), alpha))
    got = levels(make_png(samples, colour, depth, before=before, interlaced=interlaced))
    assert np.array_equal(got.reshape(expected.shape), expected)


def test_palettes_become_colours() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])) + chunk(b"tRNS", bytes([128]))
    for depth in (1, 8):
        got = levels(make_png(np.array([[[0], [1]]]), PALETTE, depth, before=palette))
        assert got.tolist() == [[[10, 20, 30, 128], [40, 50, 60, 255]]]


def test_cmyk_becomes_rgb() -> None:
    got = levels(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(got[8, 8] - np.array([255, 0, 0])).max() < 10


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "AVIF"])
def test_animations_give_their_first_frame(form: str) -> None:
    first, second = (Image.new("RGB", (20, 30), (level, 0, 0)) for level in (250, 100))
    data = save(first, form, save_all=True, append_images=[second], duration=100)
    assert levels(data)[5, 5, 0] > 245


def test_what_is_transparent_in_a_gif_stays_so() -> None:
    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    assert levels(save(grey, "GIF", transparency=128))[0, :, -1].tolist() == [255, 0, 255]


def test_metadata_beside_the_picture_neither_fails_nor_warns() -> None:
    pixels = noise(6, 6)
    before = (
        chunk(b"acTL", bytes(8))  # Pillow warns of this one
        + chunk(b"zTXt", b"Comment\0\0damaged")
        + chunk(b"iCCP", b"profile\0\0not a profile")
        + chunk(b"eXIf", b"II*\0garbage")
    )
    assert np.array_equal(levels(make_png(pixels[..., None], GREY, 8, before=before)), pixels)


CAMERA = Image.Exif()
CAMERA[0x0112] = 6
DAMAGED_EXIF = (b"", exif(0), exif(9), b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff")


@pytest.mark.parametrize(
    ("form", "block"),
    [*product(["JPEG", "WEBP"], [exif(6), *DAMAGED_EXIF]), ("AVIF", CAMERA.tobytes()[6:])],
)
def test_jpeg_and_webp_are_turned_as_their_exif_says(form: str, block: bytes) -> None:
    """… and damaged EXIF is ignored without a warning."""
    stored = smooth(24, 16)
    data = save(stored, form, exif=b"Exif\0\0" + block)
    if form == "JPEG":  # without a resolution in its header Pillow would look for one in EXIF
        data = data[:2] + data[2 + 18 :]
    expected = stored.transpose(Image.Transpose.ROTATE_270) if block not in DAMAGED_EXIF else stored
    picture = decode_picture(data)
    assert (picture.image.size, picture.stored_size) == (expected.size, (16, 24))
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(expected)).mean() < 12


UPRIGHT = np.array([[0, 60, 120], [180, 210, 240]], dtype=np.uint8)
# How a camera held each way stores UPRIGHT (Exif 2.3, 4.6.4), beginning with orientation 1.
STORED = (
    UPRIGHT,
    UPRIGHT[:, ::-1],
    UPRIGHT[::-1, ::-1],
    UPRIGHT[::-1],
    UPRIGHT.T,
    np.rot90(UPRIGHT),
    UPRIGHT[::-1, ::-1].T,
    np.rot90(UPRIGHT, -1),
)


@pytest.mark.parametrize(("orientation", "stored"), list(enumerate(STORED, 1)))
def test_png_is_turned_as_its_exif_says(orientation: int, stored: Any) -> None:
    for order, kind, place in product("<>", (3, 4), ("before", "after")):
        block: dict[str, Any] = {place: chunk(b"eXIf", exif(orientation, order, kind))}
        picture = decode_picture(make_png(stored[..., None], GREY, 8, **block))
        assert np.array_equal(np.asarray(picture.image), UPRIGHT)
        assert picture.stored_size == stored.shape[::-1]


PLAIN = st.sampled_from(
    [
        *(save(noise(5, 7, bands).squeeze()) for bands in (1, 2, 3, 4)),
        save(smooth(28, 28, 1)),
        save(noise(28, 28, 3), compress_level=0),
    ]
)


def shortened(data: bytes, kept: float) -> bytes:
    """The picture with the right header and checksums, but its pixels end early."""
    return data[: int(kept * len(data))] + data[-12:]


def decoded_at_once(image: ImageBytes, channels: int) -> Any:
    found = image.decode_png(channels)
    return np.asarray(getattr(found, "image", found))


@given(
    st.builds(damaged, PLAIN, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6))
    | st.builds(shortened, PLAIN, st.floats(0, 1))
)
def test_plain_pngs_are_what_pillow_says_wherever_they_are_decoded(data: bytes) -> None:
    """Also those that are small enough for the event loop; a damaged one is rejected."""
    image = ImageBytes("image", data)
    chunks = b"".join(png_chunks(data)[0])
    ways: list[Callable[[], Any]] = [partial(levels, data)]
    if image.is_png_of(struct.unpack_from(">II", data.ljust(24, b"\0"), 16)):
        ways += [partial(decoded_at_once, image, channels) for channels in (1, 3)]
    try:
        with PngImageFile(io.BytesIO(chunks)) as opened:
            expected = np.asarray(opened)
    except Exception:  # of any kind: Pillow rejects it
        for way in ways:
            with pytest.raises(IgnError):
                way()
    else:
        assert all(np.array_equal(way(), expected) for way in ways)
