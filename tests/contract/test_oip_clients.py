"""Stock clients against a real server: `tritonclient.http`, its aio twin, and `perf_analyzer`."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.contract.data import latents, step_params
from tests.contract.harness import Service, serving, settings
from tests.helpers.live import run

X = latents(5, n=2)
EITHER = [True, False, None]  # None: the output is not listed


class Awaited:
    """The client of `tritonclient.http.aio`, each of whose calls is awaited in a loop of its
    own.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            async with triton_aio.InferenceServerClient(self._url) as client:
                return await getattr(client, name)(*arguments, **options)

        return lambda *arguments, **options: asyncio.run(call(*arguments, **options))


@pytest.fixture(params=["http", "aio"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "aio":
        yield Awaited(address(service))
        return
    with triton.InferenceServerClient(address(service)) as found:
        yield found


def address(service: Service) -> str:
    return "{}:{}".format(*service.address)


def inputs(binary: bool = True) -> list[triton.InferInput]:
    x = triton.InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X, binary_data=binary)
    return [x]


def outputs(binary: bool | None) -> list[triton.InferRequestedOutput] | None:
    return None if binary is None else [triton.InferRequestedOutput("y", binary_data=binary)]


def failing(call: Callable[[], object]) -> tuple[str, str]:
    """Status and text of a call that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()


def test_it_finds_its_way(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("grey")
    assert client.is_model_ready("grey", "2")
    assert not client.is_model_ready("grey", "3")
    assert client.get_server_metadata()["name"] == "ign-service"
    assert client.get_model_metadata("grey", "2")["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert client.get_model_config("grey")["max_batch_size"] == 64
    assert [
        entry["version"] for entry in client.get_model_repository_index() if entry["name"] == "grey"
    ] == ["2", "10"]
    assert [found["name"] for found in client.get_inference_statistics()["model_stats"]] == [
        "colour",
        "grey",
        "grey",
    ]
    assert len(client.get_inference_statistics("grey", "10")["model_stats"]) == 1


@pytest.mark.parametrize("binary_out", EITHER)
@pytest.mark.parametrize("binary_in", [True, False])
def test_it_infers(client: Any, binary_in: bool, binary_out: bool | None) -> None:
    options: dict[str, Any] = {
        "request_id": "7",
        "parameters": {"steps": 3},
        "response_compression_algorithm": "gzip",
    }
    answer = client.infer("grey", inputs(binary_in), outputs=outputs(binary_out), **options)
    np.testing.assert_allclose(answer.as_numpy("y"), step_params(X, 3), atol=1e-6)
    found = answer.get_response()
    assert (found["model_name"], found["model_version"], found["id"]) == ("grey", "10", "7")
    assert ("data" in found["outputs"][0]) == (binary_out is False)


def test_it_infers_in_the_background(service: Service) -> None:
    with triton.InferenceServerClient(address(service), concurrency=4) as client:
        calls = [
            client.async_infer("grey", inputs(), model_version="2", priority=1) for _ in range(8)
        ]
        for call in calls:
            np.testing.assert_allclose(
                call.get_result().as_numpy("y"), step_params(X, 1, scale=1.5), atol=1e-6
            )


def test_it_is_told_what_was_wrong(client: Any) -> None:
    assert failing(lambda: client.infer("nope", inputs()))[0] == "404"
    assert failing(lambda: client.infer("grey", inputs(), parameters={"steps": 0}))[0] == "400"
    assert failing(lambda: client.infer("grey", inputs(), timeout=1))[0] == "504"
    assert (
        failing(lambda: client.infer("grey", inputs(), sequence_id=1, sequence_start=True))[0]
        == "400"
    )
    assert failing(lambda: client.load_model("nope")) == (
        "404",
        "no model 'nope' in the model directory",
    )
    assert failing(lambda: client.load_model("grey", config="{}")) == (
        "400",
        "parameters.config: unknown field",
    )
    assert failing(lambda: client.unload_model("grey"))[0] == "400"
    assert failing(client.get_log_settings) == (
        "404",
        "nothing is served at this path; /docs lists the API",
    )
    assert failing(client.get_system_shared_memory_status)[0] == "404"
    asked = [triton.InferRequestedOutput("y", class_count=2)]
    assert failing(lambda: client.infer("grey", inputs(), outputs=asked))[0] == "400"


def test_it_loads_and_unloads(models: Path) -> None:
    with (
        serving(settings(models)) as service,
        triton.InferenceServerClient(address(service)) as client,
    ):
        client.unload_model("colour")
        assert not client.is_model_ready("colour")
        states = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
        assert states["colour"] in ("UNLOADING", "UNAVAILABLE")
        client.load_model("colour")
        assert client.is_model_ready("colour")
        client.load_model("grey")


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [[], ["--input-tensor-format", "json", "--output-tensor-format", "json"], ["--async"]]
)
def test_perf_analyzer_measures_it(service: Service, form: list[str], tmp_path: Path) -> None:
    program = Path(*pytest.importorskip("perf_analyzer").__path__, "bin", "perf_analyzer")

    def counted() -> int:
        (found,) = service.get("/v2/models/grey/versions/10/stats").json()["model_stats"]
        return int(found["inference_count"])

    # Zeros, because its random data are random bits: not finite, or beyond the bound of rows.
    data = ["-b", "2", "--shape", "x:1,8,8", "--input-data", "zero"]
    measured = ["--request-count", "40", "--concurrency-range", "4", *data]
    before = counted()
    asked = ("-m", "grey", "-u", address(service), "-i", "http")
    done = run(program, *asked, *measured, *form, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "Request count: 40" in done.stdout
    # by the service's statistics; it reads them while requests run
    assert "Avg request latency" in done.stdout
    assert counted() - before == 80
