"""The notebook runs from start to end, with a service and without."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ign_client import Client, ConnectionFailed
from tests.helpers import notebook
from tests.helpers.live import free_port, live_service


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_service() as base_url:
        yield base_url


def run() -> list[Any]:
    """The values that the cells show."""
    return notebook.execute(notebook.read(), notebook.TOUR.parent)


def test_it_runs_with_a_service_that_serves(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_BASE_URL", url)
    shown = run()
    sheets = [value for value in shown if isinstance(value, Image.Image)]
    assert len(sheets) > 3
    assert all(np.ptp(np.asarray(sheet)) > 100 for sheet in sheets)  # none is blank
    assert any(hasattr(value, "_repr_html_") for value in shown)
    with Client(url) as client:
        assert client.ready()


def test_it_starts_a_service_and_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("IGN_PORT", str(port))
    monkeypatch.setenv("IGN_BASE_URL", f"http://127.0.0.1:{port}")
    assert run()
    with pytest.raises(ConnectionFailed), Client(max_retries=0) as client:
        client.ready()


def test_no_outputs_are_stored() -> None:
    # They are large, differ in request ids and times, and nothing would tell that a model has changed since.
    code = [cell for cell in notebook.read()["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
