"""TIFF, BMP, GIF and AVIF: what people have, what they send by mistake, and what is sent to harm."""

import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.domain.errors import IgnError, InvalidContent, TooLarge
from service.images.decode import DecodeLimits, is_picture
from service.images.formats import avif_still, tiff_pages
from service.images.untrusted import MAX_PARTS
from tests.helpers.pictures import damaged, decode_picture, noise, save, smooth

COLOURS = Image.fromarray(noise(37, 51, 3))
GREY = Image.fromarray(noise(37, 51))
ALPHA = Image.fromarray(noise(37, 51, 4))
Tags = Mapping[int, tuple[int, ...]]
DEEP = np.random.default_rng(1).integers(0, 65_536, (37, 51), dtype=np.uint16)


def levels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(decode_picture(data).image)


def tiff(order: str, tags: Tags, strips: bytes = b"", following: int = 0) -> bytes:
    """A TIFF whose strips begin at byte 8; the values of its tags are 32-bit numbers."""
    start, entries, values = 8 + len(strips), b"", b""
    place = start + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        entries += packed if len(packed) == 4 else struct.pack(order + "I", place + len(values))
        values += packed if len(packed) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + strips + struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following) + values


PLAIN: Tags = {256: (4,), 257: (2,), 258: (8,), 259: (1,), 262: (1,), 273: (8,), 277: (1,), 278: (2,), 279: (8,)}
"""The tags of a grey image of 4×2 pixels in one strip."""


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_tiff_of_every_mode_decodes_exactly(mode: str, compression: str | None) -> None:
    image = Image.fromarray(DEEP) if mode == "I;16" else COLOURS.quantize(99) if mode == "P" else ALPHA.convert(mode)
    plain = {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    expected = np.rint(DEEP / 257) if mode == "I;16" else np.asarray(image.convert(plain))
    assert np.array_equal(levels(save(image, "TIFF", compression=compression)), expected)


def test_scans_of_fax_and_of_jpeg() -> None:
    line_art = GREY.convert("1")
    for compression in ("group3", "group4"):
        assert np.array_equal(
            levels(save(line_art, "TIFF", compression=compression)), np.asarray(line_art.convert("L"))
        )
    for image in (smooth(40, 50), smooth(40, 50, 1)):
        data = save(image, "TIFF", compression="jpeg", quality=95)
        assert np.abs(levels(data).astype(int) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_zero", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_both_byte_orders_strips_and_white_as_zero(order: str, white_zero: bool, bits: int) -> None:
    if (order, white_zero, bits) == (">", True, 16):
        pytest.skip("Pillow does not read it")
    samples = np.arange(8).reshape(2, 4) * (8191 if bits == 16 else 31)
    size = 4 * bits // 8
    strips = samples.astype(f"{order}u{bits // 8}").tobytes()
    own = {258: (bits,), 262: (int(not white_zero),), 273: (8, 8 + size), 278: (1,), 279: (size, size)}
    expected = np.rint(samples / 257) if bits == 16 else samples
    assert np.array_equal(levels(tiff(order, {**PLAIN, **own}, strips)), 255 - expected if white_zero else expected)


def test_tiles() -> None:
    pixels = noise(20, 40)
    padded = np.pad(pixels, ((0, 12), (0, 8)))
    tiles = b"".join(padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32))
    kept: Tags = {tag: values for tag, values in PLAIN.items() if tag not in (273, 278, 279)}
    tags: Tags = {**kept, 256: (40,), 257: (20,), 322: (16,), 323: (16,), 325: (256,) * 6}
    tags = {**tags, 324: tuple(range(8, 8 + 6 * 256, 256))}
    assert np.array_equal(levels(tiff("<", tags, tiles)), pixels)
    with pytest.raises(InvalidContent):  # one tile of 4 gigapixels for 4×2 pixels
        levels(tiff("<", {**tags, 256: (4,), 257: (2,), 322: (65_536,), 323: (65_536,), 324: (8,), 325: (9,)}, tiles))


def test_further_values_of_a_tag_are_dropped_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(tiff("<", {**PLAIN, 256: (4, 9, 9), 284: (1,) * 99}, bytes(range(8)))).shape == (2, 4)


def test_orientation_and_size() -> None:
    picture = decode_picture(tiff("<", {**PLAIN, 274: (6,)}, bytes(range(8))))
    assert (picture.image.size, picture.stored_size) == ((2, 4), (4, 2))
    assert np.asarray(picture.image).tolist() == [[4, 0], [5, 1], [6, 2], [7, 3]]


PAGES = [Image.fromarray(noise(9, 7, 3, seed=seed)) for seed in range(3)]
SCAN = save(PAGES[0], "TIFF", save_all=True, append_images=PAGES[1:], compression="tiff_lzw")


def test_pages() -> None:
    files = [page.file() for page in tiff_pages(SCAN)]
    assert [levels(file).tolist() for file in files] == [np.asarray(page).tolist() for page in PAGES]
    assert sum(map(len, files)) < len(SCAN) + 600  # each has its own strips only
    with pytest.raises(InvalidContent, match="TIFF of 3 pages, where one image is expected"):
        decode_picture(SCAN)


def test_a_reduced_copy_is_no_page() -> None:
    first = tiff("<", PLAIN, bytes(range(8)), following=0)
    second = tiff("<", {**PLAIN, 254: (1,)}, bytes(8))
    following = len(first) + struct.unpack_from("<I", second, 4)[0]
    both = tiff("<", PLAIN, bytes(range(8)), following=following) + second
    assert levels(both).flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({259: (34_712,)}, "compression 34712; expected one of none, G3"),
        ({259: (6,)}, "compression 6"),
        ({262: (8,)}, "photometric interpretation 8"),
        ({277: (7,)}, "of 7 bands"),
        ({262: (6,), 277: (3,)}, "photometric interpretation 6"),
        ({258: (32,), 339: (3,), 279: (32,)}, "no fixed scale"),
        ({258: (32,), 279: (32,)}, "no fixed scale"),
    ],
)
def test_what_tiff_may_hold_and_is_not_decoded_is_named(tags: Tags, message: str) -> None:
    with pytest.raises(InvalidContent, match=f"^image: is a TIFF.*{message}"):
        decode_picture(tiff("<", {**PLAIN, **tags}, bytes(32)))


HOSTILE_TIFFS = {
    "no pixels": tiff("<", {**PLAIN, 256: (0,)}, bytes(8)),
    "no strips": tiff("<", {tag: values for tag, values in PLAIN.items() if tag != 273}, bytes(8)),
    "too few strips": tiff("<", {**PLAIN, 278: (1,)}, bytes(8)),
    "strips of more bytes than the file": tiff("<", {**PLAIN, 279: (9_999,)}, bytes(8)),
    "very many values": tiff("<", {**PLAIN, 273: tuple(range(MAX_PARTS + 1))}, bytes(8)),
    "an offset beyond the file": tiff("<", PLAIN)[:4] + b"\xff\xff\xff\x7f" + bytes(99),
    "a directory that follows itself": tiff("<", PLAIN, bytes(8), following=16),
    "an empty directory that follows itself": b"II*\0" + struct.pack("<IHI", 8, 0, 8),
    "truncated": SCAN[: len(SCAN) // 2],
    "BigTIFF": b"II+\0\x08\0\0\0" + bytes(99),
}


@pytest.mark.parametrize("form", ["TIFF", "BMP", "GIF", "AVIF"])
def test_too_many_pixels_are_refused_before_decoding(form: str) -> None:
    data = bytearray(save(smooth(16, 16), form))
    width, at = {
        "TIFF": (struct.pack("<HHII", 256, 4, 1, 16_384), None),
        "BMP": (struct.pack("<i", 16_384), 18),
        "GIF": (struct.pack("<H", 16_384), 6),
        "AVIF": (struct.pack(">I", 16_384), data.find(b"ispe") + 8),
    }[form]
    if form == "TIFF":
        data = bytearray(tiff("<", {**PLAIN, 256: (16_384,), 257: (16_384,), 278: (16_384,)}, bytes(8)))
    else:
        assert at is not None
        data[at : at + len(width)] = width
    limits = DecodeLimits(max_pixels=20_000)
    tracemalloc.start()
    with pytest.raises(TooLarge, match=r"^image: 16384×"):
        decode_picture(bytes(data), limits)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_decodes_exactly(mode: str) -> None:
    image = COLOURS.quantize(99) if mode == "P" else COLOURS.convert(mode)
    expected = image.convert({"1": "L", "P": "RGB"}.get(mode, mode))
    assert np.array_equal(levels(save(image, "BMP")), np.asarray(expected))


def test_a_bmp_with_run_lengths_is_named() -> None:
    data = bytearray(save(GREY, "BMP"))
    data[30] = 1
    with pytest.raises(InvalidContent, match="BMP with run lengths; save it without"):
        decode_picture(bytes(data))


def test_gif_with_transparency_and_several_frames() -> None:
    first, second = Image.new("P", (8, 6), 1), Image.new("P", (8, 6), 2)
    for frame in (first, second):
        frame.putpalette([0, 0, 0, 200, 10, 20, 30, 40, 250])
    first.putpixel((3, 2), 0)
    data = save(first, "GIF", save_all=True, append_images=[second], transparency=0, loop=0, comment=b"a" * 600)
    pixels = levels(data)
    assert pixels[0, 0].tolist() == [200, 10, 20, 255]
    assert pixels[2, 3, 3] == 0
    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    assert levels(save(grey, "GIF", transparency=128))[0, :, -1].tolist() == [255, 0, 255]


def frame_of(data: bytes | bytearray) -> int:
    """Where the first frame of a GIF without extensions begins."""
    return 13 + (3 << (data[10] & 7) + 1)


def test_a_frame_beyond_the_screen_counts_by_its_own_size() -> None:
    data = bytearray(save(GREY, "GIF"))
    at = frame_of(data)
    data[at + 5 : at + 9] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(TooLarge, match="65535×65535"):
        decode_picture(bytes(data))


def test_avif_with_alpha_orientation_and_animation() -> None:
    assert (
        np.abs(levels(save(ALPHA, "AVIF", quality=100, subsampling="4:4:4")).astype(int) - np.asarray(ALPHA)).max() < 4
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = decode_picture(save(COLOURS, "AVIF", exif=turned))
    assert (picture.image.size, picture.stored_size) == ((37, 51), (51, 37))
    frames = [Image.new("RGB", (20, 30), (level, 0, 0)) for level in (250, 100, 0)]
    assert levels(save(frames[0], "AVIF", save_all=True, append_images=frames[1:]))[5, 5, 0] > 245


def test_an_avif_of_more_pixels_than_it_says_is_rejected_before_decoding() -> None:
    """libavif would decode all of them, and scale them down."""
    data = bytearray(save(Image.new("L", (3000, 3000)), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 16, 16)
    with pytest.raises(InvalidContent):
        decode_picture(bytes(data), DecodeLimits(max_pixels=1000))


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def avif(*, items: int = 1, length: int = 0, method: int = 0, meta: bytes = b"", data: bytes) -> bytes:
    """An AVIF whose iloc lists the same data several times; with method 1 it is in the box `idat`."""
    entry = struct.pack(">HHHHII", 1, method, 0, 1, 0, length)
    iloc = box(b"iloc", b"\1\0\0\0\x44\0" + struct.pack(">H", items) + entry * items)
    head = box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", b"\0\0\0\0" + iloc + meta) + b"\0\0\0\0mdat"
    at = iloc.index(entry) + len(entry) - 8
    located = iloc.replace(entry, entry[:-8] + struct.pack(">II", 0 if method else len(head), length))
    assert at > 0
    return head.replace(iloc, located) + data


FRAME = b"\x32\x01\0"
HOSTILE_AVIFS = {
    "images that overlap": avif(items=1000, length=300, data=bytes(300)),
    "frames without end": avif(length=300, data=FRAME * 100),
    "units without end": avif(length=300, data=b"\x12\0" * 150),
    "data in the index": avif(method=1, data=FRAME),
    "a large index": avif(meta=box(b"free", bytes(1 << 16)), data=FRAME),
    "two indices": avif(meta=box(b"iloc", bytes(8)), data=FRAME),
    "no index": box(b"ftyp", b"avif\0\0\0\0avif") + box(b"meta", bytes(4)),
    "many boxes": box(b"ftyp", b"avif\0\0\0\0avif") + box(b"free", b"") * (MAX_PARTS + 1),
    "a box beyond the end": box(b"ftyp", b"avif\0\0\0\0avif") + b"\0\1\0\0meta",
}


def test_the_size_of_av1_frames_is_read_wherever_they_are() -> None:
    sequence = b"\x0a\x05\x18\x11;6\x15"  # of a still image of 30×20 pixels
    for data in (sequence + FRAME, b"\x12\0" + sequence + FRAME):
        assert avif_still(avif(length=len(data), data=data))[1:] == (600, 600)
        assert avif_still(avif(method=1, length=len(data), meta=box(b"idat", data), data=b""))[1:] == (600, 600)


@pytest.mark.parametrize(
    "data", [*HOSTILE_TIFFS.values(), *HOSTILE_AVIFS.values()], ids=[*HOSTILE_TIFFS, *HOSTILE_AVIFS]
)
def test_hostile_files_are_rejected_at_once(data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(InvalidContent):
        decode_picture(data)
    assert time.process_time() - began < 1


SEEDS = [
    *(save(ALPHA.resize((12, 9)), "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate")),
    save(smooth(12, 9), "TIFF", compression="jpeg"),
    save(GREY.convert("1"), "TIFF", compression="group4"),
    save(Image.fromarray(DEEP), "TIFF", compression="packbits"),
    *(save(smooth(12, 9), form) for form in ("BMP", "GIF", "AVIF")),
    save(ALPHA.resize((12, 9)), "AVIF"),
    *(save(PAGES[0], form, save_all=True, append_images=PAGES[1:]) for form in ("TIFF", "GIF", "AVIF")),
]


@given(
    st.builds(
        damaged,
        st.sampled_from(SEEDS),
        st.lists(st.tuples(st.floats(0, 1) | st.floats(0, 0.1), st.integers(0, 255)), max_size=6),
        st.just(1.0) | st.floats(0, 1),
    )
)
def test_damaged_files_raise_nothing_foreign_and_warn_of_nothing(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture = decode_picture(data)
        except IgnError:
            return
    assert picture.image.mode in ("L", "LA", "RGB", "RGBA")
    assert picture.image.size[0] * picture.image.size[1] <= 1_000_000


def test_damage_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """LibTIFF would write a line for every damaged line of a fax."""
    data = bytearray(save(GREY.convert("1"), "TIFF", compression="group4"))
    data[20:200] = bytes(range(180))
    for each in (bytes(data), SEEDS[2][:8] + bytes(20) + SEEDS[2][28:]):
        with suppress(InvalidContent):
            decode_picture(each)
    assert capfd.readouterr() == ("", "")


def gif(after: bytes) -> bytes:
    """The GIF with more extensions before its first frame."""
    data = save(GREY.resize((16, 16)), "GIF")
    at = frame_of(data)
    return data[:at] + after + data[at:]


@pytest.mark.parametrize(("build", "part"), [(gif, b"!\xfe\1a\0"), (gif, b"!\xff\0")])
def test_parts_are_bounded(build: Callable[[bytes], bytes], part: bytes) -> None:
    assert decode_picture(build(part * 2000)).image.size == (16, 16)
    with pytest.raises(InvalidContent):
        decode_picture(build(part * (MAX_PARTS + 1)))


@pytest.mark.parametrize("data", SEEDS)
def test_the_first_bytes_tell_a_picture(data: bytes) -> None:
    assert is_picture(data)
    assert not is_picture(b"\0" + data)
    assert not is_picture(b"")
