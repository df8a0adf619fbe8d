"""Runs the code of `examples/tour.ipynb`. The cells hold plain Python, so a kernel is not needed."""

import ast
import contextlib
import json
from pathlib import Path
from typing import Any, Final

from tests.helpers.live import ROOT

TOUR: Final = ROOT / "examples" / "tour.ipynb"


def read(path: Path = TOUR) -> dict[str, Any]:
    """The notebook as nbformat 4 stores it."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def execute(notebook: dict[str, Any], folder: Path) -> list[Any]:
    """Run the code cells in ``folder``, in order and in one namespace.

    Returns:
        The values that Jupyter shows: of the last line of each cell, where it is an expression and not None.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        values = [_run("".join(cell["source"]), f"cell {number}", namespace) for number, cell in enumerate(code, 1)]
    return [value for value in values if value is not None]


def _run(source: str, name: str, namespace: dict[str, Any]) -> Any:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace) if isinstance(last, ast.Expr) else None
