"""Import Pillow and numpy, which are optional, when they are needed."""

from typing import Any


def pillow() -> Any:
    """`PIL.Image`.

    Raises:
        ImportError: it is not installed; the text says how to install it.
    """
    try:
        import PIL.Image
    except ImportError as exc:
        raise ImportError("Pillow is needed for this: pip install 'ign-client[images]'") from exc
    return PIL.Image


def numpy() -> Any:
    """`numpy`.

    Raises:
        ImportError: it is not installed; the text says how to install it.
    """
    try:
        import numpy
    except ImportError as exc:
        raise ImportError("numpy is needed for this: pip install 'ign-client[images]'") from exc
    return numpy
