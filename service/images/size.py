"""How large an upload is, from its first bytes: whether decoding it takes microseconds."""

import base64
import binascii
import struct
from typing import Final

from service.images.png import SIGNATURE

_MAX_BYTES: Final = 1 << 14
_MAX_PIXELS: Final = 1 << 14
_HEAD_BYTES: Final = 24  # bytes: signature, length and kind of IHDR, width, height
_HEADER: Final = SIGNATURE + struct.pack(">I4s", 13, b"IHDR")


def is_small(data: bytes | str) -> bool:
    """Whether these bytes, or this base64 text, are a PNG of few bytes and at most 128×128 pixels.

    False for everything else, broken pictures among them: it only says where to decode, and never refuses.
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
    except (binascii.Error, ValueError):  # white space or no base64 at all
        return b""
