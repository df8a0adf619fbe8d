"""`/v2/…/infer`: every way in and out, and everything that is refused."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.data import COLOUR, GREY, latents, step_params
from tests.contract.harness import Service, gated, held, problem, settings
from tests.contract.oip import INFER, LENGTH, as_binary, as_json, encoded, infer, rows_of, tensor

X = latents(3, n=3)
Y = step_params(X, 1)
BINARY_OUT: dict[str, Any] = {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
JSON_OUT: dict[str, Any] = {"outputs": [{"name": "y", "parameters": {"binary_data": False}}]}


# What works


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize(
    "wanted", [BINARY_OUT, JSON_OUT, {}, {"parameters": {"binary_data_output": True}}]
)
@pytest.mark.parametrize("binary_in", [True, False])
def test_json_and_binary_in_and_out(
    service: Service, binary_in: bool, wanted: dict[str, Any], steps: int
) -> None:
    members = wanted | {"parameters": wanted.get("parameters", {}) | {"steps": steps}}
    content, length = as_binary(X, **members) if binary_in else (encoded(X, **members), None)
    response = infer(service, content, length, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers  # float32 noise hardly compresses
    assert (LENGTH in response.headers) == (wanted not in ({}, JSON_OUT))
    np.testing.assert_allclose(rows_of(response), step_params(X, steps), atol=1e-6)


def test_all_ways_give_the_same_bits(service: Service) -> None:
    content, length = as_binary(X, **BINARY_OUT)
    exact = rows_of(infer(service, content, length)).tobytes()
    assert rows_of(infer(service, encoded(X))).tobytes() == exact
    assert rows_of(infer(service, encoded(X, nested=True))).tobytes() == exact


def test_it_is_the_f_of_everything_else(service: Service) -> None:
    native = service.post("/generate", {"seed": 3, "n": 3, "steps": 2}, accept="application/x-npy")
    content, length = as_binary(X, parameters={"steps": 2}, **BINARY_OUT)
    assert rows_of(infer(service, content, length)).tobytes() in native.content


def test_rows_share_batches_with_other_endpoints(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        held(monkeypatch, settings(models), {"steps": 2}) as (service, gate),
        ThreadPoolExecutor(8) as pool,
    ):
        others = [
            call
            for seed in range(4)
            for call in (
                pool.submit(infer, service, encoded(X)),
                pool.submit(service.post, "/generate", {"seed": seed, "n": 2, "steps": 1}),
            )
        ]
        service.until_metric("ign_queue_rows", 20, model="grey/10")
        gate.opened.set()
        assert {call.result().status_code for call in others} == {200}
    assert max(gate.sizes) > 3  # more than one of them has


def test_the_answer_names_model_version_and_request(service: Service) -> None:
    for path, version in ((INFER, "10"), ("/v2/models/grey/versions/2/infer", "2")):
        response = infer(service, encoded(X, id="α-1"), path=path, headers={"X-Request-ID": "mine"})
        answer = response.json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == (
            "grey",
            version,
            "α-1",
        )
        digest = service.get(f"/models/grey/{version}").json()["digest"].removeprefix("sha256:")
        assert response.headers["X-IGN-Model"] == f"grey/{version}@sha256:{digest}"
        assert response.headers["X-Request-ID"] == "mine"
        assert response.headers["Server-Timing"].startswith("decode;dur=")
    assert "id" not in infer(service, encoded(X)).json()


@pytest.mark.parametrize(("model", "shape", "count"), [("grey", GREY, 64), ("colour", COLOUR, 33)])
def test_large_requests_hold_the_same_numbers(
    service: Service, model: str, shape: tuple[int, int, int], count: int
) -> None:
    """4096 and 6336 numbers; they become text in slices of 4096."""
    rows = latents(1, n=count, shape=shape)
    path = f"/v2/models/{model}/infer"
    content = encoded(rows)
    whole = infer(service, content, len(content), path)
    binary = infer(service, *as_binary(rows), path)
    np.testing.assert_array_equal(rows_of(whole), rows_of(binary))
    np.testing.assert_allclose(rows_of(binary), step_params(rows, 1), atol=1e-6)


# What is refused


def changed(**changes: Any) -> dict[str, Any]:
    """A request whose input has these members."""
    body = as_json(X)
    body["inputs"][0] |= changes
    return body


REFUSED: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "inputs"),
    "an empty body": (b"", "inputs"),
    "unknown member": (as_json(X, sequences=1), "sequences"),
    "name": (changed(name="z"), "inputs.0.name"),
    "twice": ({"inputs": as_json(X)["inputs"] * 2}, "inputs.1.name"),
    "BYTES": (changed(datatype="BYTES", data=["a"]), "inputs.0.datatype"),
    "rank": (changed(shape=[3, 64]), "inputs.0.shape"),
    "many ranks": (changed(shape=["a"] * 100_000), "inputs.0.shape"),
    "many outputs": (as_json(X, outputs=[{}] * 100_000), "outputs"),
    "no rows": (changed(shape=[0, *GREY], data=[]), "inputs.0.shape"),
    "a float": (changed(shape=[3.0, *GREY]), "inputs.0.shape.0"),
    "too many": (changed(shape=[65, *GREY]), "inputs.0.shape"),
    "no data": ({"inputs": [tensor(X)]}, "inputs.0"),
    "text as data": (changed(data="AAAA"), "inputs.0.data"),
    "a string": (changed(data=["0.0"] * 192), "inputs.0.data"),
    "half nested": (changed(data=[0.0, [0.0] * 191]), "inputs.0.data"),
    "too deep": (changed(data=[[[[[0.0] * 1] * 8] * 8] * 1] * 3), "inputs.0.data"),
    "beyond float32": (changed(data=[1e39] + [0.0] * 191), "finite"),
    "beyond float64": (
        as_json(X) | {"id": None, "inputs": [tensor(X, data=[10**400] * 192)]},
        "range",
    ),
    "1e400": (b'{"inputs": [{"data": [1e400]}]}', "inputs.0.data.0"),
    "no size": (changed(parameters={"binary_data_size": 768}), "binary_data_size"),
    "binary without header": (
        {"inputs": [tensor(X, parameters={"binary_data_size": 768})]},
        LENGTH,
    ),
    "shared memory": (changed(parameters={"shared_memory_region": "a"}), "shared_memory_region"),
    "other output": (as_json(X, outputs=[{"name": "z"}]), "outputs.0.name"),
    "output twice": (as_json(X, outputs=[{"name": "y"}] * 2), "outputs.1.name"),
    "classification": (
        as_json(X, outputs=[{"name": "y", "parameters": {"classification": 1}}]),
        "classification",
    ),
    "no steps": (as_json(X, parameters={"steps": 0}), "parameters.steps"),
    "steps as text": (as_json(X, parameters={"steps": "2"}), "parameters.steps"),
    "timeout": (as_json(X, parameters={"timeout": -1}), "parameters.timeout"),
    "sequence": (as_json(X, parameters={"sequence_id": 7}), "parameters.sequence_id"),
}


@pytest.mark.parametrize(("body", "says"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("unharmed")
def test_what_cannot_be_run_is_400(service: Service, body: Any, says: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert says in problem(infer(service, content), 400, "invalid_inference").detail


@pytest.mark.parametrize("value", [np.nan, -np.inf, -1.1e6])
@pytest.mark.usefixtures("unharmed")
def test_binary_that_is_not_finite_or_too_large_is_400(service: Service, value: float) -> None:
    rows = X.copy()
    rows[1, 0, 3, 3] = value
    assert "finite" in problem(infer(service, *as_binary(rows)), 400, "invalid_inference").detail


Lie = Callable[[bytes, int], tuple[bytes, int]]
LIES: dict[str, tuple[Lie, str, str]] = {
    "beyond the body": (lambda c, n: (c, len(c) + 1), "invalid_inference", "body"),
    "far beyond": (lambda c, n: (c, 10**11), "invalid_inference", "body"),
    "into the data": (lambda c, n: (c, n + 4), "malformed", "body"),
    "short of it": (lambda c, n: (c, n - 1), "malformed", "JSON"),
    "a byte more": (lambda c, n: (c + b"\0", n), "invalid_inference", "769"),
    "a byte less": (lambda c, n: (c[:-1], n), "invalid_inference", "767"),
    "no data": (lambda c, n: (c[:n], n), "invalid_inference", "0 bytes"),
    "of another shape": (
        lambda c, n: (c.replace(b"768}", b"764}"), n),
        "invalid_inference",
        "binary_data_size",
    ),
    "of nobody": (
        lambda _, __: (encoded(X) + b"tail", len(encoded(X))),
        "invalid_inference",
        "4 bytes",
    ),
}


@pytest.mark.parametrize(("lie", "code", "says"), LIES.values(), ids=LIES)
def test_lengths_that_lie_are_400(service: Service, lie: Lie, code: str, says: str) -> None:
    assert says in problem(infer(service, *lie(*as_binary(X))), 400, code).detail


@pytest.mark.parametrize("values", [["0"], ["+5"], [""], ["9" * 13], ["127"] * 2])
def test_a_length_that_is_no_number_or_given_twice_is_400(
    service: Service, values: list[str]
) -> None:
    content, _ = as_binary(X)
    response = service.post(INFER, content=content, headers=[(LENGTH, value) for value in values])
    assert LENGTH in problem(response, 400, "invalid_inference").detail


# Deadlines


@pytest.mark.parametrize("timeout", [0, 600_000_000, 10**40])
def test_long_timeouts_and_none(service: Service, timeout: int) -> None:
    assert infer(service, encoded(X, parameters={"timeout": timeout})).status_code == 200


@pytest.mark.parametrize(
    ("timeout_us", "header"), [(100_000, "300"), (0, "0.1"), (300_000_000, "0.1")]
)
def test_the_smaller_of_header_and_parameter_holds(
    models: Path, monkeypatch: pytest.MonkeyPatch, timeout_us: int, header: str
) -> None:
    # Without either, the client would give up first.
    with gated(monkeypatch, settings(models, request_timeout_s=600.0)) as (service, gate), gate:
        content = encoded(X, parameters={"timeout": timeout_us})
        response = infer(service, content, headers={"X-Request-Timeout": header})
        # Which of the two depends on how much of it was over before the rows could be submitted.
        found = response.json()["code"]
        assert found in ("deadline_exceeded", "deadline_unreachable")
        problem(response, 504, found)
