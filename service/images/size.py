"""Decide from the first bytes of an upload whether decoding it takes microseconds only."""

import base64
import binascii
import struct
from typing import Final

from service.images.png import SIGNATURE

_MAX_BYTES: Final = 1 << 14
_MAX_PIXELS: Final = 1 << 14
_HEAD_BYTES: Final = 24  # signature, length and type of IHDR, width, height
_HEADER: Final = SIGNATURE + struct.pack(">I4s", 13, b"IHDR")


def is_small(data: bytes | str) -> bool:
    """Whether bytes, or base64 text, are a PNG of at most 16 KiB and 128×128 pixels.

    False for everything else, including invalid pictures. The result decides where to decode, not whether.
    """
    if len(data) > _MAX_BYTES:
        return False
    head = data[:_HEAD_BYTES] if isinstance(data, bytes) else _decoded_head(data)
    if len(head) < _HEAD_BYTES or not head.startswith(_HEADER):
        return False
    width, height = struct.unpack(">II", head[len(_HEADER) : _HEAD_BYTES])
    return bool(width * height <= _MAX_PIXELS)


def _decoded_head(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text[: _HEAD_BYTES // 3 * 4], validate=True)
    except (binascii.Error, ValueError):  # white space, or not base64
        return b""
