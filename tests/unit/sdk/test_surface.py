"""What the package shows: its names, the same methods twice, its settings, who closes what."""

import asyncio
import inspect
from pathlib import Path
from typing import Any, get_origin

import httpx
import pytest

import ign_client
from ign_client import AsyncClient, AsyncStream, Client, InputError, Stream
from tests.unit.sdk.asking import Canned, generated, ready

METHODS = [
    "generate",
    "generate_as",
    "stream_generate",
    "project",
    "project_as",
    "stream_project",
    "latent_interpolate",
    "latent_interpolate_as",
    "latent_arithmetic",
    "latent_arithmetic_as",
    "score",
    "models",
    "model",
    "ready",
]
POSITIONAL = {"self", "form", "images", "points", "terms", "name"}


def test_the_names_are_listed_in_order() -> None:
    assert ign_client.__all__ == sorted(ign_client.__all__)
    public = {name for name in vars(ign_client) if not name.startswith("_")}
    assert public | {"__version__"} == set(ign_client.__all__)
    assert (Path(ign_client.__file__).parent / "py.typed").is_file()


def test_classes_are_those_of_the_package() -> None:
    classes = [
        value for name, value in vars(ign_client).items() if name in ign_client.__all__ and isinstance(value, type)
    ]
    assert len(classes) > 40
    assert {kind.__module__ for kind in classes} == {"ign_client"}


def test_hints_are_short() -> None:
    for name in METHODS:
        for parameter in inspect.signature(getattr(Client, name)).parameters.values():
            assert len(str(parameter.annotation)) < 60, f"{name}: {parameter}"


def public_methods(kind: type) -> list[str]:
    found = [name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")]
    return [name for name in found if name not in ("close", "aclose")]


def test_both_clients_have_the_same_methods() -> None:
    assert public_methods(Client) == public_methods(AsyncClient) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_with_the_same_signatures(name: str) -> None:
    blocking, awaited = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert list(blocking.parameters.values()) == list(awaited.parameters.values())
    streams = name.startswith("stream_")
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name)) is not streams
    assert not inspect.iscoroutinefunction(getattr(Client, name))
    if streams:
        returned, also = blocking.return_annotation, awaited.return_annotation
        assert (get_origin(returned), get_origin(also)) == (Stream, AsyncStream)
        assert returned.__args__ == also.__args__
    else:
        assert blocking.return_annotation == awaited.return_annotation


@pytest.mark.parametrize("name", METHODS)
def test_options_are_keywords_and_described(name: str) -> None:
    method = getattr(Client, name)
    parameters = inspect.signature(method).parameters.values()
    positional = {parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY}
    assert positional <= POSITIONAL
    assert list(inspect.signature(method).parameters)[-2:] == ["timeout", "request_id"]
    assert "= UNSET, request_id: " in str(inspect.signature(method))
    assert method.__doc__ == getattr(AsyncClient, name).__doc__
    for parameter in parameters:
        assert parameter.name == "self" or parameter.name in method.__doc__, parameter.name
    assert inspect.signature(method).return_annotation is not inspect.Signature.empty


def test_constructors_are_told_the_same() -> None:
    told = [inspect.signature(kind).parameters for kind in (Client, AsyncClient)]
    assert list(told[0]) == list(told[1])
    for name, parameter in told[0].items():
        other = told[1][name]
        assert parameter.kind == other.kind
        assert name == "sleep" or parameter.default == other.default


def test_streams_have_the_same_faces() -> None:
    assert {name for name in vars(Stream) if not name.startswith("_")} == {"close"}
    assert {name for name in vars(AsyncStream) if not name.startswith("_")} == {"aclose"}


# Settings


@pytest.mark.parametrize(
    ("base_url", "environ", "expected"),
    [
        (None, {}, "http://127.0.0.1:8000"),
        (None, {"IGN_BASE_URL": ""}, "http://127.0.0.1:8000"),
        (None, {"IGN_BASE_URL": "https://ign.example/"}, "https://ign.example"),
        ("http://[::1]:9000/ign/", {"IGN_BASE_URL": "https://ign.example"}, "http://[::1]:9000/ign"),
    ],
)
def test_where_the_service_is(
    base_url: str | None, environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert Client(base_url, transport=Canned()).base_url == expected


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "127.0.0.1:8000",
        "localhost",
        "http://",
        "http://x:port",
        "http://x:0",
        "http://x:99999",
        "http://x?y",
        "http://x#y",
        "http://x y",
        "http://[::1",
        "http://me:secret@x",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="base_url: ") as caught:
        Client(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["a b", "a\nb", "ключ"])
def test_keys_that_no_header_holds(key: str) -> None:
    with pytest.raises(InputError, match="api_key") as caught:
        Client(api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("given", [{"base_url": 8000}, {"base_url": b"http://x"}, {"api_key": b"key"}])
def test_settings_of_other_types(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(given))}: expected text"):
        Client(**given)


def test_the_environment_is_read_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_BASE_URL", "http://ign.example:1")
    monkeypatch.setenv("IGN_API_KEY", "secret")
    to = Canned(ready(), ready())
    with Client(transport=to) as client:
        assert client.base_url == "http://ign.example:1"
        client.ready()
    with Client("http://other/prefix", api_key="given", transport=to) as client:
        client.ready(request_id="mine")
    assert [str(request.url) for request in to.asked] == ["http://ign.example:1/readyz", "http://other/prefix/readyz"]
    assert [request.headers["Authorization"] for request in to.asked] == ["Bearer secret", "Bearer given"]
    assert to.asked[1].headers["User-Agent"] == f"ign-client/{ign_client.__version__}"
    assert to.asked[1].headers["X-Request-ID"] == "mine"
    assert to.asked[0].method == "GET"


def test_reprs_keep_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_API_KEY", "secret")
    client = Client("http://x", timeout=None, max_retries=0, transport=Canned())
    assert repr(client) == "Client('http://x', timeout=None, max_retries=0)"
    assert "secret" not in repr(vars(client)["_settings"])
    assert repr(AsyncClient("http://x", transport=Canned())) == "AsyncClient('http://x', timeout=30.0, max_retries=2)"


# Who closes what


def test_one_way_to_the_network() -> None:
    with pytest.raises(InputError, match="not both"):
        Client(transport=Canned(), http_client=httpx.Client(transport=Canned()))


def test_a_client_of_ones_own_stays_open() -> None:
    to = Canned(httpx.Response(200, json=generated()), ready())
    with httpx.Client(transport=to, headers={"X-Tenant": "a"}) as http_client:
        with Client("http://x", http_client=http_client) as client:
            client.generate()
        assert not http_client.is_closed
        Client("http://x", http_client=http_client).ready()
    assert {request.headers["X-Tenant"] for request in to.asked} == {"a"}


def test_so_does_one_that_is_awaited() -> None:
    async def calls() -> None:
        async with httpx.AsyncClient(transport=Canned(ready())) as http_client:
            async with AsyncClient("http://x", http_client=http_client) as client:
                assert await client.ready()
            assert not http_client.is_closed

    asyncio.run(calls())


def test_a_closed_client_is_closed() -> None:
    client = Client("http://x", transport=Canned())
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.ready()


def test_the_network_is_the_default() -> None:
    client: Any = Client("http://x")
    client.close()
    other: Any = AsyncClient("http://x")
    asyncio.run(other.aclose())
