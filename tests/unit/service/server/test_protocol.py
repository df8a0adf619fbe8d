"""What `service.server.protocol` takes of uvicorn; `tests/contract/test_hostile_connections.py` holds what it does."""

import inspect
import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tests.helpers.live import ROOT

OF_PROTOCOL = (
    "_start_asgi_task _unset_keepalive_if_required connection_lost connection_made cycle data_received eof_received "
    "expect_100_continue flow headers loop on_body on_headers_complete on_message_begin on_message_complete "
    "on_response_complete parser pipeline scope transport url"
)
OF_CYCLE = (
    "disconnected keep_alive message_event more_body response_complete response_started scope transport "
    "waiting_for_100_continue"
)
OF_FLOW = "read_paused resume_reading"


@pytest.mark.parametrize(
    ("kind", "names"), [(HttpToolsProtocol, OF_PROTOCOL), (RequestResponseCycle, OF_CYCLE), (FlowControl, OF_FLOW)]
)
def test_the_installed_uvicorn_has_what_is_used(kind: type, names: str) -> None:
    """A release of uvicorn may rename it: it is no public API."""
    text = inspect.getsource(kind)
    assert [name for name in names.split() if not re.search(rf"self\.{name}\b|def {name}\(", text)] == []


def test_the_version_of_uvicorn_is_limited() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (uvicorn,) = (Requirement(line) for line in project["dependencies"] if line.startswith("uvicorn"))
    assert uvicorn.specifier.contains(version("uvicorn"))
    assert not uvicorn.specifier.contains("1.0")
