"""The notebook runs from start to end, with a service and without. Its cells hold plain Python: no
kernel is needed.
"""

import ast
import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from ign_client import Client
from tests.helpers.live import ROOT, live_service

TOUR: Final = ROOT / "examples" / "tour.ipynb"
CELLS = [
    cell
    for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_service() as base_url:
        yield base_url


def run() -> list[Any]:
    """The values that Jupyter shows: of the last line of each cell, where it is an expression and
    not None.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    with contextlib.chdir(TOUR.parent):
        for number, cell in enumerate(CELLS, 1):
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"cell {number}", "exec"), namespace)
            if isinstance(last, ast.Expr):
                shown.append(
                    eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
                )
    return [value for value in shown if value is not None]


def test_it_runs_with_a_service_that_serves(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGN_BASE_URL", url)
    shown = run()
    sheets = [value for value in shown if isinstance(value, Image.Image)]
    assert len(sheets) > 3
    assert all(np.ptp(np.asarray(sheet)) > 100 for sheet in sheets)  # none is blank
    assert any(hasattr(value, "_repr_html_") for value in shown)
    with Client(url, timeout=300) as client:
        assert client.ready()


def test_no_outputs_are_stored() -> None:
    # They are large, differ in request ids and times, and nothing would tell that a model has
    # changed since.
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS)
