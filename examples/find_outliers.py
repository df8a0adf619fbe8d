"""List pictures outside the model's distribution, largest distance first: `python examples/find_outliers.py FOLDER`."""

import sys
from pathlib import Path

from ign_client import Client

PER_REQUEST = 16


def main(folder: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    with Client() as client:
        scores = []
        for i in range(0, len(paths), PER_REQUEST):
            batch = paths[i : i + PER_REQUEST]
            scores += [(score, path.name) for score, path in zip(client.score(batch), batch, strict=True)]
    outliers = [(score.distance, name) for score, name in scores if not score.in_distribution]
    for distance, name in sorted(outliers, reverse=True):
        print(f"{distance:.3f} {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
