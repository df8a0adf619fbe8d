"""OpenAI's images API as its bytes are: bodies that programs send, errors, limits and streams."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.contract.data import PICTURE, b64, unb64
from tests.contract.harness import PATIENCE_S, Service, bearer, gated, send, settings
from tests.contract.test_urls import SEED_OF_ALICE
from tests.helpers.pictures import noise, save

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
NAME = "grey/10"


def masks(seed: int = 0) -> tuple[bytes, bytes]:
    """The same mask in OpenAI's form, of which transparent pixels are filled, and in ours, of which white ones are."""
    hidden = np.random.default_rng(seed).random((8, 8)) < 0.5
    pixels = np.dstack([noise(8, 8, 3), np.where(hidden, 0, 255)]).astype(np.uint8)
    return save(pixels), save(np.where(hidden, 255, 0).astype(np.uint8))


def edit(service: Service, fields: dict[str, Any], **files: bytes) -> httpx.Response:
    named = {name: (name, data, "application/octet-stream") for name, data in files.items()}
    return service.client.post(EDITS, data={"prompt": "x"} | fields, files=named)


def error(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    (found,) = response.json().values()
    assert response.json().keys() == {"error"}
    assert (found["code"], found["param"]) == (code, param), found
    assert found["message"]
    return dict(found)


# What Open WebUI and LangChain send, among them options without effect
BODIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "alice"}, {}),
    ({"prompt": "alice", "model": "grey/2", "n": 2, "size": "512x512", "response_format": "b64_json"}, {"scale": 32}),
    ({"prompt": "alice", "n": None, "size": "auto", "quality": "standard", "style": "vivid", "user": "u"}, {}),
    ({"prompt": "alice", "size": "50x31", "output_format": "webp", "background": "auto"}, {"scale": 3}),
    ({"prompt": "alice", "steps": 3, "moderation": "low", "output_compression": 90}, {"steps": 3}),
]


@pytest.mark.parametrize(("body", "native"), BODIES)
def test_a_prompt_is_a_text_seed(service: Service, body: dict[str, Any], native: dict[str, Any]) -> None:
    response = service.post(GENERATIONS, body)
    assert response.status_code == 200, response.text
    assert response.headers["X-IGN-Seed"] == str(SEED_OF_ALICE)
    answer = response.json()
    same = {name: body[name] for name in ("n", "model") if body.get(name)} | native
    same |= {"format": body.get("output_format", "png"), "seed": SEED_OF_ALICE}
    expected = service.post("/generate", same).json()["images"]
    assert [image["b64_json"] for image in answer["data"]] == [image["data"] for image in expected]
    assert all(f"seed {SEED_OF_ALICE} " in image["revised_prompt"] for image in answer["data"])
    assert answer["size"] == f"{expected[0]['width']}x{expected[0]['height']}"
    assert answer["output_format"] == same["format"]


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit_projects_and_fills_what_is_transparent(service: Service, name: str) -> None:
    theirs, ours = masks()
    answer = edit(service, {"size": "16x16", "n": "1", "steps": "2"}, **{name: PICTURE, "mask": theirs})
    assert answer.status_code == 200, answer.text
    body = {"images": [b64(PICTURE)], "mask": b64(ours), "scale": 2, "steps": 2}
    (expected,) = service.post("/project", body).json()["images"]
    (found,) = answer.json()["data"]
    assert found["b64_json"] == expected["data"]
    unmasked = edit(service, {"size": "16x16", "steps": "2"}, image=PICTURE).json()["data"][0]["b64_json"]
    assert unmasked != found["b64_json"]


def test_models(service: Service) -> None:
    listed = service.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["colour/1", "grey/2", "grey/10"]
    for name in ("grey", "grey/10", "grey%2F10"):
        assert service.get(f"/v1/models/{name}").json() == listed["data"][2]
    error(service.get("/v1/models/dall-e-3"), 404, "unknown_model")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 422, "invalid_value", "prompt"),
        ({"prompt": ""}, 422, "invalid_value", "prompt"),
        ({"prompt": "x" * 201}, 422, "invalid_value", "prompt"),
        ({"prompt": "x", "model": "dall-e-3"}, 404, "unknown_model", None),
        ({"prompt": "x", "n": 0}, 422, "invalid_value", "n"),
        ({"prompt": "x", "n": 1000}, 422, "invalid_value", "n"),
        ({"prompt": "x", "n": 2, "stream": True}, 422, "invalid_value", "stream"),
        ({"prompt": "x", "size": "7x8"}, 422, "invalid_value", "size"),
        ({"prompt": "x", "size": "large"}, 422, "invalid_value", "size"),
        ({"prompt": "x", "response_format": "url"}, 422, "invalid_value", "response_format"),
        ({"prompt": "x", "background": "transparent"}, 422, "invalid_value", "background"),
        ({"prompt": "x", "partial_images": 4, "stream": True}, 422, "invalid_value", "partial_images"),
        ({"prompt": "x", "image": "x"}, 422, "invalid_value", "image"),
    ],
)
def test_bad_options_are_errors_of_that_form(
    service: Service, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    assert error(service.post(GENERATIONS, body), status, code, param)["type"] == "invalid_request_error"


def test_bad_bodies_are_errors_of_that_form(service: Service, unharmed: None) -> None:
    opaque = masks()[1]
    error(edit(service, {}, image=PICTURE, mask=opaque), 422, "invalid_value", "mask")
    error(edit(service, {}, image=b"no image"), 422, "undecodable_image", "image")
    error(edit(service, {}, images=PICTURE), 422, "invalid_value", "images")
    error(edit(service, {"n": "2"}, image=PICTURE), 422, "invalid_value", "n")
    error(edit(service, {"seed": "2"}, image=PICTURE), 422, "invalid_value", "seed")
    two = [("image[]", ("a", PICTURE, "image/png"))] * 2
    response = service.client.post(EDITS, data={"prompt": "x", "stream": "true"}, files=two)
    error(response, 422, "invalid_value", "stream")
    error(service.client.post(EDITS, data={"prompt": "x"}, files={"x": ("", b"")}), 422, "invalid_value", "image")
    error(service.post(EDITS, {"prompt": "x"}), 400, "malformed")
    error(send(service, GENERATIONS, b"{"), 400, "malformed")
    error(send(service, GENERATIONS, b'{"prompt": "\\ud800"}'), 400, "malformed")
    error(service.post(f"{GENERATIONS}?n=1", {"prompt": "x"}), 422, "invalid_value", "n")
    error(service.get(GENERATIONS), 405, "method_not_allowed")
    error(service.post("/v1/images/variations"), 404, "not_found")


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event: ")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


@pytest.mark.parametrize(("steps", "partial", "shown"), [(8, 3, [2, 4, 6]), (2, 3, [1]), (1, 3, []), (6, 0, [])])
def test_partial_images_are_recorded_steps(service: Service, steps: int, partial: int, shown: list[int]) -> None:
    body = {"prompt": "alice", "stream": True, "partial_images": partial, "steps": steps, "size": "16x16"}
    response = service.post(GENERATIONS, body)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    found = events(response.text)
    record = [*shown, steps]
    native = service.post("/generate", {"seed": SEED_OF_ALICE, "steps": steps, "record": record, "scale": 2}).json()
    expected = [step["data"] for step in native["images"][0]["trajectory"]]
    assert [data["b64_json"] for _, data in found] == expected
    kinds = ["image_generation.partial_image"] * len(shown) + ["image_generation.completed"]
    assert [name for name, _ in found] == [data["type"] for _, data in found] == kinds
    assert [data.get("partial_image_index") for _, data in found] == [*range(len(shown)), None]
    assert {data["size"] for _, data in found} == {"16x16"}


def test_an_error_of_a_stream_has_that_form(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    with gated(monkeypatch, settings(service.services.settings.model_dir)) as (broken, gate):
        gate.fails = True
        found = error(broken.post(GENERATIONS, {"prompt": "x", "stream": True}), 500, "model_failure")
        assert found["type"] == "server_error"
        gate.fails = False
        body = {"prompt": "x", "stream": True, "steps": 200, "partial_images": 1}
        gate.pass_s = 0.01
        with broken.client.stream("POST", GENERATIONS, json=body, timeout=PATIENCE_S) as response:
            text = ""
            for line in response.iter_lines():
                text += f"{line}\n"
                gate.fails |= line.startswith("event: ")
        broken.errors.clear()
    (first, last) = events(text)
    assert first[0] == "image_generation.partial_image"
    assert (last[0], last[1]["error"]["code"]) == ("error", "model_failure")


def test_keys_and_limits_hold(guarded: Service) -> None:
    body = {"prompt": "alice"}
    assert error(guarded.post(GENERATIONS, body), 401, "unauthorized")["type"] == "invalid_request_error"
    error(guarded.get("/v1/models"), 401, "unauthorized")
    error(guarded.get("/v1/models", headers=bearer("ops")), 403, "forbidden")
    assert guarded.post(GENERATIONS, body, headers=bearer("alice")).status_code == 200
    responses = [guarded.post(GENERATIONS, body, headers=bearer("slow")) for _ in range(5)]
    limited = next(response for response in responses if response.status_code == 429)
    assert error(limited, 429, "rate_limited")["type"] == "rate_limit_error"
    assert limited.headers["Retry-After"]


def test_the_answer_of_many_images_is_json(service: Service) -> None:
    answer = service.post(GENERATIONS, {"prompt": "7", "n": 64, "size": "256x256"}).json()
    assert len({image["b64_json"] for image in answer["data"]}) == 64
    expected = service.post("/generate", {"seed": 7, "offset": 63, "scale": 32}, accept="image/png").content
    assert unb64(answer["data"][63]["b64_json"]) == expected
