"""The examples do what they say, with the shipped model, and stay short."""

import ast
import contextlib
import io
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from ign_client import AsyncClient, Client
from tests.helpers.live import ROOT, SHIPPED, live_service, run

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_service() as base_url:
        yield base_url


@pytest.fixture
def scans(url: str, tmp_path: Path) -> Path:
    """Three digits under noise, a drawing, black on white; no two alike."""
    folder = tmp_path / "scans"
    folder.mkdir()
    with Client(url, timeout=300) as client:
        for image in client.generate(seed=7, n=3):
            noise = np.random.default_rng(image.index).normal(0, 60, (28, 28))
            noisy = np.clip(image.to_numpy() + noise, 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"digit-{image.index}.png")
    (folder / "drawn.png").write_bytes((ROOT / "docs" / "images" / "drawn.png").read_bytes())
    return folder


def example(name: str, *arguments: object, url: str, folder: Path) -> list[str]:
    done = run(
        sys.executable,
        EXAMPLES / f"{name}.py",
        *arguments,
        cwd=folder,
        IGN_BASE_URL=url,
        NO_PROXY="*",
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def page(width: int, height: int) -> Image.Image:
    """A grey page with a line of blocks."""
    paper = np.full((height, width), 170, np.uint8)
    paper[20:28, 20:-20:12] = 60
    return Image.fromarray(paper)


# Name → arguments, below a folder; what it prints, as a pattern; and the image that it writes, with
# its size.
EXAMPLE: dict[str, tuple[list[object], str, str, tuple[int, int] | None]] = {
    "generate_sheet": (
        [7, "sheet.png"],
        rf"{SHIPPED['mnist']}, seed 7: largest drift 0\..*",
        "sheet.png",
        (712, 712),
    ),
    "morph_to_gif": (["morph.gif", "scans/drawn.png", 7], "", "morph.gif", (112, 112)),
    "refine": (
        ["scans/digit-0.png", "fixed.png"],
        r"(?s).*\nfixed point, drift 0\.0.*",
        "fixed.png",
        (28, 28),
    ),
    "find_outliers": (
        ["scans"],
        r"(?s)(?=.*digit-0)(?=.*digit-1).*digit-2.*",
        "scans/drawn.png",
        None,
    ),
    "hugging_face": (["scans/drawn.png", "real.png"], "", "real.png", (28, 28)),
    "openai_client": (
        ["alice", "alice.png"],
        r"252x252 The prompt is a text seed, seed 735577801 of mnist/(?s:.*)"
        r"252x252 The image is projected by mnist/(?s:.*)image_generation\.completed.*",
        "alice.png",
        (252, 252),
    ),
}


@pytest.mark.parametrize("name", EXAMPLE)
def test_it_prints_and_writes_what_it_says(url: str, scans: Path, name: str) -> None:
    pytest.importorskip(
        {"openai_client": "openai", "hugging_face": "huggingface_hub"}.get(name, "ign_client")
    )
    if name == "find_outliers":
        with Client(url, timeout=300) as client:
            for image in client.generate(seed=1, n=20):
                image.save(scans / f"usual-{image.index:02}.png")
    arguments, pattern, file, size = EXAMPLE[name]
    said = "\n".join(example(name, *arguments, url=url, folder=scans.parent))
    assert re.fullmatch(pattern, said), said
    assert said.count("usual") <= 2
    with Image.open(scans.parent / file) as written:
        assert size in (None, written.size)


def test_clean_a_folder(url: str, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    page(150, 90).save(pages / "a.png")
    (pages / "notes.txt").write_text("not a scan")
    said = example("clean_folder", "pages", "out", url=url, folder=tmp_path)
    assert [line.partition(",")[0] for line in said] == [
        "a.png: 150x90",
        "notes.txt: undecodable_image",
    ]
    with Image.open(tmp_path / "out" / "a.png") as cleaned:
        assert cleaned.size == (150, 90)
        assert np.median(np.asarray(cleaned)) > 240  # paper


def test_the_triton_client(url: str, tmp_path: Path) -> None:
    printed = example(
        "triton_client", url.removeprefix("http://"), "mnist", url=url, folder=tmp_path
    )
    distances = [float(line.rpartition(" ")[2]) for line in printed if line.startswith("step ")]
    assert len(distances) == 3
    assert distances[0] > distances[-1]


def test_call_from_another_service(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = runpy.run_path(str(EXAMPLES / "from_fastapi.py"))["app"]
    scan = io.BytesIO()
    page(150, 90).save(scan, "PNG")
    monkeypatch.setenv("IGN_BASE_URL", url)
    with TestClient(app) as caller:
        cleaned = caller.post("/clean", content=scan.getvalue())
        assert (cleaned.status_code, cleaned.headers["Content-Type"]) == (200, "image/png")
        with Image.open(io.BytesIO(cleaned.content)) as image:
            assert (image.format, image.size) == ("PNG", (150, 90))
        assert caller.post("/clean", content=b"no picture").status_code == 422
        pages = io.BytesIO()
        page(32, 32).save(pages, "TIFF", save_all=True, append_images=[page(32, 32)])
        assert caller.post("/clean", content=pages.getvalue()).status_code == 422
        assert caller.post("/clean", content=bytes(2**24 + 1)).status_code == 413
        # its own client would repeat the call for a minute
        app.state.ign = AsyncClient("http://127.0.0.1:1", max_retries=0)
        assert caller.post("/clean", content=b"x").status_code == 503


# The notebook; its cells hold plain Python, so no kernel is needed


TOUR = EXAMPLES / "tour.ipynb"
CELLS = [
    cell
    for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def shown_by_the_tour() -> list[Any]:
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
    monkeypatch.setenv("NO_PROXY", "*")
    shown = shown_by_the_tour()
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
