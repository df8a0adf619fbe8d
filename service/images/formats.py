"""Read the structure of untrusted TIFF (and EXIF), GIF and AVIF files in bounded time, as
`service.images.untrusted` reads others.

    TIFF  II or MM, 42, offset 4 · directory: count 2, (tag 2, type 2, count 4, value or offset 4)…,
    next 4   TIFF 6.0 GIF   screen, palette · (0x21, label, blocks)… · 0x2C, frame, blocks…
    GIF89a AVIF  (size 4, type 4, content)…, of which `meta` says where the AV1 data of each image
    is      ISO/IEC 14496-12

A page of a TIFF, and the first frame of a GIF, are written anew with only what decoding needs.
"""

import io
import struct
from collections.abc import Iterator, Set
from contextlib import suppress
from itertools import accumulate
from typing import Final, NamedTuple

from PIL.Image import Transpose
from PIL.TiffImagePlugin import (
    COMPRESSION,
    IMAGELENGTH,
    IMAGEWIDTH,
    JPEGTABLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    ROWSPERSTRIP,
    SAMPLESPERPIXEL,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
)

from service.artifact.onnx_file import varint
from service.images.untrusted import EXIF, MAX_PARTS, Size, Unsupported

Tags = dict[int, tuple[int, ...]]  # values of a directory, by tag

TRANSPOSES: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What makes an image with this orientation upright."""

TIFF_STARTS: Final = (b"II*\0", b"MM\0*")
"""How a TIFF file begins."""
ORIENTATION = 274
_REDUCED = 254
# Also bits, their order, options of CCITT, predictor, palette, alpha, sample format, and JPEG's
# tables and subsampling.
_SINGLE: Final = {254, 256, 257, 259, 262, 266, 274, 277, 278, 284, 292, 293, 317, 322, 323}
_KEPT: Final = _SINGLE | {258, 273, 279, 320, 324, 325, 338, 339, 347, 530}
_TYPES: Final = {1: "B", 3: "H", 4: "I", 7: "B"}  # BYTE, SHORT, LONG, UNDEFINED
_LONG = 4
_UNDEFINED = 7
_HEADER = 8  # bytes of a file before the first strip
_ENTRY = 12  # bytes
_COMPRESSIONS: Final = {
    1: "none",
    3: "G3",
    4: "G4",
    5: "LZW",
    7: "JPEG",
    8: "Deflate",
    32946: "",
    32773: "PackBits",
}
_JPEG = 7
_YCBCR = 6
_MAX_BANDS: Final = 6  # Pillow logs more as an error

_MAX_META: Final = 1 << 15  # bytes; libavif compares every item of the box with every other one
# types of AV1 units
_SEQUENCE_HEADER = 1
_FRAME_HEADER = 3
_FRAME = 6


class TiffPage(NamedTuple):
    """One image of a TIFF file: its directory, checked, and its strips or tiles."""

    order: str  # of bytes, for `struct`
    tags: Tags
    parts: list[bytes]

    def value(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return self.tags.get(tag, (default,))[0]

    @property
    def size(self) -> Size:
        """(width, height) in pixels, as stored."""
        return self.value(IMAGEWIDTH, 0), self.value(IMAGELENGTH, 0)

    def file(self) -> bytes:
        """A TIFF file of this page alone, without its orientation."""
        offsets = tuple(accumulate(map(len, self.parts[:-1]), initial=_HEADER))
        tags = self.tags | {TILEOFFSETS if TILEOFFSETS in self.tags else STRIPOFFSETS: offsets}
        tags.pop(ORIENTATION, None)
        # The values of each tag follow the pixels, and then comes the directory.
        content = bytearray(b"".join(self.parts))
        directory = struct.pack(self.order + "H", len(tags))
        for tag, numbers in sorted(tags.items()):
            kind = _UNDEFINED if tag == JPEGTABLES else _LONG
            packed = struct.pack(f"{self.order}{len(numbers)}{_TYPES[kind]}", *numbers)
            directory += struct.pack(self.order + "HHI", tag, kind, len(numbers))
            place = struct.pack(self.order + "I", _HEADER + len(content))
            directory += packed.ljust(4, b"\0") if len(packed) <= 4 else place
            content += packed
        mark = b"II" if self.order == "<" else b"MM"
        return b"".join(
            (
                struct.pack(self.order + "2sHI", mark, 42, _HEADER + len(content)),
                content,
                directory,
                bytes(4),
            )
        )


def tiff_pages(data: bytes) -> Iterator[TiffPage]:
    """The pages of a TIFF file, without reduced copies of others.

    Raises `Unsupported` for a kind of TIFF that is not decoded, and another exception for damage,
    such as strips or directories that overlap. Each directory has bytes of its own, so the walk
    ends with the file.
    """
    order, offset = _start(data)
    values = stored = 0
    while offset:
        tags, end = _directory(data, order, offset, _KEPT)
        page = _page(data, order, tags)
        entries = end - offset
        values += entries // _ENTRY + sum(map(len, tags.values()))
        stored += entries + sum(map(len, page.parts))
        # A directory that follows itself ends here, too.
        if entries < _ENTRY or values > 3 * MAX_PARTS or stored > len(data):
            raise ValueError("too many values, or strips or directories overlap")
        if not page.value(_REDUCED, 0) & 1:
            yield page
        (offset,) = struct.unpack_from(order + "I", data, end)


def _start(data: bytes) -> tuple[str, int]:
    """The order of bytes of a TIFF file, and the offset of its first directory."""
    order = "<" if data.startswith(b"II") else ">"
    return order, struct.unpack_from(order + "I", data, 4)[0]


def _directory(data: bytes, order: str, offset: int, kept: Set[int]) -> tuple[Tags, int]:
    """The values of those tags of a directory that are kept, the first of each; and where its
    entries end.
    """
    (entries,) = struct.unpack_from(order + "H", data, offset)
    start = offset + 2
    end = start + _ENTRY * min(entries, MAX_PARTS)
    tags: Tags = {}
    for at in range(start, end, _ENTRY):
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        if tag not in kept or tag in tags:
            continue
        if kind not in _TYPES or not 0 < count <= MAX_PARTS:
            raise ValueError("unexpected type or number of values")
        form = f"{order}{count}{_TYPES[kind]}"
        place = at + 8
        if struct.calcsize(form) > 4:
            (place,) = struct.unpack_from(order + "I", data, place)
        numbers = struct.unpack_from(form, data, place)
        tags[tag] = numbers[:1] if tag in _SINGLE else numbers  # Pillow warns of more
    return tags, end


def exif_transpose(exif: bytes) -> Transpose | None:
    """The transpose that makes an image with this EXIF block upright; None if it is upright, absent
    or damaged.
    """
    # Pillow's EXIF reader is not used, because it reports damaged blocks through `warnings`, which
    # cannot be silenced for one thread. Tag: CIPA DC-008 (Exif 2.3), section 4.6.4.
    tiff = exif.removeprefix(EXIF)
    if not tiff.startswith(TIFF_STARTS):
        return None
    with suppress(struct.error, ValueError):
        tags, _ = _directory(tiff, *_start(tiff), {ORIENTATION})
        return TRANSPOSES.get(tags.get(ORIENTATION, (1,))[0])
    return None


def _page(data: bytes, order: str, tags: Tags) -> TiffPage:
    """The page that a directory describes."""
    page = TiffPage(order, tags, [])
    compression = page.value(COMPRESSION, 1)
    photometric = page.value(PHOTOMETRIC_INTERPRETATION, 1)
    bands = page.value(SAMPLESPERPIXEL, 1)
    if compression not in _COMPRESSIONS:
        names = ", ".join(filter(None, _COMPRESSIONS.values()))
        raise Unsupported(f"is a TIFF of compression {compression}; expected one of {names}")
    # white is 0, black is 0, RGB, palette, CMYK
    if photometric not in (0, 1, 2, 3, 5) and (photometric, compression) != (_YCBCR, _JPEG):
        raise Unsupported(
            f"is a TIFF of photometric interpretation {photometric}; expected grey, RGB, "
            f"palette or CMYK"
        )
    if bands > _MAX_BANDS:
        raise Unsupported(f"is a TIFF of {bands} bands; expected at most {_MAX_BANDS}")
    page.parts.extend(_parts(data, page))
    return page


def _parts(data: bytes, page: TiffPage) -> list[bytes]:
    """The content of the strips or tiles, if there are as many as the size of the image needs."""
    tags = page.tags
    width, height = page.size
    if TILEOFFSETS in tags:
        across = page.value(TILEWIDTH, 0)
        down = page.value(TILELENGTH, 0)
        offsets = tags[TILEOFFSETS]
        counts = tags[TILEBYTECOUNTS]
    else:
        across = width
        down = min(height, page.value(ROWSPERSTRIP, height))
        tags[ROWSPERSTRIP] = (down,)
        offsets = tags[STRIPOFFSETS]
        counts = tags[STRIPBYTECOUNTS]
    planes = page.value(SAMPLESPERPIXEL, 1) if page.value(PLANAR_CONFIGURATION, 1) > 1 else 1
    # a small image has one whole tile
    if not width * height * across * down or (TILEOFFSETS in tags and across * down > 1 << 22):
        raise ValueError("no pixels, or large tiles")
    if len(offsets) != -(-width // across) * -(-height // down) * planes or sum(counts) > len(data):
        raise ValueError("another number of strips than the size says")
    return [data[start : start + count] for start, count in zip(offsets, counts, strict=True)]


def gif_first_frame(data: bytes) -> tuple[Size, bytes]:
    """(width, height) of a GIF, and the file without extensions but that of the first frame.

    Raises ValueError, IndexError or struct.error if there is no frame within `MAX_PARTS` blocks.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head = data[:position]
    control = b""
    blocks = 0
    while data[position] == 0x21:
        start = position
        position += 2
        length = 1
        while length:
            length = data[position]
            position += 1 + length
            blocks += 1
            if blocks > MAX_PARTS:
                raise ValueError("too many blocks")
        if data[start + 1] == 0xF9:
            control = data[start:position]
    if data[position] != 0x2C:
        raise ValueError("no frame")
    left, top, across, down = struct.unpack_from("<4H", data, position + 1)
    return (max(width, left + across), max(height, top + down)), head + control + data[position:]


def avif_still(data: bytes) -> tuple[bytes, int, int]:
    """An AVIF file without its animation; and of its AV1 frames the pixels of the largest, and of
    all together.

    libavif limits the size that the file states, but decodes what its AV1 data says: up to 268
    megapixels. A frame of an animation may be twice as wide and high as stated here.
    """
    content = bytearray(data)
    metas = []
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"ftyp":
            content[start:end] = data[start:end].replace(b"avis", b"avif")
        elif kind == b"moov":
            content[start - 4 : start] = b"free"
        elif kind == b"meta":
            metas.append((start + 4, end))
    if len(metas) != 1 or metas[0][1] - metas[0][0] > _MAX_META:
        raise ValueError("no meta box, or several, or a large one")
    boxes = list(_boxes(data, *metas[0]))
    locations, inner = (
        [start for kind, start, _ in boxes if kind == name] for name in (b"iloc", b"idat")
    )
    if len(locations) != 1 or len(inner) > 1:
        raise ValueError("no iloc box, or several")
    frames = [size for item in _items(data, locations[0], inner) for size in _av1_frames(item)]
    return bytes(content), max(frames, default=0), sum(frames)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and start and end of the content, of the boxes in a part of an AVIF file."""
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        stop = end if size == 0 else start + size
        if stop < start + head or stop > end:
            raise ValueError("a box that ends elsewhere")
        if head == 16 and kind in (b"moov", b"meta"):
            raise ValueError("a long box")
        yield kind, start + head, stop
        start = stop
    raise ValueError("too many boxes")


def _items(data: bytes, start: int, inner: list[int]) -> Iterator[bytes]:
    """The content of the items that the iloc box at ``start`` lists; some are in the idat box at
    ``inner``.
    """
    version, sizes, more = struct.unpack_from(">B3xBB", data, start)
    wide = 4 if version == 2 else 2
    index = more & 15 if version else 0
    # number, method, reference, base, number of extents; and of one: index, offset, length
    entry = struct.Struct(
        f">{wide}x{2 if version else 0}s2x{more >> 4}s2s{index}x{sizes >> 4}s{sizes & 15}s"
    )
    first = start + 6 + wide
    length_of_all = entry.size * int.from_bytes(data[start + 6 : first], "big")
    total = 0
    for fields in entry.iter_unpack(data[first : first + min(length_of_all, _MAX_META)]):
        method, base, extents, offset, length = (int.from_bytes(each, "big") for each in fields)
        if method & 15 > len(inner) or extents != 1:
            raise Unsupported("is an AVIF whose images are stored in pieces")
        at = base + offset + (inner[0] if method & 15 else 0)
        item = data[at : at + length] if length else data[at:]
        total += len(item)
        if total > len(data):
            raise ValueError("images overlap")
        yield item


def _av1_frames(item: bytes) -> Iterator[int]:
    """The most pixels of each frame in AV1 data; nothing for other data."""
    position = pixels = units = frames = 0
    while position < len(item):
        head = item[position]
        position += 2 if head & 4 else 1
        size = len(item) - position
        if head & 2:
            size, position = varint(item, position)
        kind = head >> 3 & 15
        if kind == _SEQUENCE_HEADER:
            pixels = max(pixels, _av1_pixels(item[position : position + min(size, 64)]))
        elif kind in (_FRAME_HEADER, _FRAME):
            frames += 1
            yield pixels
        position += size
        units += 1
        # Encoders write three units, and a frame, or one for each layer.
        if units > 64 or frames > 8:
            raise Unsupported("is an AVIF of many frames")


def _av1_pixels(header: bytes) -> int:
    """The most pixels of a frame after this sequence header (AV1 specification, section 5.5)."""
    bits = io.StringIO("".join(f"{byte:08b}" for byte in header))

    def read(count: int) -> int:
        return int(bits.read(count), 2)

    read(4)
    is_reduced = read(1)
    if is_reduced:
        read(5)
    else:
        if read(1):
            raise Unsupported("is an AVIF with timing information")
        has_delay = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if has_delay and read(1):
                read(4)
    sizes = read(4) + 1, read(4) + 1
    width, height = map(read, sizes)
    # A frame may say another size with as many bits.
    if not is_reduced and sizes != (max(1, width.bit_length()), max(1, height.bit_length())):
        raise Unsupported("is an AVIF whose frames may be larger than it says")
    return (width + 1) * (height + 1)
