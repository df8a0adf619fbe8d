"""Whole HTTP/1.1 requests as bytes, and the images, arrays, forms and headers of gateways in
them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.harness.processes import HOST

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
NPY: Final = "application/x-npy"
HEADER_LENGTH: Final = "Inference-Header-Content-Length"


def request(
    path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST"
) -> bytes:
    """A whole HTTP/1.1 request."""
    fields = {"Host": HOST, **(headers or {})}
    if body or method == "POST":
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def get(path: str) -> bytes:
    return request(path, method="GET")


def post(path: str, options: Mapping[str, Any], accept: str = JSON) -> bytes:
    """A JSON body."""
    return request(path, json.dumps(options).encode(), {"Accept": accept, "Content-Type": JSON})


def upload(path: str, image: bytes, accept: str = "image/png", media: str = "image/png") -> bytes:
    """An image as the body."""
    return request(path, image, {"Accept": accept, "Content-Type": media})


def post_form(path: str, parts: Sequence[tuple[str, bytes]], accept: str = JSON) -> bytes:
    """A multipart form; `image` and `mask` parts are files."""
    edge = "edge-of-a-part"
    body = b""
    for name, content in parts:
        file = '; filename="a"' if name in ("image", "mask") else ""
        body += (
            f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
            + content
            + b"\r\n"
        )
    headers = {"Accept": accept, "Content-Type": f"multipart/form-data; boundary={edge}"}
    return request(path, body + f"--{edge}--\r\n".encode(), headers)


def binary_tensor(model: str, row: bytes) -> bytes:
    """A row of 28×28 as an Open Inference Protocol request with binary data, both ways."""
    tensor = {
        "name": "x",
        "shape": [1, 1, 28, 28],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(row)},
    }
    parameters = {"binary_data_output": True, "steps": 1}
    head = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return request(f"/v2/models/{model}/infer", head + row, headers)


def disc(number: int = 0, *, size: int) -> Image.Image:
    """A light disc on dark, in grey; ``number`` moves it."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    grey = 255 * np.exp(-((x - 0.06 * number) ** 2 + (y + 0.04 * number) ** 2) * 30)
    return Image.fromarray(grey.astype(np.uint8))


# Gateways

_TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_SETS: Final = {
    "AWS ALB": f"""X-Forwarded-Port: 443
        X-Amzn-Trace-Id: Root=1-67891233-{_TRACE[:24]}""",
    "ingress-nginx": f"""X-Request-ID: {_TRACE}
        X-Real-IP: 203.0.113.7
        X-Forwarded-Host: ign.example.org
        X-Forwarded-Port: 443
        X-Forwarded-Scheme: https
        X-Scheme: https""",
    "Envoy/Istio": f"""X-Request-ID: 3f2504e0-4f89-41d3-9a0c-0305e82c3301
        X-Envoy-Attempt-Count: 1
        X-Envoy-Expected-Rq-Timeout-Ms: 15000
        X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/default/sa/ign;Hash=00
        X-B3-TraceId: {_TRACE}
        X-B3-SpanId: 00f067aa0ba902b7
        X-B3-Sampled: 0""",
    "Cloudflare": """CF-Ray: 8f0e1d2c3b4a5968-FRA
        CF-Connecting-IP: 203.0.113.7
        CF-IPCountry: DE
        CF-Visitor: {"scheme":"https"}
        CDN-Loop: cloudflare; loops=1""",
    "Google LB": f"""X-Cloud-Trace-Context: {_TRACE}/67667974448284343;o=0
        traceparent: 00-{_TRACE}-00f067aa0ba902b7-00
        Via: 1.1 google""",
    "Traefik": """X-Real-IP: 203.0.113.7
        X-Forwarded-Host: ign.example.org
        X-Forwarded-Port: 443
        X-Forwarded-Server: traefik-7c9d""",
    "Chrome": f"""Origin: http://{HOST}
        Referer: http://{HOST}/
        sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"
        sec-ch-ua-mobile: ?0
        sec-ch-ua-platform: "Linux"
        Sec-Fetch-Site: same-origin
        Sec-Fetch-Mode: cors
        Sec-Fetch-Dest: empty
        Accept-Language: en-GB,en;q=0.9""",
}
_FORWARDED: Final = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
HEADER_SETS: Final[Mapping[str, Mapping[str, str]]] = {
    name: ({} if name == "Chrome" else _FORWARDED)
    | dict(line.strip().split(": ", 1) for line in lines.splitlines())
    for name, lines in _SETS.items()
}
"""Name → headers. All of them go to every request of that gateway."""
SENDERS: Final[Mapping[str, Mapping[str, str]]] = {"plain": {}, **HEADER_SETS}


def with_headers(data: bytes, headers: Mapping[str, str]) -> bytes:
    """A whole request with more headers."""
    lines = "".join(f"\r\n{name}: {value}" for name, value in headers.items()).encode("latin-1")
    line, end, rest = data.partition(b"\r\n")
    return line + lines + end + rest
