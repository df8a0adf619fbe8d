"""Who calls: API keys with their scopes and quotas, and the address that a request without key
counts under.

The keys file is a JSON list. It holds the SHA-256 of each key, never the key itself:

    [{"name": "alice", "sha256": "<64 hex digits>", "scopes": ["infer"]},
     {"name": "ops", "sha256": "<64 hex digits>", "scopes": ["infer", "admin"]}]

The scope `admin` allows the administrative endpoints, and the scope `infer` every other one that
needs a key. An entry may have a `quota`, such as `"20/s"` or `"600/m"`. It replaces the rate
`IGN_RATE_LIMIT` for this key.
"""

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from service.api.message import RequestHeaders
from service.domain.accounts import Rate
from service.domain.errors import (
    ForbiddenError,
    StartupError,
    UnauthorizedError,
    first_error,
    wrap_errors,
)
from service.settings import Network

if TYPE_CHECKING:
    from service.api.request import ApiRequest

ScopeName = Literal["infer", "admin"]

_MAX_HOPS: Final = 16  # of X-Forwarded-For that are looked at, the last ones
_MAX_BYTES: Final = 16 << 20  # of the keys file; each key takes about 150


def _parse_quota(value: object) -> Rate | None:
    try:
        return None if value is None else Rate.parse(str(value))
    except ValueError as exc:
        raise ValueError(f"expected {exc}") from exc


class ApiKey(BaseModel):
    """The API key of one caller: an entry of the keys file. Its name counts for fair queueing,
    quotas and logs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
    scopes: Annotated[frozenset[ScopeName], Field(min_length=1)]
    quota: Annotated[Rate | None, BeforeValidator(_parse_quota)] = None


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the keys file; a `StartupError` says why it is unreadable or invalid, or which field
    occurs twice.
    """
    with wrap_errors(f"API keys file {path}"):
        return parse_keys(read_file(path))


def read_file(path: Path) -> bytes:
    """The content of a keys file; a `StartupError` says why there is none. A pipe or device could
    block the reader.
    """
    try:
        if path.exists() and not path.is_file():
            raise StartupError("it is not a regular file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise StartupError(str(exc.strerror)) from exc
    if len(data) > _MAX_BYTES:
        raise StartupError(f"it is larger than {_MAX_BYTES >> 20} MiB")
    return data


def parse_keys(data: bytes) -> tuple[ApiKey, ...]:
    """As `load_keys`, with the content of the file; errors name no path."""
    try:
        keys = TypeAdapter(tuple[ApiKey, ...]).validate_json(data)
    except ValidationError as exc:
        raise StartupError(first_error(exc)) from exc
    if not keys:
        raise StartupError("it holds no key")
    for field in ("name", "sha256"):
        if len({getattr(key, field) for key in keys}) < len(keys):
            raise StartupError(f"a {field} is given twice")
    return keys


def identify(keys: Mapping[str, ApiKey], request: "ApiRequest", needed: ScopeName) -> None:
    """Set the name of the caller's API key, one of ``keys`` by their digests, and its quota in the
    request.

    Raises `UnauthorizedError` without a valid key, and `ForbiddenError` if the key does not have
    the scope.
    """
    values = request.headers.getlist(b"authorization")
    # Several headers are rejected, because proxies disagree on which of them counts.
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("send one header Authorization: Bearer KEY")
    # A lookup by digest reveals nothing of a key: nobody can choose digests that are near to that
    # of a key.
    key = keys.get(hashlib.sha256(token.encode("latin-1")).hexdigest())
    if key is None:
        raise UnauthorizedError("this key is not known")
    request.caller = key.name
    request.api_key = key.name
    request.quota = key.quota
    if needed not in key.scopes:
        raise ForbiddenError(f"this key does not have the scope {needed}")


def check_host(headers: RequestHeaders, *, public: bool) -> None:
    """Raise `ForbiddenError` if the service is ``public``, or unless `Host` is an IP address or
    `localhost`.

    A site whose name resolves to this service looks like its own (DNS rebinding).
    """
    if public:
        raise ForbiddenError("nobody changes the models of a page for strangers (IGN_PUBLIC)")
    host = headers.get(b"host", "")
    name = host.partition(":")[0]
    if name.lower() != "localhost" and _address(host) is None:
        raise ForbiddenError(
            "without API keys (IGN_API_KEYS_FILE), models change only under an address or localhost"
        )


def peer_key(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The fairness key of a request behind proxies: the right-most hop of its X-Forwarded-For that
    is not ``trusted``.

    An IPv6 address counts by its /64, within which a caller can pick addresses at will. ``peer``,
    the address of the connection, is None for a Unix socket.
    """
    address = _address(peer or "")
    if address is None:
        return peer or "local"
    hops = ",".join(forwarded).split(",")[-_MAX_HOPS:]
    while hops and any(address in network for network in trusted):
        before = _address(hops.pop())
        if before is None:  # the proxy forwarded nonsense, so the proxy is the last known hop
            break
        address = before
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


@lru_cache(maxsize=1024)  # for peers with many requests
def address_key(peer: str | None) -> str:
    """The fairness key of a request without proxies."""
    return peer_key(peer, (), ())


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    text = text.strip()
    if text.startswith("["):  # [2001:db8::1]:443
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # 192.0.2.1:443
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
