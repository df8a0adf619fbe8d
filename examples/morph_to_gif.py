"""Animate a morph between pictures: `python examples/morph_to_gif.py MORPH.gif PICTURE…`; a number
is a seed.
"""

import sys

from ign_client import Client


def main(target: str, inputs: list[str]) -> None:
    points = [int(text) if text.isdigit() else text for text in inputs]
    with Client() as client:
        morph = client.latent_interpolate_as(
            "gif", points, frames=12 * len(points), loop=True, fps=12, scale=4
        )
    morph.save(target)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
