"""The address that a request counts under."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def peer_key(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The fairness key of a request behind proxies: the address of its peer, or the one that trusted proxies report.

    Args:
        peer: address of the connection, or None where it has none (a Unix socket).
        forwarded: the values of all X-Forwarded-For headers, in order.
        trusted: proxies whose X-Forwarded-For is believed.

    Returns:
        The right-most hop that is not a trusted proxy: an IPv4 address, or the /64 of an IPv6 address, within which
        a caller can pick addresses at will.
    """
    address = _address(peer or "")
    if address is None:
        return peer or "local"
    hops = [hop for value in forwarded for hop in value.split(",")]
    while hops and any(address in network for network in trusted):
        before = _address(hops.pop())
        if before is None:  # the proxy forwarded nonsense, so the proxy is the last known hop
            break
        address = before
    return _network_of(address)


@lru_cache(maxsize=1024)  # for peers with many requests
def address_key(peer: str | None) -> str:
    """The fairness key of a request without proxies: the address of its peer; IPv6 addresses count by their /64."""
    address = _address(peer or "")
    return _network_of(address) if address else peer or "local"


def _network_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


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
