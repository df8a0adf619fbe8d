"""Convert image files to rows and rows to image files; the only package that imports Pillow.

    file ── open_image ── decode ── prepare ──▶ row        row ── to_uint8 ── enlarge, contact_sheet ── encode ──▶ file
                       └─ to_mask ── keep_mask                                                       └─ animate

Every function is synchronous and thread-safe, so that the codec pool can call it.
"""

from service.images.decode import DecodeLimits, EncodedImage, Picture, decode_npy, decode_picture, open_image
from service.images.encode import (
    AnimationFormat,
    PictureFormat,
    animate,
    check_sides,
    encode,
    encode_base64,
    encode_many,
    encode_npy,
)
from service.images.pixels import Pixels, Resample, contact_sheet, enlarge, sheet_size, to_uint8
from service.images.prepare import Invert, Mask, Resize, keep_mask, prepare, prepare_many, to_mask
from service.images.untrusted import decode_base64, is_small

__all__ = [
    "AnimationFormat",
    "DecodeLimits",
    "EncodedImage",
    "Invert",
    "Mask",
    "Picture",
    "PictureFormat",
    "Pixels",
    "Resample",
    "Resize",
    "animate",
    "check_sides",
    "contact_sheet",
    "decode_base64",
    "decode_npy",
    "decode_picture",
    "encode",
    "encode_base64",
    "encode_many",
    "encode_npy",
    "enlarge",
    "is_small",
    "keep_mask",
    "open_image",
    "prepare",
    "prepare_many",
    "sheet_size",
    "to_mask",
    "to_uint8",
]
