"""The notebook runs from start to end, with a service and without, and shows what its stored outputs show."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ign_client import Client, ConnectionFailed
from tests.helpers import notebook
from tests.helpers.live import free_port, live_service

MAX_BYTES = 300_000
Outputs = list[list[tuple[str, list[str]]]]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_service() as base_url:
        yield base_url


def kinds(tour: dict[str, Any]) -> Outputs:
    """Type and media types of the outputs of every code cell."""
    code = (cell for cell in tour["cells"] if cell["cell_type"] == "code")
    return [[(output["output_type"], sorted(output.get("data", ()))) for output in cell["outputs"]] for cell in code]


def test_it_runs_with_a_service_that_serves(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_BASE_URL", url)
    tour = notebook.read()
    stored = kinds(tour)
    notebook.execute(tour, notebook.TOUR.parent)
    assert kinds(tour) == stored
    assert any(media == ["image/png", "text/html", "text/plain"] for cell in stored for _, media in cell)
    with Client(url) as client:
        assert client.ready()


def test_it_starts_a_service_and_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("IGN_PORT", str(port))
    monkeypatch.setenv("IGN_BASE_URL", f"http://127.0.0.1:{port}")
    tour = notebook.read()
    stored = kinds(tour)
    notebook.execute(tour, notebook.TOUR.parent)
    assert kinds(tour) == stored
    with pytest.raises(ConnectionFailed), Client(max_retries=0) as client:
        client.ready()


def test_it_is_small_and_written_as_the_helper_writes_it() -> None:
    text = notebook.TOUR.read_text(encoding="utf-8")
    assert len(text.encode()) <= MAX_BYTES
    assert text == json.dumps(notebook.read(), indent=1, ensure_ascii=False) + "\n"
