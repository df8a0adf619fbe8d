"""The examples do what they say, with the shipped model, and stay short."""

import asyncio
import io
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from ign_client import Client
from tests.contract.harness import write_models
from tests.helpers.live import ROOT, SHIPPED, environment, live_service

EXAMPLES = ROOT / "examples"
SHORT = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "readme_pictures"]
MOST_LINES = 30


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


def run(name: str, *arguments: object, url: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        env=environment(IGN_BASE_URL=url, NO_PROXY="*"),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_they_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def page(width: int, height: int) -> Image.Image:
    """A grey page with a line of blocks."""
    paper = np.full((height, width), 170, np.uint8)
    paper[20:28, 20:-20:12] = 60
    return Image.fromarray(paper)


def test_clean_a_folder(url: str, tmp_path: Path) -> None:
    sizes, pages = {"a": (150, 90), "b": (61, 200)}, tmp_path / "pages"
    pages.mkdir()
    for name, size in sizes.items():
        page(*size).save(pages / f"{name}.png")
    (pages / "notes.txt").write_text("not a scan")
    said = run("clean_folder", pages, tmp_path / "out", url=url)
    assert [line.partition(",")[0] for line in said] == [
        "a.png: 150x90",
        "b.png: 61x200",
        "notes.txt: undecodable_image",
    ]
    for name, size in sizes.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as cleaned:
            assert cleaned.size == size
            assert np.median(np.asarray(cleaned)) > 240  # paper


def test_generate_a_sheet(url: str, tmp_path: Path) -> None:
    (said,) = run("generate_sheet", 7, tmp_path / "sheet.png", url=url)
    assert said.startswith(f"{SHIPPED['mnist']}, seed 7: largest drift 0.")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 4 * 28 + 5 * 8,) * 2


def test_morph_to_a_gif(url: str, scans: Path, tmp_path: Path) -> None:
    assert run("morph_to_gif", tmp_path / "morph.gif", scans / "drawn.png", 7, url=url) == []
    with Image.open(tmp_path / "morph.gif") as morph:
        assert (morph.format, morph.size) == ("GIF", (4 * 28, 4 * 28))
        assert 12 < getattr(morph, "n_frames", 1) <= 24


def test_refine_to_a_fixed_point(url: str, scans: Path, tmp_path: Path) -> None:
    *steps, last = run("refine", scans / "digit-0.png", tmp_path / "fixed.png", url=url)
    assert last.startswith("fixed point, drift 0.0")
    changes = [float(line.rpartition(" ")[2]) for line in steps]
    assert changes[0] > 0.1
    assert changes[-1] < 0.005
    assert (tmp_path / "fixed.png").is_file()


def test_find_outliers(url: str, scans: Path) -> None:
    with Client(url, timeout=300) as client:
        for image in client.generate(seed=1, n=20):
            image.save(scans / f"usual-{image.index:02}.png")
    found = [line.split() for line in run("find_outliers", scans, url=url)]
    assert {name for _, name in found} >= {"digit-0.png", "digit-1.png", "digit-2.png"}
    assert len([name for _, name in found if name.startswith("usual")]) <= 2
    assert [float(distance) for distance, _ in found] == sorted((float(d) for d, _ in found), reverse=True)


def test_the_triton_client(tmp_path: Path) -> None:
    with live_service(IGN_MODEL_DIR=str(write_models(tmp_path)), IGN_DEFAULT_MODEL="grey") as tiny:
        printed = run("triton_client", tiny.removeprefix("http://"), "grey", url=tiny)
    distances = [float(line.rpartition(" ")[2]) for line in printed if line.startswith("step ")]
    assert len(distances) == 3
    assert distances[0] > distances[1] > distances[2] > 0  # the tiny network contracts


def test_the_client_of_openai(url: str, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="openai is not installed: pip install '.[dev]'")
    generated, edited, *events = run("openai_client", "alice", tmp_path / "alice.png", url=url)
    assert generated.startswith("252x252 The prompt is a text seed, seed 735577801 of mnist/")
    assert edited.startswith("252x252 The image is projected by mnist/")
    kinds = [event.partition(" ")[0].partition(".")[2] for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    expected = httpx.get(f"{url}/generate/alice.png?scale=9", trust_env=False).content
    assert (tmp_path / "alice.png").read_bytes() == expected


def test_the_client_of_hugging_face(url: str, scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install '.[dev]'")
    assert run("hugging_face", scans / "drawn.png", tmp_path / "real.png", url=url) == []
    with Client(url, timeout=300) as client, Image.open(tmp_path / "real.png") as found:
        (expected,) = client.project([(scans / "drawn.png").read_bytes()], steps=2)
        assert np.array_equal(np.asarray(found), expected.to_numpy())


def test_call_from_another_service(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(150, 90).save(tmp_path / "page.png")
    app = runpy.run_path(str(EXAMPLES / "from_fastapi.py"))["app"]

    @asynccontextmanager
    async def asking(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
        monkeypatch.setenv("IGN_BASE_URL", base_url)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://a") as asks,
        ):
            yield asks

    async def calls() -> None:
        async with asking(url) as caller:
            cleaned = await caller.post("/clean", content=(tmp_path / "page.png").read_bytes())
            assert (cleaned.status_code, cleaned.headers["Content-Type"]) == (200, "image/png")
            with Image.open(io.BytesIO(cleaned.content)) as image:
                assert (image.format, image.size) == ("PNG", (150, 90))
            refused = await caller.post("/clean", content=b"no picture")
            assert refused.status_code == 422
        async with asking("http://127.0.0.1:1") as caller:
            assert (await caller.post("/clean", content=b"x")).status_code == 503

    asyncio.run(calls())
