"""The page without a server: `ign site`, served as files, beside the service with the same
models.
"""

import base64
import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ign.site import _XZ as PACKING
from ign.site import site as command
from model_export import cli
from service.artifact.card import Tiles
from service.domain.latents import NoiseSource
from tests.contract.data import Pixels, b64, frames, pixels
from tests.contract.harness import Service, serving, settings
from tests.docs.test_site import build_site
from tests.helpers.foreign import Network
from tests.helpers.live import MODELS, SHIPPED
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, opened, save
from tests.slow.browser.test_access import FAILED, used
from tests.slow.browser.visit import SEVEN, Browser, Visit, visiting

MOST_BYTES = 28_000_000  # of all that a visit loads
MOST_BYTES_BEFORE_A_DIGIT = 5_000_000
CALL = """async ([path, request]) => {
  const { callJson } = await import("./page/api.js");
  const { image, mask, ...options } = request;
  const file = async (data) => (await fetch(`data:image/png;base64,${data}`)).blob();
  const form = new FormData();
  for (const [name, value] of Object.entries({ image, mask })) if (value) form.append(name, await file(value));
  for (const [name, value] of Object.entries(options)) form.append(name, value);
  return callJson(path, image ? { form } : { json: options });
}"""
WALK = """async (json) => {
  const { callApi } = await import("./page/api.js");
  const bytes = new Uint8Array(await (await callApi("latent-interpolate", { json })).arrayBuffer());
  return Array.from(bytes);
}"""
LATENTS = """async () => {
  const { latent } = await import("./page/latents.js");
  const bytes = (seed) => new Uint8Array(latent(seed, seed % 5, 12_288).buffer);
  return Array.from({ length: 100 }, (_, i) => bytes(i < 50 ? i : (i * 2654435761) % 2 ** 32).toBase64());
}"""


class Host:
    """A folder behind a plain web server that counts what it sends."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[tuple[str, int]] = []
        host = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def send_header(self, keyword: str, value: str) -> None:
                # a file that the browser has is answered without one
                if keyword == "Content-Length":
                    host.sent.append((self.path.partition("?")[0], int(value)))
                super().send_header(keyword, value)

            def end_headers(self) -> None:
                super().send_header("Access-Control-Allow-Origin", "*")  # as GitHub Pages sends it
                super().end_headers()

            def log_request(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def hosting(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    try:
        yield host
    finally:
        host.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site") / "out")


def build(out: Path, models: Path = MODELS, default: str = "mnist") -> Path:
    """The site of these models, packed quickly unless they are those that ship."""
    with pytest.MonkeyPatch.context() as patch:
        if models != MODELS:
            patch.setitem(PACKING, "preset", 0)
        done = CliRunner().invoke(
            command, [str(out), "--models", str(models), "--default-model", default]
        )
    if "npm pack" in done.output:
        pytest.skip(f"the npm registry cannot be had, so the site was not tried: {done.output}")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Host]:
    with hosting(folder) as running:
        yield running


@pytest.fixture
def visit(browser: Browser, host: Host) -> Iterator[Visit]:
    with visiting(browser, host.url, reduced_motion="reduce") as opened:
        opened.settled()
        yield opened


def share_within_a_level(a: Pixels, b: Pixels) -> float:
    assert a.shape == b.shape
    return float((np.abs(a.astype(int) - b.astype(int)) <= 1).mean())


def test_a_stroke_gives_the_picture_of_the_service(
    browser: Browser, folder: Path, service: Service
) -> None:
    pictures = []
    with hosting(folder) as host:
        for url in (host.url, service.url):
            with visiting(browser, url, reduced_motion="reduce") as visit:
                visit.one("#tiles img").first.wait_for()
                if url == host.url:
                    first = [
                        size
                        for path, size in host.sent
                        if "avatars" not in path and "fashion" not in path
                    ]
                    assert sum(first) <= MOST_BYTES_BEFORE_A_DIGIT
                visit.empty()
                visit.draw(SEVEN)
                visit.settled()
                pictures.append(
                    [
                        visit.picture(selector)
                        for selector in ("#seen", "#made", "#tiles img >> nth=3")
                    ]
                )
                visit.one("#served img").nth(2).wait_for(state="attached")  # all models are loaded
        assert sum(size for _, size in host.sent) <= MOST_BYTES
        # Nothing is loaded twice, but a picture that the browser stopped loading.
        paths = [path for path, _ in host.sent if not path.endswith(".webp")]
        assert sorted(paths) == sorted({*paths})
    for local, remote in zip(*pictures, strict=True):
        assert share_within_a_level(local, remote) >= 0.999
    assert (pictures[0][0] == pictures[1][0]).all()


def test_a_drawing_goes_from_the_service_to_this_browser_and_back(
    browser: Browser, folder: Path
) -> None:
    with (
        serving(settings(MODELS, default_model="mnist", site=folder)) as both,
        visiting(browser, both.url, reduced_motion="reduce") as visit,
    ):
        visit.empty()
        visit.draw(SEVEN)
        for name, path in (("Run in this browser", "/site/"), ("Run on the service", "/")):
            visit.settled()
            visit.page.wait_for_function("() => location.hash.includes('d=')")
            drawn = visit.canvas().astype(int)
            visit.page.get_by_role("link", name=name).click()
            visit.page.wait_for_url(re.compile(rf"//[^/]*{path}#"))
            visit.ready()
            assert abs(visit.canvas() - drawn).mean() < 4  # points are rounded
        visit.settled()


def test_the_documentation_shows_the_page(browser: Browser, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, build_site(tmp_path / "docs") / "try")  # as `make site`
    with hosting(tmp_path / "docs") as host, visiting(browser, f"{host.url}/try.html#") as visit:
        visit.page.frame_locator("iframe").locator("#made:visible").wait_for()


def test_latents_are_those_of_python(visit: Visit) -> None:
    source = NoiseSource((1, 1, 12_288))
    for i, data in enumerate(visit.page.evaluate(LATENTS)):
        seed = i if i < 50 else i * 2654435761 % 2**32
        assert data == b64(source.rows(seed, seed % 5, 1).tobytes()), seed


def compare(
    images: list[dict[str, Any]], expected: list[dict[str, Any]], share: float = 0.999
) -> None:
    for ours, theirs in zip(images, expected, strict=True):
        shown = [pixels(base64.b64decode(image["data"]), "RGB") for image in (ours, theirs)]
        assert share_within_a_level(*shown) >= share
        for name in {"index", "step", "distance", "drift", "change"} & ours.keys() & theirs.keys():
            assert ours[name] == (
                theirs[name] and pytest.approx(theirs[name], rel=0.01, abs=1e-4)
            ), name


@pytest.mark.parametrize("margin", [0, 13])
def test_images_of_any_size_are_those_of_the_service(
    browser: Browser, tmp_path: Path, margin: int
) -> None:
    models = tmp_path / "models"
    if margin:
        tiles = Tiles(overlap=2, margin=margin)
        write_model(models, "any", shape=(3, 64, 64), polarity="none", imported=True, tiles=tiles)
    else:
        network = Network(["n", 1, "h", "w"]).conv(1, 8).add("Relu").conv(8, 1, gain=0.3)
        words = ["--residual", "--range", "0,1", "--tile", "64", "--color", "luma", "--name", "any"]
        assert (
            cli.main(
                ["import", str(network.write(tmp_path / "net")), *words, "--models", str(models)]
            )
            == 0
        )
    folder = build(tmp_path / "out", models, "any")
    mask = np.full((200, 300), 255, np.uint8)
    mask[:, :90] = 0
    with (
        hosting(folder) as host,
        serving(settings(models, default_model="any")) as service,
        visiting(browser, host.url, reduced_motion="reduce") as visit,
    ):
        options: dict[str, Any] = {"model": "any/1", "steps": 2, "invert": False, "score": True}
        for size, masks in (
            ((200, 300, 3), {"mask": b64(save(mask))}),
            ((200, 300), {}),
            ((20, 9, 3), {}),
        ):
            image = b64(save(noise(*size)))
            (made,) = visit.page.evaluate(CALL, ["project", {"image": image, **masks, **options}])[
                "images"
            ]
            compare(
                [made],
                service.images("/project", {"images": [image], **masks, **options}),
            )
        visit.opens(save(noise(70, 99, 3)))
        assert visit.picture("#made", "RGB").shape == (70, 99, 3)
        # levels between its colours
        assert margin or np.ptp(visit.picture("#made", "RGB"), axis=2).mean() > 50


def test_several_workers_make_the_bytes_of_one(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    request = {"model": "scans", "image": b64(save(noise(40, 3000)))}
    made = []
    for most in (1, 3):
        pool = shutil.copytree(folder, tmp_path / str(most)) / "page/pool.js"
        pool.write_text(re.sub("const MOST =.*", f"const MOST = {most};", pool.read_text()))
        with hosting(pool.parents[1]) as host, visiting(browser, host.url) as visit:
            made += visit.page.evaluate(CALL, ["project", request])["images"]
            assert len(visit.page.workers) == 1 + most
    assert made[0] == made[1]


@pytest.mark.parametrize(("loop", "scale"), [(True, 1), (False, 3)])
def test_a_walk_is_an_animation_of_the_same_frames(
    visit: Visit, service: Service, loop: bool, scale: int
) -> None:
    points = [{"seed": 7, "index": 2}, {"seed": 7, "index": 9}]
    request = {
        "model": SHIPPED["mnist"],
        "points": points,
        "frames": 5,
        "loop": loop,
        "fps": 12,
        "scale": scale,
    }
    remote = service.post("/latent-interpolate", request, accept="image/apng").content
    local = bytes(visit.page.evaluate(WALK, request))
    assert opened(local).info["loop"] == 0
    shown = frames(local)
    assert len(shown) == 5
    for ours, theirs in zip(shown, frames(remote), strict=True):
        assert share_within_a_level(ours, theirs) >= 0.999


def test_the_second_visit_needs_no_server(browser: Browser, folder: Path) -> None:
    with hosting(folder) as host, visiting(browser, host.url, reduced_motion="reduce") as visit:
        visit.expected += [FAILED]
        visit.one("#tiles img").first.wait_for()
        visit.page.evaluate("async () => { await navigator.serviceWorker.ready; }")
        host.stop()
        visit.page.goto(f"{host.url}/?from=a-link#m={SHIPPED['mnist']}")
        visit.empty()
        visit.draw()
        visit.settled()
        visit.says("generate", "16 pictures of number 7")


@pytest.mark.parametrize("damage", ["cut", "no memory"])
def test_a_model_that_cannot_run_is_said_and_the_others_go_on(
    browser: Browser, folder: Path, tmp_path: Path, damage: str
) -> None:
    broken = shutil.copytree(folder, tmp_path / "out")
    (file,) = (broken / "models" / "fashion_mnist").glob("*/model.onnx.xz")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100_000])
    else:
        runner = broken / "page" / "runner.js"
        create = "return InferenceSession.create("
        fail = 'throw new RangeError("Array buffer allocation failed");'
        text = runner.read_text()
        runner.write_text(
            text.replace(create, f'if (card.name === "fashion_mnist") {fail} {create}')
        )
    with hosting(broken) as host, visiting(browser, host.url, reduced_motion="reduce") as visit:
        visit.expected += [FAILED, "integrity"]
        visit.empty()
        visit.choose("Clothes")
        visit.toast("The model Clothes cannot run here")
        visit.choose("Digits")
        visit.draw()
        visit.settled()


def test_a_browser_that_cannot_run_models_says_so(browser: Browser, host: Host) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("WebAssembly.validate = () => false")
    page.goto(f"{host.url}/#m={SHIPPED['mnist']}")
    visit = Visit(page, host.url)
    visit.ready()
    visit.toast("This browser cannot run the models")
    visit.draw()  # and the canvas works
    assert np.ptp(visit.canvas()) > 50
    context.close()


@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (820, 1180, "light")])
def test_axe_finds_nothing(
    browser: Browser, host: Host, width: int, height: int, scheme: str
) -> None:
    with visiting(
        browser,
        host.url,
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
    ) as visit:
        used(visit)
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert visit.one(".at-service:visible, .curl:visible, .elsewhere:visible").count() == 0
        visit.accessible()
