"""Draw the pictures of the README with a running service: `python examples/readme_pictures.py
[BASE_URL]`.

Writes drawn.png, an input of the examples, and real.webp into docs/images. In real.webp a pen draws
on the left and f answers on the right; then noise covers the drawing, and f answers again; at the
end noise alone becomes digits.
"""

import io
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ign_client import Client

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
SIDE = 256  # of each half of a frame, in pixels
FRAME_MS = 80
REST_MS = 900
Points = list[tuple[float, float]]
DIGITS: dict[str, Points] = {
    "3": [
        (60, 50),
        (110, 35),
        (145, 60),
        (130, 92),
        (95, 100),
        (140, 112),
        (150, 145),
        (110, 172),
        (60, 160),
    ],
    "5": [(140, 40), (80, 42), (74, 95), (115, 88), (146, 115), (138, 150), (100, 170), (62, 155)],
    "7": [(55, 45), (150, 45), (118, 100), (95, 168)],
}


def pen(points: Points, ink: int, paper: int, width: int = 17) -> Image.Image:
    """Draw a line like a pen tablet: 200×200 grey."""
    image = Image.new("L", (200, 200), paper)
    draw = ImageDraw.Draw(image)
    draw.line(points, fill=ink, width=width, joint="curve")
    for x, y in points:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)
    return image


def prefixes(points: Points, step: float = 14.0) -> Iterator[Points]:
    """The line after every ``step`` pixels of the pen's way."""
    done: Points = [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        pieces = max(1, round(float(np.hypot(x1 - x0, y1 - y0)) / step))
        for i in range(1, pieces + 1):
            done.append((x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces))
            yield list(done)


def noisy(image: Image.Image, sigma: float, seed: int) -> Image.Image:
    """Add noise; sigma is in the model's range −1…1, so it is 127.5 σ grey levels."""
    noise = np.random.default_rng(seed).normal(0, 127.5 * sigma, np.asarray(image).shape)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def frame(left: Image.Image, right: Image.Image) -> Image.Image:
    """Input and output side by side."""
    sheet = Image.new("L", (2 * SIDE + 8, SIDE), 90)
    for x, picture in ((0, left), (SIDE + 8, right)):
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, 0))
    return sheet


def real(client: Client, picture: Image.Image) -> Image.Image:
    """What f makes of a picture."""
    return client.project(picture, invert=False)[0].to_pil().convert("L")


def frames(client: Client) -> Iterator[tuple[Image.Image, int]]:
    """Every frame with the milliseconds that it stays."""
    for number, points in enumerate(DIGITS.values()):
        drawn = pen(points, 255, 0)
        for line in prefixes(points):
            picture = pen(line, 255, 0)
            yield frame(picture, real(client, picture)), FRAME_MS
        yield frame(drawn, real(client, drawn)), REST_MS
        small = drawn.resize((28, 28), Image.Resampling.LANCZOS)
        for sigma in np.linspace(0.1, 0.8, 8):
            picture = noisy(small, float(sigma), number)
            yield frame(picture, real(client, picture)), FRAME_MS
        yield frame(picture, real(client, picture)), REST_MS
    for seed in range(4):
        noise = noisy(Image.new("L", (28, 28), 127), 1.0, seed)
        image = client.generate(seed=seed)[0].to_pil().convert("L")
        yield frame(noise, image), REST_MS


def main(base_url: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    pen(DIGITS["3"], 25, 250).save(OUT / "drawn.png", optimize=True)
    with Client(base_url) as client:
        found = list(frames(client))
    # where it does not move: a whole digit
    start = next(i for i, (_, duration) in enumerate(found) if duration == REST_MS)
    images, durations = zip(*found[start:], *found[:start], strict=True)
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=list(durations),
        loop=0,
        quality=60,
    )
    (OUT / "real.webp").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
