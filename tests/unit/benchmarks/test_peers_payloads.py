import base64
import io
import json

import numpy as np
import pytest

from benchmarks.peers import payloads
from benchmarks.peers.servers import ALL

BODY = np.arange(784, dtype="<f4").tobytes()


def sent(way: payloads.Wire, body: bytes = BODY) -> tuple[str, dict[str, str], bytes]:
    head, _, content = way.ask(body).partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert int(headers["content-length"]) == len(content)
    return first, headers, content


def test_as_it_is() -> None:
    way = payloads.as_it_is("/predict", "image/png", "image/webp")
    first, headers, content = sent(way)
    assert first == "POST /predict HTTP/1.1"
    assert (headers["content-type"], headers["accept"], content) == ("image/png", "image/webp", BODY)
    assert way.read({}, b"answer") == b"answer"


def test_a_list_of_one() -> None:
    way = payloads.as_list("/predict", "bodies")
    _, headers, content = sent(way)
    assert headers["content-type"] == "application/json"
    (text,) = json.loads(content)["bodies"]
    assert base64.b64decode(text) == BODY
    assert way.read({}, json.dumps([text]).encode()) == BODY


def test_v2_without_binary_tensors() -> None:
    way = payloads.v2_base64("f")
    first, _, content = sent(way)
    assert first == "POST /v2/models/f/infer HTTP/1.1"
    (tensor,) = json.loads(content)["inputs"]
    assert (tensor["datatype"], tensor["shape"], base64.b64decode(tensor["data"][0])) == ("BYTES", [1, 1], BODY)
    assert way.read({}, json.dumps({"outputs": [{"data": tensor["data"]}]}).encode()) == BODY


@pytest.mark.parametrize(("kind", "before"), [("FP32", b""), ("BYTES", len(BODY).to_bytes(4, "little"))])
def test_v2_with_binary_tensors(kind: str, before: bytes) -> None:
    way = payloads.v2_binary("m", kind=kind, shape=[1, 1, 28, 28], parameters={"steps": 1})
    _, headers, content = sent(way)
    length = int(headers["inference-header-content-length"])
    head, tensor = json.loads(content[:length]), content[length:]
    assert tensor == before + BODY
    assert head["inputs"][0]["parameters"]["binary_data_size"] == len(tensor)
    assert head["parameters"] == {"binary_data_output": True, "steps": 1}
    assert way.read({"inference-header-content-length": "2"}, b"{}" + before + BODY) == BODY


def test_a_latent() -> None:
    way = payloads.latent("/latent-arithmetic", (1, 28, 28))
    _, headers, content = sent(way)
    asked = json.loads(content)
    assert headers["accept"] == "application/x-npy"
    assert (asked["normalize"], asked["steps"]) == (False, 1)
    row = np.load(io.BytesIO(base64.b64decode(asked["terms"][0]["latent"])))
    assert row.shape == (1, 28, 28)
    assert row.tobytes() == BODY
    answer = io.BytesIO()
    np.save(answer, row[None].astype(">f4"))
    assert way.read({}, answer.getvalue()) == BODY


@pytest.mark.parametrize("name", ALL)
def test_everybody_can_be_asked_for_both_payloads(name: str) -> None:
    wires = ALL[name].wires
    assert list(wires) == list(payloads.PAYLOADS)
    assert all(sent(way)[0].startswith("POST /") for found in wires.values() for way in found)
