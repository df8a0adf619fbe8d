"""Base64 in JSON (RFC 4648, section 4)."""

import binascii
import re
from typing import Final

from service.domain.errors import InvalidContent, TooLarge

_WHITE_SPACE: Final = b" \t\n\r\f\v"
_DATA_URL: Final = re.compile(rb"data:image/[^,;]{1,64}(?:;[^,;]{1,64})*;base64,", re.IGNORECASE)


def decode_base64(text: str, *, field: str, max_chars: int) -> bytes:
    """Decode standard, padded base64, with or without a `data:image/…;base64,` prefix; ASCII white space is ignored.

    Args:
        text: the text, from the request.
        field: name of the field in errors.
        max_chars: longest text accepted, including prefix and white space.

    Raises:
        TooLarge: the text is longer than `max_chars`.
        InvalidContent: not standard base64, for example URL-safe or without padding (code `invalid_base64`).
    """
    if len(text) > max_chars:
        raise TooLarge(f"{field}: {len(text)} characters of base64; the limit is {max_chars}")
    try:
        raw = text.encode("ascii").strip(_WHITE_SPACE)
        if prefix := _DATA_URL.match(raw):
            raw = raw[prefix.end() :]
        return binascii.a2b_base64(raw.translate(None, _WHITE_SPACE), strict_mode=True)
    except ValueError as exc:  # the base of UnicodeEncodeError and binascii.Error
        raise InvalidContent.field(field, "is not padded standard base64", code="invalid_base64") from exc


def encode_base64(data: bytes) -> str:
    """Encode as standard, padded base64 on one line."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")
