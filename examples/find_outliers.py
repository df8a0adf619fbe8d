"""Pictures the model does not know: `python examples/find_outliers.py FOLDER`, the oddest first."""

import sys
from pathlib import Path

from ign_client import Client

AT_ONCE = 16


def main(folder: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    with Client() as client:
        found = []
        for i in range(0, len(paths), AT_ONCE):
            some = paths[i : i + AT_ONCE]
            found += [(score, path.name) for score, path in zip(client.score(some), some, strict=True)]
    outliers = [(score.distance, name) for score, name in found if not score.in_distribution]
    for distance, name in sorted(outliers, reverse=True):
        print(f"{distance:.3f} {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
