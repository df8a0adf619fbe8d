"""OpenAI's images API as its bytes are: bodies that programs send, errors, limits and streams."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.contract.data import PICTURE, b64
from tests.contract.harness import PATIENCE_S, Service, gated, send, settings
from tests.contract.test_streaming import parsed
from tests.contract.test_urls import SEED_OF_ALICE
from tests.helpers.connection import Connection
from tests.helpers.pictures import noise, save

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
HIDDEN = np.random.default_rng(0).random((8, 8)) < 0.5
# The same mask as OpenAI has it, with transparent pixels to be filled, and as we do, with white
# ones.
MASK = save(np.dstack([noise(8, 8, 3), np.where(HIDDEN, 0, 255)]).astype(np.uint8))
OUR_MASK = save(np.where(HIDDEN, 255, 0).astype(np.uint8))


def edit(
    service: Service, *images: bytes, mask: bytes | None = None, **fields: str
) -> httpx.Response:
    files = [("image[]" if len(images) > 1 else "image", ("upload", data)) for data in images]
    files += [] if mask is None else [("mask", ("upload", mask))]
    return service.post(EDITS, data={"prompt": "x"} | fields, files=files or {"x": ("", b"")})


def error(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """The type of an error of OpenAI's form."""
    assert (response.status_code, response.headers["Content-Type"]) == (
        status,
        "application/json",
    ), response.text
    assert response.json().keys() == {"error"}
    found = response.json()["error"]
    assert (found["code"], found["param"], bool(found["message"])) == (code, param, True)
    return str(found["type"])


# What Open WebUI and LangChain send, among them options without effect
@pytest.mark.parametrize(
    ("body", "native"),
    [
        ({}, {}),
        (
            {"model": "grey/2", "n": 2, "size": "512x512", "response_format": "b64_json"},
            {"scale": 32},
        ),
        ({"n": None, "size": "auto", "quality": "standard", "style": "vivid", "user": "u"}, {}),
        (
            {"size": "50x31", "output_format": "webp", "background": "auto"},
            {"scale": 3, "format": "webp"},
        ),
        (
            {"steps": 3, "n": 64, "size": "256x256", "moderation": "low", "output_compression": 90},
            {"scale": 32},
        ),
    ],
)
def test_a_prompt_is_a_text_seed(
    service: Service, body: dict[str, Any], native: dict[str, Any]
) -> None:
    response = service.post(GENERATIONS, {"prompt": "alice"} | body)
    assert response.status_code == 200, response.text
    assert response.headers["X-IGN-Seed"] == str(SEED_OF_ALICE)
    answer = response.json()
    same = (
        {name: body[name] for name in ("n", "model", "steps") if body.get(name)}
        | {"seed": SEED_OF_ALICE}
        | native
    )
    expected = service.images("/generate", same)
    assert [image["b64_json"] for image in answer["data"]] == [image["data"] for image in expected]
    assert all(f"seed {SEED_OF_ALICE} " in image["revised_prompt"] for image in answer["data"])
    assert answer["size"] == f"{expected[0]['width']}x{expected[0]['height']}"
    assert answer["output_format"] == native.get("format", "png")


@pytest.mark.parametrize("count", [1, 2])
def test_an_edit_projects_and_fills_what_is_transparent(service: Service, count: int) -> None:
    for mask, ours in ((MASK, OUR_MASK), (None, None)):
        answer = edit(service, *[PICTURE] * count, mask=mask, size="16x16", n="1", steps="2")
        assert answer.status_code == 200, answer.text
        body = {
            "images": [b64(PICTURE)] * count,
            "mask": ours and b64(ours),
            "scale": 2,
            "steps": 2,
        }
        expected = service.images("/project", body)
        assert [image["b64_json"] for image in answer.json()["data"]] == [
            image["data"] for image in expected
        ]


def test_models(service: Service) -> None:
    listed = service.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["colour/1", "grey/2", "grey/10"]
    assert all(
        service.get(f"/v1/models/{name}").json() == listed[2]
        for name in ("grey", "grey/10", "grey%2F10")
    )
    error(service.get("/v1/models/dall-e-3"), 404, "unknown_model")


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "x" * 201}, "prompt"),
    ({"n": 1000}, "n"),
    ({"n": 2, "stream": True}, "stream"),
    ({"size": "7x8"}, "size"),
    ({"size": "large"}, "size"),
    ({"background": "transparent"}, "background"),
    ({"seed": 1}, "seed"),
]


def test_bad_requests_are_errors_of_that_form(service: Service, unharmed: None) -> None:
    for body, param in BAD_OPTIONS:
        response = service.post(GENERATIONS, {"prompt": "x"} | body)
        assert error(response, 422, "invalid_value", param) == "invalid_request_error"
    error(edit(service, PICTURE, mask=OUR_MASK), 422, "invalid_value", "mask")
    error(edit(service, b"no image"), 422, "undecodable_image", "image")
    error(edit(service), 422, "invalid_value", "image")
    error(edit(service, PICTURE, seed="2"), 422, "invalid_value", "seed")
    error(edit(service, PICTURE, PICTURE, stream="true"), 422, "invalid_value", "stream")
    error(service.post(EDITS, {"prompt": "x"}), 400, "malformed")
    error(send(service, GENERATIONS, b"{"), 400, "malformed")
    error(send(service, GENERATIONS, b'{"prompt": "\\ud800"}'), 400, "malformed")
    error(service.post(f"{GENERATIONS}?n=1", {"prompt": "x"}), 422, "invalid_value", "n")
    error(service.get(GENERATIONS), 405, "method_not_allowed")
    error(service.post("/v1/images/variations"), 404, "not_found")


@pytest.mark.parametrize(
    ("rest", "status", "code"),
    [
        (b"Host: x\r\nHost: y\r\n\r\n", 400, "malformed"),
        (b"no header\r\n\r\n", 400, "malformed"),
        (b"a:\r\n" * 300, 431, "head_too_large"),
        (b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "malformed"),
    ],
)
def test_malformed_heads_are_errors_of_that_form(
    service: Service, rest: bytes, status: int, code: str
) -> None:
    with Connection(service.address).send(
        b"POST %s HTTP/1.1\r\n" % GENERATIONS.encode() + rest
    ) as connection:
        found, headers, body = connection.answer()
    assert (found, headers["content-type"]) == (status, "application/json")
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("steps", "partial", "shown"), [(8, 3, [2, 4, 6]), (2, 3, [1]), (1, 3, []), (6, 0, [])]
)
def test_partial_images_are_recorded_steps(
    service: Service, steps: int, partial: int, shown: list[int]
) -> None:
    body = {
        "prompt": "alice",
        "stream": True,
        "partial_images": partial,
        "steps": steps,
        "size": "16x16",
    }
    found = parsed(service.post(GENERATIONS, body).text)
    native = {"seed": SEED_OF_ALICE, "steps": steps, "record": [*shown, steps], "scale": 2}
    expected = service.images("/generate", native)[0]["trajectory"]
    assert [data["b64_json"] for _, data in found] == [step["data"] for step in expected]
    kinds = ["image_generation.partial_image"] * len(shown) + ["image_generation.completed"]
    assert [name for name, _ in found] == [data["type"] for _, data in found] == kinds
    assert [data.get("partial_image_index") for _, data in found] == [*range(len(shown)), None]
    assert {data["size"] for _, data in found} == {"16x16"}


def test_an_error_of_a_stream_has_that_form(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    body = {"prompt": "x", "stream": True, "steps": 200, "partial_images": 1}
    with gated(monkeypatch, settings(service.services.settings.model_dir)) as (broken, gate):
        gate.fails = True
        assert error(broken.post(GENERATIONS, body), 500, "model_failure") == "server_error"
        gate.fails = False
        gate.pass_s = 0.005
        text = ""
        with broken.client.stream("POST", GENERATIONS, json=body, timeout=PATIENCE_S) as response:
            for line in response.iter_lines():
                text += f"{line}\n"
                gate.fails |= line.startswith("event: ")
        broken.errors.clear()
    (first, last) = parsed(text)
    assert first[0] == "image_generation.partial_image"
    assert (last[0], last[1]["error"]["code"]) == ("error", "model_failure")
