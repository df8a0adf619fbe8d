"""The protocols of the servers: a body to an HTTP/1.1 request, and an answer back to a body.

A body is the same bytes for every server: a PNG, or one row as float32. Protocols that cannot carry bytes (JSON) carry
them as base64.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.load_generator.spec import request

PNG: Final = "png"
RAW: Final = "raw"
PAYLOADS: Final = (PNG, RAW)

Headers = Mapping[str, str]  # names in lower case


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One protocol.

    Args:
        title: its description.
        encode: a body → the bytes of a request.
        decode: headers and body of a 200 → the body of the answer, in the format of the request body.
    """

    title: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[Headers, bytes], bytes]


def raw_body(path: str, kind: str, accept: str = "*/*") -> Protocol:
    """The body is the body of the request, and of the answer."""
    headers = {"Content-Type": kind, "Accept": accept}
    return Protocol(
        title=f"POST {path}, {kind} → {accept}",
        encode=lambda body: request(path, body, headers),
        decode=lambda _, body: body,
    )


def base64_json(path: str, envelope: Callable[[str], object], unpack: Callable[[object], str]) -> Protocol:
    """Base64 within JSON, both ways.

    Args:
        path: of the endpoint.
        envelope: base64 → the JSON of the request.
        unpack: the JSON of the answer → base64.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return Protocol(
        title=f"POST {path}, base64 within JSON, both ways",
        encode=lambda body: request(path, json.dumps(envelope(_text(body))).encode("ascii"), headers),
        decode=lambda _, body: base64.b64decode(unpack(json.loads(body))),
    )


def json_list(path: str, field: str) -> Protocol:
    """A list of one in the field of a JSON object, answered with a list of one."""

    def unpack(answer: object) -> str:
        assert isinstance(answer, list)
        text: str = answer[0]
        return text

    return base64_json(path, lambda text: {field: [text]}, unpack)


def v2_base64(model: str) -> Protocol:
    """Open Inference Protocol without its binary extension: one BYTES element, base64."""

    def unpack(answer: object) -> str:
        assert isinstance(answer, dict)
        text: str = answer["outputs"][0]["data"][0]
        return text

    return base64_json(
        f"/v2/models/{model}/infer",
        lambda text: {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]},
        unpack,
    )


def v2_binary(model: str, *, kind: str, shape: list[int], parameters: dict[str, object] | None = None) -> Protocol:
    """Open Inference Protocol with binary tensors, both ways.

    Args:
        model: its name.
        kind: `FP32`, or `BYTES`, whose elements have their length before them.
        shape: of the tensor, batch first.
        parameters: of the request.
    """
    path = f"/v2/models/{model}/infer"

    def ask(body: bytes) -> bytes:
        tensor = body if kind == "FP32" else len(body).to_bytes(4, "little") + body
        head = json.dumps(
            {
                "parameters": {"binary_data_output": True, **(parameters or {})},
                "inputs": [
                    {"name": "x", "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(tensor)}}
                ],
            }
        ).encode("ascii")
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return request(path, head + tensor, headers)

    def read(headers: Headers, body: bytes) -> bytes:
        tensor = body[int(headers["inference-header-content-length"]) :]
        return tensor if kind == "FP32" else tensor[4:]

    return Protocol(title=f"POST {path}, binary {kind} tensors, both ways", encode=ask, decode=read)


def latent(path: str, shape: tuple[int, ...]) -> Protocol:
    """This service where it has no `/v2`: a latent as base64 of an .npy, answered as an .npy."""
    headers = {"Content-Type": "application/json", "Accept": "application/x-npy"}

    def ask(body: bytes) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.frombuffer(body, "<f4").reshape(shape))
        terms = [{"latent": _text(buffer.getvalue())}]
        sent = {"terms": terms, "normalize": False, "steps": 1}
        return request(path, json.dumps(sent).encode("ascii"), headers)

    def read(_: Headers, body: bytes) -> bytes:
        rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = np.load(io.BytesIO(body))
        return rows.astype("<f4").tobytes()

    return Protocol(title=f"POST {path}, base64 .npy within JSON → .npy", encode=ask, decode=read)


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")
