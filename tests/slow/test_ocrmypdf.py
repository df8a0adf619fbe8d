"""Debian's ocrmypdf with the plugin of `examples`: it reads what the service returns, and keeps the
page.
"""

import base64
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.helpers.live import ROOT, environment

TIMING = ("decode_ms", "queue_ms", "compute_ms", "encode_ms")
CLIENT_NEEDS = (
    "httpx",
    "httpcore",
    "h11",
    "anyio",
    "certifi",
    "idna",
    "sniffio",
    "typing_extensions",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ocrmypdf"), reason="needs Debian's ocrmypdf"),
    pytest.mark.skipif(not shutil.which("tesseract"), reason="needs Debian's tesseract-ocr"),
]


def page(text: str, level: int, *, noise: int = 0) -> Image.Image:
    image = Image.new("L", (1240, 400), 255)
    ImageDraw.Draw(image).text((80, 150), text, fill=level, font=ImageFont.load_default(72))
    dark = np.random.default_rng(0).integers(0, noise + 1, (400, 1240))
    return Image.fromarray(np.maximum(np.asarray(image) - dark, level).astype(np.uint8))


class FakeService(BaseHTTPRequestHandler):
    """Answers every upload with another text of the same size, so that the source of a text is
    known.
    """

    uploads: list[bytes]
    text: str

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).uploads.append(body)
        content = io.BytesIO()
        sent = Image.open(io.BytesIO(body[body.index(b"\x89PNG") :]))
        page(type(self).text, 0).resize(sent.size).save(content, "PNG")
        image = {
            "index": 0,
            "format": "png",
            "data": base64.b64encode(content.getvalue()).decode(),
            "distance": 0.1,
        }
        image |= {"steps": 1, "converged": False, "trajectory": None, "inverted": False}
        image |= {"width": sent.width, "height": sent.height}
        model = {"name": "scans", "version": "1", "digest": "0" * 64}
        answer = {
            "images": [image],
            "model": model,
            "request_id": "r",
            "timing": dict.fromkeys(TIMING, 1.0),
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    FakeService.uploads = []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeService) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def client_packages(folder: Path) -> Path:
    """What the client needs, for the Python of Debian; the environment of the tests holds files of
    another version.
    """
    for name in CLIENT_NEEDS:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            source = Path(spec.origin)
            source = source.parent if source.name == "__init__.py" else source
            (folder / source.name).symlink_to(source)
    (folder / "ign_client").symlink_to(ROOT / "sdk" / "ign_client")
    return folder


@pytest.mark.parametrize(
    ("scan_text", "cleaned_text", "dpi", "factor", "noise", "read"),
    [
        ("Dirty scan", "Cleaned page", 300, 1, 130, "Cleaned page"),
        ("Dirty scan", "Cleaned page", 150, 2, 130, "Cleaned page"),
        ("Dirty scan", "Cleaned page", 600, 0.5, 130, "Cleaned page"),
        ("Clear words of a good scan", "Lost", 300, 1, 0, "Clear words of a good scan"),
    ],
)
def test_only_the_picture_for_ocr_is_cleaned_and_only_where_it_reads_better(
    url: str,
    tmp_path: Path,
    scan_text: str,
    cleaned_text: str,
    dpi: int,
    factor: float,
    noise: int,
    read: str,
) -> None:
    FakeService.text = cleaned_text
    packages = tmp_path / "packages"
    packages.mkdir()
    scan = tmp_path / "scan.png"
    text = tmp_path / "text.txt"
    pdf = tmp_path / "out.pdf"
    page(scan_text, 120, noise=noise).save(scan, dpi=(dpi, dpi))
    plugin = str(ROOT / "examples" / "ocrmypdf_ign.py")
    command = [
        "ocrmypdf",
        "--plugin",
        plugin,
        "--output-type",
        "pdf",
        "-O0",
        "-j1",
        "--image-dpi",
        str(dpi),
    ]
    done = subprocess.run(
        [*command, "--sidecar", text, scan, pdf],
        env=environment(IGN_BASE_URL=url, NO_PROXY="*", PYTHONPATH=str(client_packages(packages))),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert text.read_text().strip() == read
    (upload,) = FakeService.uploads
    sent = Image.open(io.BytesIO(upload[upload.index(b"\x89PNG") :]))
    assert sent.size == (round(1240 * factor), round(400 * factor))
    assert np.asarray(sent).min() >= 100  # the scan, which is not black
    assert _darkest(pdf) >= 100  # the page that people see


def _darkest(pdf: Path) -> int:
    """The darkest level of the page as Ghostscript, which ocrmypdf needs, draws it."""
    picture = pdf.with_suffix(".png")
    subprocess.run(
        ["gs", "-q", "-sDEVICE=pnggray", "-r150", "-o", picture, pdf],
        capture_output=True,
        check=True,
    )
    return int(np.asarray(Image.open(picture)).min())
