"""Convert picture files to rows and rows to picture files; the only package that imports Pillow.

Every function is synchronous and thread-safe, so that the codec pool can call it. Input: bytes → `decode_picture` →
`prepare`, and `decode_mask` → `keep_mask`. Output: rows → `to_uint8` → `encode` or `animate`; `enlarge` and
`contact_sheet` come between.
"""

from service.images.animate import AnimationFormat, animate
from service.images.base64_codec import decode_base64, encode_base64
from service.images.decode import DecodeLimits, Picture, decode_picture, picture_pixels
from service.images.encode import PictureFormat, check_sides, encode, encode_many
from service.images.enlarge import Resample, enlarge
from service.images.geometry import Resize
from service.images.image_grid import contact_sheet, sheet_size
from service.images.mask import Mask, decode_mask, keep_mask
from service.images.npy import decode_npy, encode_npy
from service.images.pixels import Pixels, to_rows, to_uint8
from service.images.prepare import Invert, Prepared, prepare, prepare_many
from service.images.size import is_small

__all__ = [
    "AnimationFormat",
    "DecodeLimits",
    "Invert",
    "Mask",
    "Picture",
    "PictureFormat",
    "Pixels",
    "Prepared",
    "Resample",
    "Resize",
    "animate",
    "check_sides",
    "contact_sheet",
    "decode_base64",
    "decode_mask",
    "decode_npy",
    "decode_picture",
    "encode",
    "encode_base64",
    "encode_many",
    "encode_npy",
    "enlarge",
    "is_small",
    "keep_mask",
    "picture_pixels",
    "prepare",
    "prepare_many",
    "sheet_size",
    "to_rows",
    "to_uint8",
]
