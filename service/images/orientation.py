"""Read the orientation of a picture from its EXIF block; nothing else of EXIF is used.

Pillow's EXIF reader is not used, because it reports damaged blocks through `warnings`, which cannot be silenced for one
thread. Layout: TIFF 6.0, section 2. Tag: CIPA DC-008 (Exif 2.3), section 4.6.4.
"""

import struct
from typing import Final

from PIL.Image import Transpose

_ORIENTATION: Final = 0x0112
_SHORT, _LONG = 3, 4
_TRANSPOSES: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def exif_transpose(exif: bytes) -> Transpose | None:
    """The transpose that makes a picture with this EXIF block upright; None if it is upright, absent or damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        return _TRANSPOSES.get(_orientation(tiff, order))
    except struct.error:  # the block ends before an offset or count in it
        return None


def _orientation(tiff: bytes, order: str) -> int:
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        tag, value_type = struct.unpack_from(order + "HH", tiff, entry)
        if tag == _ORIENTATION:
            code = {_SHORT: "H", _LONG: "I"}.get(value_type)
            return struct.unpack_from(order + code, tiff, entry + 8)[0] if code else 1
    return 1
