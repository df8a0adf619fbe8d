"""Execute `examples/tour.ipynb` as Jupyter does: `python -m tests.helpers.notebook` writes its outputs anew.

It serves the shipped models for that. Tests execute the notebook, too, and discard the outputs. The cells hold plain
Python, so a kernel is not needed.
"""

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any, Final

from tests.helpers.live import ROOT, live_service

TOUR: Final = ROOT / "examples" / "tour.ipynb"


def read(path: Path = TOUR) -> dict[str, Any]:
    """The notebook as nbformat 4 stores it."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def execute(notebook: dict[str, Any], folder: Path) -> None:
    """Run the code cells in ``folder``, in order and in one namespace, and replace their outputs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, start=1):
            cell["execution_count"] = number
            cell["outputs"] = _run("".join(cell["source"]), number, namespace)


def _run(source: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of a cell: what it prints, and the value of its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if value is not None:
        result = {"data": _shown(value), "execution_count": number, "metadata": {}}
        outputs.append({"output_type": "execute_result", **result})
    return outputs


def _shown(value: object) -> dict[str, Any]:
    """A value by media type, from the methods that Jupyter calls."""
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if html := getattr(value, "_repr_html_", lambda: None)():
        data["text/html"] = _lines(html)
    if png := getattr(value, "_repr_png_", lambda: None)():
        data["image/png"] = base64.b64encode(png).decode("ascii")
    return dict(sorted(data.items()))


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    notebook = read()
    with live_service() as base_url:
        os.environ.update(IGN_BASE_URL=base_url, NO_PROXY="*")
        execute(notebook, TOUR.parent)
    TOUR.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
