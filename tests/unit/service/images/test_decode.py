import io
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from service.domain.errors import IgnError, InvalidContent, TooLarge
from service.images.decode import DecodeLimits, Picture, load_png, simple_png_format
from service.images.untrusted import PNG_SIGNATURE, exif_transpose, png_chunks
from tests.helpers import pictures as make
from tests.helpers.pictures import decode_picture


def decode(data: bytes, limits: DecodeLimits = make.LIMITS) -> Picture:
    return decode_picture(data, limits, field="image")


def levels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(decode(data).image)


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "L"), ("PNG", "LA"), ("PNG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_lossless_pictures_decode_exactly(form: str, mode: str) -> None:
    pixels = make.noise(5, 7, len(mode)).squeeze()
    if "A" in mode:
        pixels[..., -1] = np.where(pixels[..., -1] > 127, 255, 1)  # nothing hidden that an encoder may drop
    picture = decode(
        make.save(Image.fromarray(pixels), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    )
    assert picture.image.mode == mode
    assert picture.image.size == picture.stored_size == (7, 5)
    assert np.array_equal(np.asarray(picture.image), pixels)


def test_the_bytes_decide_the_format() -> None:
    smooth = make.smooth(16, 16)
    for form in ("PNG", "JPEG", "WEBP"):
        assert np.abs(levels(make.save(smooth, form)).astype(int) - np.asarray(smooth)).max() < 40


WHOLE = [make.save(make.noise(40, 40, 3), form) for form in ("PNG", "JPEG", "WEBP")]
BROKEN = {
    **{form: make.save(make.smooth(16, 16), form) for form in ("GIF", "TIFF", "BMP", "ICO", "PPM")},
    **{
        f"stub {i}": stub for i, stub in enumerate([b"", PNG_SIGNATURE, b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"hello"])
    },
    **{
        f"{i}, {share} of it": file[: int(len(file) * share)]
        for i, file in enumerate(WHOLE)
        for share in (0.2, 0.5, 0.9)
    },
    "flipped bits": WHOLE[0][:2000] + bytes([WHOLE[0][2000] ^ 0xFF]) + WHOLE[0][2001:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(InvalidContent, match="image: ") as caught:
        decode(BROKEN[name])
    assert caught.value.error_code == "undecodable_image"
    assert caught.value.fields[0][0] == "image"


# --- depth and colour ------------------------------------------------------------------------------------------------

SIXTEEN = np.array([0, 128, 129, 256, 257, 385, 386, 32768, 65406, 65407, 65535], dtype=np.uint16)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bands"), [(make.GREY, 1), (make.GREY_ALPHA, 2), (make.RGB, 3), (make.RGBA, 4)])
def test_sixteen_bit_is_scaled_and_rounded(colour: int, bands: int, interlaced: bool) -> None:
    samples = np.random.default_rng(bands).choice(SIXTEEN, (9, 11, bands))
    got = levels(make.png(samples, colour, 16, interlaced=interlaced))
    assert np.array_equal(got.reshape(samples.shape), np.rint(samples / 257.0).astype(np.uint8))


def test_every_sixteen_bit_level() -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.array_equal(levels(make.png(samples, make.GREY, 16)), np.rint(samples[..., 0] / 257.0))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_low_depths_span_black_to_white(depth: int) -> None:
    top = 2**depth - 1
    samples = np.arange(top + 1).reshape(1, -1, 1)
    assert levels(make.png(samples, make.GREY, depth)).tolist() == [[v * 255 // top for v in range(top + 1)]]


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
    block = make.chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    got = levels(make.png(np.array([[other, key]]), make.RGB if key[1:] else make.GREY, depth, before=block))
    assert got[..., -1].tolist() == [[255, 0]]


def test_palettes_become_colours() -> None:
    palette = make.chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    samples = np.array([[[0], [1]]])
    assert levels(make.png(samples, make.PALETTE, 8, before=palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    with_alpha = palette + make.chunk(b"tRNS", bytes([128]))
    assert levels(make.png(samples, make.PALETTE, 1, before=with_alpha)).tolist() == [
        [[10, 20, 30, 128], [40, 50, 60, 255]]
    ]


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = decode(make.save(red, "JPEG", quality=100))
    assert picture.image.mode == "RGB"
    r, g, b = np.asarray(picture.image)[8, 8].tolist()
    assert r > 245
    assert max(g, b) < 10


# --- animations and metadata -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_give_their_first_frame(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    data = make.save(first, form, save_all=True, append_images=[second], duration=100, **options)
    with make.opened(data) as animation:
        assert getattr(animation, "n_frames", 1) == 2
    assert levels(data)[0, 0, :3].tolist() == [200, 0, 0]


def test_metadata_beside_the_picture_neither_fails_nor_warns() -> None:
    pixels = make.noise(6, 6)
    bomb = zlib.compress(bytes(20_000_000))
    before = b"".join(
        (
            make.chunk(b"acTL", struct.pack(">II", 0, 0)),  # Pillow warns of this one
            make.chunk(b"zTXt", b"Comment\0\0" + bomb),
            make.chunk(b"iCCP", b"profile\0\0" + b"not a profile"),
            make.chunk(b"eXIf", b"II*\0garbage"),
        )
    )
    assert np.array_equal(levels(make.png(pixels[..., None], make.GREY, 8, before=before)), pixels)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_damaged_exif_is_ignored_without_a_warning(block: bytes, form: str) -> None:
    data = make.save(make.smooth(16, 24), form, exif=block)
    if form == "JPEG":  # without a resolution in its header Pillow would look for one in EXIF
        data = data[:2] + data[2 + 18 :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).image.size == (24, 16)


# --- orientation -----------------------------------------------------------------------------------------------------

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
    block = make.chunk(b"eXIf", make.exif(orientation, order, kind))
    stored = STORED[orientation]
    before, late = (b"", block) if after else (block, b"")
    data = make.png(stored[..., None], make.GREY, 8, before=before, after=late)
    picture = decode(data)
    assert np.array_equal(np.asarray(picture.image), UPRIGHT)
    assert picture.stored_size == stored.shape[::-1]


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_jpeg_and_webp_are_turned_as_their_exif_says(form: str) -> None:
    upright = make.smooth(16, 24)
    data = make.save(upright.transpose(Image.Transpose.ROTATE_90), form, exif=b"Exif\0\0" + make.exif(6))
    picture = decode(data)
    assert (picture.image.size, picture.stored_size) == ((24, 16), (16, 24))
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(upright)).mean() < 12


def test_exif_without_a_usable_orientation_does_not_turn() -> None:
    block = make.exif(6)
    assert exif_transpose(block) is Image.Transpose.ROTATE_270
    others = [make.exif(orientation) for orientation in (0, 1, 9, 65535)]
    others += [block.replace(b"\x12\x01\x03", entry) for entry in (b"\x13\x01\x03", b"\x12\x01\x07")]  # tag, type
    assert [exif_transpose(other) for other in (*others, b"JUNK" + block[4:])] == [None] * 7


@given(st.binary(max_size=64))
def test_no_exif_block_raises(tail: bytes) -> None:
    exif_transpose(b"II*\0" + tail)
    exif_transpose(b"Exif\0\0MM\0*" + tail)


# --- limits ----------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + make.chunk(b"IHDR", header) + make.chunk(b"IDAT", zlib.compress(bytes(1000)))


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(make.save(make.smooth(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    data = bytearray(make.save(make.smooth(16, 16), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


SIZES = [(16_383, 16_383), (12_000, 12_000), (16_383, 1000), (1001, 1000)]


@pytest.mark.parametrize(
    ("header", "size"),
    [
        *((header, size) for header in (png_header, jpeg_header, webp_header) for size in SIZES),
        (png_header, (2**31 - 1, 2**31 - 1)),
    ],
)
def test_too_many_pixels_are_refused_before_decoding(header: Any, size: tuple[int, int]) -> None:
    data = header(*size)
    start = time.process_time()
    with pytest.raises(TooLarge, match=r"^image: ") as caught:
        decode(data)
    assert caught.value.error_code == "image_too_large"
    assert time.process_time() - start < 0.5  # decoding any of these takes longer than a second


def test_a_side_has_its_own_limit() -> None:
    limits = DecodeLimits(max_pixels=10_000, max_side=100)
    with pytest.raises(TooLarge, match="101×1"):
        decode(make.save(make.noise(1, 101)), limits)
    assert decode(make.save(make.noise(100, 100)), limits).image.size == (100, 100)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = make.save(make.smooth(16, 16), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data[:-2] + scan * 50 + b"\xff\xd9").image.size == (16, 16)
    with pytest.raises(InvalidContent):
        decode(data[:-2] + scan * 100 + b"\xff\xd9")


# --- robustness ------------------------------------------------------------------------------------------------------

SEEDS = [
    make.save(make.smooth(12, 9)),
    make.save(make.smooth(12, 9), "JPEG", exif=b"Exif\0\0" + make.exif(6)),
    make.save(make.smooth(12, 9), "JPEG", progressive=True),
    make.save(make.smooth(12, 9), "WEBP", lossless=True, exif=b"Exif\0\0" + make.exif(8)),
    make.save(make.smooth(12, 9), "WEBP", save_all=True, append_images=[make.smooth(12, 9).rotate(180)]),
    make.save(make.smooth(12, 9).quantize(16)),
    make.png(make.noise(4, 4, 2), make.GREY_ALPHA, 16, interlaced=True),
    make.png(make.noise(4, 4, 3), make.RGB, 16, before=make.chunk(b"tRNS", bytes(6))),
]


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBPVP8X"])
)
def test_random_bytes_raise_nothing_foreign(tail: bytes, head: bytes) -> None:
    with pytest.raises(IgnError):
        decode(head + tail)


Damage = list[tuple[float, int]]
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)


def damaged(data: bytes, damage: Damage) -> bytes:
    changed = bytearray(data)
    for position, value in damage:
        changed[int(position * (len(data) - 1))] = value
    return bytes(changed)


@given(st.sampled_from(SEEDS), DAMAGE)
def test_damaged_files_raise_nothing_foreign(seed: bytes, damage: Damage) -> None:
    try:
        picture = decode(damaged(seed, damage))
    except IgnError:
        return
    assert picture.image.mode in ("L", "LA", "RGB", "RGBA")


LINES = zlib.compress(bytes(40))
PLAIN = [
    *(make.save(make.noise(5, 7, bands).squeeze()) for bands in (1, 2, 3, 4)),
    make.save(make.smooth(28, 28, 1)),
    make.save(make.smooth(28, 28), compress_level=0),
    PNG_SIGNATURE  # two pieces, and after them more than there are lines for
    + make.chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, make.GREY, 0, 0, 0))
    + b"".join(make.chunk(b"IDAT", part) for part in (LINES[:9], LINES[9:]))
    + make.chunk(b"IEND"),
]


@given(st.sampled_from(PLAIN), DAMAGE, st.floats(0, 1), st.booleans())
def test_plain_pictures_are_what_pillow_says(seed: bytes, damage: Damage, kept: float, shortened: bool) -> None:
    data = damaged(seed, damage)
    if shortened and not damage:  # header and checksums are right, but the pixels end early
        data = data[: int(kept * len(data))] + data[-12:]
    chunks = b"".join(png_chunks(data)[0])
    try:
        with PngImageFile(io.BytesIO(chunks)) as image:
            expected = np.asarray(load_png(chunks, image))
    except Exception:  # of any kind: Pillow rejects it
        with pytest.raises(IgnError):
            decode(data)
    else:
        assert np.array_equal(levels(data), expected)


def test_which_pictures_are_plain() -> None:
    others = [
        make.png(make.noise(4, 4), make.GREY, 8, interlaced=True),
        make.png(make.noise(4, 4), make.GREY, 16),
        make.png(make.noise(4, 4), make.GREY, 8, before=make.chunk(b"tRNS", bytes(2))),
        make.save(make.smooth(4, 4).quantize(16)),
        PLAIN[0][:-1],
    ]
    formats = [simple_png_format(png_chunks(data)[0]) for data in (*PLAIN[:4], *others)]
    assert formats == [*((mode, (7, 5)) for mode in ("L", "LA", "RGB", "RGBA")), *[None] * 5]


def test_decoding_in_threads_gives_the_same() -> None:
    with ThreadPoolExecutor(4) as pool:
        for decoded in pool.map(lambda _: [levels(data).tobytes() for data in SEEDS], range(40)):
            assert decoded == [levels(data).tobytes() for data in SEEDS]


def test_global_limits_of_pillow_are_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode(make.save(make.smooth(16, 16)))
    assert before == Image.MAX_IMAGE_PIXELS
