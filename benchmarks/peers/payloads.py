"""How a body travels to each contestant and back: whole HTTP/1.1 requests, and what is read from an answer.

A body is the same bytes for everybody: a PNG, or the float32 of one row. Where a protocol cannot carry bytes as they
are (JSON), they are base64 within it.
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
class Wire:
    """One way to ask.

    Args:
        says: for people.
        ask: a body → the bytes of a request.
        read: headers and body of a 200 → the body that came back, in the form in which one was sent.
    """

    says: str
    ask: Callable[[bytes], bytes]
    read: Callable[[Headers, bytes], bytes]


def as_it_is(path: str, kind: str, accept: str = "*/*") -> Wire:
    """The body is the request's, and the answer's."""
    headers = {"Content-Type": kind, "Accept": accept}
    return Wire(
        says=f"POST {path}, {kind} → {accept}",
        ask=lambda body: request(path, body, headers),
        read=lambda _, body: body,
    )


def as_json(path: str, envelope: Callable[[str], object], unpack: Callable[[object], str]) -> Wire:
    """Base64 within JSON, both ways.

    Args:
        path: where to.
        envelope: base64 → what is sent.
        unpack: what came back → base64.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return Wire(
        says=f"POST {path}, base64 within JSON, both ways",
        ask=lambda body: request(path, json.dumps(envelope(_text(body))).encode("ascii"), headers),
        read=lambda _, body: base64.b64decode(unpack(json.loads(body))),
    )


def as_list(path: str, field: str) -> Wire:
    """A list of one in the field of a JSON object, answered with a list of one."""

    def unpack(answer: object) -> str:
        assert isinstance(answer, list)
        text: str = answer[0]
        return text

    return as_json(path, lambda text: {field: [text]}, unpack)


def v2_base64(model: str) -> Wire:
    """Open Inference Protocol without its binary extension: one BYTES element, base64."""

    def unpack(answer: object) -> str:
        assert isinstance(answer, dict)
        text: str = answer["outputs"][0]["data"][0]
        return text

    return as_json(
        f"/v2/models/{model}/infer",
        lambda text: {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]},
        unpack,
    )


def v2_binary(model: str, *, kind: str, shape: list[int], parameters: dict[str, object] | None = None) -> Wire:
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

    return Wire(says=f"POST {path}, binary {kind} tensors, both ways", ask=ask, read=read)


def latent(path: str, shape: tuple[int, ...]) -> Wire:
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

    return Wire(says=f"POST {path}, base64 .npy within JSON → .npy", ask=ask, read=read)


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")
