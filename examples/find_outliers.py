"""List pictures outside the model's distribution, largest distance first: `python
examples/find_outliers.py FOLDER`.
"""

import sys
from pathlib import Path

from ign_client import Client, InvalidContent


def main(folder: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    with Client() as client:
        scores = []
        for path in paths:
            try:
                (score,) = client.score(path)
            except InvalidContent as error:
                print(f"{path.name}: {error.detail}", file=sys.stderr)
                continue
            scores.append((score, path.name))
    outliers = [(score.distance, name) for score, name in scores if not score.in_distribution]
    for distance, name in sorted(outliers, reverse=True):
        print(f"{distance:.3f} {name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
