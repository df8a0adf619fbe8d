"""Programs that others wrote, unchanged: `openai` from PyPI and from npm, and `huggingface_hub`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.data import PICTURE, b64, pixels, unb64
from tests.contract.harness import Service
from tests.contract.test_openai import MASK, OUR_MASK
from tests.contract.test_urls import SEED_OF_ALICE
from tests.helpers.live import run

NPM_OPENAI = "6.49.0"
MISSING = "is not installed: pip install '.[dev]'"
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
const stream = await client.images.generate({ prompt: "alice", stream: true, partial_images: 2, steps: 3 })
for await (const event of stream) events.push(event)
const error = await client.images.generate({ prompt: "x".repeat(201) }).catch((e) => e)
console.log(JSON.stringify({ models, generated: generated.data, edited: edited.data, events, param: error.param }))
"""


def check(service: Service, answers: dict[str, Any]) -> None:
    """What a client of OpenAI got, against native calls."""
    assert answers["models"] == ["colour/1", "grey/2", "grey/10"]
    calls = {
        "generated": ("/generate", {"seed": SEED_OF_ALICE, "n": 2, "scale": 2}),
        "edited": ("/project", {"images": [b64(PICTURE)], "mask": b64(OUR_MASK)}),
    }
    for name, (path, body) in calls.items():
        expected = [image["data"] for image in service.images(path, body)]
        assert [image["b64_json"] for image in answers[name]] == expected
    native = {"seed": SEED_OF_ALICE, "steps": 3, "record": [1, 2, 3]}
    steps = service.images("/generate", native)[0]["trajectory"]
    assert [event["b64_json"] for event in answers["events"]] == [step["data"] for step in steps]
    kinds = [event["type"].partition(".")[2] for event in answers["events"]]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert answers["param"] == "prompt"


def test_the_openai_client_of_python(service: Service, guarded: Service) -> None:
    openai = pytest.importorskip("openai", reason=f"openai {MISSING}")
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.images.generate(prompt="x" * 201)
        stream = client.images.generate(
            prompt="alice", stream=True, partial_images=2, extra_body={"steps": 3}
        )
        answers = {
            "models": [model.id for model in client.models.list()],
            "generated": client.images.generate(prompt="alice", n=2, size="16x16").to_dict()[
                "data"
            ],
            "edited": client.images.edit(image=PICTURE, mask=MASK, prompt="fill", n=1).to_dict()[
                "data"
            ],
            "events": [event.to_dict() for event in stream],
            "param": refused.value.param,
        }
        assert client.models.retrieve("grey").id == "grey/10"
        assert len(client.images.edit(image=[PICTURE, PICTURE], prompt="fill").data) == 2
    check(service, answers)
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert client.with_options(api_key="alice-key").images.generate(prompt="alice").data


@pytest.mark.slow
def test_the_openai_client_of_npm(service: Service, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"openai@{NPM_OPENAI}"]
    if run(*install, cwd=tmp_path).returncode:
        pytest.skip(f"npm does not get openai {NPM_OPENAI}: is there a network?")
    (tmp_path / "calls.mjs").write_text(NODE)
    command = ["node", "calls.mjs", f"{service.url}/v1", b64(PICTURE), b64(MASK)]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check(service, json.loads(done.stdout))


def test_the_client_of_hugging_face(service: Service, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason=f"huggingface_hub {MISSING}")
    file = tmp_path / "picture.png"
    file.write_bytes(PICTURE)
    prompt = {"prompt": "a cat", "guidance_scale": 2.0, "target_size": {"width": 8, "height": 8}}
    options = {"num_inference_steps": 3, "strength": 0.5}
    calls: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
        ("", PICTURE, {}, {}),  # bytes are sent without a Content-Type
        ("", PICTURE, prompt | options, {"steps": 3, "strength": 0.5}),
        ("?model=grey/2&scale=2", file, prompt, {"model": "grey/2", "scale": 2}),
    ]
    for query, image, more, native in calls:
        client = hub.InferenceClient(model=f"{service.url}/project{query}")
        (expected,) = service.images("/project", {"images": [b64(PICTURE)]} | native)
        assert np.array_equal(
            np.asarray(client.image_to_image(image, **more)), pixels(unb64(expected["data"]))
        )
    with pytest.raises(hub.errors.HfHubHTTPError, match="foo: unknown field"):
        client.image_to_image(PICTURE, foo=1)
    hub.close_session()
