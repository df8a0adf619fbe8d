"""Every error: from the real app where a client can cause it, else with the words of the contract."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import ign_client
from ign_client import InvalidContent, ServiceFailed, StatusError
from ign_client._errors import BY_STATUS
from tests.contract.harness import PATIENCE_S, Service, gated, settings
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import IMAGE, Ask, Canned, generated, problem

PICTURE = save(noise(8, 8, seed=1))
Patch = pytest.MonkeyPatch


def test_422_names_the_fields(service: Service, ask: Ask) -> None:
    with pytest.raises(InvalidContent) as caught:
        ask(service.url, "generate", n=0, steps=0, request_id="mine")
    error = caught.value
    assert (error.status, error.code, error.request_id, error.retry_after) == (422, "invalid_value", "mine", None)
    assert {found.field for found in error.errors} == {"n", "steps"}
    assert str(error) == f"422 invalid_value: {error.detail} (request mine)"
    with pytest.raises(InvalidContent, match="steps"):
        ask.stream(service.url, "stream_generate", steps=0)


def test_429_and_the_wait_that_the_service_asks_for(models: Path, ask: Ask, monkeypatch: Patch) -> None:
    small = settings(models, queue_rows=4, max_images=4, max_batch_rows=1)
    with (
        gated(monkeypatch, small) as (service, gate),
        ThreadPoolExecutor(2) as pool,
        ign_client.Client(service.url) as client,
    ):
        with gate:
            running = pool.submit(client.generate, seed=1)
            assert gate.entered.wait(PATIENCE_S)
            waiting = pool.submit(client.generate, seed=1, n=4)
            service.until_metric("ign_queue_rows", 4.0, model="grey/10")
            with pytest.raises(ign_client.TooManyRequests) as caught:
                ask(service.url, "generate")
        assert len(running.result()) + len(waiting.result()) == 5
    assert (caught.value.code, len(ask.waits)) == ("queue_full", 2)
    assert caught.value.retry_after is not None
    assert all(wait >= 1 for wait in ask.waits)


def test_503_while_loading_and_ready_says_why(models: Path, ask: Ask, monkeypatch: Patch) -> None:
    with gated(monkeypatch, settings(models), ready=False) as (service, gate):
        readiness = ask(service.url, "ready")
        assert not readiness
        assert readiness.detail
        assert ask.waits == []
        assert ask(Canned(httpx.Response(503, text="<html>")), "ready").detail == "Service Unavailable"
        with pytest.raises(ign_client.Unavailable) as caught:
            ask(service.url, "models")
        assert (caught.value.code, caught.value.detail, len(ask.waits)) == ("not_ready", readiness.detail, 2)
        gate.opened.set()


OTHERS = ((501, ServiceFailed), (599, ServiceFailed), (307, StatusError), (418, StatusError))


@pytest.mark.parametrize(("status", "kind"), [*BY_STATUS.items(), *OTHERS])
def test_errors_say_what_the_problem_says(ask: Ask, status: int, kind: type[StatusError]) -> None:
    response = problem(status, Retry_After="2", X_Should_Retry="false")
    document = json.loads(response.content) | {"errors": ["x", {"field": "n", "message": "too many"}, {}]}
    with pytest.raises(kind) as caught:
        ask(Canned(httpx.Response(status, headers=response.headers, json=document)), "generate")
    named: dict[str, Any] = {"code": "some_code", "detail": "a reason", "request_id": "abc", "retry_after": 2.0}
    expected = ign_client.Problem(
        status=status, **named, errors=(ign_client.FieldError("n", "too many"), ign_client.FieldError("", ""))
    )
    assert type(caught.value) is kind
    assert not caught.value.retryable
    assert caught.value.problem == pickle.loads(pickle.dumps(caught.value)).problem == expected


OTHER_IMAGES: tuple[Any, ...] = (
    None,
    [],
    [IMAGE, IMAGE],
    [IMAGE | {"index": 1}],
    [IMAGE | {"format": "jpeg"}],
    [IMAGE | {"data": "?"}],
)


@pytest.mark.parametrize(
    "content", [b"<html>", b"[" * 100_000, *(json.dumps(generated(images=each)).encode() for each in OTHER_IMAGES)]
)
def test_responses_of_another_service(ask: Ask, content: bytes) -> None:
    with pytest.raises(ign_client.UnexpectedAnswer, match="/generate") as caught:
        ask(Canned(httpx.Response(200, content=content, headers={"X-Request-ID": "abc"})), "generate")
    assert caught.value.request_id == "abc"
    assert caught.value.__cause__ is not None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("location", [":ttp://[::1/%zz", "//x:99999999/", "http:////"])
def test_redirects_to_nowhere(ask: Ask, location: str) -> None:
    with pytest.raises((ign_client.UnexpectedAnswer, ign_client.ConnectionFailed, StatusError)):
        ask(Canned(*[httpx.Response(302, headers={"Location": location})] * 3), "generate")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        *(
            (kind("x"), ign_client.ConnectionFailed)
            for kind in (httpx.ConnectError, httpx.RemoteProtocolError, httpx.DecodingError)
        ),
        *((kind(""), ign_client.TimedOut) for kind in (httpx.ConnectTimeout, httpx.ReadTimeout, httpx.PoolTimeout)),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_of_httpx_are_mapped(
    ask: Ask, raised: Exception, kind: type[ign_client.TransportError], streamed: bool
) -> None:
    to = Canned(raised, raised, raised)
    with pytest.raises(kind, match="/generate") as caught:
        ask.stream(to, "stream_generate") if streamed else ask(to, "generate")
    assert caught.value.__cause__ is raised
    assert len(to.asked) == 3


def test_every_error_has_its_place_in_the_tree() -> None:
    kinds = [kind for kind in vars(ign_client).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, ign_client.IgnError) for kind in kinds)
    assert {kind for kind in kinds if issubclass(kind, StatusError)} == {StatusError, *BY_STATUS.values()}
    assert ign_client.ConnectionFailed.__mro__[1] is ign_client.TimedOut.__mro__[1] is ign_client.TransportError
    assert set(BY_STATUS) == {400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 429, 500, 502, 503, 504}
    assert issubclass(ign_client.InputError, ValueError)
    before = dict(BY_STATUS)
    type("Own", (StatusError,), {})  # of a caller, without a status
    assert before == BY_STATUS
