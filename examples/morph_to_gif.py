"""Morph from picture to picture and back: `python examples/morph_to_gif.py MORPH.gif PICTURE…`; a number is a seed."""

import sys

from ign_client import Client


def main(target: str, places: list[str]) -> None:
    points = [int(place) if place.isdigit() else place for place in places]
    with Client() as client:
        client.latent_interpolate_as("gif", points, frames=12 * len(points), loop=True, fps=12).save(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
