"""Programs that others wrote, unchanged: `openai` from PyPI and from npm, and `huggingface_hub`."""

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contract.data import PICTURE, b64, pixels, unb64
from tests.contract.harness import Service, bearer
from tests.contract.test_openai import masks

NPM_OPENAI = "6.49.0"
INSTALL = "is not installed: pip install '.[dev]'"
NODE = """
const { default: OpenAI, toFile } = await import("openai")
const [baseURL, picture, mask] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 })
const file = (data, name) => toFile(Buffer.from(data, "base64"), name, { type: "image/png" })
const models = (await client.models.list()).data.map((model) => model.id)
const generated = await client.images.generate({ prompt: "alice", n: 2, size: "16x16" })
const edited = await client.images.edit({
  image: await file(picture, "a.png"), mask: await file(mask, "m.png"), prompt: "fill" })
const events = []
const stream = await client.images.generate({ prompt: "alice", stream: true, partial_images: 1, steps: 4 })
for await (const event of stream) events.push(event)
const error = await client.images.generate({ prompt: "x".repeat(201) }).catch((e) => e)
console.log(JSON.stringify({ models, generated, edited, events, error: [error.status, error.code, error.param] }))
"""


def native(service: Service, path: str, **body: Any) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = service.post(path, body).json()["images"]
    return images


def generated(service: Service, **options: Any) -> list[str]:
    return [image["data"] for image in native(service, "/generate", seed=735577801, **options)]


def edited(service: Service, **options: Any) -> list[str]:
    body = {"images": [b64(PICTURE)], "mask": b64(masks()[1])} | options
    return [image["data"] for image in native(service, "/project", **body)]


def test_the_openai_client_of_python(service: Service, guarded: Service) -> None:
    openai = pytest.importorskip("openai", reason=f"openai {INSTALL}")
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["colour/1", "grey/2", "grey/10"]
    assert client.models.retrieve("grey").id == client.models.retrieve("grey/10").id == "grey/10"

    answer = client.images.generate(prompt="alice", n=2, size="16x16", output_format="webp")
    assert [image.b64_json for image in answer.data] == generated(service, n=2, scale=2, format="webp")
    assert (answer.size, answer.output_format) == ("16x16", "webp")
    assert "seed 735577801" in answer.data[0].revised_prompt

    answer = client.images.edit(image=PICTURE, mask=masks()[0], prompt="fill", n=1)
    assert [image.b64_json for image in answer.data] == edited(service)
    answer = client.images.edit(image=[PICTURE, PICTURE], prompt="fill", model="grey/2")
    assert [image.b64_json for image in answer.data] == edited(
        service, images=[b64(PICTURE)] * 2, mask=None, model="grey/2"
    )

    options = {"prompt": "alice", "stream": True, "partial_images": 2, "extra_body": {"steps": 3}}
    events = list(client.images.generate(**options))
    assert [event.type.partition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    (image,) = native(service, "/generate", seed=735577801, steps=3, record=[1, 2, 3])
    assert [event.b64_json for event in events] == [step["data"] for step in image["trajectory"]]
    assert events[-1].usage.total_tokens == 0
    stream = client.images.edit(image=PICTURE, mask=masks()[0], prompt="x", stream=True, extra_body={"steps": 2})
    assert [event.b64_json for event in stream] == edited(service, steps=2)

    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(prompt="x" * 201)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "prompt")
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="x", model="dall-e-3")
    locked = f"{guarded.url}/v1"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=locked, api_key="wrong", max_retries=0).models.list()
    key = bearer("alice")["Authorization"].removeprefix("Bearer ")
    assert openai.OpenAI(base_url=locked, api_key=key).images.generate(prompt="alice").data


@pytest.mark.slow
def test_the_openai_client_of_npm(service: Service, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"openai@{NPM_OPENAI}"]
    if subprocess.run(install, cwd=tmp_path, timeout=300, check=False, capture_output=True).returncode:
        pytest.skip(f"npm does not get openai {NPM_OPENAI}: is there a network?")
    (tmp_path / "calls.mjs").write_text(NODE)
    command = ["node", "calls.mjs", f"{service.url}/v1", b64(PICTURE), b64(masks()[0])]
    done = subprocess.run(command, cwd=tmp_path, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["models"] == ["colour/1", "grey/2", "grey/10"]
    assert [image["b64_json"] for image in answer["generated"]["data"]] == generated(service, n=2, scale=2)
    assert [image["b64_json"] for image in answer["edited"]["data"]] == edited(service)
    (image,) = native(service, "/generate", seed=735577801, steps=4, record=[2, 4])
    assert [event["b64_json"] for event in answer["events"]] == [step["data"] for step in image["trajectory"]]
    assert answer["error"] == [422, "invalid_value", "prompt"]


def test_the_client_of_hugging_face(service: Service, guarded: Service, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason=f"huggingface_hub {INSTALL}")
    file = tmp_path / "picture.png"
    file.write_bytes(PICTURE)
    client = hub.InferenceClient(model=f"{service.url}/project")

    def expected(**options: Any) -> Any:
        (image,) = native(service, "/project", images=[b64(PICTURE)], **options)
        return pixels(unb64(image["data"]))

    for image in (PICTURE, str(file), file):  # bytes are sent without a Content-Type
        assert np.array_equal(np.asarray(client.image_to_image(image)), expected())
    options = {"prompt": "a cat", "guidance_scale": 2.0, "target_size": {"width": 8, "height": 8}}
    found = client.image_to_image(PICTURE, num_inference_steps=3, strength=0.5, **options)
    assert np.array_equal(np.asarray(found), expected(steps=3, strength=0.5))
    other = hub.InferenceClient(model=f"{service.url}/project?model=grey/2&scale=2")
    for more in ({}, {"prompt": "a cat"}):
        assert np.array_equal(np.asarray(other.image_to_image(PICTURE, **more)), expected(model="grey/2", scale=2))
    with pytest.raises(hub.errors.HfHubHTTPError, match="foo: unknown field"):
        client.image_to_image(PICTURE, foo=1)
    with pytest.raises(hub.errors.HfHubHTTPError, match="undecodable_image"):
        client.image_to_image(b"no image", prompt="x")
    with pytest.raises(hub.errors.HfHubHTTPError, match="401"):
        hub.InferenceClient(model=f"{guarded.url}/project", token="wrong").image_to_image(PICTURE)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"inputs": "", "parameters": {}}, 422, "images.0"),
        ({"inputs": 1}, 422, "images.0"),
        ({"inputs": b64(PICTURE), "parameters": [1]}, 422, "parameters"),
        ({"inputs": b64(PICTURE), "other": 1}, 422, "other"),
        ({"inputs": b64(PICTURE), "parameters": None}, 200, None),
        ({"images": [b64(PICTURE)], "x": {"inputs": 1}}, 422, "x"),
    ],
)
def test_bodies_like_those_of_hugging_face(
    service: Service, body: dict[str, Any], status: int, field: str | None
) -> None:
    response = service.post("/project", body)
    assert response.status_code == status, response.text
    assert [error["field"] for error in response.json().get("errors", [])] == ([] if field is None else [field])


def test_an_image_needs_no_content_type(service: Service) -> None:
    expected = service.client.post("/score", content=PICTURE, headers={"Content-Type": "image/png"}).json()["images"]
    assert service.client.post("/score", content=PICTURE).json()["images"] == expected
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "BMP")
    assert service.client.post("/score", content=buffer.getvalue()).status_code == 415
