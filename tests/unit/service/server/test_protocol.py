"""What `service.server.protocol` takes of uvicorn; `tests/contract/test_hostile_connections.py` holds what it does."""

import ast
import inspect
import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.server import protocol
from service.server.protocol import HttpProtocol
from tests.helpers.live import ROOT

OF_PROTOCOL = (
    "_start_asgi_task _unset_keepalive_if_required connection_lost connection_made cycle data_received eof_received "
    "expect_100_continue flow headers loop on_body on_headers_complete on_message_begin on_message_complete "
    "on_response_complete parser pipeline scope transport url"
)
OF_CYCLE = (
    "disconnected message_event more_body response_complete response_started scope transport waiting_for_100_continue"
)
OF_FLOW = "read_paused resume_reading"


def own_names() -> set[str]:
    made = ast.walk(ast.parse(inspect.getsource(protocol)))
    assigned = {node.attr for node in made if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return {name for name in assigned | set(vars(HttpProtocol)) if name.startswith("_") or name == "reject"}


def test_the_names_that_it_uses_are_known() -> None:
    """A release of uvicorn may rename them: they are no public API."""
    text = inspect.getsource(HttpProtocol)
    private_of_uvicorn = {"_start_asgi_task", "_unset_keepalive_if_required"}
    used = set(re.findall(r"(?:self|super\(\))\.(\w+)", text)) | set(re.findall(r"def (\w+)\(", text))
    assert used - (own_names() - private_of_uvicorn) == set(OF_PROTOCOL.split())
    assert set(re.findall(r"self\.(?:cycle|_running)\.(\w+)", text)) | {"response_complete"} == set(OF_CYCLE.split())


@pytest.mark.parametrize(
    ("kind", "names"), [(HttpToolsProtocol, OF_PROTOCOL), (RequestResponseCycle, OF_CYCLE), (FlowControl, OF_FLOW)]
)
def test_the_installed_uvicorn_has_them(kind: type, names: str) -> None:
    text = inspect.getsource(kind)
    assert [name for name in names.split() if not re.search(rf"self\.{name}\b|def {name}\(", text)] == []


def test_the_version_of_uvicorn_is_limited() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (uvicorn,) = (Requirement(line) for line in project["dependencies"] if line.startswith("uvicorn"))
    assert uvicorn.specifier.contains(version("uvicorn"))
    assert not uvicorn.specifier.contains("1.0")
