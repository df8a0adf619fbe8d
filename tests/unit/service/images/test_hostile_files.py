"""Files that make a parser work for nothing: refused, or decoded in about the time of an ordinary picture."""

import gc
import io
import struct
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from service.domain.errors import IgnError, InvalidContent
from service.images import decode
from service.images.decode import DecodeLimits, open_image
from service.images.untrusted import MAX_PARTS, is_small
from tests.helpers.pictures import LIMITS, chunk, decode_picture, exif, noise, save, smooth

LARGE = DecodeLimits(max_pixels=16_000_000)
SIZE = 4_000_000  # bytes of each file
PNG, JPEG, WEBP = (save(noise(16, 16, 3), form) for form in ("PNG", "JPEG", "WEBP"))
IDAT = PNG.index(b"IDAT") - 4


def jpeg(before: bytes) -> bytes:
    """The JPEG with more bytes behind its first marker."""
    return JPEG[:2] + before + JPEG[2:]


def png(before: bytes) -> bytes:
    """The PNG with more chunks before its pixels."""
    return PNG[:IDAT] + before + PNG[IDAT:]


def webp(after: bytes) -> bytes:
    """The WebP with more chunks."""
    body = b"WEBP" + WEBP[12:] + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def segment(code: int, content: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(content) + 2) + content


def repeated(part: bytes) -> bytes:
    return part * (SIZE // len(part))


PHOTOSHOP = segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5000)
HOSTILE = {
    "empty APP segments": jpeg(repeated(segment(0xE5))),
    "empty comments": jpeg(repeated(segment(0xFE))),
    "padding": jpeg(repeated(b"\xff")),
    "stray zeros": jpeg(repeated(b"\xff\0")),
    "EXIF appended again and again": jpeg(repeated(segment(0xE1, b"Exif\0\0" + bytes(300)))),
    "Photoshop resources": jpeg(repeated(PHOTOSHOP)),
    "quantisation tables": jpeg(repeated(segment(0xDB, (b"\0" + b"\1" * 64) * 1000))),
    "empty IDAT": png(repeated(chunk(b"IDAT"))),
    "empty text": png(repeated(chunk(b"tEXt"))),
    "palettes": png(repeated(chunk(b"PLTE", bytes(3)))),
    "unknown WebP chunks": webp(repeated(b"abcd\0\0\0\0")),
}


def seconds(data: bytes) -> float:
    """CPU time of one attempt to decode, the best of three."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        with suppress(InvalidContent):
            decode_picture(data, LARGE, field="image")
        times.append(time.thread_time() - began)
    return min(times)


@pytest.fixture(scope="module")
def ordinary() -> float:
    """CPU time of an ordinary picture of the same number of bytes."""
    picture = save(noise(1900, 1900, 3), "JPEG", quality=95)
    assert len(picture) > SIZE
    return seconds(picture)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_about_as_much_as_a_picture(name: str, ordinary: float) -> None:
    assert len(HOSTILE[name]) > SIZE / 2
    assert seconds(HOSTILE[name]) < 20 * ordinary  # quadratic time is hundreds of times; a coverage tracer costs a few


@pytest.mark.parametrize(
    ("build", "part"), [(jpeg, segment(0xE5)), (jpeg, b"\xff"), (png, chunk(b"tEXt")), (webp, b"abcd\0\0\0\0")]
)
def test_parts_are_bounded(build: Callable[[bytes], bytes], part: bytes) -> None:
    assert decode_picture(build(part * 2000), LIMITS, field="image").image.size == (16, 16)
    with pytest.raises(InvalidContent) as refused:
        decode_picture(build(part * MAX_PARTS), LIMITS, field="image")
    assert refused.value.error_code == "undecodable_image"


def test_a_second_header_is_refused() -> None:
    """`is_small` reads the first one, and Pillow would believe the last one."""
    first, second = (chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) for side in (8, 4000))
    pixels = save(noise(8, 8))
    for place in (pixels.index(b"IDAT") - 4, len(pixels) - 12):
        data = pixels[:place] + second + pixels[place:]
        assert is_small(data)
        with pytest.raises(InvalidContent):
            decode_picture(data, LARGE, field="image")
        assert open_image(data, LARGE, field="image").pixels == 0
    with pytest.raises(InvalidContent):
        decode_picture(pixels[:8] + first + pixels[8:], LARGE, field="image")


def test_metadata_of_a_jpeg_changes_no_pixel() -> None:
    for options in ({}, {"progressive": True}, {"optimize": True}):
        plain = save(smooth(24, 16), "JPEG", **options)
        expected = decode_picture(plain, LIMITS, field="image")
        icc = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(200))
        extras = (segment(0xFE, b"\xff\xda\xff\xc0"), icc, b"\xff" * 7, segment(0xED, b"Photoshop 3.0\0"), b"\xff\xd0")
        for place in (2, plain.index(b"\xff\xdb"), plain.index(b"\xff\xda")):
            data = plain[:place] + b"".join(extras) + plain[place:]
            found = decode_picture(data, LIMITS, field="image")
            assert np.array_equal(np.asarray(found.image), np.asarray(expected.image))
            turned = plain[:place] + segment(0xE1, b"Exif\0\0" + exif(6)) + b"".join(extras) + plain[place:]
            assert decode_picture(turned, LIMITS, field="image").image.size == expected.image.size[::-1]


@pytest.mark.parametrize("file", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
def test_an_opened_image_knows_its_pixels_and_is_not_read_again(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_image(b64encode(file).decode(), LIMITS, field="image")
    assert (opened.field, opened.pixels) == ("image", 256)
    with pytest.raises(IgnError) as refused:
        open_image(file, DecodeLimits(max_pixels=255), field="image")
    monkeypatch.setattr(decode, "untrusted", None)  # what reads chunks and base64
    assert np.array_equal(np.asarray(opened.decode_as_stored()), np.asarray(Image.open(io.BytesIO(file))))
    assert refused.value.error_code == "image_too_large"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (PNG[:3], "undecodable_image"),
        (b"text", "undecodable_image"),
        ("-", "invalid_base64"),
        ("dGV4dA==", "undecodable_image"),
    ],
)
def test_a_damaged_header_has_no_pixels_and_is_reported_by_the_decoder(data: bytes | str, code: str) -> None:
    opened = open_image(data, LIMITS, field="images.7")
    assert opened.pixels == 0
    for _ in range(2):
        with pytest.raises(InvalidContent, match=r"^images\.7: ") as refused:
            opened.decode()
        assert refused.value.error_code == code


def test_text_beyond_its_limit_is_too_large() -> None:
    with pytest.raises(IgnError, match="5 characters of base64; the limit is 4") as too_long:
        open_image("AAAAA", DecodeLimits(max_pixels=1, max_chars=4), field="image")
    assert too_long.value.error_code == "too_large"


@pytest.mark.parametrize("file", [bytes(5000), PNG[:400]], ids=["no header", "no end"])
def test_a_rejected_file_is_free_at_once(file: bytes) -> None:
    gc.disable()
    try:
        before = sys.getrefcount(file)
        with suppress(InvalidContent):
            decode_picture(file, LIMITS, field="image")
        assert sys.getrefcount(file) == before
    finally:
        gc.enable()


def sized(width: int, height: int) -> bytes:
    """A small image with another size in its header: what that says counts, not what follows."""
    return TINY[:16] + struct.pack(">II", width, height) + TINY[24:]


TINY = save(noise(28, 28))


@pytest.mark.parametrize(
    ("data", "small"),
    [
        *((sized(*size), True) for size in ((28, 28), (128, 128), (1, 16384))),
        *((sized(*size), False) for size in ((129, 128), (16384, 16384), (2**31 - 1, 2**31 - 1))),
        (b"", False),
        (TINY[:23], False),
        (b"x" * 100, False),
        (save(noise(28, 28), "JPEG"), False),
    ],
)
def test_a_png_of_few_pixels_is_small(data: bytes, small: bool) -> None:
    text = b64encode(data).decode()
    assert [is_small(form) for form in (data, text, f"data:image/png;base64,{text}")] == [small] * 3
    assert not is_small(f" {text}")  # a rare form is left to the codec pool


def test_many_bytes_and_other_text_are_not_small() -> None:
    assert is_small(TINY + bytes((1 << 14) - len(TINY)))
    assert not is_small(TINY + bytes((1 << 14) - len(TINY) + 1))
    assert not any(map(is_small, ("no base64!", "data:")))
