"""Files that make a parser work for nothing: refused, or decoded in about the time of an ordinary picture."""

import struct
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from service.domain.errors import IgnError, InvalidContent
from service.images import DecodeLimits, decode_picture, is_small, picture_pixels
from service.images.untrusted import MAX_PARTS
from tests.helpers.pictures import LIMITS, chunk, exif, noise, save, smooth

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
        assert picture_pixels(data, LARGE, field="image") == 0
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


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_read_from_the_header(form: str) -> None:
    data = save(noise(20, 30, 3), form)
    assert picture_pixels(data, LIMITS, field="image") == 600
    assert picture_pixels(data[:3], LIMITS, field="image") == 0
    assert picture_pixels(b"text", LIMITS, field="image") == 0
    with pytest.raises(IgnError) as refused:
        picture_pixels(data, DecodeLimits(max_pixels=599), field="image")
    assert refused.value.error_code == "image_too_large"
