"""What the package shows: its names, the same methods twice, its settings, who closes what, and the caller's trace."""

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any, get_origin

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

import ign_client
from ign_client import AsyncClient, AsyncStream, Client, InputError, Stream
from tests.unit.sdk.clients import Ask, Canned, answer, ready

PUBLIC = [name for name, value in vars(Client).items() if inspect.isfunction(value) and not name.startswith("_")]
METHODS = [name for name in PUBLIC if name != "close"]
POSITIONAL = {"self", "form", "images", "points", "terms", "name"}


def test_the_names_are_listed_in_order_and_belong_to_the_package() -> None:
    assert ign_client.__all__ == sorted(ign_client.__all__)
    public = {name for name in vars(ign_client) if not name.startswith("_")}
    assert public | {"__version__"} == set(ign_client.__all__)
    classes = [value for name in ign_client.__all__ if isinstance(value := getattr(ign_client, name), type)]
    assert len(classes) > 40
    assert {kind.__module__ for kind in classes} == {"ign_client"}
    assert (Path(ign_client.__file__).parent / "py.typed").is_file()


def test_the_methods_of_both_clients() -> None:
    images = ["generate", "project", "latent_interpolate", "latent_arithmetic"]
    expected = {*images, *(f"{name}_as" for name in images), "stream_generate", "stream_project"}
    assert set(METHODS) == expected | {"score", "models", "model", "ready"}
    assert [name for name in vars(AsyncClient) if name in METHODS] == METHODS
    assert {name for name in vars(Stream) if not name.startswith("_")} == {"close"}
    assert {name for name in vars(AsyncStream) if not name.startswith("_")} == {"aclose"}


@pytest.mark.parametrize("name", METHODS)
def test_both_clients_show_the_same_options_and_describe_them(name: str) -> None:
    blocking, awaited = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert list(blocking.parameters.values()) == list(awaited.parameters.values())
    streams = name.startswith("stream_")
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name)) is not streams
    returned, also = blocking.return_annotation, awaited.return_annotation
    if streams:
        assert (get_origin(returned), get_origin(also)) == (Stream, AsyncStream)
        assert returned.__args__ == also.__args__
    else:
        assert returned == also
        assert returned is not inspect.Signature.empty
    positional = {each.name for each in blocking.parameters.values() if each.kind is not each.KEYWORD_ONLY}
    assert positional <= POSITIONAL
    assert "= UNSET, request_id: " in str(blocking)
    text = getattr(Client, name).__doc__
    assert text == getattr(AsyncClient, name).__doc__
    for parameter in list(blocking.parameters.values())[1:]:
        assert f"\n    {parameter.name}: " in text
        assert len(str(parameter.annotation)) < 60, parameter


def test_constructors_take_the_same() -> None:
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    text = inspect.getdoc(Client) or ""
    assert all(f"\n    {name}: " in text for name in inspect.signature(Client).parameters)


SECRET = "http://me:secret@x"
URLS = (
    "ftp://x 127.0.0.1:8000 localhost http:// http://x:port http://x:0 http://x:99999 http://x?y http://x#y http://[::1"
)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("base_url", url) for url in (*URLS.split(), "http://x y", SECRET, 8000, b"http://x")),
        *(("api_key", key) for key in ("a secret", "secret\n", "ключsecret", b"secret")),
        *(
            (name, seconds)
            for name in ("timeout", "deadline")
            for seconds in (0, -1, float("nan"), float("inf"), "soon")
        ),
        *(("max_retries", most) for most in (-1, "two")),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_settings_that_are_rejected(kind: Any, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option}: ") as caught:
        kind(**{option: value})
    assert "secret" not in str(caught.value)


def test_the_environment_is_read_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_BASE_URL", "http://ign.example:1")
    monkeypatch.setenv("IGN_API_KEY", "secret")
    to = Canned(ready(), ready())
    with Client(transport=to) as client:
        client.ready()
    with Client("http://other/prefix/", api_key="given", transport=to) as client:
        client.ready(request_id="mine")
    assert [str(request.url) for request in to.asked] == ["http://ign.example:1/readyz", "http://other/prefix/readyz"]
    assert [request.headers["Authorization"] for request in to.asked] == ["Bearer secret", "Bearer given"]
    assert to.asked[1].headers["User-Agent"] == f"ign-client/{ign_client.__version__}"
    assert to.asked[1].headers["X-Request-ID"] == "mine"
    assert to.asked[0].method == "GET"
    monkeypatch.setenv("IGN_BASE_URL", "")
    assert Client(transport=to).base_url == "http://127.0.0.1:8000"


def test_reprs_do_not_hold_the_key() -> None:
    client = Client("http://x", api_key="secret", timeout=None, max_retries=0, transport=Canned())
    assert repr(client) == "Client('http://x', timeout=None, max_retries=0)"
    assert "secret" not in repr(vars(client))
    assert (
        repr(AsyncClient("http://x", transport=Canned())) == "AsyncClient('http://x', timeout=30.0, max_retries=None)"
    )


def test_a_client_of_the_caller_stays_open() -> None:
    to = Canned(answer(), ready(), ready())
    with httpx.Client(transport=to, headers={"X-Tenant": "a"}) as http_client:
        with Client("http://x", http_client=http_client) as client:
            client.generate()
        assert not http_client.is_closed
        Client("http://x", http_client=http_client).ready()
        with pytest.raises(InputError, match="not both"):
            Client(transport=Canned(), http_client=http_client)
    assert {request.headers["X-Tenant"] for request in to.asked} == {"a"}

    async def calls() -> None:
        async with httpx.AsyncClient(transport=to) as http_client:
            async with AsyncClient("http://x", http_client=http_client) as client:
                assert await client.ready()
            assert not http_client.is_closed

    asyncio.run(calls())


def test_a_closed_client_is_closed() -> None:
    client = Client("http://x")
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.ready()
    asyncio.run(AsyncClient("http://x").aclose())


@pytest.mark.parametrize("method", ["ready", "generate"])
def test_the_callers_trace_is_sent_if_there_is_one(ask: Ask, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent() -> Any:
        transport = Canned(ready() if method == "ready" else answer())
        ask(transport, method)
        return transport.asked[0].headers.get("traceparent")

    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("caller") as span:
        own = span.get_span_context()
        assert sent() == f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    assert sent() is None
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    assert sent() is None
    assert "opentelemetry" not in sys.modules
