import struct

import pytest

from service.images import is_small
from tests.contract.harness import b64
from tests.helpers.pictures import noise, save

SMALL = save(noise(28, 28, seed=1))


def sized(width: int, height: int) -> bytes:
    """The small picture, but with another size in its header: what is said counts, not what follows."""
    return SMALL[:16] + struct.pack(">II", width, height) + SMALL[24:]


@pytest.mark.parametrize("size", [(28, 28), (128, 128), (1, 16384)])
def test_a_png_of_few_pixels_is_small(size: tuple[int, int]) -> None:
    picture = sized(*size)
    assert is_small(picture)
    assert is_small(b64(picture))
    assert is_small("data:image/png;base64," + b64(picture))


@pytest.mark.parametrize("size", [(129, 128), (16384, 16384), (2**31 - 1, 2**31 - 1)])
def test_many_pixels_are_not_however_few_the_bytes(size: tuple[int, int]) -> None:
    assert not is_small(sized(*size))
    assert not is_small(b64(sized(*size)))


def test_many_bytes_are_not() -> None:
    assert is_small(SMALL + bytes((1 << 14) - len(SMALL)))
    assert not is_small(SMALL + bytes((1 << 14) - len(SMALL) + 1))


@pytest.mark.parametrize(
    "other",
    [b"", SMALL[:23], b"x" * 100, save(noise(28, 28, seed=1), "JPEG"), "", "no base64!", "data:", " " + b64(SMALL)],
)
def test_what_is_no_png_is_left_to_the_decoder(other: bytes | str) -> None:
    assert not is_small(other)
