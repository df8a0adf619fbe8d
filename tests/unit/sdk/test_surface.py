"""What the package shows: its names, the same methods twice, its settings, who closes what, and the
caller's trace.
"""

import asyncio
import inspect
import sys
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

import ign_client
from ign_client import AsyncClient, Client, InputError
from tests.unit.sdk.clients import Ask, Canned, answer, ready

PUBLIC = [
    name
    for name, value in vars(Client).items()
    if inspect.isfunction(value) and not name.startswith("_")
]
METHODS = [name for name in PUBLIC if name != "close"]
URLS = (
    "ftp://x 127.0.0.1:8000 localhost http:// http://x:port http://x:0 http://x:99999 "
    "http://x?y http://x#y http://[::1"
)


def test_the_names_are_listed_in_order_and_belong_to_the_package() -> None:
    public = {name for name in vars(ign_client) if not name.startswith("_")}
    assert ign_client.__all__ == sorted(public | {"__version__"})
    assert ign_client.Client.__module__ == "ign_client"


def test_both_clients_have_the_same_methods_with_options_that_are_described() -> None:
    assert [name for name in vars(AsyncClient) if name in METHODS] == METHODS
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    for name in METHODS:
        method = getattr(Client, name)
        parameters = inspect.signature(method).parameters
        assert parameters == inspect.signature(getattr(AsyncClient, name)).parameters
        assert all(f"\n    {option}: " in method.__doc__ for option in list(parameters)[1:])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("base_url", url) for url in (*URLS.split(), "http://x y", "http://me:secret@x")),
        *(("api_key", key) for key in ("a secret", "secret\n", "ключsecret")),
        *(("timeout", seconds) for seconds in (0, -1, float("nan"), float("inf"))),
        *(("deadline", 0), ("max_retries", -1)),
    ],
)
def test_settings_that_are_rejected(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option}: ") as caught:
        Client(**{option: value})
    assert "secret" not in str(caught.value)


def test_the_environment_is_read_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_BASE_URL", "http://ign.example:1")
    monkeypatch.setenv("IGN_API_KEY", "secret")
    to = Canned(ready(), ready())
    with Client(transport=to) as client:
        client.ready()
        assert "secret" not in repr(vars(client))
    with Client("http://other/prefix/", api_key="given", transport=to) as client:
        client.ready(request_id="mine")
    first, second = to.asked
    assert (str(first.url), first.headers["Authorization"]) == (
        "http://ign.example:1/readyz",
        "Bearer secret",
    )
    assert second.url == f"{client.base_url}/readyz" == "http://other/prefix/readyz"
    sent = [second.headers[name] for name in ("Authorization", "User-Agent", "X-Request-ID")]
    assert sent == ["Bearer given", f"ign-client/{ign_client.__version__}", "mine"]


def test_a_client_of_the_caller_stays_open() -> None:
    to = Canned(answer(), ready())
    with httpx.Client(transport=to, headers={"X-Tenant": "a"}) as http_client:
        with Client("http://x", http_client=http_client) as client:
            client.generate()
        assert not http_client.is_closed
        with pytest.raises(InputError, match="not both"):
            Client(transport=to, http_client=http_client)
    assert to.asked[0].headers["X-Tenant"] == "a"

    async def call() -> None:
        async with httpx.AsyncClient(transport=to) as http_client:
            async with AsyncClient("http://x", http_client=http_client) as client:
                assert await client.ready()
            assert not http_client.is_closed

    asyncio.run(call())


def test_the_callers_trace_is_sent_if_there_is_one(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = Canned(answer(), answer())
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("caller") as span:
        ask(to, "generate")
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    ask(to, "generate")
    sent, none = (request.headers.get("traceparent", "") for request in to.asked)
    assert f"{span.get_span_context().trace_id:032x}" in sent
    assert (none, "opentelemetry" in sys.modules) == ("", False)
