import gc
import io
import struct
import sys
import time
import warnings
import zlib
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from service.domain.errors import IgnError, InvalidContent, TooLarge
from service.images.decode import DecodeLimits, ImageBytes, Picture, load_png
from service.images.untrusted import MAX_PARTS, PNG_SIGNATURE, exif_transpose, is_png_of, png_chunks
from tests.helpers.pictures import (
    GREY,
    GREY_ALPHA,
    LIMITS,
    PALETTE,
    RGB,
    RGBA,
    THREAD,
    chunk,
    damaged,
    decode_picture,
    exif,
    noise,
    opened,
    save,
    smooth,
)
from tests.helpers.pictures import png as make_png


def decode(data: bytes, limits: DecodeLimits = LIMITS) -> Picture:
    return decode_picture(data, limits, field="image")


def levels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(decode(data).image)


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "L"), ("PNG", "LA"), ("PNG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_lossless_pictures_decode_exactly(form: str, mode: str) -> None:
    pixels = noise(5, 7, len(mode)).squeeze()
    if "A" in mode:
        pixels[..., -1] = np.where(pixels[..., -1] > 127, 255, 1)  # nothing hidden that an encoder may drop
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    picture = decode(save(Image.fromarray(pixels), form, **options))
    assert picture.image.mode == mode
    assert picture.image.size == picture.stored_size == (7, 5)
    assert np.array_equal(np.asarray(picture.image), pixels)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bands", "depth"),
    [*((GREY, 1, depth) for depth in (1, 2, 4, 8, 16)), (GREY_ALPHA, 2, 16), (RGB, 3, 16), (RGBA, 4, 16)],
)
def test_every_level_is_scaled_and_rounded(colour: int, bands: int, depth: int, interlaced: bool) -> None:
    top = 2**depth - 1
    samples = np.resize(np.arange(top + 1, dtype=np.uint16), (128, 512, bands))
    got = levels(make_png(samples, colour, depth, interlaced=interlaced))
    assert np.array_equal(got.reshape(samples.shape), np.rint(samples * 255.0 / top).astype(np.uint8))


@pytest.mark.parametrize(
    ("depth", "key", "other"),
    [
        *((depth, (key,), (0,)) for depth, key in ((1, 1), (2, 1), (4, 5), (8, 77), (16, 257))),
        (16, (257,), (256,)),
        (8, (1, 2, 3), (1, 2, 4)),
        (16, (1, 2, 3), (1, 2, 4)),
    ],
)
def test_a_transparent_colour_is_compared_in_all_bits_of_all_bands(
    depth: int, key: tuple[int, ...], other: tuple[int, ...]
) -> None:
    block = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    got = levels(make_png(np.array([[other, key]]), RGB if key[1:] else GREY, depth, before=block))
    assert got[..., -1].tolist() == [[255, 0]]


def test_palettes_become_colours() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    samples = np.array([[[0], [1]]])
    assert levels(make_png(samples, PALETTE, 8, before=palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    half = palette + chunk(b"tRNS", bytes([128]))
    assert levels(make_png(samples, PALETTE, 1, before=half))[..., 3].tolist() == [[128, 255]]


def test_cmyk_becomes_rgb() -> None:
    picture = decode(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert picture.image.mode == "RGB"
    assert np.abs(np.asarray(picture.image)[8, 8] - np.array([255, 0, 0])).max() < 10


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_give_their_first_frame(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    data = save(first, form, save_all=True, append_images=[second], duration=100, **options)
    with opened(data) as animation:
        assert getattr(animation, "n_frames", 1) == 2
    assert levels(data)[0, 0, :3].tolist() == [200, 0, 0]


def test_metadata_beside_the_picture_neither_fails_nor_warns() -> None:
    pixels = noise(6, 6)
    bomb = zlib.compress(bytes(20_000_000))
    before = b"".join(
        (
            chunk(b"acTL", struct.pack(">II", 0, 0)),  # Pillow warns of this one
            chunk(b"zTXt", b"Comment\0\0" + bomb),
            chunk(b"iCCP", b"profile\0\0" + b"not a profile"),
            chunk(b"eXIf", b"II*\0garbage"),
        )
    )
    assert np.array_equal(levels(make_png(pixels[..., None], GREY, 8, before=before)), pixels)


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (exif(6), (24, 16)),
        (b"", (16, 24)),
        (b"II*\0\xff\xff\xff\xff", (16, 24)),
        (b"MM\0*\0\0\0\x08\xff\xff", (16, 24)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_jpeg_and_webp_are_turned_as_their_exif_says(block: bytes, size: tuple[int, int], form: str) -> None:
    """… and damaged EXIF is ignored without a warning."""
    upright = smooth(24, 16)
    data = save(upright, form, exif=b"Exif\0\0" + block)
    if form == "JPEG":  # without a resolution in its header Pillow would look for one in EXIF
        data = data[:2] + data[2 + 18 :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = decode(data)
    assert (picture.image.size, picture.stored_size) == (size, (16, 24))
    expected = upright if size == (16, 24) else upright.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(expected)).mean() < 12


UPRIGHT = np.array([[0, 60, 120], [180, 210, 240]], dtype=np.uint8)
STORED = {  # how a camera held each way stores UPRIGHT (Exif 2.3, 4.6.4)
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_is_turned_as_its_exif_says(orientation: int, kind: int, order: str, after: bool) -> None:
    block = chunk(b"eXIf", exif(orientation, order, kind))
    stored = STORED[orientation]
    picture = decode(
        make_png(stored[..., None], GREY, 8, before=b"" if after else block, after=block if after else b"")
    )
    assert np.array_equal(np.asarray(picture.image), UPRIGHT)
    assert picture.stored_size == stored.shape[::-1]


def test_exif_without_a_usable_orientation_does_not_turn() -> None:
    block = exif(6)
    assert exif_transpose(block) is Image.Transpose.ROTATE_270
    others = [exif(orientation) for orientation in (0, 1, 9, 65535)]
    others += [block.replace(b"\x12\x01\x03", entry) for entry in (b"\x13\x01\x03", b"\x12\x01\x07")]  # tag, type
    assert [exif_transpose(other) for other in (*others, b"JUNK" + block[4:])] == [None] * 7


@given(st.sampled_from([b"II*\0", b"Exif\0\0MM\0*"]), st.binary(max_size=64))
def test_no_exif_block_raises(head: bytes, tail: bytes) -> None:
    exif_transpose(head + tail)


def with_size(form: str, width: int, height: int) -> bytes:
    """A small picture whose header has another size."""
    data = bytearray(save(smooth(16, 16), form, **({"lossless": True} if form == "WEBP" else {})))
    if form == "PNG":
        data[8:33] = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    elif form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    else:
        data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


@pytest.mark.parametrize(
    ("form", "size"),
    [
        *((form, size) for form in ("PNG", "JPEG", "WEBP") for size in ((16_383, 16_383), (1001, 1000))),
        ("PNG", (2**31 - 1, 2**31 - 1)),
        ("PNG", (16_385, 1)),  # a side has its own limit
    ],
)
def test_too_many_pixels_are_refused_before_decoding(form: str, size: tuple[int, int]) -> None:
    data = with_size(form, *size)
    start = time.process_time()
    with pytest.raises(TooLarge, match=r"^image: ") as caught:
        decode(data)
    assert caught.value.error_code == "image_too_large"
    assert time.process_time() - start < 0.5  # decoding any of these takes longer than a second


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = save(smooth(16, 16), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data[:-2] + scan * 50 + b"\xff\xd9").image.size == (16, 16)
    with pytest.raises(InvalidContent):
        decode(data[:-2] + scan * 100 + b"\xff\xd9")


SEEDS = [
    save(smooth(12, 9)),
    save(smooth(12, 9), "JPEG", exif=b"Exif\0\0" + exif(6)),
    save(smooth(12, 9), "JPEG", progressive=True),
    save(smooth(12, 9), "WEBP", lossless=True, exif=b"Exif\0\0" + exif(8)),
    save(smooth(12, 9), "WEBP", save_all=True, append_images=[smooth(12, 9).rotate(180)]),
    save(smooth(12, 9).quantize(16)),
    make_png(noise(4, 4, 2), GREY_ALPHA, 16, interlaced=True),
    make_png(noise(4, 4, 3), RGB, 16, before=chunk(b"tRNS", bytes(6))),
]
HEADS = [b"", PNG_SIGNATURE, b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBPVP8X"]


DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)


@given(
    st.builds(damaged, st.sampled_from(SEEDS), DAMAGE) | st.builds(add, st.sampled_from(HEADS), st.binary(max_size=200))
)
def test_damaged_files_raise_nothing_foreign(data: bytes) -> None:
    try:
        picture = decode(data)
    except IgnError:
        return
    assert picture.image.mode in ("L", "LA", "RGB", "RGBA")


LINES = zlib.compress(bytes(40))
PLAIN = [
    *(save(noise(5, 7, bands).squeeze()) for bands in (1, 2, 3, 4)),
    save(smooth(28, 28, 1)),
    save(smooth(28, 28), compress_level=0),
    PNG_SIGNATURE  # two pieces, and after them more than there are lines for
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, GREY, 0, 0, 0))
    + b"".join(chunk(b"IDAT", part) for part in (LINES[:9], LINES[9:]))
    + chunk(b"IEND"),
]


def shortened(data: bytes, kept: float) -> bytes:
    """The picture with the right header and checksums, but its pixels end early."""
    return data[: int(kept * len(data))] + data[-12:]


@given(
    st.builds(damaged, st.sampled_from(PLAIN), DAMAGE) | st.builds(shortened, st.sampled_from(PLAIN), st.floats(0, 1))
)
def test_plain_pictures_are_what_pillow_says(data: bytes) -> None:
    chunks = b"".join(png_chunks(data)[0])
    try:
        with PngImageFile(io.BytesIO(chunks)) as image:
            expected = np.asarray(load_png(chunks, image))
    except Exception:  # of any kind: Pillow rejects it
        with pytest.raises(IgnError):
            decode(data)
    else:
        assert np.array_equal(levels(data), expected)


def test_decoding_in_threads_gives_the_same_and_changes_no_global_limit() -> None:
    limit, expected = Image.MAX_IMAGE_PIXELS, [levels(data).tobytes() for data in SEEDS]
    with ThreadPoolExecutor(4) as pool:
        for decoded in pool.map(lambda _: [levels(data).tobytes() for data in SEEDS], range(10)):
            assert decoded == expected
    assert limit == Image.MAX_IMAGE_PIXELS


LARGE = DecodeLimits(max_pixels=16_000_000)
SIZE = 2_000_000  # bytes of each file
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
    "padding": jpeg(repeated(b"\xff")),
    "stray zeros": jpeg(repeated(b"\xff\0")),
    "EXIF appended again and again": jpeg(repeated(segment(0xE1, b"Exif\0\0" + bytes(300)))),
    "Photoshop resources": jpeg(repeated(PHOTOSHOP)),
    "quantisation tables": jpeg(repeated(segment(0xDB, (b"\0" + b"\1" * 64) * 500))),
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
            decode(data, LARGE)
        times.append(time.thread_time() - began)
    return min(times)


@pytest.fixture(scope="module")
def ordinary() -> float:
    """CPU time of an ordinary picture of the same number of bytes."""
    picture = save(noise(1400, 1400, 3), "JPEG", quality=95)
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
    assert decode(build(part * 2000)).image.size == (16, 16)
    with pytest.raises(InvalidContent, match="image"):
        decode(build(part * MAX_PARTS))


def test_a_second_header_is_refused() -> None:
    """`is_png_of` reads the first one, and Pillow would believe the last one."""
    first, second = (chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) for side in (8, 4000))
    pixels = save(noise(8, 8))
    for place in (pixels.index(b"IDAT") - 4, len(pixels) - 12):
        data = pixels[:place] + second + pixels[place:]
        assert is_png_of(data, (8, 8))
        with pytest.raises(InvalidContent):
            decode(data, LARGE)
        assert ImageBytes("image", data).open(THREAD, LARGE).pixels == 0
    with pytest.raises(InvalidContent):
        decode(pixels[:8] + first + pixels[8:], LARGE)


def test_metadata_of_a_jpeg_changes_no_pixel() -> None:
    for options in ({}, {"progressive": True}, {"optimize": True}):
        plain = save(smooth(24, 16), "JPEG", **options)
        expected = decode(plain)
        icc = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(200))
        extras = (segment(0xFE, b"\xff\xda\xff\xc0"), icc, b"\xff" * 7, segment(0xED, b"Photoshop 3.0\0"), b"\xff\xd0")
        for place in (2, plain.index(b"\xff\xdb"), plain.index(b"\xff\xda")):
            data = plain[:place] + b"".join(extras) + plain[place:]
            found = decode(data)
            assert np.array_equal(np.asarray(found.image), np.asarray(expected.image))
            turned = plain[:place] + segment(0xE1, b"Exif\0\0" + exif(6)) + b"".join(extras) + plain[place:]
            assert decode(turned).image.size == expected.image.size[::-1]


@pytest.mark.parametrize("file", [bytes(5000), PNG[:400]], ids=["no header", "no end"])
def test_a_rejected_file_is_free_at_once(file: bytes) -> None:
    gc.disable()
    try:
        before = sys.getrefcount(file)
        with suppress(InvalidContent):
            decode(file)
        assert sys.getrefcount(file) == before
    finally:
        gc.enable()


TINY = save(noise(28, 28))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        *((with_size("PNG", *size), size) for size in ((28, 28), (128, 128), (1, 16384))),
        (save(noise(28, 28, 4)), (28, 28)),
    ],
)
def test_a_small_png_of_the_wanted_size_is_recognised(data: bytes, size: tuple[int, int]) -> None:
    text = b64encode(data).decode()
    assert all(is_png_of(form, size) for form in (data, text, f"data:image/png;base64,{text}"))
    assert not is_png_of(data, (size[0] + 1, size[1]))
    assert not any(is_png_of(form, size) for form in (f" {text}", "no base64!", "data:"))  # the codec pool reads them


@settings(deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    flips=st.lists(st.tuples(st.integers(33, 5000), st.integers(1, 255)), max_size=2),
    lost=st.one_of(st.just(0), st.integers(1, 100)),
)
def test_a_small_png_is_decoded_as_any_other(channels: int, flips: list[tuple[int, int]], lost: int) -> None:
    """Also a damaged one, which is refused."""
    whole = save(noise(28, 28) if channels == 1 else noise(28, 28, 3))
    damaged = bytearray(whole)
    for place, bits in flips:
        damaged[33 + place % (len(whole) - 33)] ^= bits
    data = bytes(damaged[: len(whole) - lost])
    image = ImageBytes("image", data)
    assert image.is_png_of((28, 28))
    try:
        expected = image.open(THREAD, LARGE).decode(THREAD)
    except InvalidContent:
        with pytest.raises(InvalidContent):
            image.decode_png(channels)
        return
    found = image.decode_png(channels)
    assert isinstance(found, np.ndarray) or data != whole
    np.testing.assert_array_equal(found if isinstance(found, np.ndarray) else found.image, expected.image)


@pytest.mark.parametrize(
    "data",
    [
        *(with_size("PNG", *size) for size in ((129, 128), (16384, 16384), (2**31 - 1, 2**31 - 1))),
        TINY[:32],
        save(noise(28, 28), "JPEG"),
        TINY + bytes((1 << 14) + 1 - len(TINY)),
        TINY[:29] + bytes(4) + TINY[33:],
    ],
    ids=["large", "larger", "huge", "cut", "jpeg", "long", "checksum"],
)
def test_other_files_are_left_to_the_codec_pool(data: bytes) -> None:
    width, height = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
    assert not is_png_of(data, (width, height))
    assert not is_png_of(data, (28, 28))
