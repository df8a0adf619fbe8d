"""Open Inference Protocol requests as bytes, and what comes back as rows."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np

from service.domain.latents import FloatRows
from tests.contract.harness import Service

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/grey/infer"


def tensor(rows: FloatRows, **changes: Any) -> dict[str, Any]:
    """The input `x` without its data."""
    return {"name": "x", "shape": list(rows.shape), "datatype": "FP32"} | changes


def as_json(rows: FloatRows, *, nested: bool = False, **members: Any) -> dict[str, Any]:
    data = rows.tolist() if nested else rows.ravel().tolist()
    return {"inputs": [tensor(rows, data=data)]} | members


def encoded(rows: FloatRows, **members: Any) -> bytes:
    """The body of a request whose tensor is JSON."""
    return json.dumps(as_json(rows, **members)).encode()


def as_binary(rows: FloatRows, **members: Any) -> tuple[bytes, int]:
    """The body, and how much of it is JSON."""
    data = rows.astype("<f4").tobytes()
    head = json.dumps(
        {"inputs": [tensor(rows, parameters={"binary_data_size": len(data)})]} | members
    ).encode()
    return head + data, len(head)


def infer(
    service: Service,
    content: bytes,
    length: int | None = None,
    path: str = INFER,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> httpx.Response:
    """Send a body as it is, with no Content-Type unless one is given."""
    own = {} if length is None else {LENGTH: str(length)}
    return service.post(path, content=content, headers=own | dict(headers))


def rows_of(response: httpx.Response) -> FloatRows:
    """The output `y`, in whichever form it came; the answer must be whole."""
    assert response.status_code == 200, response.text
    content = response.content
    length = int(response.headers.get(LENGTH, len(content)))
    answer = json.loads(content[:length])
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"]) == ("y", "FP32")
    if LENGTH in response.headers:
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert output["parameters"] == {"binary_data_size": len(content) - length}
        assert "data" not in output
        return np.frombuffer(content, "<f4", offset=length).reshape(output["shape"])
    assert response.headers["Content-Type"] == "application/json"
    assert "parameters" not in output
    return np.array(output["data"], np.float32).reshape(output["shape"])
