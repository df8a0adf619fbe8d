"""The headers that well-known gateways, and Chrome, add to a request."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.harness.processes import HOST

_FORWARDED: Final = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
_TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_SPAN: Final = "00f067aa0ba902b7"

HEADER_SETS: Final[Mapping[str, Mapping[str, str]]] = {
    "AWS ALB": _FORWARDED | {"X-Forwarded-Port": "443", "X-Amzn-Trace-Id": f"Root=1-67891233-{_TRACE[:24]}"},
    "ingress-nginx": _FORWARDED
    | {
        "X-Request-ID": _TRACE,
        "X-Real-IP": "203.0.113.7",
        "X-Forwarded-Host": "ign.example.org",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Scheme": "https",
        "X-Scheme": "https",
    },
    "Envoy/Istio": _FORWARDED
    | {
        "X-Request-ID": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
        "X-Envoy-Attempt-Count": "1",
        "X-Envoy-Expected-Rq-Timeout-Ms": "15000",
        "X-Forwarded-Client-Cert": "By=spiffe://cluster.local/ns/default/sa/ign;Hash=00",
        "X-B3-TraceId": _TRACE,
        "X-B3-SpanId": _SPAN,
        "X-B3-Sampled": "0",
    },
    "Cloudflare": _FORWARDED
    | {
        "CF-Ray": "8f0e1d2c3b4a5968-FRA",
        "CF-Connecting-IP": "203.0.113.7",
        "CF-IPCountry": "DE",
        "CF-Visitor": '{"scheme":"https"}',
        "CDN-Loop": "cloudflare; loops=1",
    },
    "Google LB": _FORWARDED
    | {
        "X-Cloud-Trace-Context": f"{_TRACE}/{int(_SPAN, 16)};o=0",
        "traceparent": f"00-{_TRACE}-{_SPAN}-00",
        "Via": "1.1 google",
    },
    "Traefik": _FORWARDED
    | {
        "X-Real-IP": "203.0.113.7",
        "X-Forwarded-Host": "ign.example.org",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Server": "traefik-7c9d",
    },
    "Chrome": {
        "Origin": f"http://{HOST}",
        "Referer": f"http://{HOST}/",
        "sec-ch-ua": '"Chromium";v="140", "Not=A?Brand";v="24"',
        "sec-ch-ua-mobile": "?0",
        "sec-ch-ua-platform": '"Linux"',
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Dest": "empty",
        "Accept-Language": "en-GB,en;q=0.9",
    },
}
"""Name → headers. All of them go to every request of that gateway."""


def with_headers(data: bytes, headers: Mapping[str, str]) -> bytes:
    """A whole request with more headers."""
    line, end, rest = data.partition(b"\r\n")
    return line + end + "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1") + rest


def sent_by(senders: str, requests: Sequence[bytes]) -> list[bytes]:
    """The requests as clients send them (`plain`), or each of them as every gateway does (`gateway`)."""
    if senders == "plain":
        return list(requests)
    return [with_headers(data, headers) for data, headers in itertools.product(requests, HEADER_SETS.values())]
