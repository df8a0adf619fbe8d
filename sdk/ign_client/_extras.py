"""Pillow and numpy, which only those need who want their images and arrays."""

from typing import Any


def pillow() -> Any:
    """`PIL.Image`.

    Raises:
        ImportError: it is not installed; the text says how to.
    """
    try:
        import PIL.Image
    except ImportError as exc:
        raise ImportError("Pillow is needed for this: pip install 'ign-client[images]'") from exc
    return PIL.Image


def numpy() -> Any:
    """`numpy`.

    Raises:
        ImportError: it is not installed; the text says how to.
    """
    try:
        import numpy
    except ImportError as exc:
        raise ImportError("numpy is needed for this: pip install 'ign-client[images]'") from exc
    return numpy
