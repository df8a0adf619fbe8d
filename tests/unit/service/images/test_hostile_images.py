"""Files that are rare, damaged or made to harm: what they cost is bounded, and what they raise is
ours.
"""

import struct
import time
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.domain.errors import IgnError, InvalidContent, TooLarge
from service.images.decode import DecodeLimits, ImageBytes
from service.images.formats import avif_still
from service.images.untrusted import MAX_PARTS
from tests.helpers.pictures import (
    GREY,
    LIMITS,
    chunk,
    damaged,
    decode_picture,
    exif,
    levels,
    noise,
    save,
    smooth,
)

Tags = Mapping[int, tuple[int, ...]]
SMALL = {
    form: save(noise(16, 16, 3) if form != "GIF" else noise(16, 16), form)
    for form in ("PNG", "JPEG", "WEBP", "GIF")
}


def tiff(order: str, tags: Tags, strips: bytes = b"", following: int = 0) -> bytes:
    """A TIFF whose strips begin at byte 8; the values of its tags are 32-bit numbers."""
    start = 8 + len(strips)
    entries = b""
    values = b""
    place = start + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        entries += packed if len(packed) == 4 else struct.pack(order + "I", place + len(values))
        values += packed if len(packed) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return (
        head
        + strips
        + struct.pack(order + "H", len(tags))
        + entries
        + struct.pack(order + "I", following)
        + values
    )


PLAIN: Tags = {
    256: (4,),
    257: (2,),
    258: (8,),
    259: (1,),
    262: (1,),
    273: (8,),
    277: (1,),
    278: (2,),
    279: (8,),
}
"""The tags of a grey image of 4×2 pixels in one strip."""


@pytest.mark.parametrize(
    ("order", "bits", "white"), [("<", 8, 0), (">", 8, 255), ("<", 16, 255), (">", 16, 0)]
)
def test_tiff_of_both_byte_orders_strips_and_white_as_zero(
    order: str, bits: int, white: int
) -> None:
    """… and further values of a tag are dropped without a warning."""
    samples = np.arange(8).reshape(2, 4) * (8191 if bits == 16 else 31)
    size = bits // 2
    own: Tags = {
        256: (4, 9, 9),
        258: (bits,),
        262: (int(not white),),
        273: (8, 8 + size),
        278: (1,),
        279: (size, size),
    }
    expected = np.rint(samples / (257 if bits == 16 else 1))
    found = levels(tiff(order, {**PLAIN, **own}, samples.astype(f"{order}u{bits // 8}").tobytes()))
    assert np.array_equal(found, np.abs(white - expected))


def test_tiff_of_tiles_turned_and_with_a_reduced_copy() -> None:
    pixels = noise(16, 24)
    tiles = pixels[:, :16].tobytes() + np.pad(pixels[:, 16:], ((0, 0), (0, 8))).tobytes()
    tags: Tags = {tag: values for tag, values in PLAIN.items() if tag not in (273, 278, 279)}
    tags = {**tags, 256: (24,), 257: (16,), 274: (6,)}
    tags = {**tags, 322: (16,), 323: (16,), 324: (8, 8 + 256), 325: (256, 256)}
    size = len(tiff("<", tags, tiles))
    copy = tiff("<", {**PLAIN, 254: (1,)}, bytes(8))
    data = tiff("<", tags, tiles, following=size + struct.unpack_from("<I", copy, 4)[0]) + copy
    assert np.array_equal(levels(data), np.rot90(pixels, -1))


SIDE = 16_383


def resized(
    form: str, mark: bytes, at: int, sides: bytes, image: Image.Image | None = None
) -> bytes:
    """A file whose header, ``at`` bytes behind a mark, has another size."""
    data = bytearray(save(image or smooth(16, 16), form, lossless=True, speed=10))
    place = data.index(mark) + at
    data[place : place + len(sides)] = sides
    return bytes(data)


OVERSIZED = {
    "JPEG": resized("JPEG", b"\xff\xc0", 5, struct.pack(">HH", SIDE, SIDE)),
    "WEBP": resized("WEBP", b"VP8L", 9, struct.pack("<I", (SIDE - 1) * ((1 << 14) + 1))),
    "BMP": resized("BMP", b"BM", 18, struct.pack("<ii", SIDE, SIDE)),
    "GIF": resized("GIF", b"GIF", 6, struct.pack("<HH", SIDE, SIDE)),
    "a frame beyond the screen of a GIF": resized(
        "GIF", b",\0\0\0\0", 5, struct.pack("<HH", 65_535, 65_535)
    ),
    "AVIF": resized("AVIF", b"ispe", 8, struct.pack(">II", SIDE, SIDE)),
    "TIFF": tiff("<", {**PLAIN, 256: (SIDE,), 257: (SIDE,), 278: (SIDE,)}, bytes(8)),
}


@pytest.mark.parametrize("form", OVERSIZED)
def test_too_many_pixels_are_refused_before_decoding(form: str) -> None:
    began = time.thread_time()
    with pytest.raises(TooLarge, match=r"^image: "):
        decode_picture(OVERSIZED[form])
    assert time.thread_time() - began < 0.5  # decoding any of these takes longer than a second


def test_a_second_header_is_refused() -> None:
    """`is_png_of` reads the first one, and Pillow would believe the last one."""
    pixels = save(noise(8, 8))
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, GREY, 0, 0, 0))
    for place in (8, pixels.index(b"IDAT") - 4, len(pixels) - 12):
        data = pixels[:place] + second + pixels[place:]
        with pytest.raises(InvalidContent):
            ImageBytes("image", data).open(LIMITS)


def jpeg(before: bytes) -> bytes:
    """The JPEG with more bytes behind its first marker."""
    return SMALL["JPEG"][:2] + before + SMALL["JPEG"][2:]


def png(before: bytes) -> bytes:
    """The PNG with more chunks before its pixels."""
    return SMALL["PNG"].replace(chunk(b"IHDR", SMALL["PNG"][16:29]), SMALL["PNG"][8:33] + before)


def webp(after: bytes) -> bytes:
    """The WebP with more chunks."""
    body = SMALL["WEBP"][8:] + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(before: bytes) -> bytes:
    """The GIF with more extensions before its first frame."""
    at = frame_of(SMALL["GIF"])
    return SMALL["GIF"][:at] + before + SMALL["GIF"][at:]


def frame_of(data: bytes | bytearray) -> int:
    """Where the first frame of a GIF without extensions begins."""
    return 13 + (3 << (data[10] & 7) + 1)


def segment(code: int, content: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(content) + 2) + content


PARTS = {
    "comments like scans": (jpeg, segment(0xFE, b"\xff\xda\xff\xc0")),
    "profiles and restarts": (jpeg, segment(0xE2, b"ICC_PROFILE\0\1\1") + b"\xff\xd0"),
    "padding": (jpeg, b"\xff"),
    "empty text": (png, chunk(b"tEXt")),
    "unknown WebP chunks": (webp, b"abcd\0\0\0\0"),
    "GIF comments": (gif, b"!\xfe\1a\0"),
    "empty GIF extensions": (gif, b"!\xff\0"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_bounded(name: str) -> None:
    build, part = PARTS[name]
    assert np.array_equal(levels(build(part * 2000)), levels(build(b"")))
    with pytest.raises(InvalidContent, match="image"):
        decode_picture(build(part * (MAX_PARTS + 1)))


SIZE = 2_000_000  # bytes of each file, at least half of it
HOSTILE = PARTS | {
    "stray zeros": (jpeg, b"\xff\0"),
    "EXIF appended again and again": (jpeg, segment(0xE1, b"Exif\0\0" + bytes(300))),
    "Photoshop resources": (
        jpeg,
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5000),
    ),
    "quantisation tables": (jpeg, segment(0xDB, (b"\0" + b"\1" * 64) * 500)),
    "empty IDAT": (png, chunk(b"IDAT")),
    "palettes": (png, chunk(b"PLTE", bytes(3))),
}


def seconds(data: bytes) -> float:
    """CPU time of one attempt to decode, the best of three."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        with suppress(InvalidContent):
            decode_picture(data, DecodeLimits(max_pixels=16_000_000))
        times.append(time.thread_time() - began)
    return min(times)


@pytest.fixture(scope="module")
def ordinary() -> float:
    """CPU time of an ordinary picture of the same number of bytes."""
    return seconds(save(noise(1400, 1400, 3), "JPEG", quality=95))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_about_as_much_as_a_picture(name: str, ordinary: float) -> None:
    build, part = HOSTILE[name]
    # Quadratic time is hundreds of times; a coverage tracer costs a few.
    assert seconds(build(part * (SIZE // len(part)))) < 20 * ordinary


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def avif(
    data: bytes, *, items: int = 1, length: int = 0, method: int = 0, meta: bytes = b""
) -> bytes:
    """An AVIF whose iloc lists the same data several times; with method 1 it is in the box
    `idat`.
    """

    def head(offset: int) -> bytes:
        entry = struct.pack(">HHHHII", 1, method, 0, 1, offset, length)
        iloc = box(b"iloc", b"\1\0\0\0\x44\0" + struct.pack(">H", items) + entry * items)
        return (
            box(b"ftyp", b"avif\0\0\0\0avifmif1")
            + box(b"meta", bytes(4) + iloc + meta)
            + b"\0\0\0\0mdat"
        )

    return head(0 if method else len(head(0))) + data


FRAME = b"\x32\x01\0"
SEQUENCE = b"\x0a\x05\x18\x11;6\x15"  # of a still image of 30×20 pixels
FTYP = box(b"ftyp", b"avif\0\0\0\0avif")


def test_the_size_of_av1_frames_is_read_wherever_they_are() -> None:
    for data in (SEQUENCE + FRAME, b"\x12\0" + SEQUENCE + FRAME):
        for file in (
            avif(data, length=len(data)),
            avif(b"", method=1, length=len(data), meta=box(b"idat", data)),
        ):
            assert avif_still(file)[1:] == (600, 600)


REJECTED = {
    "JPEG 2000 in a TIFF": tiff("<", {**PLAIN, 259: (34_712,)}, bytes(8)),
    "CIE Lab": tiff("<", {**PLAIN, 262: (8,)}, bytes(8)),
    "seven bands": tiff("<", {**PLAIN, 277: (7,)}, bytes(8)),
    "samples without a scale": tiff("<", {**PLAIN, 258: (32,), 279: (32,)}, bytes(32)),
    "no pixels": tiff("<", {**PLAIN, 256: (0,)}, bytes(8)),
    "no strips": tiff("<", {tag: values for tag, values in PLAIN.items() if tag != 273}, bytes(8)),
    "too few strips": tiff("<", {**PLAIN, 278: (1,)}, bytes(8)),
    "strips of more bytes than the file": tiff("<", {**PLAIN, 279: (9_999,)}, bytes(8)),
    "very many values": tiff("<", {**PLAIN, 273: tuple(range(MAX_PARTS + 1))}, bytes(8)),
    "a tile of 4 gigapixels": tiff(
        "<", {**PLAIN, 322: (1 << 16,), 323: (1 << 16,), 324: (8,), 325: (8,)}, bytes(8)
    ),
    "an offset beyond the file": b"II*\0\xff\xff\xff\x7f" + bytes(99),
    "a directory that follows itself": tiff("<", PLAIN, bytes(8), following=16),
    "an empty directory that follows itself": b"II*\0" + struct.pack("<IHI", 8, 0, 8),
    "images that overlap": avif(bytes(300), items=1000, length=300),
    "frames without end": avif(FRAME * 100, length=300),
    "units without end": avif(b"\x12\0" * 150, length=300),
    "data in the index": avif(FRAME, method=1),
    "a large index": avif(FRAME, meta=box(b"free", bytes(1 << 16))),
    "two indices": avif(FRAME, meta=box(b"iloc", bytes(8))),
    "no index": FTYP + box(b"meta", bytes(4)),
    "many boxes": FTYP + box(b"free", b"") * (MAX_PARTS + 1),
    "a box beyond the end": FTYP + b"\0\1\0\0meta",
}
REJECTED["a BMP with run lengths"] = resized("BMP", b"BM", 30, b"\1")
SCANS = save(smooth(16, 16), "JPEG", progressive=True)
REJECTED["a JPEG of endless scans"] = SCANS[:-2] + SCANS[SCANS.rindex(b"\xff\xda") : -2] * 100
# libavif would decode all of them, and scale them down
REJECTED["an AVIF of more pixels than it says"] = resized(
    "AVIF", b"ispe", 8, struct.pack(">II", 16, 16), Image.new("L", (3000, 3000))
)


@pytest.mark.parametrize("data", REJECTED.values(), ids=list(REJECTED))
def test_hostile_files_are_rejected_at_once(data: bytes) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidContent):
        decode_picture(data)
    assert time.thread_time() - began < 1


ALPHA = Image.fromarray(noise(12, 9, 4))
BLACK = Image.fromarray(noise(12, 9)).convert("1")
SEEDS = [
    *(save(ALPHA, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate")),
    save(smooth(12, 9), "TIFF", compression="jpeg"),
    save(BLACK, "TIFF", compression="group4"),
    save(Image.fromarray(noise(12, 9).astype(np.uint16) * 257), "TIFF", compression="packbits"),
    *(save(smooth(12, 9), form, exif=b"Exif\0\0" + exif(6)) for form in ("PNG", "JPEG", "WEBP")),
    *(save(smooth(12, 9), form) for form in ("BMP", "GIF", "AVIF")),
    *(
        save(smooth(12, 9), form, save_all=True, append_images=[smooth(12, 9)])
        for form in ("TIFF", "GIF", "AVIF")
    ),
    save(smooth(12, 9), "JPEG", progressive=True),
    save(smooth(12, 9).quantize(16)),
]
PLACES = st.floats(0, 1) | st.floats(0, 0.1)


@given(
    st.builds(
        damaged,
        st.sampled_from(SEEDS),
        st.lists(st.tuples(PLACES, st.integers(0, 255)), max_size=6),
        st.just(1.0) | st.floats(0, 1),
    )
)
def test_damaged_files_raise_nothing_foreign_and_warn_of_nothing(data: bytes) -> None:
    with suppress(IgnError):
        picture = decode_picture(data)
        assert picture.image.mode in ("L", "LA", "RGB", "RGBA")
        assert picture.image.size[0] * picture.image.size[1] <= LIMITS.max_pixels


def test_damage_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """LibTIFF would write a line for every damaged line of a fax."""
    data = bytearray(
        save(Image.fromarray(noise(37, 51)).convert("1"), "TIFF", compression="group4")
    )
    data[20:200] = bytes(range(180))
    with suppress(InvalidContent):
        decode_picture(bytes(data))
    assert capfd.readouterr() == ("", "")
