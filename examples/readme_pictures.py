"""Draw the pictures of the README with a running service: `python examples/readme_pictures.py [BASE_URL]`.

Writes a drawn and a noisy digit (inputs of the examples) and `digits.png`, all into docs/images.
"""

import io
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
SCALE = 2
STROKES = {
    "3": [(60, 50), (110, 35), (145, 60), (130, 92), (95, 100), (140, 112), (150, 145), (110, 172), (60, 160)],
    "5": [(140, 40), (80, 42), (74, 95), (115, 88), (146, 115), (138, 150), (100, 170), (62, 155)],
    "7": [(55, 45), (150, 45), (118, 100), (95, 168)],
    "4": [(115, 35), (58, 118), (152, 118), (122, 118), (122, 60), (122, 172)],
}


def draw(points: list[tuple[int, int]], width: int = 17) -> Image.Image:
    """Draw a digit like a pen tablet: 200×200 grey, dark on light."""
    image = Image.new("L", (200, 200), 250)
    pen = ImageDraw.Draw(image)
    pen.line(points, fill=25, width=width, joint="curve")
    for x, y in points:
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=25)
    return image


def png(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def ask(client: httpx.Client, path: str, **request: Any) -> Image.Image:
    """Request one picture from the service."""
    response = client.post(path, headers={"Accept": "image/png"}, **request)
    response.raise_for_status()
    return Image.open(io.BytesIO(response.content)).convert("L")


def noisy(image: Image.Image, sigma: float, seed: int) -> Image.Image:
    """Add noise; sigma is in the model's range −1…1, so it is 127.5 σ grey levels."""
    noise = np.random.default_rng(seed).normal(0, 127.5 * sigma, np.asarray(image).shape)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def column(pictures: list[Image.Image]) -> Image.Image:
    """Combine pictures as cells of 28×28 in one column."""
    sheet = Image.new("L", (28, 28 * len(pictures)))
    for i, picture in enumerate(pictures):
        sheet.paste(
            picture.resize((28, 28), Image.Resampling.LANCZOS) if picture.size != (28, 28) else picture, (0, 28 * i)
        )
    return sheet


def main(base_url: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    drawn = {name: draw(points) for name, points in STROKES.items()}
    (OUT / "drawn.png").write_bytes(png(drawn["3"]))
    with httpx.Client(base_url=base_url) as client:
        generated = ask(client, "/generate", json={"seed": 7, "n": 36})
        digits = [generated.crop((28 * i, 0, 28 * i + 28, 28)) for i in range(4)]
        noise = [noisy(digit, 0.8, i) for i, digit in enumerate(digits)]
        (OUT / "noisy.png").write_bytes(png(noise[0]))
        inputs = [drawn[name] for name in STROKES] + noise[:2]
        real = [ask(client, "/project", files={"image": png(picture)}) for picture in inputs]
        walk = ask(client, "/latent-interpolate", json={"points": [{"seed": 1}, {"seed": 2}], "frames": 15})
    gap = 14
    sheet = Image.new("L", (168 + gap + 56 + gap + 168, 168 + gap + 28), 255)
    sheet.paste(generated, (0, 0))
    sheet.paste(column(inputs), (168 + gap, 0))
    sheet.paste(column(real), (168 + gap + 28, 0))
    more = Image.new("L", (168, 168), 255)
    with httpx.Client(base_url=base_url) as client:
        body = {"points": [{"seed": s} for s in (11, 12, 13, 14)], "grid": {"rows": 6, "cols": 6}}
        more.paste(ask(client, "/latent-interpolate", json=body), (0, 0))
    sheet.paste(more, (168 + 2 * gap + 56, 0))
    sheet.paste(walk, (0, 168 + gap))
    large = sheet.resize((sheet.width * SCALE, sheet.height * SCALE), Image.Resampling.NEAREST)
    (OUT / "digits.png").write_bytes(png(large))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
