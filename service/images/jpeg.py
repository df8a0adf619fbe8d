"""Give Pillow only those segments of a JPEG header that decoding needs.

Pillow reads the header in Python: metadata of every kind, padding byte by byte, and EXIF blocks by appending each to
the ones before. A hostile file of 16 MiB can so take seconds or minutes. Here every segment is visited once and
metadata is skipped, as in `service.images.png`. Markers: ITU-T T.81, table B.1.
"""

from collections.abc import Iterator
from typing import Final

from service.images.png import MAX_PARTS

_EXIF: Final = b"Exif\0\0"
_PADDING, _SOS, _APP1, _COMMENT = 0xFF, 0xDA, 0xE1, 0xFE
_ALONE: Final = frozenset((0x00, *range(0xD0, 0xD8)))  # without content: a stray 0x00, and RST0…RST7
_REFUSED: Final = frozenset((*range(0x01, 0xC0), 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)))  # libjpeg refuses them, too
_COLOURS: Final = frozenset((0xE0, 0xEE))  # APP0 (JFIF) and APP14 (Adobe) say which colours are stored
_METADATA: Final = frozenset((*range(0xE0, 0xF0), _COMMENT)) - _COLOURS
_MAX_KEPT: Final = 64  # segments; encoders write about ten, and Pillow reads the tables in them in loops, too


def needed_segments(data: bytes) -> tuple[bytes, bytes]:
    """Remove metadata and padding before the first scan.

    Args:
        data: a file that starts with the marker SOI.

    Returns:
        The file without them, and the content of the first EXIF segment, or b"".

    Raises:
        ValueError: more than `MAX_PARTS` segments and bytes of padding, more than 64 segments that decoding needs, or
            a marker that cannot stand before the first scan.
    """
    kept, exif = [data[:2]], b""
    for code, segment in _segments(data):
        if code not in _METADATA:
            kept.append(segment)
        elif code == _APP1 and not exif and segment.startswith(_EXIF, 4):
            exif = segment[4:]
        if len(kept) > _MAX_KEPT:
            raise ValueError("too many segments that decoding needs")
    return b"".join(kept), exif


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The segments with content before the first scan, and then everything from that scan on: marker and bytes."""
    position = data.find(b"\xff", 2)
    for _ in range(MAX_PARTS):
        if not 0 < position < len(data) - 1:
            return  # no scan: Pillow reports it
        code, end = data[position + 1], position + 2
        if code == _SOS:
            yield code, data[position:]
            return
        if code in _REFUSED:
            raise ValueError("unexpected marker")
        if code == _PADDING:
            end -= 1  # it may be the first byte of a marker
        elif code not in _ALONE:
            end += max(2, int.from_bytes(data[end : end + 2], "big"))  # the length counts its own two bytes
            yield code, data[position:end]
        position = data.find(b"\xff", end)
    raise ValueError("too many segments")
