"""Client of ign-service: Idempotent Generative Networks over HTTP.

>>> from ign_client import Client
>>> with Client("http://127.0.0.1:8000") as client:
...     client.generate(n=1, seed=7)[0].save("seven.png")
"""

from ign_client._client import AsyncClient, Client
from ign_client._errors import (
    BadGateway,
    BadRequest,
    BodyTooSlow,
    ConnectionFailed,
    DeadlineExceeded,
    FieldError,
    Forbidden,
    IgnError,
    InputError,
    InvalidContent,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    ServiceFailed,
    StatusError,
    TimedOut,
    TooLarge,
    TooManyRequests,
    TransportError,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
    UnsupportedMedia,
)
from ign_client._inputs import PictureLike, Pictures, PointLike, Seed, Term
from ign_client._options import Format, Invert, PathForm, Resize
from ign_client._picture import Picture
from ign_client._results import (
    Box,
    Card,
    Done,
    Frame,
    Image,
    Images,
    Limits,
    ModelRef,
    Models,
    Progress,
    ProjectedImage,
    Raw,
    Readiness,
    Score,
    Scores,
    Step,
    Timing,
)
from ign_client._stream import AsyncStream, Event, Stream
from ign_client._version import __version__

# classes print, pickle and appear in tracebacks as `ign_client.…`
for _name, _value in list(globals().items()):
    if not _name.startswith("_") and isinstance(_value, type):
        _value.__module__ = "ign_client"

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "BadGateway",
    "BadRequest",
    "BodyTooSlow",
    "Box",
    "Card",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Done",
    "Event",
    "FieldError",
    "Forbidden",
    "Format",
    "Frame",
    "IgnError",
    "Image",
    "Images",
    "InputError",
    "InvalidContent",
    "Invert",
    "Limits",
    "MethodNotAllowed",
    "ModelRef",
    "Models",
    "NotAcceptable",
    "NotFound",
    "PathForm",
    "Picture",
    "PictureLike",
    "Pictures",
    "PointLike",
    "Progress",
    "ProjectedImage",
    "Raw",
    "Readiness",
    "Resize",
    "Score",
    "Scores",
    "Seed",
    "ServiceFailed",
    "StatusError",
    "Step",
    "Stream",
    "Term",
    "TimedOut",
    "Timing",
    "TooLarge",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "UnsupportedMedia",
    "__version__",
]
