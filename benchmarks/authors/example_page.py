"""Draw the example of the page “Make it real”: `python -m benchmarks.authors.example_page`.

Writes a photograph of a receipt, which nobody took, and what the model `scans` makes of it into
service/page, and both side by side into docs/images.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ign.local import local_client

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "service" / "page"
WIDTH: Final = 760
HEIGHT: Final = 880
MARGIN: Final = 60
SEED: Final = 0
ITEMS: Final = {
    "2 x flat white": "7.20",
    "1 x pot of green tea": "3.40",
    "1 x tomato soup, bread": "6.80",
    "3 x almond croissant": "9.60",
    "1 x apple juice, large": "3.10",
}
THANKS: Final = """\
Thank you for coming in. Keep this slip: with ten of them the
next coffee is on us. Today’s soup is made from tomatoes of the
garden behind the house; ask for the recipe. We roast on Mondays,
so the shop smells best then. Found an umbrella? It waits for its
owner under the stairs, beside two scarves and a single glove."""
SMALL_PRINT: Final = """\
Prices include value added tax of 7 per cent: 1.97. Receipt no. 004 817, table 6.
Questions? Write to us, or come by; we read everything, also the small print."""

Plane = NDArray[np.float64]  # (HEIGHT, WIDTH)
Y, X = np.indices((HEIGHT, WIDTH)).astype(float)


def print_receipt() -> Plane:
    """The print: 0 is black, 1 is paper."""
    fine = 2
    image = Image.new("L", (WIDTH * fine, HEIGHT * fine), 255)
    draw = ImageDraw.Draw(image)
    right = WIDTH - MARGIN

    def write(x: int, y: int, text: str, size: int, anchor: str = "la", spacing: int = 0) -> None:
        font = ImageFont.load_default(size * fine)
        place = (x * fine, y * fine)
        draw.text(place, text, font=font, fill=25, anchor=anchor, spacing=spacing * fine)

    write(MARGIN, 54, "Mill Lane Bakery", 40)
    write(MARGIN, 104, "12 Mill Lane, open from 7 to 6", 17)
    for i, (item, price) in enumerate(ITEMS.items()):
        write(MARGIN, 160 + 38 * i, item, 23)
        write(right, 160 + 38 * i, price, 23, "ra")
    draw.line((MARGIN * fine, 356 * fine, right * fine, 356 * fine), fill=30, width=3)
    write(MARGIN, 372, "Total", 30)
    write(right, 372, "30.10", 30, "ra")
    write(MARGIN, 434, THANKS, 20, spacing=9)
    write(MARGIN, 602, SMALL_PRINT, 15, spacing=8)
    bars = np.random.default_rng(4).integers((1, 2), (5, 6), (48, 2))
    for width, after in zip(bars[:, 0], bars.sum(axis=1).cumsum(), strict=True):
        x = MARGIN + int(after)
        draw.rectangle((x * fine, 676 * fine, (x + width) * fine, 742 * fine), fill=20)
    reduced = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return np.asarray(reduced, np.float64) / 255


def creases(rng: np.random.Generator) -> Plane:
    """The light on the facets of a crumpled sheet, with mean 0 and deviation 1 before a blur."""
    height = np.zeros((HEIGHT, WIDTH))
    for _ in range(26):
        angle = rng.uniform(0, np.pi)
        across = (X - rng.uniform(0, WIDTH)) * np.cos(angle)
        across += (Y - rng.uniform(0, HEIGHT)) * np.sin(angle)
        height += rng.uniform(0.25, 1) * rng.choice([-1, 1]) * np.abs(across)
    down, right = np.gradient(height)
    light = 0.8 * right + 0.6 * down
    light = np.clip((light - light.mean()) / light.std(), -3, 3)
    grey = Image.fromarray((42 * (light + 3)).astype(np.uint8))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(1.6)), np.float64) / 42 - 3


def photograph(seed: int = SEED) -> Image.Image:
    """The receipt on crumpled paper, with the shadow of a hand and the ring of a cup."""
    rng = np.random.default_rng(seed)
    u = X / WIDTH
    v = Y / HEIGHT
    light = 0.97 - 0.36 * np.clip(0.75 * u + 0.6 * v - 0.45, 0, 1) - 0.1 * np.clip(0.3 - u, 0, 1)
    light *= 1 - 0.3 / (1 + np.exp(-38 * (u - 0.62 + 0.55 * (v - 0.42))))
    light *= 1 + 0.06 * creases(rng)
    radius = np.hypot(X - 560, Y - 560)
    turn = np.arctan2(Y - 560, X - 560)
    ring = np.exp(-(((radius - 118) / 7) ** 2)) * (0.55 + 0.45 * np.sin(2 * turn + 1) ** 2)
    coffee = 0.55 * (ring + 0.22 * (radius < 116))[..., None] * (0.30, 0.42, 0.62)
    picture = light[..., None] * (0.98, 0.93, 0.82) * (1 - coffee)
    picture *= 0.12 + 0.88 * print_receipt()[..., None]
    picture += rng.normal(0, 0.012, (HEIGHT, WIDTH, 1))
    levels = (255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return Image.fromarray(levels).filter(ImageFilter.GaussianBlur(0.5))


def main() -> None:
    photo = PAGE / "example_page.webp"
    photograph().save(photo, quality=62, method=6)
    with local_client("scans") as client:
        (made,) = client.project([photo.read_bytes()], model="scans", format="png")
    cleaned = Image.open(io.BytesIO(made.bytes))
    cleaned.save(PAGE / "example_page_made.webp", quality=34, method=6)
    gap = 16
    both = Image.new("RGB", (2 * WIDTH + gap, HEIGHT), "white")
    both.paste(Image.open(photo), (0, 0))
    both.paste(cleaned.convert("RGB"), (WIDTH + gap, 0))
    draw = ImageDraw.Draw(both)
    draw.rectangle((WIDTH + gap, 0, 2 * WIDTH + gap - 1, HEIGHT - 1), outline="#cccccc")
    both.save(ROOT / "docs" / "images" / "cleaned.webp", quality=70, method=6)


if __name__ == "__main__":
    main()
