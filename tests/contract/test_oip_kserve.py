"""The SDK of KServe against a real server, in a process of its own: it brings a server, metrics and
a logger.
"""

import importlib.util
import json
import sys

import numpy as np
import pytest

from tests.contract.data import latents, step_params
from tests.contract.harness import Service
from tests.helpers.live import run

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("kserve"), reason="needs the package kserve 0.21"
)

SCRIPT = """
import asyncio, json, sys
import httpx, numpy as np
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

async def main(url, rows):
    x, found = np.array(rows, np.float32), {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found["live"], found["ready"] = await client.is_server_live(url), await client.is_server_ready(url)
        found["models"] = [await client.is_model_ready(url, name) for name in ("grey", "nope")]
        for binary in (False, True):
            tensor = InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x, binary_data=binary)
            outputs = [RequestedOutput("y", parameters={"binary_data": binary})]
            request = InferRequest("grey", [tensor], request_id="7", parameters={"steps": 2}, request_outputs=outputs)
            answer = await client.infer(url, request, model_name="grey")
            found[str(binary)] = [answer.id, answer.model_name, answer.outputs[0].as_numpy().tolist()]
        try:
            await client.infer(url, request, model_name="nope")
        except httpx.HTTPStatusError as exc:
            found["error"] = str(exc)
    print(json.dumps(found))

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


def test_the_client_of_kserve_works_unchanged(service: Service) -> None:
    x = latents(5, n=2)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, service.url, json.dumps(x.tolist())]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["live"], found["ready"], found["models"]) == (True, True, [True, False])
    for binary in ("False", "True"):
        request_id, model, rows = found[binary]
        assert (request_id, model) == ("7", "grey")
        np.testing.assert_allclose(np.array(rows).reshape(x.shape), step_params(x, 2), atol=1e-6)
    assert "404" in found["error"]
